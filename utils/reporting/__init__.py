"""Reports: a comparison of trainings as a page, tables and CSV.

`write_report` makes them from a `results.json`, which `collect` makes from run directories and evaluation results.
"""

from .collection import collect
from .report import write_report
from .results import Results, parse_results, read_results
from .views import View, Viewer

__all__ = ["Results", "View", "Viewer", "collect", "parse_results", "read_results", "write_report"]
