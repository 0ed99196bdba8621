"""Making a report: what is read and computed for it, and the files that are written."""

import os
from collections.abc import Sequence

import numpy as np

from dataset.errors import DataError
from model.errors import ModelError

from ..errors import RunError
from ..files import write_bytes
from .confusions import read_prediction
from .page import Material, page
from .plots import check_matplotlib
from .pseudo_labels import LabelSet, label_folders, measure, training_images
from .results import Results, read_results
from .runs import TrainingRun, is_run, read_run
from .tables import csv_text, latex, markdown
from .views import View, Viewer
from .walls import choose, class_shares, read_picture, wall

PICTURES = 6  # of the wall
VIEWED = 2  # images in which we look at what methods look at
PAGE = "report.html"
MARK = b"SegAdapt"  # in every page that was written here
FILES = {"results.csv": csv_text, "tables.md": markdown, "tables.tex": latex}


def write_report(results_or_path: Results | str, out: str, viewer: Viewer | None = None) -> str:
    """Write report.html, results.csv, tables.md and tables.tex to the folder `out`, and return the page's path.

    Args:
        results_or_path: the results, or a `results.json`.
        viewer: finds out what the method of a run looks at; without one that part is left out.

    Raises:
        RunError: Matplotlib is not installed, the results are damaged or contradict themselves, or the folder holds files of
            these names that were not written here. Nothing is written then.
    """
    check_matplotlib()
    check_folder(out)
    results = read_results(results_or_path) if isinstance(results_or_path, str) else results_or_path
    content = {PAGE: page(_material(results, viewer)), **{name: write(results) for name, write in FILES.items()}}
    os.makedirs(out, exist_ok=True)
    for name, written in content.items():
        write_bytes(os.path.join(out, name), written.encode())
    return os.path.join(out, PAGE)


def check_folder(out: str) -> None:
    """See that a report may be written to a folder: there is one already, or nothing of its files' names.

    Raises:
        RunError: naming the file that is in the way.
    """
    paths = [os.path.join(out, name) for name in (PAGE, *FILES)]
    there = [path for path in paths if os.path.lexists(path)]
    if not there or (there[0] == paths[0] and _holds_mark(paths[0])):
        return
    raise RunError(f"{there[0]}: exists already and was not written here; choose another folder for the report")


def _holds_mark(path: str) -> bool:
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return MARK in file.read(2**20)


def _material(results: Results, viewer: Viewer | None) -> Material:
    runs = _runs(results)
    candidates = class_shares(results.validation, len(results.classes)) if results.validation else ([], np.empty((0, 0)))
    pictures = wall(results, candidates, PICTURES)
    images = [candidates[0][position].image for position in choose(candidates[1], VIEWED)]
    views, left_out = _views(runs, images, viewer)
    label_sets, samples = {}, {}
    for name, run in runs.items():
        sets, sample = _pseudo_labels(run, results)
        if sets:
            label_sets[name] = sets
        if sets and sample:
            samples[name] = sample
    return Material(results, pictures, runs, views, left_out, images, label_sets, samples, list(FILES))


def _runs(results: Results) -> dict[str, TrainingRun]:
    """The first run of each row that has one, as far as they are still there."""
    first = {name: next(filter(None, row.runs), None) for name, row in results.rows.items()}
    return {name: read_run(directory) for name, directory in first.items() if directory and is_run(directory)}


def _views(
    runs: dict[str, TrainingRun], images: Sequence[str], viewer: Viewer | None
) -> tuple[dict[str, View], dict[str, str]]:
    """What the methods look at by row, and why it is not shown for others; rows that have no target are passed over."""
    views: dict[str, View] = {}
    left_out: dict[str, str] = {}
    for name, run in runs.items():
        if "target" not in run.flags:
            continue
        if not images:
            left_out[name] = "there are no target images to look at"
        elif viewer is None:
            left_out[name] = "this report was made without"
        else:
            try:
                view = viewer(run, images)
            except (DataError, ModelError, RunError) as error:
                left_out[name] = str(error)
                continue
            if view is None:
                left_out[name] = "nothing of it is left in the run directory, or this method shows nothing"
            else:
                views[name] = view
    return views, left_out


def _pseudo_labels(run: TrainingRun, results: Results) -> tuple[list[LabelSet], tuple[np.ndarray, list[np.ndarray]] | None]:
    """The sets of pseudo-labels of a run, and a training image with those of each set."""
    folders = label_folders(run, results.classes)
    images = training_images(run, results.classes) if folders else None
    if images is None:
        return [], None
    sets = [measured for folder in folders if (measured := measure(folder, images, results.classes))]
    if not sets:
        return [], None
    records, shares = class_shares(images, len(results.classes))
    record = records[choose(shares, 1)[0]]
    maps = [read_prediction(labels.folder, record.name) for labels in sets]
    known = [ids for ids in maps if ids is not None]
    sample = (read_picture(record.image, known[0].shape), known) if len(known) == len(maps) else None
    return sets, sample
