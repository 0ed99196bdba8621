"""The sections of the page, each from the results to HTML; one without anything to show is a sentence that says why."""

import html
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from dataset.catalogue import ClassSet

from ..pictures import HEAT, errors, heat
from . import plots
from .confusions import confusion_of, shares, worst
from .embedding import class_map, flat, photo
from .glossary import TERMS, about_row, knows_target_labels
from .pseudo_labels import LabelSet
from .results import Block, PerSeed, Results, Row, class_iou, gains, mean, stem
from .runs import Curve, TrainingRun
from .tables import NONE, gain_columns, number, papers_order, seconds, short
from .views import View
from .walls import Picture, read_picture

# Of the metrics of a run, those that are plotted: what they are, their unit, and over how many values they are smoothed.
METRICS = {
    "loss_seg": ("Segmentation loss on labelled pixels", "loss (lower is better)", 5),
    "loss_adv": ("Adversarial loss: how far the target is from passing for the source", "loss", 5),
    "val_miou": ("Validation while training", "mIoU", 1),
}
OPEN = 3  # images of the wall that are seen at once; the others are folded away
STRONGEST = 12.0  # points of gain or loss that have the strongest colour
EVALUATE = "evaluate_cityscapes.py --restore-from RUN --save RUN/predictions --json RUN/figures.json"


def text(value: object) -> str:
    return html.escape(str(value))


def section(anchor: str, title: str, how: str, *parts: str) -> str:
    """A section of the page; `how` says in a sentence or two what is seen."""
    return f'<section id="{anchor}"><h2>{text(title)}</h2><p class="how">{text(how)}</p>{"".join(parts)}</section>'


def table(head: Sequence[str], lines: Iterable[str], kind: str = "") -> str:
    """A table of cells that are HTML already, which scrolls by itself where the page is narrow."""
    titles = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    wide = " wide" if len(head) > 4 else ""
    return (
        f'<div class="scroll{wide}" tabindex="0"><table class="{kind}"><thead><tr>{titles}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def folded(summary: str, content: str) -> str:
    """What is seen once somebody asks for it."""
    return f"<details><summary>{text(summary)}</summary>{content}</details>"


def bars(results: Results) -> str:
    """The headline: bars for each block."""
    parts, explained = [], set()
    for key, block in results.blocks.items():
        entries = []
        for row in results.rows_of(key):
            about = row.about or about_row(row.name)
            if about and stem(row.name) not in explained:
                entries.append(f"<li><b>{text(row.name)}</b>: {text(about)}.</li>")
                explained.add(stem(row.name))
        plot = f"<figure>{heading(block)}{plots.bars(results, key)}</figure>"
        parts.append(f'<div class="row">{plot}<ul class="plain about">{"".join(entries)}</ul></div>')
    return section(
        "scores",
        "How good is each method?",
        "Longer is better. Hatched grey bars are what the methods are held against; blue bars are the methods. Each dot is one "
        "training with another seed, so close dots mean a stable result. The dashed line marks the first hatched bar.",
        *parts,
    )


def heading(block: Block) -> str:
    return f"<h3>{text(block.title[:1].upper() + block.title[1:])}</h3>" if block.title else ""


def gain_cell(values: PerSeed) -> str:
    if not values or all(value is None for value in values):
        return f"<td>{NONE}</td>"
    kind = "gain" if round(mean(values), 1) >= 0 else "loss"
    return f'<td class="{kind}">{text(number(values, signed=True))}</td>'


def scores(results: Results) -> str:
    """The headline table of each block."""
    best = results.best().name
    parts = []
    for key, block in results.blocks.items():
        columns = gain_columns(results, key)
        head = ["Method", "mIoU, %", *map(text, columns), "Training", "Memory", "BatchNorm statistics"]
        lines = []
        for row in results.rows_of(key):
            memory = f"{mean(row.peak_memory_gb):.1f} GB" if any(row.peak_memory_gb) else NONE
            cells = [
                f"<td>{text(number(row.miou))}</td>",
                *(gain_cell(column.get(row.name, ())) for column in columns.values()),
                f"<td>{seconds(row.seconds)}</td><td>{memory}</td>",
                f'<td class="words">{text(row.statistics or NONE)}</td>',
            ]
            kind = ' class="best"' if row.name == best else ""
            lines.append(f'<tr{kind}><th scope="row">{text(row.name)}</th>{"".join(cells)}</tr>')
        parts.append(f'<div style="margin-top:12px">{heading(block)}{table(head, lines)}</div>')
    several = len(results.seeds) > 1
    spread = f"Mean ± standard deviation over {len(results.seeds)} seeds. " if several else "One seed: no spread is known. "
    return section(
        "table",
        "The numbers",
        spread + "Gains are points of mIoU, taken seed by seed, over the row that is named: the unadapted network, and "
        "baselines that need no method. A star marks the best method.",
        *parts,
    )


def class_key(classes: ClassSet, names: Sequence[str] | None = None) -> str:
    """The colours of the classes with their names."""
    chips = [
        f'<li><i style="background:rgb{color}"></i>{text(name)}</li>'
        for name, color in zip(classes.names, classes.colors, strict=True)
        if names is None or name in names
    ]
    chips.append('<li><i style="background:#000"></i>no label</li>')
    return f'<ul class="key">{"".join(chips)}</ul>'


def image(source: str, what: str, kind: str = "") -> str:
    return f'<img class="{kind}" src="{source}" alt="{text(what)}" loading="lazy">'


def figure(caption: str, *images: str) -> str:
    return f"<figure>{''.join(images)}<figcaption>{caption}</figcaption></figure>"


def example(results: Results, picture: Picture) -> str:
    """One image before and after, at the top of the page."""
    tiles = {tile.row.name: tile for tile in picture.tiles}
    best = tiles.get(results.best().name)
    start = tiles.get(results.start(results.best()).name)
    if best is None or start is None or best is start:
        return ""
    figures = [
        figure("<b>A target image</b>, as the network gets it", image(photo(picture.image), "target image")),
        figure("<b>The truth</b>, for scoring only", image(class_map(picture.truth, results.classes), "truth", "map")),
        figure(
            f"<b>Before</b>: {text(start.row.name)}, {start.right:.0f}% of the pixels right",
            image(class_map(start.prediction, results.classes), "prediction before", "map"),
        ),
        figure(
            f"<b>After</b>: {text(best.row.name)}, {best.right:.0f}% right",
            image(class_map(best.prediction, results.classes), "prediction after", "map"),
        ),
    ]
    return f'<div class="strip">{"".join(figures)}</div>'


def wall(results: Results, pictures: Sequence[Picture]) -> str:
    """Images, truth, predictions and errors."""
    title = "What they see"
    if not pictures:
        return section("pictures", title, f"Left out: there are no predictions beside labelled images. {EVALUATE} writes them.")
    cards = []
    for picture in pictures:
        truth = image(class_map(picture.truth, results.classes), "truth", "map")
        figures = [figure("<b>Image, and the truth</b>", image(photo(picture.image), "target image"), truth)]
        for tile in picture.tiles:
            wrong = errors(picture.image, picture.truth, tile.prediction, len(results.classes))
            caption = f"<b>{text(tile.row.name)}</b>, {tile.right:.0f}% right"
            prediction = image(class_map(tile.prediction, results.classes), f"prediction of {tile.row.name}", "map")
            figures.append(figure(caption, prediction, image(flat(wrong), f"errors of {tile.row.name}")))
        rare = f"with {text(', '.join(picture.rare))}" if picture.rare else ""
        cards.append(f'<div class="card"><h3>An image {rare}</h3><div class="wall">{"".join(figures)}</div></div>')
    more = "".join(cards[OPEN:])
    return section(
        "pictures",
        title,
        "Images of the target, chosen by a rule for the rare classes in them, not for how well anybody does. Below each "
        "prediction its errors: wrong pixels are orange, pixels without a true label black. The share of right pixels stands "
        "beside each name. Point at (or touch) a coloured map to read the class.",
        class_key(results.classes),
        *cards[:OPEN],
        folded(f"{len(cards) - OPEN} more images", more) if more else "",
    )


def classes(results: Results) -> str:
    """The IoU of each class as a heat map of the gains."""
    names = papers_order(results.classes.names)
    rows = list(results.rows.values())
    lines = []
    for name in names:
        cells = [_class_cell(results, row, name) for row in rows]
        lines.append(f'<tr><th scope="row">{text(name)}</th>{"".join(cells)}</tr>')
    total = "".join(f"<td><b>{text(number(row.miou))}</b></td>" for row in rows)
    lines.append(f'<tr><th scope="row"><b>mIoU</b></th>{total}</tr>')
    return section(
        "classes",
        "Class by class",
        "The IoU of each class in %, and below it the gain over the unadapted network. Blue: better than that; orange with "
        "hatching: worse; the stronger the colour, the larger the difference.",
        table(["", *(text(row.name) for row in rows)], lines, "heat"),
    )


def _class_cell(results: Results, row: Row, name: str) -> str:
    values = class_iou(row, name)
    if all(value is None for value in values):
        return f'<td title="{text(name)}: not there">{NONE}</td>'
    shown = f"{mean(values):.1f}"
    base = results.start(row)
    before = class_iou(base, name) if base is not row else ()
    pairs = zip(values, before, strict=False)
    differences = [own - other for own, other in pairs if own is not None and other is not None]
    if not differences:
        return f'<td title="{text(f"{row.name}, {name}: {shown}%")}">{shown}</td>'
    gain = round(mean(differences), 1) + 0.0  # + 0.0 turns -0.0 into 0.0
    strength = min(abs(gain) / STRONGEST, 1) * 72
    hover = text(f"{row.name}, {name}: {shown}%, {gain:+.1f} over {base.name}")
    kind = "up" if gain >= 0 else "down"
    return f'<td class="{kind}" style="--g:{strength:.0f}" title="{hover}">{shown}<small>{gain:+.1f}</small></td>'


def looks(results: Results, found: Mapping[str, View], left_out: Mapping[str, str], images: Sequence[str]) -> str:
    """What each method looks at, in the same images."""
    parts = []
    for name, view in found.items():
        ranges = _ranges(view)
        rows = []
        for path, maps in zip(images, view.maps, strict=False):
            size = next(iter(maps.values())).shape
            figures = [figure("<b>Image</b>", image(photo(read_picture(path, size)), "target image"))]
            for title, values in maps.items():
                figures.append(figure(text(title), image(flat(heat(values, *ranges[title])), title), _ramp(*ranges[title])))
            rows.append(f'<div class="wall few">{"".join(figures)}</div>')
        numbers = _per_class(view, results.classes.names) if view.per_class else ""
        parts.append(
            f'<div class="card"><h3>{text(name)}: {text(view.title)}</h3><p>{text(view.text)} '
            f"<em>Dark: {text(view.low)}. Light: {text(view.high)}.</em></p>"
            f'<div class="row">{"".join(rows)}</div>{numbers}</div>'
        )
    notes = "".join(f"<li>{text(name)}: {text(why)}</li>" for name, why in left_out.items())
    if notes:
        parts.append(f'<p class="note" style="margin-top:14px">Left out:</p><ul class="plain note">{notes}</ul>')
    return section(
        "looks",
        "What each method looks at",
        "Every method has its own way of finding out where the network needs to change. Computed from the networks as they "
        "were at the end of training. Dark is low, light is high; the bar below a map has its numbers.",
        *parts,
    )


def _ranges(view: View) -> dict[str, tuple[float, float]]:
    """What the darkest and lightest colour of each title's maps stand for: hardly a pixel is beyond, in all images."""
    titles = dict.fromkeys(title for maps in view.maps for title in maps)
    values = {title: np.concatenate([maps[title].ravel() for maps in view.maps if title in maps]) for title in titles}
    return {title: (float(np.quantile(found, 0.01)), float(np.quantile(found, 0.99))) for title, found in values.items()}


def _ramp(low: float, high: float) -> str:
    colours = ",".join(f"rgb{colour}" for colour in HEAT)
    ramp = f'<i style="background:linear-gradient(90deg,{colours})"></i>'
    return f'<div class="ramp"><span>{low:.2g}</span>{ramp}<span>{high:.2g}</span></div>'


def _per_class(view: View, names: Sequence[str]) -> str:
    lines = []
    for position, name in enumerate(names):
        cells = "".join(f"<td>{values[position]:.2f}</td>" for values in view.per_class.values())
        lines.append(f'<tr><th scope="row">{text(name)}</th>{cells}</tr>')
    return folded("Class by class", table(["class", *map(text, view.per_class)], lines))


def pseudo_labels(results: Results, found: Mapping[str, Sequence[LabelSet]], samples: Mapping[str, str]) -> str:
    """How pseudo-labels grow, row by row; `samples` are figures of them."""
    title = "Labels that the network gave itself"
    if not found:
        return section("labels", title, "Left out: no run here has left pseudo-labels whose true labels are known.")
    parts = []
    for name, sets in found.items():
        plot = plots.growth([each.title for each in sets], [each.labelled for each in sets], [each.right for each in sets])
        lines = []
        for position, each in enumerate(results.classes.names):
            shown = [NONE if (value := labels.found[position]) is None else f"{value:.0f}" for labels in sets]
            if set(shown) != {NONE}:
                cells = "".join(f"<td>{cell}</td>" for cell in shown)
                lines.append(f'<tr><th scope="row">{text(each)}</th>{cells}</tr>')
        tables = table(["found, %", *(text(each.title) for each in sets)], lines)
        right = f'<div><div class="wall few">{samples.get(name, "")}</div>{folded("Class by class", tables)}</div>'
        parts.append(f'<div class="card"><h3>{text(name)}</h3><div class="row"><figure>{plot}</figure>{right}</div></div>')
    return section(
        "labels",
        title,
        "Self-training writes labels for target images where the network is confident and learns from them; more and more are "
        "added. Bars: how many pixels have one. Diamonds: how many of these are right, which the method itself never gets to "
        "know. The table: of each class's true pixels, the share that was found and labelled as it.",
        *parts,
    )


def label_samples(sets: Sequence[LabelSet], picture: np.ndarray, maps: Sequence[np.ndarray], classes: ClassSet) -> str:
    """One training image with each set's pseudo-labels."""
    figures = [figure("<b>Training image</b>", image(photo(picture), "target training image"))]
    for labels, ids in zip(sets, maps, strict=True):
        figures.append(figure(text(labels.title), image(class_map(ids, classes), f"pseudo-labels, {labels.title}", "map")))
    return "".join(figures)


def extremes(results: Results) -> list[Row]:
    """The lowest and the highest row of those with predictions."""
    rows = sorted((row for row in results.rows.values() if any(row.predictions)), key=lambda row: mean(row.miou))
    return [rows[0], rows[-1]] if len(rows) > 1 else rows


def confusions(results: Results) -> str:
    """Confusion matrices of the lowest and the highest row."""
    title = "Which classes are taken for which"
    parts = []
    for row in extremes(results) if results.validation else ():
        folder = next(filter(None, row.predictions))
        matrix = confusion_of(folder, results.validation, len(results.classes)) if results.validation else None
        if matrix is not None:
            parts.append(_confusion(row, matrix, results.classes.names))
    if not parts:
        return section(
            "confusions", title, f"Left out: there are no predictions beside labelled images. {EVALUATE} writes them."
        )
    return section(
        "confusions",
        title,
        "The two extremes: the lowest and the highest row, first seed. Each line is a true class, and its cells say what its "
        "pixels were taken for. Grey on the diagonal is right, blue beside it is wrong; the stronger, the more pixels.",
        f'<div class="row">{"".join(parts)}</div>',
    )


def _confusion(row: Row, matrix: np.ndarray, names: Sequence[str]) -> str:
    present = [c for c in range(len(names)) if matrix[c].sum() or matrix[:, c].sum()]
    percent = shares(matrix)
    head = "".join(f"<th>{text(short(names[c]))}</th>" for c in present)
    lines = []
    for true in present:
        cells = []
        for said in present:
            value = percent[true, said]
            kind = ' class="hit"' if true == said else ""
            hover = text(f"{names[true]} taken for {names[said]}: {value:.1f}%")
            cells.append(f'<td{kind} style="--g:{100 * (value / 100) ** 0.5:.0f}" title="{hover}"></td>')
        lines.append(f'<tr><th scope="row">{text(short(names[true]))}</th>{"".join(cells)}</tr>')
    top = f'<thead><tr><th class="corner"></th>{head}</tr></thead>'
    grid = f'<table class="confusion">{top}<tbody>{"".join(lines)}</tbody></table>'
    most = "".join(f"<li>{names[a]} taken for {names[b]}: {value:.0f}% of its pixels</li>" for a, b, value in worst(matrix))
    return f'<figure><h3>{text(row.name)}, mIoU {mean(row.miou):.1f}%</h3>{grid}<ul class="plain note">{most}</ul></figure>'


def curves(results: Results, runs: Mapping[str, TrainingRun]) -> str:
    """Learning curves: trainings from scratch apart from adaptations, which are far shorter."""
    title = "Learning curves"
    figures = []
    groups = {
        "training from scratch": {name: run for name, run in runs.items() if _is_from_scratch(results.rows[name])},
        "adaptation": {name: run for name, run in runs.items() if not _is_from_scratch(results.rows[name])},
    }
    for group, members in groups.items():
        for metric, (what, unit, smooth) in METRICS.items():
            by_row: dict[str, Curve] = {}
            for name, run in members.items():
                if len(run.curves.get(metric, ())) > 1:
                    by_row[name] = list(run.curves[metric])
            if by_row:
                drawn = plots.curves(by_row, list(results.rows), f"{what}, {group}", unit, smooth)
                figures.append(f"<figure><h3>{text(what)}: {group}</h3>{drawn}</figure>")
    if not figures:
        return section("curves", title, "Left out: none of the rows has a run directory with a log.")
    return section(
        "curves",
        title,
        "How training went, one line for each row (first seed; running means over five log lines). Losses of different methods "
        "do not compare with each other, and a falling loss on the source says little about the target.",
        f'<div class="row">{"".join(figures)}</div>',
    )


def _is_from_scratch(row: Row) -> bool:
    return row.baseline is None or knows_target_labels(row.name)


def terms(results: Results, files: Sequence[str]) -> str:
    """The words of the field, and how the report was made."""
    entries = "".join(f"<div><dt>{text(word)}</dt><dd>{text(meaning)}</dd></div>" for word, meaning in TERMS.items())
    beside = f"The same numbers are in {', '.join(files)} beside this page."
    where = f" Trained and measured on: {results.machine}." if results.machine else ""
    seeds = ", ".join(map(str, results.seeds))
    made = f'<p class="note" style="margin-top:16px">{text(beside + where)} Seeds: {text(seeds)}.</p>'
    return section("words", "Words", "What the terms on this page mean.", f"<dl>{entries}</dl>", made)


def headline_gain(results: Results) -> tuple[Row | None, Row, float | None]:
    """The unadapted row of the best method, if there is one, the best method, and its gain in points."""
    best = results.best()
    start = results.start(best)
    return (None, best, None) if start is best else (start, best, mean(gains(best, start)))
