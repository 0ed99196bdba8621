"""What docs/design.md promises and no other test would notice: the shared packages know no method."""

import ast
import re

import pytest
from conftest import ROOT

METHODS = {"adaptsegnet", "maxsquare", "minent", "clan", "fada", "cbst", "crst", "dacs", "advent", "mrkld", "lrent", "mxnet"}
# Formats of files are called after the programs that wrote them, and these two modules tell files apart.
ABOUT_FILES = {"model/checkpoint_formats.py", "model/recognition.py"}
SHARED = [
    path.relative_to(ROOT).as_posix()
    for package in ("dataset", "model", "utils")
    for path in sorted((ROOT / package).rglob("*.py"))
]


def conditions(source):
    """The parts of a program that decide something: tests, comparisons, and what a `match` compares with."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.If | ast.IfExp | ast.While | ast.Assert):
            yield node.test
        elif isinstance(node, ast.comprehension):
            yield from node.ifs
        elif isinstance(node, ast.match_case):
            yield from (node.pattern, *([node.guard] if node.guard else []))
        elif isinstance(node, ast.Compare):
            yield node


def methods_in(condition):
    """The names of methods and protocols in a condition, be they strings or variables."""
    for node in ast.walk(condition):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from METHODS & set(re.split(r"[\W_]+", node.value.lower()))
        elif isinstance(node, ast.Name | ast.Attribute):
            yield from METHODS & {getattr(node, "id", getattr(node, "attr", "")).lower()}


@pytest.mark.parametrize("path", [path for path in [*SHARED, "train_cbst.py"] if path not in ABOUT_FILES])
def test_no_condition_asks_for_a_method_or_protocol(path):
    """What differs between methods stands in their scripts, what differs between protocols in their records."""
    for condition in conditions((ROOT / path).read_text()):
        found = list(methods_in(condition))
        assert not found, f"{path}:{condition.lineno}: asks for {found[0]}"


@pytest.mark.parametrize(
    "source",
    [
        "if args.method == 'fada': pass",
        "x = 1 if name in ('gta5', 'CLAN') else 2",
        "while protocol != 'cbst': pass",
        "y = protocol is CRST",
        "z = [a for a in b if a.startswith('maxsquare')]",
        "match name:\n    case 'crst': pass",
    ],
)
def test_such_a_condition_would_be_found(source):
    assert any(list(methods_in(condition)) for condition in conditions(source))


def test_records_and_messages_may_name_methods():
    source = (
        "PROTOCOLS = {'crst': CRST}\nif a > b:\n    raise ValueError('cbst is for ResNet38')\nif format == 'clannish': pass"
    )
    assert not any(list(methods_in(condition)) for condition in conditions(source))


def test_every_shared_module_is_looked_at():
    assert len(SHARED) > 40 and set(SHARED) >= ABOUT_FILES | {"utils/run.py", "utils/self_training/protocols.py"}
