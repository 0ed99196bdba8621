"""Files that are written whole or not at all: to a temporary file beside the path, then renamed.

It depends on nothing, so every package may use it.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

# The operating system's errors for a full disk, a used-up quota, and a file larger than is allowed.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
TEMPORARY = re.compile(r"(.+)\.\d+\.tmp")
# What stands between a file's content and the SHA-256 of it.
CHECKSUM = b"SegAdapt SHA-256"


@contextmanager
def replacing(path: str | os.PathLike, sync: bool = True) -> Iterator[BinaryIO]:
    """A binary file whose content takes the place of `path` once it is complete; until then, and after an error, `path` stays
    as it was.

    Args:
        sync: wait until the content is on the disk, so that a power cut cannot leave an empty file. Not worth it for files
            that can be made again, such as pictures.

    Raises:
        OSError: naming `path`, also when the disk is full.
    """
    # The process id keeps two writers of one file apart.
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "w+b") as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        written = os.path.getsize(temporary) if os.path.exists(temporary) else 0
        if os.path.exists(temporary):
            os.remove(temporary)
        cause = _of_the_system(error)
        if cause is not None and cause.filename in (None, temporary):
            raise _named(cause, path, written) from error
        raise


@contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Let an error of the operating system that names no file name this one."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise _named(error, path) from error


def _of_the_system(error: BaseException | None) -> OSError | None:
    """The operating system's error that an error is or stands for: `torch.save` makes another one of it, or, where it writes
    past Python, one that has nothing but the text."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error
        full = [number for number in FULL if isinstance(error, RuntimeError) and os.strerror(number) in str(error)]
        if full:
            return OSError(full[0], os.strerror(full[0]))
        error = error.__cause__ or error.__context__
    return None


def _named(error: OSError, path: str | os.PathLike, written: int = 0) -> OSError:
    return OSError(error.errno, reason(error, path, written), os.fspath(path))


def reason(error: OSError, path: str | os.PathLike, written: int = 0) -> str:
    """What an error of the system says, of a full disk with the bytes that did fit and those that are free."""
    told = error.strerror or str(error)
    if error.errno not in FULL or "are free" in told:
        return told
    folder = os.path.dirname(path)
    while folder and not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return f"{told}; it needs more than {written} bytes, {shutil.disk_usage(folder or '.').free} are free"


def sweep(directory: str, is_ours: Callable[[str], bool]) -> None:
    """Remove what `replacing` leaves behind in a directory when its process is killed, of files whose name `is_ours`."""
    for name in os.listdir(directory):
        found = TEMPORARY.fullmatch(name)
        if found and is_ours(found[1]):
            os.remove(os.path.join(directory, name))


def sweep_below(directory: str, endings: tuple[str, ...]) -> None:
    """The same in a directory and all below it, of files whose names end so."""
    for place, _, _ in os.walk(directory):
        sweep(place, lambda name: name.endswith(endings))


def add_checksum(file: BinaryIO) -> None:
    """Append the SHA-256 of what a file of `replacing` holds so far, where readers of PyTorch's old format do not look."""
    file.flush()
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").digest()  # type: ignore[arg-type]  # wants more than BinaryIO declares
    file.seek(0, os.SEEK_END)
    file.write(CHECKSUM + digest)


def fits_checksum(path: str | os.PathLike) -> bool:
    """False if a file ends in a checksum of something else; true for files without one."""
    tail = len(CHECKSUM) + hashlib.sha256().digest_size
    size = os.path.getsize(path) - tail
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        file.seek(max(size, 0))
        noted = file.read()
        if not noted.startswith(CHECKSUM):
            return True
        file.seek(0)
        while size > 0:
            part = file.read(min(size, 2**20))
            digest.update(part)
            size -= len(part)
    return noted == CHECKSUM + digest.digest()


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    with replacing(path) as file:
        file.write(content)


def write_json(path: str | os.PathLike, value: Any) -> None:
    write_bytes(path, json.dumps(value, indent=2).encode())


def make_parent(path: str | os.PathLike) -> None:
    """Make the folder that `path` lies in."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
