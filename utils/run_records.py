"""Finished (or running) runs, read back from their directories: flags, curves, and runs that differ in their seed alone."""

import json
import math
import os
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from .errors import RunError
from .run import FREE_ON_RESUME

# Flags that say where and how fast, not what is trained; and what is noted beside the flags.
NOTED_BESIDE = {"network", "classes", "versions", "command"}
SAME_TRAINING = (FREE_ON_RESUME - {"batch_size", "num_steps_stop"}) | {"checkpoint_dir", "compile"} | NOTED_BESIDE
# What a flag without effect is; a script that has no such flag does nothing else.
NO_EFFECT = ("-", "null", "false")
SEED = "random_seed"
# A curve's end is the mean of its last tenth, and of so many points at least: single points jump.
TENTH, FEWEST_POINTS = 0.1, 5
LEVEL = 0.05
MOST_ARRANGEMENTS = 20000


@dataclass(frozen=True)
class RunRecord:
    """One run directory.

    Attributes:
        name: the directory as it was given.
        flags: of `args.json`.
        rows: the lines of `metrics.jsonl`.
    """

    name: str
    flags: dict[str, Any]
    rows: list[dict[str, Any]]

    def curve(self, key: str) -> list[tuple[int, float]]:
        """(step, value) of each line that has this number."""
        return [(row["step"], row[key]) for row in self.rows if isinstance(row.get(key), int | float)]

    def end(self, key: str) -> float | None:
        """The mean of a curve's last tenth; None without such a curve."""
        values = [value for _, value in self.curve(key)]
        return statistics.fmean(values[-max(FEWEST_POINTS, int(TENTH * len(values))) :]) if values else None

    def median(self, key: str) -> float | None:
        """Of a curve, for speeds: a few slow steps, such as the first, do not count."""
        values = [value for _, value in self.curve(key)]
        return statistics.median(values) if values else None

    def last(self, key: str) -> float | None:
        curve = self.curve(key)
        return curve[-1][1] if curve else None

    def best(self, key: str) -> tuple[int, float] | None:
        """(step, value) of the highest point; None without such a curve."""
        return max(self.curve(key), key=lambda point: point[1], default=None)

    @property
    def losses(self) -> list[str]:
        """The names of its losses."""
        return list(dict.fromkeys(key for row in self.rows for key in row if key.startswith("loss_")))


def read_runs(paths: Sequence[str]) -> list[RunRecord]:
    """The runs in these directories; a directory of stages or rounds stands for those of them that are runs.

    Raises:
        RunError: there is no run, it is empty, its files cannot be read, or one is named twice.
    """
    found = [directory for path in paths for directory in _run_directories(path)]
    twice = next((path for path, count in Counter(map(os.path.realpath, found)).items() if count > 1), None)
    if twice is not None:
        raise RunError(f"{twice}: is named twice")
    return [_read_run(path) for path in found]


def _run_directories(path: str) -> list[str]:
    if not os.path.isdir(path):
        raise RunError(f"{path}: no such run directory")
    inside = [os.path.join(path, name) for name in sorted(os.listdir(path))]
    runs = [each for each in (path, *inside) if os.path.exists(os.path.join(each, "metrics.jsonl"))]
    if not runs:
        raise RunError(f"{path}: is no run directory, it holds no metrics.jsonl (--snapshot-dir of a training script)")
    return runs


def _read_run(path: str) -> RunRecord:
    rows = []
    with open(os.path.join(path, "metrics.jsonl"), encoding="utf-8", errors="replace") as file:
        for line in file:
            row = _object(line)
            if row is not None and isinstance(row.get("step"), int):
                rows.append(row)
    if not rows:
        raise RunError(f"{path}: an empty run, metrics.jsonl has no line yet (the first is written after --log-every steps)")
    flags_path = os.path.join(path, "args.json")
    if not os.path.exists(flags_path):
        raise RunError(f"{flags_path}: no such file; without it the run's flags are not known")
    with open(flags_path, encoding="utf-8", errors="replace") as file:
        flags = _object(file.read())
    if flags is None:
        raise RunError(f"{flags_path}: cannot be read, it holds no JSON object")
    return RunRecord(path.rstrip("/"), flags, rows)


def _object(text: str) -> dict[str, Any] | None:
    """A JSON object; None for anything else, such as the last line of a killed process."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def training_flags(run: RunRecord) -> dict[str, str]:
    """The flags that say what is trained, as text. A number after the word "seed" in a path is left out: runs that start from
    their own seed's weights are repetitions of one another."""
    script = {"script": os.path.basename(run.flags["command"][0])} if run.flags.get("command") else {}
    return script | {
        key: re.sub(r"(seed[-_ ]?)\d+", r"\1N", value, flags=re.I) if isinstance(value, str) else json.dumps(value)
        for key, value in run.flags.items()
        if key not in SAME_TRAINING
    }


def groups_of(runs: Iterable[RunRecord]) -> list[list[RunRecord]]:
    """Runs whose flags differ in nothing but the seed, together, in the order in which they first appear."""
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        flags = {key: value for key, value in training_flags(run).items() if key != SEED}
        groups.setdefault(json.dumps(flags, sort_keys=True), []).append(run)
    return list(groups.values())


def differing_flags(groups: Sequence[Sequence[RunRecord]]) -> dict[str, list[str]]:
    """{flag: its value in each group}, for the flags that are not the same in all; "-" where a script has no such flag."""
    all_flags = [training_flags(group[0]) for group in groups]
    names = [name for name in dict.fromkeys(name for flags in all_flags for name in flags) if name != SEED]
    values = {name: [flags.get(name, "-") for flags in all_flags] for name in names}
    return {name: found for name, found in values.items() if len(set(found)) > 1 and not set(found) <= set(NO_EFFECT)}


def permutation_test(first: Sequence[float], second: Sequence[float], seed: int = 0) -> float:
    """Two-sided p value of a permutation test on the difference of means (Fisher; Pitman 1937).

    How often a random division of all values into groups of these sizes gives means at least as far apart. All divisions are
    gone through where there are at most 20000; otherwise so many are drawn, and the given one is counted in (Phipson and
    Smyth 2010), so that p is never 0.
    """
    values, size = np.array([*first, *second], np.float64), len(first)
    rest = len(values) - size

    def distances(chosen: np.ndarray) -> np.ndarray:
        sums = values[chosen].sum(1)
        return np.abs(sums / size - (values.sum() - sums) / rest)

    observed = abs(np.mean(first) - np.mean(second)) - 1e-12  # equal up to rounding is equal
    if math.comb(len(values), size) <= MOST_ARRANGEMENTS:
        return float((distances(np.array(list(combinations(range(len(values)), size)))) >= observed).mean())
    rng = np.random.default_rng(seed)
    drawn = np.array([rng.permutation(len(values))[:size] for _ in range(MOST_ARRANGEMENTS)])
    return float(((distances(drawn) >= observed).sum() + 1) / (MOST_ARRANGEMENTS + 1))


def smallest_p(first: int, second: int) -> float:
    """The smallest p value that `permutation_test` can give for groups of these sizes."""
    return (2 if first == second else 1) / math.comb(first + second, first)


def enough_seeds(level: float = LEVEL) -> int:
    """How many seeds both groups need so that p can be below `level`."""
    return next(n for n in range(2, 100) if smallest_p(n, n) < level)
