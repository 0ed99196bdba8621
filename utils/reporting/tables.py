"""The comparison as tables: Markdown, LaTeX and CSV. Per cent and points, one decimal; the CSV has every digit."""

import csv
import io
from collections.abc import Sequence

from dataset.catalogue import CITYSCAPES

from .results import PerSeed, Results, class_iou, deviation, gains, mean, reported_subsets, stem, subset_miou

# As the papers' tables shorten the names of the classes.
SHORT = {
    "sidewalk": "side.",
    "building": "buil.",
    "traffic light": "light",
    "traffic sign": "sign",
    "vegetation": "veg.",
    "terrain": "terr.",
    "person": "pers.",
    "motorcycle": "mbike",
    "bicycle": "bike",
}
NONE = "–"


def papers_order(names: Sequence[str]) -> list[str]:
    """Class names in the order of the papers' tables, which is Cityscapes'; other classes behind them."""
    known = [name for name in CITYSCAPES.names if name in names]
    return known + [name for name in names if name not in known]


def short(name: str) -> str:
    return SHORT.get(name, name)


def number(values: PerSeed, signed: bool = False, plus_minus: str = "±", digits: int = 1) -> str:
    """Mean, and standard deviation over the seeds if there are several, as `44.8 ± 0.3`."""
    if all(value is None for value in values):
        return NONE
    shown, spread = round(mean(values), digits) + 0.0, deviation(values)  # + 0.0 turns -0.0 into 0.0
    return f"{shown:{'+' if signed else ''}.{digits}f}" + (f" {plus_minus} {spread:.{digits}f}" if spread is not None else "")


def gain_columns(results: Results, block: str) -> dict[str, dict[str, PerSeed]]:
    """The columns of gains of a block: {title: {row: gains}}, over the unadapted network and over the baselines."""
    rows = results.rows_of(block)
    starts = {row.name: results.start(row) for row in rows if row.baseline}
    kinds = {stem(start.name) for start in starts.values()}
    title = f"over {next(iter(kinds))}" if len(kinds) == 1 else "over its start"
    columns = {title: {name: gains(results.rows[name], start) for name, start in starts.items()}} if starts else {}
    for base in results.blocks[block].baselines:
        held = [row for row in rows if not results.is_reference(row)]
        columns[f"over {stem(base)}"] = {row.name: gains(row, results.variant(base, row)) for row in held}
    return columns


def seconds(values: PerSeed) -> str:
    """The mean as `95 s`, `12 min` or `3.4 h`."""
    value = mean(values)
    if value != value:
        return NONE
    if value < 120:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def markdown(results: Results) -> str:
    """All tables as Markdown: a headline table for each block, and the classes."""
    parts = [f"# {results.title}", caption(results)]
    for key, block in results.blocks.items():
        columns = gain_columns(results, key)
        head = ["method", "mIoU", *columns, "BatchNorm statistics", "training", "memory"]
        lines = [
            [
                row.name,
                number(row.miou),
                *(number(column.get(row.name, ()), signed=True) for column in columns.values()),
                row.statistics or NONE,
                seconds(row.seconds),
                f"{mean(row.peak_memory_gb):.1f} GB" if any(row.peak_memory_gb) else NONE,
            ]
            for row in results.rows_of(key)
        ]
        parts += [f"## {block.title or 'Results'}", _markdown_table(head, lines)]
    names = papers_order(results.classes.names)
    subsets = reported_subsets(results.classes)
    head = ["method", *map(short, names), "mIoU", *(f"mIoU-{size}" for size in subsets)]
    lines = [
        [
            row.name,
            *(number(class_iou(row, name)) for name in names),
            number(row.miou),
            *(number(subset_miou(row, members)) for members in subsets.values()),
        ]
        for row in results.rows.values()
    ]
    parts += ["## IoU of each class, in %", _markdown_table(head, lines)]
    if subsets:
        parts.append(SUBSETS)
    return "\n\n".join(parts) + "\n"


SUBSETS = "mIoU-16 and mIoU-13 are means over those classes' IoUs of the full confusion matrix."


def caption(results: Results) -> str:
    """What the numbers are, in a sentence or two."""
    target = f" on {results.target}" if results.target else ""
    seeds = len(results.seeds)
    spread = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed, so no spread is known"
    return f"mIoU in %{target}; {spread}. Gains are in points, seed by seed."


def _markdown_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---", *["--:"] * (len(head) - 1)], *lines]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)


def latex(results: Results) -> str:
    """The classes as a LaTeX table in the papers' form (package booktabs)."""
    names = papers_order(results.classes.names)
    subsets = reported_subsets(results.classes)
    head = ["method", *(rf"\rotatebox{{90}}{{{_latex(short(name))}}}" for name in names), "mIoU"]
    head += [f"mIoU$_{{{size}}}$" for size in subsets]
    lines = [r"\begin{tabular}{l" + "c" * (len(head) - 1) + "}", r"\toprule", " & ".join(head) + r" \\"]
    for key in results.blocks:
        lines.append(r"\midrule")
        for row in results.rows_of(key):
            cells = [_latex(row.name), *(_plain(class_iou(row, name)) for name in names)]
            scores = [row.miou, *(subset_miou(row, members) for members in subsets.values())]
            cells += [number(values, plus_minus=r"$\pm$").replace(NONE, "--") for values in scores]
            lines.append(" & ".join(cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    return "% " + caption(results).replace("%", "per cent").replace("±", "+-") + "\n" + "\n".join(lines) + "\n"


def _plain(values: PerSeed) -> str:
    return "--" if all(value is None for value in values) else f"{mean(values):.1f}"


def _latex(text: str) -> str:
    for sign in "&%$#_{}":
        text = text.replace(sign, "\\" + sign)
    return text


def csv_text(results: Results) -> str:
    """One line for each row and seed: mIoU and IoU in per cent, gains in points, seconds, memory."""
    columns: dict[str, dict[str, PerSeed]] = {}
    for key in results.blocks:
        for title, column in gain_columns(results, key).items():
            columns.setdefault(title, {}).update(column)
    names = papers_order(results.classes.names)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["row", "block", "statistics", "seed", "mIoU", *columns, *names, "seconds", "peak_memory_gb"])
    for row in results.rows.values():
        gained = [column.get(row.name) or (None,) * len(results.seeds) for column in columns.values()]
        of_class = [class_iou(row, name) for name in names]
        values = [row.miou, *gained, *of_class, row.seconds, row.peak_memory_gb]
        for position, seed in enumerate(results.seeds):
            if row.miou[position] is not None:
                writer.writerow([row.name, row.block, row.statistics, seed, *(of_seed[position] for of_seed in values)])
    return text.getvalue()
