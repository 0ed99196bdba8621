"""Run directories and evaluation results as one comparison, in the form of `results.json`."""

import json
import os
import re
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import escape, glob
from typing import Any

from dataset.catalogue import DATA_SETS

from .. import flags
from ..errors import RunError
from ..outputs import is_json_of_scores
from .glossary import about_script
from .results import ONE_BLOCK
from .runs import TrainingRun, is_run, read_run

# Flags that differ between runs of one method with another seed: the seed, and the files and folders of the run.
OF_ONE_SEED = {"random_seed", "snapshot_dir", "restore_from", "restore_discriminator", "resume", "checkpoint_dir", "command"}
SEED_IN_NAME = re.compile(r"[-_./ ]?seed[-_= ]?\d+", re.IGNORECASE)
WAY_OUT = "evaluate_cityscapes.py --restore-from {0} --save {0}/predictions --json {0}/figures.json makes one"


@dataclass(frozen=True)
class Entry:
    """One scored training or checkpoint; `scores` are those of `utils.iou.iou_scores`."""

    name: str
    scores: Mapping[str, Any]
    run: TrainingRun | None
    predictions: str | None
    named: bool

    @property
    def seed(self) -> int:
        return int(self.run.flags.get("random_seed") or 0) if self.run else 0


def collect(words: Sequence[str], group_by_seed: bool, baselines: Sequence[str], root: str) -> dict[str, Any]:
    """What `results.json` in the folder `root` says of these runs.

    Args:
        words: run directories, and files of `evaluate_cityscapes.py --json`, each with `NAME=` before it or without.
        group_by_seed: runs of the same name, or whose flags differ in nothing but the seed, are one row.
        baselines: names of the rows that all others are held against, besides the one whose weights they started from.

    Raises:
        RunError: one of them is neither, has no scores, or has other classes than the first one.
    """
    entries = [entry for word in words for entry in _entries(word)]
    classes = list(entries[0].scores["iou"])
    for entry in entries:
        if list(entry.scores["iou"]) != classes:
            raise RunError(
                f"{entry.name}: is scored on {len(entry.scores['iou'])} classes and {entries[0].name} on {len(classes)}, or in "
                "another order; report them apart"
            )
    groups = _grouped(entries) if group_by_seed else {name: [entry] for name, entry in _unique(entries).items()}
    for name in baselines:
        if name not in groups:
            raise RunError(f"--baselines {name}: is no row; the rows are {', '.join(groups)}")
    seeds = sorted({entry.seed for group in groups.values() for entry in group}) if group_by_seed else [0]
    runs = [entry.run for entry in entries if entry.run]
    return {
        "title": "Adaptation to another domain",
        "machine": "",
        "source": _title_of(runs, "source"),
        "target": _title_of(runs, "target"),
        "seeds": seeds,
        "classes": classes,
        "rows": {
            name: {**_row(group, seeds if group_by_seed else None, root), "baseline": _start(name, groups)}
            for name, group in groups.items()
        },
        "blocks": {ONE_BLOCK: {"title": "", "baselines": list(baselines)}},
        "validation": _validation(runs, root),
    }


def _entries(word: str) -> list[Entry]:
    name, path = _split(word)
    if is_run(path):
        return [_entry_of_run(name, path)]
    if os.path.isdir(path):
        raise RunError(f"{path}: neither a run directory (no args.json in it or below it) nor a file of scores")
    if not os.path.exists(path):
        raise RunError(f"{path}: no such file or folder")
    scores = _read_scores(path)
    folder = _predictions_beside(path)
    if len(scores) == 1:
        return [Entry(name or _name(path), next(iter(scores.values())), None, folder, name is not None)]
    titles = [f"{name} {stem}" if name else stem for stem in scores]
    folders = [os.path.join(folder, stem) if folder else None for stem in scores]
    return [
        Entry(title, figures, None, place if place and os.path.isdir(place) else None, name is not None)
        for title, figures, place in zip(titles, scores.values(), folders, strict=True)
    ]


def _split(word: str) -> tuple[str | None, str]:
    """NAME=PATH as its parts; a path that is there as it stands has no name."""
    name, equals, path = word.partition("=")
    return (name, path) if equals and not os.path.exists(word) else (None, word)


def _name(path: str) -> str:
    """The name of a row: that of the run's folder, or of a file that says more than `figures`."""
    parts = os.path.normpath(os.path.abspath(path)).split(os.sep)
    stem = os.path.splitext(parts[-1])[0]
    return parts[-2] if not os.path.isdir(path) and stem in ("figures", "scores", "result", "results") else stem


def _entry_of_run(name: str | None, path: str) -> Entry:
    run = read_run(path)
    files = [file for file in sorted(glob(os.path.join(escape(path), "*.json"))) if is_json_of_scores(file)]
    files = [file for file in files if "source" not in os.path.basename(file)]  # scores on the source's own val split
    scores, folder = (_last(_read_scores(files[-1])), _predictions_beside(files[-1])) if files else (_validated(run), None)
    if scores is None:
        raise RunError(f"{path}: has no scores on the target; {WAY_OUT.format(path)}")
    return Entry(name or _name(path), scores, run, folder, name is not None)


def _last(scores: Mapping[str, Any]) -> Any:
    """Of the scores of several snapshots, those of the last step; never the best, which was chosen with these labels."""
    numbered = {stem: [int(part) for part in re.findall(r"\d+", stem)] for stem in scores if re.search(r"\d$", stem)}
    return scores[max(numbered, key=lambda stem: numbered[stem])] if numbered else list(scores.values())[-1]


def _validated(run: TrainingRun) -> dict[str, Any] | None:
    """The scores of the last validation while training, if there was one on the target."""
    found = None
    with open(os.path.join(run.parts[-1], "metrics.jsonl"), encoding="utf-8") as file:
        for text in file:
            if '"val_iou"' in text and text.endswith("}\n"):
                line = json.loads(text)
                found = {"miou": line["val_miou"], "iou": line["val_iou"]}
    return found


def _read_scores(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            scores = json.load(file)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: damaged, this is no JSON ({error})") from error
    fits = isinstance(scores, dict) and all(isinstance(figures, dict) and "iou" in figures for figures in scores.values())
    if not fits or not scores:
        raise RunError(f"{path}: no scores of evaluate_cityscapes.py --json or compute_iou.py --json")
    return {stem: figures for stem, figures in scores.items() if figures["miou"] is not None}


def _predictions_beside(path: str) -> str | None:
    folder = os.path.join(os.path.dirname(path), "predictions")
    return folder if os.path.isdir(folder) else None


def _grouped(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    groups: dict[str, list[Entry]] = {}
    keys: dict[str, str] = {}
    for entry in entries:
        name = entry.name if entry.named else SEED_IN_NAME.sub("", entry.name) or entry.name
        key = _settings(entry.run) if entry.run and not entry.named else name
        row = keys.setdefault(key, _free(name, groups))
        if entry.seed in [other.seed for other in groups.get(row, [])]:
            raise RunError(f"{row}: two runs with seed {entry.seed}; give them names of their own, NAME=RUN")
        groups.setdefault(row, []).append(entry)
    return groups


def _settings(run: TrainingRun) -> str:
    kept = {key: value for key, value in run.flags.items() if key not in OF_ONE_SEED and not isinstance(value, dict)}
    return json.dumps([run.script, kept], sort_keys=True, default=str)


def _unique(entries: Sequence[Entry]) -> dict[str, Entry]:
    named: dict[str, Entry] = {}
    for entry in entries:
        named[_free(entry.name, named)] = entry
    return named


def _free(name: str, taken: Mapping[str, Any]) -> str:
    """`name`, with a number behind it if it is taken."""
    names = [name, *(f"{name} ({number})" for number in range(2, len(taken) + 3))]
    return next(free for free in names if free not in taken)


def _row(group: Sequence[Entry], seeds: Sequence[int] | None, root: str) -> dict[str, Any]:
    by_seed = {entry.seed: entry for entry in group}
    entries = [by_seed.get(seed) for seed in seeds] if seeds is not None else list(group)
    run = group[0].run

    def relative(path: str | None) -> str | None:
        return os.path.relpath(path, root) if path else None

    return {
        "miou": [100 * entry.scores["miou"] if entry else None for entry in entries],
        "iou": [entry.scores["iou"] if entry else None for entry in entries],
        "statistics": "",
        "about": about_script(run.script) if run else "",
        "seconds": [entry.run.seconds if entry and entry.run else None for entry in entries],
        "peak_memory_gb": [entry.run.peak_memory_gb if entry and entry.run else None for entry in entries],
        "runs": [relative(entry.run.directory) if entry and entry.run else None for entry in entries],
        "predictions": [relative(entry.predictions) if entry else None for entry in entries],
    }


def _start(name: str, groups: Mapping[str, list[Entry]]) -> str | None:
    """The row from whose directory the weights came that a row started from."""
    run = groups[name][0].run
    weights = os.path.abspath(run.start) if run and run.start else ""
    for other, group in groups.items():
        places = [os.path.abspath(entry.run.directory) + os.sep for entry in group if entry.run]
        if other != name and any(weights.startswith(place) for place in places):
            return other
    return None


def _title_of(runs: Sequence[TrainingRun], flag: str) -> str:
    names = dict.fromkeys(str(run.flags[flag]) for run in runs if run.flags.get(flag))
    return ", ".join(DATA_SETS[name].title if name in DATA_SETS else name for name in names)


def _validation(runs: Sequence[TrainingRun], root: str) -> dict[str, Any] | None:
    """The val split of the first run's target."""
    for run in runs:
        if run.flags.get("target") in DATA_SETS and run.flags.get("data_dir_target"):
            place = os.path.relpath(run.flags["data_dir_target"], root)
            part = flags.part(Namespace(**run.flags), run.flags["target"])
            return {"dataset": run.flags["target"], "root": place, "part": part}
    return None
