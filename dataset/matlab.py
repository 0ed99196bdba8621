"""Numbers from MATLAB's files of version 5 to 7 (`.mat`). SciPy's reader, given a damaged one, can end the process.

A file is a header of 128 bytes and a series of elements, each with its type and size before it; an element is a variable, or a
compressed one. A variable consists of elements again: flags, shape, name and values.
"""

import os
import struct
import zlib
from collections.abc import Iterator

import numpy as np

HEADER = 128
# Types of elements.
MATRIX, COMPRESSED = 14, 15
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
# Classes of variables whose values are numbers, as opposed to cells, structures, texts and sparse matrices.
NUMERIC_CLASSES = range(6, 16)
MOST_BYTES = 2**30  # of a compressed variable


def read_variable(path: str | os.PathLike[str], name: str) -> np.ndarray:
    """The numbers of a variable, in its shape.

    Raises:
        KeyError: there is no such variable.
        ValueError: no such file, or a damaged one; or the variable holds no real numbers.
    """
    with open(path, "rb") as file:
        content = file.read()
    if len(content) < HEADER or content[126:128] not in (b"IM", b"MI"):
        raise ValueError("not a MATLAB file of version 5 to 7")
    order = "<" if content[126:128] == b"IM" else ">"
    for kind, element in _elements(content[HEADER:], order):
        if kind == COMPRESSED:
            kind, element = next(_elements(_unpacked(element), order), (0, b""))
        if kind == MATRIX:
            flags, shape, found, *values = _elements(element, order)
            if found[1].decode("latin-1") == name:
                return _array(flags[1], shape[1], values, order)
    raise KeyError(name)


def _elements(content: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """(type, bytes) of one element after the other."""
    at = 0
    while at + 8 <= len(content):
        kind, size = struct.unpack_from(f"{order}II", content, at)
        begin = at + 8
        if kind >> 16:  # up to four bytes stand within the tag
            kind, size, begin = kind & 0xFFFF, kind >> 16, at + 4
        if size > len(content) - begin or (begin == at + 4 and size > 4):
            raise ValueError("truncated or damaged")
        yield kind, content[begin : begin + size]
        at = begin + size if kind == COMPRESSED else -(-(begin + size) // 8) * 8


def _unpacked(element: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(element, MOST_BYTES)
    except zlib.error as error:
        raise ValueError(f"damaged ({error})") from error


def _array(flags: bytes, shape: bytes, values: list[tuple[int, bytes]], order: str) -> np.ndarray:
    kind = struct.unpack_from(f"{order}I", flags)[0] & 0xFF if len(flags) >= 4 else 0
    if kind not in NUMERIC_CLASSES or len(values) != 1 or values[0][0] not in NUMBERS:
        raise ValueError("it holds no real numbers")
    numbers = np.frombuffer(values[0][1], order + NUMBERS[values[0][0]])
    return numbers.reshape(np.frombuffer(shape, f"{order}i4").tolist(), order="F")
