"""A directory belongs to one process at a time, which a file in it names.

The file is made with `os.link`, or where a file system has no links with O_EXCL: both are atomic on network file systems, where
flock is not to be trusted.
"""

import atexit
import contextlib
import json
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator
from typing import Any

from .errors import RunError
from .files import naming

NAME = "in_use.json"
ATTEMPT = re.compile(rf"{re.escape(NAME)}\.[0-9a-f]{{16}}")


# Of this process; given free when it ends.
_held: list["Lock"] = []


class InUseError(RunError):
    """Another process writes to the directory; the message names it and the way out."""


class Lock:
    """Holds `directory` from when it is made until `release`, or the end of the process.

    A lock whose owner is known to be dead (of this machine and no longer there) is taken over, and so is one of this very
    process, which cannot disturb itself.

    Raises:
        InUseError: another process has it, or one of another machine left it behind, which only the user can know.
    """

    def __init__(self, directory: str) -> None:
        self.path = os.path.join(directory, NAME)
        self.owner = {**_this_process(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z"), "key": secrets.token_hex(8)}
        os.makedirs(directory, exist_ok=True)
        while not self._create():
            self._remove_if_dead()
        self._sweep()
        _held.append(self)

    def release(self) -> None:
        """Give the directory free. A lock that is no longer ours stays."""
        if self in _held:
            _held.remove(self)
        if os.getpid() == self.owner["pid"] and _read(self.path) == self.owner:
            with contextlib.suppress(OSError):
                os.remove(self.path)

    def _create(self) -> bool:
        """True if the file is ours now; it is never seen half-written."""
        content = json.dumps(self.owner).encode()
        complete = f"{self.path}.{self.owner['key']}"
        try:
            with naming(self.path), open(complete, "wb") as file:
                file.write(content)
            return self._link(complete, content)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(complete)

    def _link(self, complete: str, content: bytes) -> bool:
        try:
            os.link(complete, self.path)
        except (FileExistsError, FileNotFoundError):
            return False  # somebody has the lock, or just had it and has swept this attempt
        except OSError:
            return self._create_without_links(content)
        return True

    def _sweep(self) -> None:
        """Remove what processes left behind that were killed while they took this lock."""
        directory = os.path.dirname(self.path)
        for name in os.listdir(directory):
            path = os.path.join(directory, name)
            owner = _read(path) if ATTEMPT.fullmatch(name) else self.owner
            if owner is None or owner != self.owner and _is_dead_or_this(owner):
                with contextlib.suppress(FileNotFoundError):
                    os.remove(path)

    def _create_without_links(self, content: bytes) -> bool:
        try:
            with naming(self.path), open(self.path, "xb") as file:
                file.write(content)
        except FileExistsError:
            return False
        except OSError:
            with contextlib.suppress(OSError):
                os.remove(self.path)
            raise
        return True

    def _remove_if_dead(self) -> None:
        owner = _read(self.path)
        if owner is None and not os.path.exists(self.path):
            return  # released in between
        if owner is None or not _is_dead_or_this(owner):
            raise InUseError(_in_use(self.path, owner))
        # Of several that find a dead one's lock, one moves it away. Who is late, and moved the new owner's, puts it back.
        aside = f"{self.path}.{self.owner['key']}"
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.path, aside)
            moved = _read(aside)
            if moved != owner:
                os.rename(aside, self.path)
                raise InUseError(_in_use(self.path, moved))
            os.remove(aside)


@atexit.register
def release_all() -> None:
    """Give all directories free that this process holds."""
    for lock in list(_held):
        lock.release()


@contextlib.contextmanager
def locked(*directories: str | None) -> Iterator[None]:
    """Hold these directories (None: none) meanwhile."""
    with contextlib.ExitStack() as stack:
        for directory in dict.fromkeys(filter(None, directories)):
            stack.callback(Lock(directory).release)
        yield


def _in_use(path: str, owner: dict[str, Any] | None) -> str:
    directory = os.path.dirname(path)
    if owner is None:
        return f"{directory}: is in use, or was when a process died: if nothing writes to it any more, remove {path}"
    told = f"{directory}: is in use by process {owner['pid']} on {owner['host']}, since {owner['since']}"
    if _is_of_this_machine(owner):
        return f"{told}; wait for it, stop it, or choose another directory"
    return f"{told}; choose another directory, or, if that process is gone for certain, remove {path}"


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "machine": _machine(), "started": _start_of(pid)}


def _machine() -> str:
    """What tells apart machines of one name, restarts, and containers, in which a process id means another process."""
    parts = []
    with contextlib.suppress(OSError):
        with open("/proc/sys/kernel/random/boot_id") as file:
            parts.append(file.read().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _start_of(pid: int) -> str | None:
    """When a process began, in the kernel's count, for process ids come again; None where the system does not tell."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return "ended" if fields[0] == "Z" else fields[19]


def _is_of_this_machine(owner: dict[str, Any]) -> bool:
    return owner["host"] == socket.gethostname() and owner["machine"] == _machine()


def _is_dead_or_this(owner: dict[str, Any]) -> bool:
    if not _is_of_this_machine(owner):
        return False
    if owner["pid"] == os.getpid():
        return True
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass  # it belongs to another user
    return _start_of(owner["pid"]) not in (None, owner["started"])


def _read(path: str) -> dict[str, Any] | None:
    """The owner that a lock file names; None if there is no such file or it names none."""
    try:
        with open(path, encoding="utf-8") as file:
            owner = json.load(file)
    except (OSError, ValueError, RecursionError):
        return None
    is_complete = isinstance(owner, dict) and {"host", "pid", "machine", "started", "since"} <= owner.keys()
    return owner if is_complete and isinstance(owner["pid"], int) and owner["pid"] > 0 else None
