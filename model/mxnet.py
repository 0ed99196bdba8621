"""MXNet's NDArray list files (`.params`), read and written without MXNet.

Little endian, without padding: uint64 0x112, uint64 0, uint64 n; n arrays (magic number, shape, device, type, values); uint64
number of names, and each name with its uint64 length before it. Newer arrays begin with a magic number of their version, the
oldest with their number of dimensions.
"""

import math
import os
import struct
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from utils.files import write_bytes

from .errors import WeightsError

LIST_MAGIC = 0x112
V1, V2, V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
TYPES = {0: np.float32, 1: np.float64, 2: np.float16, 3: np.uint8, 4: np.int32, 5: np.int8, 6: np.int64}
MOST_DIMENSIONS = 32


class ParamsError(WeightsError):
    """A file that is no readable `.params`, or cannot be written as one; the message names it."""


def is_params(path: str | os.PathLike) -> bool:
    """True if the file begins as a `.params` file does."""
    with open(path, "rb") as file:
        return file.read(8) == struct.pack("<Q", LIST_MAGIC)


def read_params(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read {name: array}. Every size is checked against what is left of the file before anything is made of it.

    Raises:
        ParamsError: truncated, damaged, not such a file, or with sparse arrays.
    """
    with open(path, "rb") as file:
        reader = _Reader(file.read(), path)
    if reader.take("<Q") != LIST_MAGIC or reader.take("<Q") != 0:
        raise ParamsError(f"{path}: not an MXNet .params file")
    count = reader.count(4, "arrays")
    arrays = [_read_array(reader) for _ in range(count)]
    names = reader.count(8, "names")
    if names not in (0, count):
        raise ParamsError(f"{path}: {names} names for {count} arrays")
    keys = [reader.text() for _ in range(names)] or [str(i) for i in range(count)]
    if reader.left():
        raise ParamsError(f"{path}: {reader.left()} bytes too many at the end")
    if len(set(keys)) != len(keys):
        raise ParamsError(f"{path}: holds a name twice")
    return dict(zip(keys, arrays, strict=True))


def write_params(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Write {name: array} in the usual (V2) layout, atomically.

    Raises:
        ParamsError: an array of a type that the format lacks.
    """
    codes = {np.dtype(kind): code for code, kind in TYPES.items()}
    parts = [struct.pack("<QQQ", LIST_MAGIC, 0, len(arrays))]
    for name, array in arrays.items():
        array = np.asarray(array)
        if array.dtype not in codes or array.ndim == 0:
            raise ParamsError(f"{path}: {name} ({array.dtype}, {array.ndim} dimensions) cannot be written to a .params file")
        parts.append(struct.pack("<IiI", V2, 0, array.ndim) + struct.pack(f"<{array.ndim}q", *array.shape))
        parts.append(struct.pack("<iii", 1, 0, codes[array.dtype]) + np.ascontiguousarray(array).tobytes())
    parts.append(struct.pack("<Q", len(arrays)))
    for name in arrays:
        encoded = name.encode()
        parts.append(struct.pack("<Q", len(encoded)) + encoded)
    write_bytes(path, b"".join(parts))


class _Reader:
    """Takes values from the front of some bytes, never more than there are."""

    def __init__(self, data: bytes, path: str | os.PathLike) -> None:
        self.data, self.path, self.at = memoryview(data), path, 0

    def left(self) -> int:
        return len(self.data) - self.at

    def bytes(self, size: int) -> memoryview:
        if size > self.left():
            raise ParamsError(f"{self.path}: truncated or damaged ({size} bytes expected at {self.at}, {self.left()} left)")
        self.at += size
        return self.data[self.at - size : self.at]

    def take(self, kind: str) -> Any:
        values = struct.unpack(kind, self.bytes(struct.calcsize(kind)))
        return values[0] if len(values) == 1 else values

    def count(self, least_bytes: int, what: str) -> int:
        """A number of things of which each takes at least `least_bytes`."""
        number = self.take("<Q")
        if number * least_bytes > self.left():
            raise ParamsError(f"{self.path}: damaged ({number} {what} cannot fit into {self.left()} bytes)")
        return number

    def text(self) -> str:
        try:
            return bytes(self.bytes(self.take("<Q"))).decode()
        except UnicodeDecodeError as error:
            raise ParamsError(f"{self.path}: damaged (a name that is no text)") from error


def _read_array(reader: _Reader) -> np.ndarray:
    magic = reader.take("<I")
    if magic in (V2, V3) and reader.take("<i") != 0:
        raise ParamsError(f"{reader.path}: holds a sparse array, which no checkpoint of CBST does")
    if magic == V3:
        dimensions = reader.take("<i")
        if dimensions < -1:
            raise ParamsError(f"{reader.path}: damaged ({dimensions} dimensions)")
        known = dimensions >= 0
    else:
        dimensions = reader.take("<I") if magic in (V1, V2) else magic
        known = dimensions > 0  # without dimensions an array is empty and its record ends here
    if dimensions > MOST_DIMENSIONS:
        raise ParamsError(f"{reader.path}: damaged ({dimensions} dimensions)")
    if not known:
        return np.zeros(0, np.float32)
    kind = "q" if magic in (V1, V2, V3) else "I"
    shape = struct.unpack(f"<{dimensions}{kind}", reader.bytes(dimensions * struct.calcsize(f"<{kind}")))
    _, _, code = reader.take("<iii")
    if code not in TYPES or min(shape, default=0) < 0:
        raise ParamsError(f"{reader.path}: damaged (type {code}, shape {shape})")
    dtype = np.dtype(TYPES[code]).newbyteorder("<")
    data = reader.bytes(math.prod(shape) * dtype.itemsize)
    # An empty array takes no bytes whatever its other sides claim to be; numpy refuses those that overflow its own counter.
    if math.prod(max(side, 1) for side in shape) * dtype.itemsize > sys.maxsize:
        raise ParamsError(f"{reader.path}: damaged (shape {shape})")
    return np.frombuffer(data, dtype).reshape(shape).astype(TYPES[code])
