"""The page: everything in one HTML file that opens without a network."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from . import sections
from .pseudo_labels import LabelSet
from .results import Results, mean
from .runs import TrainingRun
from .sections import text
from .style import SCRIPT, STYLE
from .tables import papers_order
from .views import View
from .walls import Picture

LARGEST = 5_000_000  # bytes
SCORE = (
    "The score, mIoU, says how well predicted and true regions overlap; 100% is perfect. It is averaged over all classes, so "
    "that a bicycle counts as much as the road."
)
TITLES = {
    "scores": "Scores",
    "table": "Numbers",
    "pictures": "Pictures",
    "classes": "Classes",
    "looks": "What methods look at",
    "labels": "Pseudo-labels",
    "confusions": "Confusions",
    "curves": "Learning curves",
    "words": "Words",
}


@dataclass(frozen=True)
class Material:
    """What the page is made of, read and computed once.

    Attributes:
        pictures: of the wall, the best ones first.
        runs: the first run of each row that has one.
        views, left_out: what methods look at, and for other rows why it is not shown.
        images: the files that `views` are of.
        label_sets: pseudo-labels by row.
        label_image: a training image (H,W,3) uint8, and its pseudo-labels by row and set.
    """

    results: Results
    pictures: Sequence[Picture]
    runs: Mapping[str, TrainingRun]
    views: Mapping[str, View]
    left_out: Mapping[str, str]
    images: Sequence[str]
    label_sets: Mapping[str, Sequence[LabelSet]]
    label_samples: Mapping[str, tuple[np.ndarray, Sequence[np.ndarray]]]
    files: Sequence[str]


def page(material: Material) -> str:
    """The page with as many pictures of the wall as it has room for."""
    fixed = _fixed_sections(material)
    for count in range(len(material.pictures), -1, -1):
        written = _assemble(material, {**fixed, "pictures": sections.wall(material.results, material.pictures[:count])})
        if len(written.encode()) < LARGEST:
            return written
    return written


def _fixed_sections(material: Material) -> dict[str, str]:
    results = material.results
    samples = {
        name: sections.label_samples(material.label_sets[name], picture, maps, results.classes)
        for name, (picture, maps) in material.label_samples.items()
    }
    made: dict[str, Callable[[], str]] = {
        "scores": lambda: sections.bars(results),
        "table": lambda: sections.scores(results),
        "classes": lambda: sections.classes(results),
        "looks": lambda: sections.looks(results, material.views, material.left_out, material.images),
        "labels": lambda: sections.pseudo_labels(results, material.label_sets, samples),
        "confusions": lambda: sections.confusions(results),
        "curves": lambda: sections.curves(results, material.runs),
        "words": lambda: sections.terms(results, material.files),
    }
    return {anchor: make() for anchor, make in made.items()}


def _assemble(material: Material, made: Mapping[str, str]) -> str:
    results = material.results
    example = sections.example(results, material.pictures[0]) if material.pictures else ""
    links = "".join(f'<a href="#{anchor}">{title}</a>' for anchor, title in TITLES.items())
    zipped = zip(results.classes.colors, results.classes.names, strict=True)
    colours = {",".join(map(str, color)): name for color, name in zipped}
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{text(results.title)}</title><style>{STYLE}</style></head><body><main>"
        f'<header><p class="eyebrow">SegAdapt report</p><h1>{text(results.title)}</h1>{_lead(results)}</header>'
        f"{example}{_tiles(results)}<nav>{links}</nav>{''.join(made[anchor] for anchor in TITLES)}"
        f"<footer>Made by scripts/report.py of SegAdapt.</footer></main>"
        f'<div id="tip" role="status"></div><script>const COLOURS={_script_json(colours)};{SCRIPT}</script></body></html>\n'
    )


def _script_json(value: object) -> str:
    """JSON that cannot end the script it stands in."""
    return json.dumps(value).replace("<", "\\u003c")


def _lead(results: Results) -> str:
    """What was done and found, for a reader who never heard of the field."""
    start, best, gain = sections.headline_gain(results)
    some = ", ".join(papers_order(results.classes.names)[:3])
    source, target = results.source or "one world", results.target or "another one"
    parts = [
        f"A neural network learned to name what every pixel of an image shows ({text(some)} and so on) from images of "
        f"<b>{text(source)}</b>, for which the answers were known. But it is needed for images of <b>{text(target)}</b>. They "
        "look different, and so it makes many more mistakes there."
    ]
    if start is not None and gain is not None:
        parts.append(
            "The methods below adapt the network to the new images <b>without a single known answer for them</b>. Before that "
            f"it scores {mean(start.miou):.1f}%; {text(best.name)}, the best method here, brings it to {mean(best.miou):.1f}%, "
            f"<b>{gain:+.1f} points</b>. {SCORE}"
        )
    else:
        parts.append(
            "The networks below were trained in different ways and scored on such images. The best, "
            f"{text(best.name)}, reaches {mean(best.miou):.1f}%. {SCORE}"
        )
    paragraphs = "".join(f'<p class="lead">{part}</p>' for part in parts)
    return f'<div class="leads">{paragraphs}</div>'


def _tiles(results: Results) -> str:
    start, best, gain = sections.headline_gain(results)
    tiles = []
    if start is not None:
        tiles.append(("", f"{mean(start.miou):.1f}%", f"before adaptation: {start.name}"))
    tiles.append(("best", f"{mean(best.miou):.1f}%", f"best: {best.name}"))
    if gain is not None:
        tiles.append(("best", f"{gain:+.1f}", "points gained without target labels"))
    seeds = len(results.seeds)
    tiles.append(("", str(len(results.rows)), f"rows compared, {seeds} seed{'s' if seeds > 1 else ''}"))
    cells = [f'<div class="tile {kind}"><b>{text(value)}</b><span>{text(what)}</span></div>' for kind, value, what in tiles]
    return f'<div class="tiles">{"".join(cells)}</div>'
