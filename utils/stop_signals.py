"""Signals that ask a run to stop: a scheduler's, or Ctrl-C."""

import os
import signal
import threading
import time
from types import FrameType

NAMES = ("SIGTERM", "SIGINT", "SIGUSR1")
# What comes within so many seconds of the first signal is the same wish: a scheduler signals every process, and torchrun passes
# on to its processes what it gets itself.
SAME_WISH = 1.0


class StopSignals:
    """Listens to the signals: the first is remembered as `received`, a later one ends the process at once.

    A loader's workers inherit it, so that a signal to the whole process group leaves them at work until the step is done.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._when = 0.0
        self._before: dict[int, object] = {}

    def listen(self) -> None:
        """Take the signals over (Python allows it in the main thread only)."""
        if threading.current_thread() is threading.main_thread():
            numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
            self._before = {number: signal.signal(number, self._on_signal) for number in numbers}

    def close(self) -> None:
        """Give the signals back to who had them before."""
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._on_signal:
                signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal has returned
        self._before = {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._when = signal.Signals(number).name, time.monotonic()
        elif time.monotonic() - self._when > SAME_WISH:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
