"""Compare runs in the terminal: where their curves end, last and best mIoU, seeds together, speed, and the flags that differ.

    python scripts/compare_runs.py snapshots/clan snapshots/adaptsegnet
    python scripts/compare_runs.py snapshots/*/seed*                      # seeds of one setting become one group

Runs whose flags differ in the seed alone form a group (a path may differ in the number behind the word "seed"). Groups are
compared by a permutation test on the last mIoU, where there are seeds enough for one. The last mIoU is the one to report:
the best one is chosen with target labels.

mIoU is that of the validations while training (--val-every). --metric takes another number of metrics.jsonl that is to be
high, such as source_val_miou.
"""

import os
import statistics
import sys
from collections.abc import Iterable, Sequence
from itertools import combinations
from string import ascii_uppercase

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from utils.errors import RunError, exit_with_message
from utils.parser import Flags, Parser
from utils.run_records import (
    LEVEL,
    SEED,
    RunRecord,
    differing_flags,
    enough_seeds,
    groups_of,
    permutation_test,
    read_runs,
    smallest_p,
)

LONGEST_VALUE = 40


def get_arguments(arguments: list[str] | None = None) -> Flags:
    parser = Parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories (--snapshot-dir of the training scripts)")
    parser.add_argument("--metric", default="val_miou", metavar="NAME", help="what is compared, a number of metrics.jsonl")
    return Flags(**vars(parser.parse_args(arguments)))


def main(args: Flags) -> None:
    runs = read_runs(args.runs)
    if args.metric != "val_miou" and not any(run.curve(args.metric) for run in runs):
        known = sorted({key for run in runs for row in run.rows for key in row} - {"step"})
        raise RunError(f"--metric {args.metric}: is in none of the runs; they have {', '.join(known)}")
    groups = groups_of(runs)
    letters = [ascii_uppercase[i % 26] + str(i // 26 or "") for i in range(len(groups))]
    letter_of = {run.name: letter for letter, group in zip(letters, groups, strict=True) for run in group}
    sections = [
        table(["group", *run_header(args.metric)], [[letter_of[run.name], *run_row(run, args.metric)] for run in runs], 2),
        group_table(letters, groups, args.metric),
        loss_table(runs, letter_of),
        flag_table(letters, groups),
        tests(letters, groups, args.metric),
    ]
    print("\n\n".join(filter(None, sections)))


def run_header(metric: str) -> list[str]:
    return ["run", "seed", "steps", f"{metric} last", "best", "at step", "images/s", "waiting for data", "memory GB"]


def run_row(run: RunRecord, metric: str) -> list[str]:
    """One run's line of the first table."""
    done, planned = run.rows[-1]["step"] + 1, run.flags.get("num_steps_stop")
    best = run.best(metric)
    wait = run.median("data_wait")
    return [
        run.name,
        str(run.flags.get(SEED, "-")),
        f"{done}" if planned in (None, done) else f"{done} of {planned}",
        per_cent(run.last(metric)),
        per_cent(best[1] if best else None),
        str(best[0]) if best else "-",
        number(run.median("images_per_second"), ".2f"),
        "-" if wait is None else f"{100 * wait:.0f} %",
        number(run.last("peak_memory_gb"), ".2f"),
    ]


def group_table(letters: Sequence[str], groups: Sequence[Sequence[RunRecord]], metric: str) -> str:
    """Mean and spread of groups with several seeds; nothing where there are none."""
    if all(len(group) == 1 for group in groups):
        return ""
    rows = []
    for letter, group in zip(letters, groups, strict=True):
        last = known(run.last(metric) for run in group)
        best = known(point[1] for run in group if (point := run.best(metric)))
        speed = known(run.median("images_per_second") for run in group)
        rows.append([letter, str(len(group)), spread(last, 100), spread(best, 100), spread(speed)])
    title = "Groups: mean, standard deviation over seeds, [lowest, highest]\n"
    return title + table(["group", "seeds", f"{metric} last", "best", "images/s"], rows)


def loss_table(runs: Sequence[RunRecord], letter_of: dict[str, str]) -> str:
    """The ends of all losses' curves, a column for each run."""
    names = list(dict.fromkeys(name for run in runs for name in run.losses))
    rows = [[name, *(number(run.end(name), ".4f") for run in runs)] for name in names]
    header = ["loss", *(f"{letter_of[run.name]}, seed {run.flags.get(SEED, '-')}" for run in runs)]
    return "Ends of the curves: mean of the last tenth\n" + table(header, rows) if rows else ""


def flag_table(letters: Sequence[str], groups: Sequence[Sequence[RunRecord]]) -> str:
    """The flags that differ between groups, side by side."""
    if len(groups) == 1:
        return "" if len(groups[0]) == 1 else "All runs have the same flags but the seed."
    rows = [[name, *map(shortened, values)] for name, values in differing_flags(groups).items()]
    return "Flags that differ\n" + table(["flag", *letters], rows, 1 + len(letters))


def tests(letters: Sequence[str], groups: Sequence[Sequence[RunRecord]], metric: str) -> str:
    """What the seeds allow to say about each pair of groups, in words."""
    values = {letter: known(run.last(metric) for run in group) for letter, group in zip(letters, groups, strict=True)}
    if not any(values.values()):
        return f"No run has {metric}: train with --val-every N, or compare evaluations (evaluate_cityscapes.py --csv)."
    lines = [sentence(a, values[a], b, values[b]) for a, b in combinations(letters, 2) if values[a] and values[b]]
    if len(lines) > 1:
        lines.append(f"{len(lines)} pairs are compared: expect one in {round(1 / LEVEL)} below {LEVEL} by chance alone.")
    return "\n".join(lines)


def sentence(a: str, first: Sequence[float], b: str, second: Sequence[float]) -> str:
    """How far apart two groups are, and whether their seeds can tell."""
    difference = 100 * (statistics.fmean(first) - statistics.fmean(second))
    start = f"{a} - {b}: {difference:+.2f} points"
    least = smallest_p(len(first), len(second))
    if least >= LEVEL:
        counts = f"{len(first)} and {len(second)} seeds"
        why = (
            "one run of each says nothing about chance"
            if len(first) == len(second) == 1
            else f"p could not be below {least:.2f}"
        )
        return f"{start}; too few seeds for a test ({counts}: {why}; {enough_seeds()} and {enough_seeds()} would do)"
    p = permutation_test(first, second)
    verdict = "more than chance explains" if p < LEVEL else "chance explains it"
    return f"{start}; permutation test p = {p:.3f}: {verdict} at {LEVEL}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """Aligned columns, the first ones to the left and all others to the right."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for row in (header, *rows):
        cells = [
            cell.ljust(width) if i < text_columns else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def known(values: Iterable[float | None]) -> list[float]:
    """Those that are not None."""
    return [value for value in values if value is not None]


def per_cent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def spread(values: Sequence[float], factor: float = 1) -> str:
    """Mean, standard deviation and range of values times `factor`."""
    if not values:
        return "-"
    scaled = [factor * value for value in values]
    deviation = f" +- {statistics.stdev(scaled):.2f} [{min(scaled):.2f}, {max(scaled):.2f}]" if len(scaled) > 1 else ""
    return f"{statistics.fmean(scaled):.2f}{deviation}"


def shortened(value: str) -> str:
    """The end of a long value: of paths it says the most."""
    return value if len(value) <= LONGEST_VALUE else f"...{value[3 - LONGEST_VALUE :]}"


if __name__ == "__main__":
    with exit_with_message():
        main(get_arguments())
