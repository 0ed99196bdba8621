"""How several processes agree to stop: all at the same step, without asking each other at every one."""

import pytest

from utils import stop_signals
from utils.stop_signals import MOST_STEPS, TELL_EVERY, StopSignals


class Peers:
    """Two processes in one, whose clocks run differently; what they exchange is computed once both have come to it."""

    def __init__(self, monkeypatch, seconds):
        self.seconds, self.clock, self.current = seconds, [0.0, 0.0], 0
        self.signals, self.exchanges = [], 0
        monkeypatch.setattr(stop_signals, "world_size", lambda: 2)
        monkeypatch.setattr(stop_signals.time, "monotonic", lambda: self.clock[self.current])
        monkeypatch.setattr(stop_signals, "largest", self.largest)
        for self.current in (0, 1):
            self.signals.append(StopSignals())
            self.signals[-1]._told = 0.0

    def largest(self, received, seconds):
        other = self.signals[1 - self.current]
        # The second to come finds what the first has noted; the first is asked again below.
        self.asked.append(self.current)
        self.values[self.current] = (received, seconds)
        waiting = self.values[1 - self.current] or (float(other.received is not None), self.elapsed(1 - self.current))
        return [max(pair) for pair in zip((received, seconds), waiting, strict=True)]

    def elapsed(self, process):
        return self.clock[process] - self.signals[process]._told

    def step(self):
        """One step of both; whether they stop."""
        self.asked, self.values = [], [None, None]
        for process in (0, 1):
            self.clock[process] += self.seconds[process]
        answers = []
        for self.current in (0, 1):
            answers.append(self.signals[self.current].received_by_any())
        assert self.asked in ([], [0, 1]), "one asks and the other does not"
        assert answers[0] == answers[1]
        self.exchanges += bool(self.asked)
        return answers[0]


@pytest.mark.parametrize("seconds", [(0.001, 0.003), (0.2, 0.1), (5.0, 4.0), (0.0, 0.0)])
def test_they_stop_at_the_same_step_and_soon(seconds, monkeypatch):
    peers = Peers(monkeypatch, seconds)
    for _ in range(200):
        assert not peers.step()
    slowest = max(seconds)
    assert peers.exchanges <= 200 / max(1, min(MOST_STEPS, TELL_EVERY / max(slowest, 1e-3)) / 2) + 6
    peers.signals[1].received = "SIGTERM"
    until = next(number for number in range(1, 100) if peers.step())
    assert until <= MOST_STEPS and until * slowest <= max(TELL_EVERY, slowest) * 1.01


def test_a_step_that_becomes_slow_is_noticed(monkeypatch):
    peers = Peers(monkeypatch, [0.001, 0.001])
    for _ in range(100):
        peers.step()
    peers.seconds = [3.0, 3.0]
    for _ in range(MOST_STEPS):
        peers.step()
    before = peers.exchanges
    for _ in range(5):
        peers.step()
    assert peers.exchanges == before + 5
