"""A report on trainings: a page with plots and pictures, tables for Markdown and LaTeX, and CSV.

    python scripts/report.py snapshots/source snapshots/clan snapshots/cbst --out report      # run directories
    python scripts/report.py CLAN=runs/clan_s0 CLAN=runs/clan_s1 --group-by seed --out report # with names; seeds in one row
    python scripts/report.py a.json b.json --out report                          # evaluate_cityscapes.py --json
    python scripts/report.py demo/results.json --out demo                        # a demo's results

A run needs scores: those that evaluate_cityscapes.py --json has left in its directory, or those of its last validation. With
predictions there too, the page has pictures and confusion matrices:

    python evaluate_cityscapes.py --restore-from RUN --save RUN/predictions --json RUN/figures.json

Of several snapshots the last one counts, never the best: that was chosen with the very labels that score it. docs/report.md
says what the page shows. It needs Matplotlib: pip install '.[report]'.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from scripts.method_views import view_of
from utils.errors import exit_with_message
from utils.files import write_json
from utils.outputs import check_file, is_json_with
from utils.parser import Flags, Parser
from utils.reporting import collect, parse_results, read_results, write_report
from utils.reporting.plots import check_matplotlib
from utils.reporting.report import check_folder


def get_arguments(arguments: list[str] | None = None) -> Flags:
    parser = Parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="[NAME=]RUN", help="run directories, scores as JSON, or one results.json")
    parser.add_argument("--out", required=True, metavar="DIR", help="where the report goes")
    parser.add_argument("--group-by", choices=("seed",), help="runs that differ in the seed alone are one row")
    parser.add_argument("--baselines", default="", metavar="A,B", help="rows that all others are held against")
    parser.add_argument("--title", default="", metavar="TEXT", help="the page's title")
    return Flags(**vars(parser.parse_args(arguments)))


def main(args: Flags) -> str:
    check_matplotlib()
    check_folder(args.out)
    ours = is_json_with("rows")
    if len(args.runs) == 1 and os.path.isfile(args.runs[0]) and ours(args.runs[0]):
        results = read_results(args.runs[0])
    else:
        path = os.path.join(args.out, "results.json")
        check_file("--out", path, ours)
        baselines = [name for name in args.baselines.split(",") if name]
        record = collect(args.runs, args.group_by == "seed", baselines, os.path.abspath(args.out))
        record["title"] = args.title or record["title"]
        results = parse_results(record, path)
        os.makedirs(args.out, exist_ok=True)
        write_json(path, record)
    path = write_report(results, args.out, view_of)
    print(f"report: {path}")
    return path


if __name__ == "__main__":
    with exit_with_message():
        main(get_arguments())
