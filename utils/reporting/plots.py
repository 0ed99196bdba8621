"""Plots as inline SVG: text stays text, and colours are those of the page, which has a dark and a light set of them."""

import html
import io
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import RunError
from .results import Results, mean
from .runs import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Matplotlib writes these colours; the page's style puts its own in their place.
INK, MUTED, LINE, BASE, METHOD, BEST, PAPER = (f"#0102{number:02x}" for number in range(1, 8))
SERIES = tuple(f"#0103{number:02x}" for number in range(8))
VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", BASE: "base", METHOD: "method", BEST: "best", PAPER: "card"}
VARIABLES |= {colour: f"s{number}" for number, colour in enumerate(SERIES)}
# Lines differ in more than their colours.
STYLES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1.5, 1.5)))
MARKERS = "osD^vPX*"
WIDTH = 3.9  # inches; so narrow that the letters are still readable on a telephone


def check_matplotlib() -> None:
    """See that plots can be drawn.

    Raises:
        RunError: Matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise RunError("the report's plots need Matplotlib, which is not installed: pip install '.[report]'") from None


def bars(results: Results, block: str) -> str:
    """The mean mIoU of a block's rows as bars, with a dot for each seed."""
    rows = results.rows_of(block)
    figure, axes = _figure(0.34 * len(rows) + 0.75)
    places = list(range(len(rows)))[::-1]
    for place, row in zip(places, rows, strict=True):
        value = mean(row.miou)
        base = results.is_reference(row)
        colour = BASE if base else METHOD
        drawn = axes.barh(place, value, height=0.66, color=colour, hatch="////" if base else "", edgecolor=PAPER, linewidth=0)
        known = [seed for seed in row.miou if seed is not None]
        axes.plot(known, [place] * len(known), "o", markersize=4, color=PAPER, markeredgecolor=INK, markeredgewidth=0.9)
        axes.annotate(
            f"{value:.1f}", (max(known), place), (6, 0), textcoords="offset points", va="center", color=INK, fontweight="bold"
        )
        seeds = ", ".join(f"{seed:.1f}" for seed in known)
        _name(drawn.patches[0], f"{row.name}: mean {value:.1f}%, seeds: {seeds}")
    highest = max(value for row in rows for value in row.miou if value is not None)
    start = next((row for row in rows if results.is_reference(row)), rows[0])
    axes.axvline(mean(start.miou), color=INK, linewidth=1, linestyle=(0, (3, 2)), zorder=0)
    axes.set_xlim(0, highest * 1.14)
    axes.set_yticks(places, [row.name for row in rows])
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("mIoU in %, higher is better")
    return _svg(figure, f"Bars: mIoU of {', '.join(row.name for row in rows)}")


def curves(by_row: Mapping[str, Curve], rows: Sequence[str], title: str, unit: str, smooth: int = 1) -> str:
    """Curves over the steps of training, one for each row; `rows` are all there are, so that each looks the same everywhere."""
    figure, axes = _figure(3.1)
    for name, curve in by_row.items():
        number = rows.index(name)
        steps, values = (np.array(column, np.float64) for column in zip(*curve, strict=True))
        values = _running_mean(values, smooth)
        (drawn,) = axes.plot(
            steps,
            values,
            color=SERIES[number % len(SERIES)],
            linestyle=STYLES[number % len(STYLES)],
            marker=MARKERS[number % len(MARKERS)],
            markevery=max(1, len(steps) // 6),
            markersize=4,
            linewidth=1.6,
            label=name,
        )
        _name(drawn, f"{name}: last {values[-1]:.3g}")
    axes.set_xlabel("training step")
    axes.set_ylabel(unit)
    axes.grid(True, axis="y", color=LINE, linewidth=0.8)
    _legend(figure, axes)
    return _svg(figure, f"{title}: curves of {', '.join(by_row)}")


def growth(titles: Sequence[str], labelled: Sequence[float], right: Sequence[float]) -> str:
    """How many pixels have pseudo-labels, and how many of these are right, set by set; in per cent."""
    figure, axes = _figure(2.5)
    places = range(len(titles))
    bars = axes.bar(
        places, labelled, width=0.55, color=METHOD, edgecolor=PAPER, linewidth=0, label="pixels with a pseudo-label"
    )
    for bar, title, value in zip(bars.patches, titles, labelled, strict=True):
        _name(bar, f"{title}: {value:.1f}% of the pixels have a pseudo-label")
        axes.annotate(
            f"{value:.0f}", (bar.get_x() + bar.get_width() / 2, value), (0, 3), textcoords="offset points", ha="center"
        )
    (line,) = axes.plot(places, right, "--", marker="D", markersize=5, color=BEST, label="of these, right")
    _name(line, "of the pseudo-labels, right: " + ", ".join(f"{value:.1f}%" for value in right))
    for place, value in zip(places, right, strict=True):
        box = {"boxstyle": "round,pad=0.15", "facecolor": PAPER, "edgecolor": "none"}
        axes.annotate(
            f"{value:.0f}",
            (place, value),
            (8, 0),
            textcoords="offset points",
            va="center",
            color=BEST,
            fontweight="bold",
            bbox=box,
        )
    axes.set_xticks(list(places), titles)
    axes.set_xlim(-0.6, len(titles) - 0.4)
    axes.set_ylim(0, 112)
    axes.set_ylabel("%")
    _legend(figure, axes)
    return _svg(figure, "Pseudo-labels: share of the pixels, and how many are right")


def _running_mean(values: np.ndarray, count: int) -> np.ndarray:
    """The mean of each value and up to `count` - 1 before it."""
    sums = np.cumsum(np.insert(values, 0, 0.0))
    starts = np.maximum(np.arange(len(values)) - count + 1, 0)
    ends = np.arange(1, len(values) + 1)
    return (sums[ends] - sums[starts]) / (ends - starts)


def _figure(height: float) -> "tuple[Figure, Axes]":
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update(
        {
            "svg.fonttype": "none",
            "font.size": 10,
            "hatch.color": PAPER,
            "hatch.linewidth": 0.9,
            **dict.fromkeys(("text.color", "axes.labelcolor", "ytick.labelcolor", "xtick.labelcolor"), INK),
            **dict.fromkeys(("xtick.color", "ytick.color", "axes.edgecolor"), MUTED),
        }
    )
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    return figure, axes


def _legend(figure: "Figure", axes: "Axes") -> None:
    entries = len(axes.get_legend_handles_labels()[1])
    figure.legend(loc="outside lower center", ncols=2 if entries > 1 else 1, frameon=False, fontsize=9, handlelength=2.8)


_names = itertools.count()


def _name(artist: object, text: str) -> None:
    """What is shown when the mouse is on a part of a plot."""
    artist.set_gid(f"hover-{next(_names)}-{text}")  # type: ignore[attr-defined]  # every artist of Matplotlib has it


def _svg(figure: "Figure", description: str) -> str:
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": description}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    text = re.sub(r'<g id="hover-(\d+)-([^"]*)">', r'<g id="hover-\1"><title>\2</title>', text)
    text = re.sub(r"(<svg[^>]*?) width=\"[^\"]*\"", r"\1", text, count=1)
    text = re.sub(r"(<svg[^>]*?) height=\"[^\"]*\"", r"\1", text, count=1)
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(description)}"', 1)
