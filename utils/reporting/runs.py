"""Run directories: what a training wrote down about itself."""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from glob import escape, glob
from typing import Any

from ..errors import RunError

Curve = list[tuple[int, float]]  # (step, value)


@dataclass(frozen=True)
class TrainingRun:
    """One training, which may consist of parts with a directory each (rounds, stages).

    Attributes:
        parts: directories with an `args.json`, in the order in which they were trained.
        flags: of the last part; besides the flags, its notes (`command`, `classes`, ...).
        start: the weights that the first part started from, "" if it says none.
        curves: {metric: curve} over the steps of all parts.
        seconds: of training, without validation; None where an older run did not note them.
        peak_memory_gb: the most of all parts, None if nothing was logged.
    """

    directory: str
    parts: tuple[str, ...]
    flags: Mapping[str, Any]
    start: str
    curves: Mapping[str, Curve]
    seconds: float | None
    peak_memory_gb: float | None

    @property
    def script(self) -> str:
        """The name of the training script without its ending, "" if it is not noted."""
        command = self.flags.get("command") or [""]
        return os.path.splitext(os.path.basename(str(command[0])))[0]

    @property
    def steps(self) -> int:
        """Of all parts together, as far as they are logged."""
        return max((curve[-1][0] for curve in self.curves.values()), default=0)


def is_run(directory: str) -> bool:
    return os.path.isdir(directory) and bool(_parts(directory))


def read_run(directory: str) -> TrainingRun:
    """Read a run directory.

    Raises:
        RunError: it is none, or its `args.json` is damaged.
    """
    parts = _parts(directory)
    if not parts:
        raise RunError(f"{directory}: no run directory: there is no args.json in it or in a folder below it")
    flags = [_read_object(os.path.join(part, "args.json")) for part in parts]
    logs = [list(_lines(os.path.join(part, "metrics.jsonl"))) for part in parts]
    noted = [line["seconds"] for log in logs for line in log if _is_number(line.get("seconds"))]
    memory = [line["peak_memory_gb"] for log in logs for line in log if _is_number(line.get("peak_memory_gb"))]
    return TrainingRun(
        directory=directory,
        parts=tuple(parts),
        flags=flags[-1],
        start=str(flags[0].get("restore_from") or ""),
        curves=_curves(logs),
        seconds=sum(noted) if noted else None,
        peak_memory_gb=max(memory, default=None),
    )


def last_snapshot(part: str, suffix: str = "") -> str | None:
    """The snapshot of the highest step in a part's directory: of the network, or of the discriminator with this suffix
    (`_D`, `_D1`, ...); None if there is none."""
    steps = {}
    for path in glob(os.path.join(escape(part), "*.pth")):
        found = re.fullmatch(r"\w*?(\d+)" + re.escape(suffix), os.path.splitext(os.path.basename(path))[0])
        if found:
            steps[int(found[1])] = path
    return steps[max(steps)] if steps else None


def _parts(directory: str) -> list[str]:
    candidates = [directory, *glob(os.path.join(escape(directory), "*", ""))]
    parts = [os.path.normpath(path) for path in candidates if os.path.isfile(os.path.join(path, "args.json"))]
    # Times say in which order stages were trained; rounds are numbered, should a copy have lost the times.
    return sorted(parts, key=lambda part: (int(os.path.getmtime(os.path.join(part, "args.json"))), part))


def _read_object(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: damaged, this is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise RunError(f"{path}: damaged, it holds no flags")
    return found


def _lines(path: str) -> Iterator[dict[str, Any]]:
    """The lines of a log; what a killed process left unfinished is passed over."""
    if not os.path.exists(path):
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                yield line


def _curves(logs: list[list[dict[str, Any]]]) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    before = 0
    for log in logs:
        for line in log:
            for name, value in line.items():
                if name != "step" and _is_number(value):
                    curves.setdefault(name, []).append((before + line["step"] + 1, float(value)))
        before += max((line["step"] + 1 for line in log), default=0)
    return curves


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
