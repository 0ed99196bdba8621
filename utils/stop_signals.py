"""Signals that ask a run to stop: a scheduler's, or Ctrl-C."""

import os
import signal
import threading
import time
from types import FrameType
from typing import ClassVar

from .distributed import largest, world_size
from .errors import Stopped

NAMES = ("SIGTERM", "SIGINT", "SIGUSR1")
# What comes within so many seconds of the first signal is the same wish: a scheduler signals every process, and torchrun passes
# on to its processes what it gets itself.
SAME_WISH = 1.0
# How often processes tell each other of signals: about once in so many seconds, but at least in every so many steps.
TELL_EVERY = 1.0
MOST_STEPS = 32


class StopSignals:
    """Listens to the signals: the first is remembered as `received`, a later one ends the process at once.

    One that listens while another does, as a run does within a script of several, takes over what that has received, and gives
    it back. A loader's workers inherit it, so that a signal to the whole process group leaves them at work until the step is
    done.
    """

    listening: ClassVar["StopSignals | None"] = None

    def __init__(self) -> None:
        self.received: str | None = None
        self._when = 0.0
        self._before: dict[int, object] = {}
        self._outer: StopSignals | None = None
        self._steps_between, self._steps_left, self._told = 1, 1, 0.0

    def listen(self) -> None:
        """Take the signals over (Python allows it in the main thread only)."""
        if threading.current_thread() is threading.main_thread():
            numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
            self._before = {number: signal.signal(number, self._on_signal) for number in numbers}
            self._outer, StopSignals.listening = StopSignals.listening, self
            if self._outer is not None:
                self.received, self._when = self._outer.received, self._outer._when
        self._told = time.monotonic()

    def close(self) -> None:
        """Give the signals back to who had them before."""
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._on_signal:
                signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal has returned
        self._before = {}
        if StopSignals.listening is self:
            StopSignals.listening = self._outer
            if self._outer is not None:
                self._outer.received, self._outer._when = self.received, self._when

    def received_by_any(self) -> bool:
        """Whether any process has received one; all must ask at the same steps, and get the same answer.

        Exchanging it takes time, so it is not done at every step: in between the answer is False.
        """
        if world_size() == 1:
            return self.received is not None
        self._steps_left -= 1
        if self._steps_left > 0:
            return False
        now = time.monotonic()
        received, seconds = largest(float(self.received is not None), now - self._told)
        # From numbers that all processes have alike, so that they ask at the same step again.
        steps = int(self._steps_between * TELL_EVERY / max(seconds, 1e-6))
        self._steps_between = self._steps_left = max(1, min(steps, 2 * self._steps_between, MOST_STEPS))
        self._told = now
        return received > 0

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._when = signal.Signals(number).name, time.monotonic()
        elif time.monotonic() - self._when > SAME_WISH:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def stop_if_asked(doing: str) -> None:
    """Between two pieces of work that lose nothing by it.

    Raises:
        Stopped: this process has received a signal. Others may not have; who starts them ends them with it.
    """
    signals = StopSignals.listening
    if signals is not None and signals.received is not None:
        raise Stopped(f"stopped by {signals.received} in {doing}; --resume continues", together=False)
