"""The command line: forgiving spelling, published commands, no flag without effect."""

import argparse
import re
import subprocess
import sys

import pytest
from conftest import ROOT

import compute_iou
import evaluate_cityscapes
import train_adaptsegnet
import train_cbst
import train_clan
import train_fada
import train_maxsquare
import train_source
from scripts import (
    adabn,
    benchmark,
    check_data,
    class_statistics,
    convert_checkpoint,
    demo,
    make_mini_data,
    predict,
    spatial_prior,
)
from utils.arguments import Parser, numbers, size, truth

SCRIPTS = {
    "train_adaptsegnet.py": (train_adaptsegnet, []),
    "train_source.py": (train_source, []),
    "train_maxsquare.py": (train_maxsquare, []),
    "train_clan.py": (train_clan, []),
    "train_fada.py": (train_fada, []),
    "train_cbst.py": (train_cbst, []),
    "evaluate_cityscapes.py": (evaluate_cityscapes, ["--restore-from", "x"]),
    "compute_iou.py": (compute_iou, ["gt", "pred"]),
    "scripts/adabn.py": (adabn, ["--restore-from", "x", "--save", "y"]),
    "scripts/benchmark.py": (benchmark, []),
    "scripts/class_statistics.py": (class_statistics, []),
    "scripts/check_data.py": (check_data, ["gta5", "root"]),
    "scripts/demo.py": (demo, []),
    "scripts/convert_checkpoint.py": (convert_checkpoint, ["a", "b", "--to", "plain"]),
    "scripts/predict.py": (predict, ["image.png", "--restore-from", "x"]),
    "scripts/spatial_prior.py": (spatial_prior, []),
    "scripts/make_mini_data.py": (make_mini_data, ["out"]),
}


def test_published_defaults():
    args = train_adaptsegnet.get_arguments([])
    assert (args.learning_rate, args.learning_rate_D, args.power, args.momentum, args.weight_decay) == (
        2.5e-4,
        1e-4,
        0.9,
        0.9,
        5e-4,
    )
    assert (args.num_steps, args.num_steps_stop, args.save_pred_every) == (250000, 150000, 5000)
    assert (args.input_size, args.input_size_target, args.batch_size) == ((1280, 720), (1024, 512), 1)
    assert (args.lambda_seg, args.lambda_adv_target1, args.lambda_adv_target2, args.gan) == (0.1, 0.0002, 0.001, "Vanilla")
    assert (args.updates, args.batch_norm, args.model) == ("published", "frozen-affine", "DeepLab")
    assert train_adaptsegnet.get_arguments(["--source", "SYNTHIA"]).input_size == (1280, 760)
    args = train_source.get_arguments(["--iter_stop", "80000", "--freeze_bn", "True"])
    assert (args.num_steps, args.num_steps_stop, args.batch_norm) == (250000, 80000, "frozen-statistics")


def test_spelling_is_forgiven():
    args = train_adaptsegnet.get_arguments(
        "--lambda_seg 0.3 --Learning-Rate-d=5e-5 --RANDOM_MIRROR True --input_size_source 64,32".split()
    )
    assert (args.lambda_seg, args.learning_rate_D, args.random_mirror, args.input_size) == (0.3, 5e-5, True, (64, 32))
    for words, expected in (([], None), (["--flip"], True), (["--flip", "True"], True), (["--flip", "False"], False)):
        assert evaluate_cityscapes.get_arguments(["--restore-from", "x", *words]).flip is expected


def test_an_unknown_flag_suggests_the_nearest(capsys):
    with pytest.raises(SystemExit):
        train_adaptsegnet.get_arguments(["--lambda-sge", "1"])
    assert "unknown flag --lambda-sge; did you mean --lambda-seg?" in capsys.readouterr().err


def test_flags_of_the_original_that_never_had_an_effect_say_so(capsys):
    train_adaptsegnet.get_arguments(["--is-training", "--not-restore-last", "--ignore-label", "255"])
    output = capsys.readouterr().out
    assert "note: --is-training has no effect here" in output and "--ignore-label" in output


@pytest.mark.parametrize(
    "convert, word, message",
    [
        (size, "1280x720", "WIDTH,HEIGHT"),
        (size, "0,5", "positive"),
        (truth, "maybe", "neither true nor false"),
        (numbers, "a,b", "numbers"),
    ],
)
def test_values_that_cannot_be_read(convert, word, message):
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        convert(word)


def parser_of(script, monkeypatch):
    module, required = SCRIPTS[script]
    parsers = []
    original = Parser.parse_args
    monkeypatch.setattr(Parser, "parse_args", lambda self, *rest: (parsers.append(self), original(self, *rest))[1])
    module.get_arguments(required)
    return parsers[0]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_declared_flag_is_read(script, monkeypatch):
    """In the script itself or in the shared modules that it hands its flags to."""
    parser = parser_of(script, monkeypatch)
    declared = {action.dest for action in parser._actions} - {"help"}
    declared -= {name.lstrip("-").replace("-", "_") for name in parser.without_effect}
    text = (ROOT / script).read_text() + "".join(path.read_text() for path in (ROOT / "utils").rglob("*.py"))
    assert not [name for name in declared if not re.search(rf"args\.{name}\b", text)]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_explains_every_flag(script, monkeypatch, capsys):
    parser = parser_of(script, monkeypatch)
    assert all(len(action.help.split()) >= 2 for action in parser._actions if action.dest != "without")
    parser.print_help()
    shown = capsys.readouterr().out
    assert parser.description.splitlines()[0] in shown
    assert all(option in shown for action in parser._actions for option in action.option_strings)


def test_scripts_start_from_anywhere(tmp_path):
    """Also from a folder that is not the repository's root."""
    for script in ("scripts/make_mini_data.py", "compute_iou.py"):
        result = subprocess.run([sys.executable, str(ROOT / script), "--help"], cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0 and "usage:" in result.stdout, result.stderr


@pytest.mark.parametrize(
    "script",
    ("train_adaptsegnet.py", "train_source.py", "train_maxsquare.py", "train_clan.py", "train_fada.py", "train_cbst.py"),
)
def test_errors_are_one_line_and_exit_status_1(script, tmp_path):
    command = [sys.executable, str(ROOT / script), "--data-dir", "nowhere", "--restore-from", "none", "--device", "cpu"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == f"{script}: error: nowhere: no such folder (the root of gta5)"
    assert "Traceback" not in result.stderr


def test_training_does_not_start_from_random_weights_by_accident(mini_data, tmp_path):
    command = [sys.executable, str(ROOT / "train_source.py"), "--data-dir", str(mini_data / "GTA5"), "--device", "cpu"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1 and "start from random weights with --restore-from none" in result.stderr
