"""PaddlePaddle's weight files (`.pdparams`), read and written without Paddle.

A file is a pickle of {key: NumPy array}. Python's own unpickler calls whatever a file names; the reader here is a stack machine
for the few instructions that such files consist of. It knows four names, does the harmless part of each itself, and refuses all
others. An array's size is checked against the bytes that the file has for it before anything is made of it.
"""

import math
import os
import pickletools
import re
import struct
from collections.abc import Mapping
from enum import Enum
from typing import Any

import numpy as np

from utils.files import write_bytes

from .errors import WeightsError

# Early in PyTorch's old format, which is a series of pickles too.
TORCH_MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")
TYPES = {code: np.dtype(f"<{code}") for code in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1")}
MOST_DIMENSIONS = 32
# A network takes some 20,000. Each may cost a hundred bytes of memory, however small the file.
MOST_INSTRUCTIONS = 200_000

PARAMETER_NAMES = "StructuredToParameterName@@"
OPTIMIZER_KEY = re.compile(r"LR_Scheduler|master_weights|.*_(velocity|moment\d?|beta\d_pow_acc)_\d+")

VALUES = frozenset(
    "BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8".split()
)
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Name(Enum):
    """What a file may call."""

    RECONSTRUCT = "an array without contents"
    NDARRAY = "the class of arrays"
    DTYPE = "a type of numbers"
    ENCODE = "bytes from a text, as protocol 2 stores them"


NAMES = {
    ("numpy.core.multiarray", "_reconstruct"): Name.RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): Name.RECONSTRUCT,
    ("numpy", "ndarray"): Name.NDARRAY,
    ("numpy", "dtype"): Name.DTYPE,
    ("_codecs", "encode"): Name.ENCODE,
}


def is_pdparams(path: str | os.PathLike) -> bool:
    """True if the file begins as a pickle that PyTorch did not write."""
    with open(path, "rb") as file:
        start = file.read(64)
    return start.startswith(b"\x80") and TORCH_MAGIC not in start


def read_pdparams(path: str | os.PathLike, source: str | None = None) -> dict[str, np.ndarray]:
    """Read {key: array}; messages call the file `source` (default: its path).

    Nothing in the file is executed, and reading takes a small multiple of the file's size in memory.

    Raises:
        WeightsError: truncated, damaged, an optimizer's state, or a pickle of anything else.
    """
    source = source or str(path)
    with open(path, "rb") as file:
        data = file.read()
    try:
        contents = _Machine(data, source).run()
    except WeightsError:
        raise
    except (ValueError, LookupError, TypeError, ArithmeticError) as error:
        raise WeightsError(f"{source}: is a truncated or damaged pickle ({error})") from error
    if not isinstance(contents, dict):
        raise WeightsError(f"{source}: is a pickle of a {type(contents).__name__}, not of weights")
    contents.pop(PARAMETER_NAMES, None)
    optimizer = next((key for key in contents if isinstance(key, str) and OPTIMIZER_KEY.fullmatch(key)), None)
    if optimizer is not None:
        raise WeightsError(f"{source}: is the state of an optimizer, not weights (holds {optimizer!r})")
    arrays = {}
    for key, value in contents.items():
        if isinstance(key, str) and isinstance(value, _Array) and value.values is not None:
            arrays[key] = value.values
    if not arrays or len(arrays) < len(contents):
        shown = ", ".join(map(repr, list(contents)[:5])) or "nothing"
        raise WeightsError(f"{source}: is a pickle of other things than weights (found {shown}); expected names of arrays")
    return arrays


def write_pdparams(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Write {key: array} as `paddle.load` reads it with every version of NumPy (protocol 4), atomically.

    Raises:
        WeightsError: an array of a type that networks do not have.
    """
    parts = [b"\x80\x04}("]
    for key, array in arrays.items():
        if array.dtype.str[1:] not in TYPES:
            raise WeightsError(f"{path}: {key} ({array.dtype}) cannot be written to a .pdparams file")
        parts += [_text(key), _pickled(array)]
    write_bytes(path, b"".join([*parts, b"u."]))


def _pickled(array: np.ndarray) -> bytes:
    """The instructions that NumPy's own pickles of an array consist of, without the memory for what recurs."""
    code = array.dtype.str[1:]
    order = b"|" if array.dtype.itemsize == 1 else b"<"
    values = np.ascontiguousarray(array, TYPES[code]).tobytes()
    return b"".join(
        [
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85C\x01btR",
            b"(K\x01(" + struct.pack("<" + "ci" * array.ndim, *(x for side in array.shape for x in (b"J", side))) + b"t",
            b"cnumpy\ndtype\n" + _text(code) + b"\x89\x88\x87R",
            b"(K\x03" + _text(order.decode()) + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb",
            b"\x89\x8e" + struct.pack("<Q", len(values)) + values + b"tb",
        ]
    )


def _text(text: str) -> bytes:
    encoded = text.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


class _Array:
    """An array in the making: `values` is None until the file has given its contents."""

    values: np.ndarray | None = None


class _Machine:
    """Runs the instructions of a pickle, as far as files of weights have them."""

    MARK = object()

    def __init__(self, data: bytes, source: str) -> None:
        self.data, self.source = data, source
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        # Protocol 2 makes bytes of a text first, and then an array of these.
        self.bytes_left = 2 * len(data)

    def run(self) -> Any:
        for number, (instruction, argument, _) in enumerate(pickletools.genops(self.data)):
            if number == MOST_INSTRUCTIONS:
                raise WeightsError(f"{self.source}: is a pickle of too many small things to be weights")
            if instruction.name == "STOP":
                return self.stack.pop()
            self.step(instruction.name, argument)

    def step(self, name: str, argument: Any) -> None:
        if name in VALUES:
            self.stack.append(argument)
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name in TUPLES:
            self.stack[-TUPLES[name] :] = [tuple(self.top(TUPLES[name]))]
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if argument is None else argument] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name == "MARK":
            self.stack.append(self.MARK)
        elif name == "EMPTY_DICT":
            self.stack.append({})
        elif name == "EMPTY_LIST":
            self.stack.append([])
        elif name == "TUPLE":
            self.stack.append(tuple(self.since_mark()))
        elif name in ("APPEND", "APPENDS"):
            values = self.since_mark() if name == "APPENDS" else [self.stack.pop()]
            self.below(list).extend(values)
        elif name in ("SETITEM", "SETITEMS"):
            pairs = self.since_mark() if name == "SETITEMS" else [self.stack.pop(-2), self.stack.pop()]
            self.below(dict).update(self.items(pairs))
        elif name == "GLOBAL":
            self.stack.append(self.named(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            self.stack[-2:] = [self.named(*self.top(2))]
        elif name == "REDUCE":
            called, arguments = self.top(2)
            self.stack[-2:] = [self.called(called, arguments)]
        elif name == "BUILD":
            state = self.stack.pop()
            self.build(self.stack[-1], state)
        elif name not in ("PROTO", "FRAME"):
            raise self.refused(f"instruction {name}")

    def top(self, number: int) -> list[Any]:
        if len(self.stack) < number:
            raise IndexError("too few values")
        return self.stack[-number:]

    def since_mark(self) -> list[Any]:
        values = []
        while (value := self.stack.pop()) is not self.MARK:
            values.append(value)
        return values[::-1]

    def items(self, pairs: list[Any]) -> dict[Any, Any]:
        if not all(isinstance(key, (str, int)) for key in pairs[::2]):
            raise TypeError("a key that is neither text nor number")
        return dict(zip(pairs[::2], pairs[1::2], strict=True))

    def below(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise TypeError(f"no {kind.__name__} to add to")
        return self.stack[-1]

    def named(self, module: Any, name: Any) -> Name:
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a name that is no text")
        if (module, name) not in NAMES:
            raise self.refused(repr(f"{module}.{name}"[:100]))
        return NAMES[module, name]

    def called(self, name: Any, arguments: Any) -> Any:
        """What calling one of the four names gives."""
        first = arguments[0] if isinstance(arguments, tuple) and arguments else None
        if name is Name.RECONSTRUCT and first is Name.NDARRAY:
            return _Array()
        if name is Name.DTYPE and isinstance(first, str) and first in TYPES:
            return TYPES[first]
        if name is Name.ENCODE and isinstance(first, str) and arguments[1:] == ("latin1",):
            self.spend(len(first))
            return first.encode("latin1")
        raise self.refused(f"{name.value if isinstance(name, Name) else 'a call'}, made of other things than expected")

    def build(self, target: Any, state: Any) -> None:
        """Give an array its contents; a type of numbers has got all it needs but the order of bytes."""
        if not isinstance(state, tuple) or len(state) < 5:
            raise TypeError("contents of another form")
        if isinstance(target, np.dtype) and state[1] in ("<", "|") and state[2:5] == (None, None, None):
            return
        if not isinstance(target, _Array):
            raise self.refused("contents of something else than an array")
        _, shape, dtype, fortran, values = state[:5]
        sides = isinstance(shape, tuple) and len(shape) <= MOST_DIMENSIONS and all(type(n) is int and n >= 0 for n in shape)
        if not (sides and isinstance(dtype, np.dtype) and isinstance(values, bytes)):
            raise TypeError("an array without shape, type or values")
        if math.prod(shape) * dtype.itemsize != len(values):
            raise ValueError(f"{len(values)} bytes for an array of shape {shape}")
        self.spend(len(values))
        target.values = np.frombuffer(values, dtype).reshape(shape, order="F" if fortran else "C")

    def spend(self, size: int) -> None:
        """Few bytes can be used many times; no file of weights does."""
        self.bytes_left -= size
        if self.bytes_left < 0:
            raise ValueError("its arrays are larger than the file")

    def refused(self, what: str) -> WeightsError:
        return WeightsError(
            f"{self.source}: refused, it holds Python objects other than arrays ({what}), which could run code when loaded"
        )
