"""Ends a process that has made no progress for too long, and says what it was waiting for.

There is one watchdog in a process, as there is one process to end. Whoever may have to wait says for what with `waiting_for`.
"""

import contextlib
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from .errors import TIMED_OUT
from .locks import release_all

# The time is counted in parts, so that a process that was itself stopped for hours is not taken for one that hangs.
PARTS = 20
# Seconds for giving locks free at the end.
RELEASE_WITHIN = 5.0

T = TypeVar("T")

_place = "the start"
_awaited: Callable[[], str] = str
_parts_without_progress = 0
_watching = False


def at(place: str) -> None:
    """Note where the process has come to, such as `step 7`."""
    global _place
    _place = place
    waiting_for("")


def waiting_for(awaited: str | Callable[[], str]) -> None:
    """Note progress, and what the process may have to wait for now; a function is only asked when it has waited in vain."""
    global _awaited, _parts_without_progress
    _awaited = awaited if callable(awaited) else lambda: awaited
    _parts_without_progress = 0


@contextlib.contextmanager
def waiting(awaited: str) -> Iterator[None]:
    """Note what is waited for meanwhile, and afterwards again what was before."""
    before = _awaited
    waiting_for(awaited)
    yield
    waiting_for(before)


def now() -> str:
    """Where the process is and what it is waiting for."""
    rank = f"rank {os.environ['RANK']}, " if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""
    awaited = _awaited()
    return f"{rank}{_place}" + (f", waiting for {awaited}" if awaited else "")


def announced(items: Iterable[T], awaited: str) -> Iterator[T]:
    """`items`, each noted as progress with its number."""
    waiting_for(f"{awaited} 1")
    for number, item in enumerate(items, 2):
        yield item
        waiting_for(f"{awaited} {number}")


@contextlib.contextmanager
def watching(timeout: float) -> Iterator[None]:
    """Meanwhile end the process, with status `TIMED_OUT`, once nothing has been noted for `timeout` seconds (0: never).

    Within another `watching` it changes nothing.
    """
    global _watching
    if _watching or timeout == 0:
        yield
        return
    _watching, over = True, threading.Event()
    waiting_for("")
    threading.Thread(target=_watch, args=(timeout, over), name="watchdog", daemon=True).start()
    try:
        yield
    finally:
        over.set()
        _watching = False


def _watch(timeout: float, over: threading.Event) -> None:
    global _parts_without_progress
    while not over.wait(timeout / PARTS):
        _parts_without_progress += 1
        if _parts_without_progress > PARTS:
            _end(timeout)


def _end(timeout: float) -> None:
    """From this thread, for the main one is stuck, maybe outside of Python."""
    script = os.path.basename(sys.argv[0])
    try:
        message = f"{script}: no progress for {timeout:g} seconds (--timeout): {now()}; --resume auto continues\n"
        os.write(2, message.encode())
        # Workers that are stopped themselves would outlive their parent.
        for worker in multiprocessing.active_children():
            worker.kill()
        # Aside, for it may hang as well if it is the file system that does.
        release = threading.Thread(target=release_all, daemon=True)
        release.start()
        release.join(RELEASE_WITHIN)
    finally:
        os._exit(TIMED_OUT)
