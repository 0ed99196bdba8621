"""Files that are written whole or not at all: to a temporary file beside the path, then renamed.

It depends on nothing, so every package may use it.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO


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
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        if os.path.exists(temporary):
            os.remove(temporary)
        if isinstance(error, OSError) and error.errno is not None and error.filename in (None, temporary):
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    with replacing(path) as file:
        file.write(content)


def write_json(path: str | os.PathLike, value: Any) -> None:
    write_bytes(path, json.dumps(value, indent=2).encode())


def make_parent(path: str | os.PathLike) -> None:
    """Make the folder that `path` lies in."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
