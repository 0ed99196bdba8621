"""One trial: a run in which something goes wrong, the same command again, and a comparison with the run where nothing did."""

import errno
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from PIL import Image

from model import WeightsError, read_weights
from utils.errors import STOPPED
from utils.state import StateError, has_state, load_state

from . import runs
from .injection import Fault, Injector, Result

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Whole(NamedTuple):
    """A run that nothing happened to."""

    operations: str
    seconds: float
    left: dict[str, Any]


class Trials:
    """Trials of the training scripts, in a folder of their own. Use it as a context."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="trials-"))
        self.injector = Injector()
        self.data, self.wholes, self.count = self.root / "data", dict[str, Whole](), 0
        runs.make_data(self.data)

    def __enter__(self) -> "Trials":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.injector.__exit__(kind, error, trace)
        shutil.rmtree(self.root)

    def whole(self, script: str) -> Whole:
        """What the uninterrupted run of a script does and leaves."""
        if script not in self.wholes:
            directory = self.root / f"{script}-whole"
            result = self.injector.run(runs.command(script, self.data, directory), directory)
            if result.status:
                raise RuntimeError(f"{script} fails even when nothing happens to it:\n{result.errors}")
            self.wholes[script] = Whole(result.operations, result.seconds, runs.left_by(directory))
        return self.wholes[script]

    def problems(self, script: str, fault: Fault | None = None, signals: Sequence[tuple[float, int]] = ()) -> list[str]:
        """What is wrong after a run with this fault, or with these signals, and after the same command again; a line each."""
        whole = self.whole(script)
        self.count += 1
        directory = self.root / str(self.count)
        command = runs.command(script, self.data, directory)
        first = self.injector.run(command, directory, fault, signals)
        found = [*wrong_end(first, directory, fault, signals), *not_intact(directory)]
        again = self.injector.run(command, directory)
        if again.timed_out:
            found.append(f"the same command again hangs: {last_line(again.errors)}")
        elif again.status:
            found.append(f"the same command again ends with status {again.status}: {last_line(again.errors)}")
        else:
            found += runs.differences(runs.left_by(directory), whole.left)
        shutil.rmtree(directory, ignore_errors=True)
        return found

    # Scripts that write files and train nothing

    def writers(self) -> list[str]:
        return list(runs.writers(self.data, self.root, self.root))

    def whole_writer(self, name: str) -> Whole:
        """What a script that writes files does and leaves, when nothing happens to it."""
        if name not in self.wholes:
            directory = self.root / f"whole {len(self.wholes)}"
            result = self._write(name, directory)
            if result.status:
                raise RuntimeError(f"{name} fails even when nothing happens to it:\n{result.errors}")
            self.wholes[name] = Whole(result.operations, result.seconds, runs.files_below(directory))
        return self.wholes[name]

    def writer_problems(self, name: str, fault: Fault) -> list[str]:
        """What is wrong after a disk that was full meanwhile, and after the same command again; a line each."""
        whole = self.whole_writer(name)
        self.count += 1
        directory = self.root / str(self.count)
        first = self._write(name, directory, fault)
        left = runs.files_below(directory)
        found = [*wrong_end(first, directory, fault, ())]
        found += [line for line in runs.differences(left, whole.left) if not line.endswith("is missing")]
        again = self._write(name, directory)
        # What is there already is not written again.
        if again.status and "exists already" not in last_line(again.errors):
            found.append(f"the same command again ends with status {again.status}: {last_line(again.errors)}")
        found += runs.differences(runs.files_below(directory), whole.left)
        shutil.rmtree(directory, ignore_errors=True)
        return found

    def _write(self, name: str, directory: Path, fault: Fault | None = None) -> Result:
        self.whole("train_source")
        weights, predictions = self.root / "train_source-whole" / "GTA5_3.pth", self.root / "predictions"
        if not predictions.exists():
            command = runs.writers(self.data, weights, predictions)["evaluate_cityscapes"]
            self.injector.run(command, predictions)
        directory.mkdir(exist_ok=True)
        return self.injector.run(runs.writers(self.data, weights, directory)[name], directory, fault)


def wrong_end(result: Result, directory: Path, fault: Fault | None, signals: Sequence[tuple[float, int]]) -> Iterator[str]:
    """What is not as promised in the way a run with a fault ended."""
    if result.timed_out:
        yield f"it hung after {len(result.operations)} operations: {last_line(result.errors)}"
    elif fault is not None and fault.action.startswith("kill"):
        if result.status not in (0, -signal.SIGKILL):
            yield f"it ended with status {result.status} before it was killed: {last_line(result.errors)}"
    elif fault is not None and fault.action in ("full", "fail"):
        yield from wrong_message(result, directory, fault)
    else:
        numbers = {fault.number} if fault else {number for _, number in signals}
        # A signal that comes before a run listens, or after it has ended its work, has its usual effect.
        if result.status not in {0, STOPPED} | {-number for number in numbers}:
            yield f"it ended with status {result.status} after a signal: {last_line(result.errors)}"


def wrong_message(result: Result, directory: Path, fault: Fault) -> Iterator[str]:
    """Whether a full disk was told in one line with the path and the free bytes."""
    line = last_line(result.errors)
    if result.status == 0 and (fault.action == "fail" or "w" not in result.operations[fault.at :]):
        return  # what failed was not needed, or nothing more was written
    if result.status != 1:
        yield f"it ended with status {result.status} on a full disk: {line}"
    if "Traceback" in result.errors:
        yield f"a traceback on a full disk: {line}"
    elif str(directory) not in line:
        yield f"no path on a full disk: {line}"
    elif os.strerror(fault.number) not in line or (fault.number == errno.ENOSPC and "free" not in line):
        yield f"not what was missing on a full disk: {line}"


def last_line(text: str) -> str:
    lines = text.replace("\r", "\n").strip().splitlines()
    return lines[-1] if lines else "(nothing printed)"


def not_intact(directory: Path) -> Iterator[str]:
    """The files in and below a run directory that are damaged, temporary ones aside."""
    for folder, _, names in os.walk(directory):
        for name in sorted(names):
            path = os.path.join(folder, name)
            try:
                if name.endswith(".json"):
                    json.loads(Path(path).read_bytes())
                elif name.endswith(".png"):
                    with Image.open(path) as picture:
                        picture.load()
                elif name.endswith(".pth") and not name.startswith("state"):
                    read_weights(path)
            except (ValueError, OSError, WeightsError) as error:
                yield f"{os.path.relpath(path, directory)} is damaged: {error}"
        if has_state(folder):
            try:
                load_state(os.path.join(folder, "state.pth"))
            except StateError as error:
                yield f"no state can be read: {error}"


def points(operations: str, every_write: bool = False) -> list[int]:
    """The operations of a run that are worth a kill: all, but of the writes that follow each other only the first, one in the
    middle and the last, unless `every_write`."""
    chosen, begin = [], 0
    for position, kind in enumerate(operations + " "):
        if kind == "w":
            continue
        writes = range(begin, position)
        chosen += list(writes) if every_write else sorted({*writes[:1], *writes[len(writes) // 2 :][:1], *writes[-1:]})
        chosen.append(position)
        begin = position + 1
    return chosen[:-1]
