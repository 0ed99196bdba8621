"""The demo's figures as text for the terminal, and the sweep's as a plot."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Results = dict[str, Any]  # what results.json holds; docs/report.md describes it


def text_table(results: Results) -> str:
    """The table as text: the steps of a row's own training, mIoU, and gains over the row's source-only and over the baselines
    of its block, seed by seed; for rows of another network over those of that network, as far as there are any."""
    rows = results["rows"]
    lines = [f"mIoU on the target's val split in %, gains in points: {spread_note(len(results['seeds']))}"]
    for id in dict.fromkeys(row["block"] for row in rows.values()):
        block = results["blocks"].get(id, {"title": "for reference", "baselines": []})
        head = ["", "steps", "mIoU", "over source-only", *(f"over {base}" for base in block["baselines"])]
        lines += ["", block["title"], columns(head)]
        for name, row in rows.items():
            if row["block"] == id:
                over = [row["baseline"], *(variant(base, name, rows) for base in block["baselines"])]
                own = [name, str(row["steps"] or ""), spread(row["miou"], ".1f")]
                lines.append(columns([*own, *(gain(row, rows, base) for base in over)]))
    lines.append(f"\nsource-only on the source's own val split: {statistics.mean(results['source_val_miou']):.1f}")
    return "\n".join(lines)


def variant(base: str, name: str, rows: Mapping[str, dict[str, Any]]) -> str | None:
    """The row that `name` is compared with as the baseline `base`: of `AdaBN` it is `AdaBN, twin` for a row that comes from
    `source-only, twin`; None for what is a baseline itself or comes from no other row."""
    start = rows[name]["baseline"]
    if start is None:
        return None
    own = base + start.removeprefix("source-only")
    found = own if own in rows else base
    return None if found == name else found


def columns(cells: Sequence[str]) -> str:
    name, steps, *figures = cells
    return f"{name:20s}{steps:>5s}  {''.join(f'{cell:21s}' for cell in figures)}".rstrip()


def gain(row: dict[str, Any], rows: dict[str, Any], baseline: str | None) -> str:
    return spread(gains(row, rows[baseline]), "+.1f") if baseline else ""


def spread_note(seeds: int) -> str:
    return f"mean [lowest, highest] of {seeds} seeds" if seeds > 1 else "one seed"


def spread(values: Sequence[float], form: str) -> str:
    """Mean, lowest and highest value, each in the format `form`."""
    mean = format(statistics.mean(values), form)
    return f"{mean} [{min(values):{form}}, {max(values):{form}}]" if len(values) > 1 else mean


def gains(row: dict[str, Any], baseline: dict[str, Any]) -> list[float]:
    """By how much a row is above another one, for each seed that it has."""
    return [own - other for own, other in zip(row["miou"], baseline["miou"], strict=False)]


def sweep_table(tables: Mapping[str, Results]) -> str:
    """The mean mIoU of each row for each gap as text."""
    names = list(next(iter(tables.values()))["rows"])
    lines = [f"{'mean mIoU in %':16s}" + "".join(f"{name:>14s}" for name in names)]
    for gap, results in tables.items():
        lines.append(f"{gap:16s}" + "".join(f"{statistics.mean(results['rows'][name]['miou']):14.1f}" for name in names))
    return "\n".join(lines)


def plot_sweep(tables: Mapping[str, Results], path: str) -> None:
    """Draw the mean mIoU of each row to a PNG: over the strength of the gap, and for each part of it alone."""
    from matplotlib.figure import Figure  # takes a second to import

    strengths = {float(gap.removeprefix("strength ")): gap for gap in tables if gap.startswith("strength ")}
    parts = {gap.removesuffix(" alone"): gap for gap in tables if gap.endswith(" alone")}
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 3))
    for number, name in enumerate(next(iter(tables.values()))["rows"]):
        marker, stroke = "osD^vPX*<>d1"[number % 12], "-" if number < 10 else "--"  # colours come again after ten
        for axes, gaps, line in ((left, strengths, stroke), (right, parts, "none")):
            values = [statistics.mean(tables[gap]["rows"][name]["miou"]) for gap in gaps.values()]
            axes.plot(list(gaps), values, label=name, marker=marker, linestyle=line)
    left.set(xlabel="strength of the whole gap", ylabel="mIoU on the target in %")
    right.set(xlabel="one part of the gap alone, at strength 1")
    right.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path, dpi=130)
