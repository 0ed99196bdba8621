"""The command line: forgiving spelling, the originals' names, flags that are all read and that stay as parsed."""

import argparse
import subprocess
import sys
from importlib import import_module

import pytest
from conftest import ROOT

import evaluate_cityscapes
import train_adaptsegnet
import train_cbst
import train_fada
import train_maxsquare
import train_source
from utils.errors import RunError
from utils.old_names import OLD_NAMES
from utils.parser import Flags, Parser, not_negative, numbers, size, truth

SCRIPTS = [
    path.relative_to(ROOT).as_posix()
    for path in sorted([*ROOT.glob("*.py"), *ROOT.glob("scripts/*.py")])
    if "def get_arguments" in path.read_text()
]
TRAINING = [script for script in SCRIPTS if script.startswith("train_")]


def module_of(script):
    return import_module(script.removesuffix(".py").replace("/", "."))


def test_published_defaults():
    args = train_adaptsegnet.get_arguments([])
    rates = (args.learning_rate, args.learning_rate_D, args.power, args.momentum, args.weight_decay)
    assert rates == (2.5e-4, 1e-4, 0.9, 0.9, 5e-4)
    assert (args.num_steps, args.num_steps_stop, args.save_pred_every) == (250000, 150000, 5000)
    assert (args.input_size, args.input_size_target, args.batch_size) == ((1280, 720), (1024, 512), 1)
    assert (args.lambda_seg, args.lambda_adv_target1, args.lambda_adv_target2, args.gan) == (0.1, 0.0002, 0.001, "Vanilla")
    assert (args.updates, args.batch_norm, args.model) == ("published", "frozen-affine", "DeepLab")
    assert train_adaptsegnet.get_arguments(["--source", "SYNTHIA"]).input_size == (1280, 760)
    args = train_source.get_arguments(["--iter_stop", "80000", "--freeze_bn", "True"])
    assert (args.num_steps, args.num_steps_stop, args.batch_norm) == (250000, 80000, "frozen-statistics")


def test_fewer_steps_than_published_are_trained_to_their_end():
    args = train_adaptsegnet.get_arguments(["--num-steps", "100"])
    assert (args.num_steps, args.num_steps_stop) == (100, 100)
    with pytest.raises(RunError, match="--num-steps-stop 200 is beyond --num-steps 100"):
        train_adaptsegnet.get_arguments(["--num-steps", "100", "--num-steps-stop", "200"])


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
    args = train_adaptsegnet.get_arguments(["--is-training", "--not-restore-last", "--ignore-label", "255", "--gan", "LS"])
    output = capsys.readouterr().out
    assert "note: --is-training has no effect here" in output and "--ignore-label" in output
    assert args.gan == "LS" and not hasattr(args, "ignore_label")
    train_maxsquare.get_arguments(["--pin_memory=True", "--gamma", "-1"])


def test_the_originals_names_mean_our_flags_and_stay_out_of_the_help(capsys):
    args = train_cbst.get_arguments(
        "--base-lr 1e-3 --batch-images 4 --seed-int 5 --num-round 3 --src-sampling-policy r".split()
    )
    assert (args.learning_rate, args.batch_size, args.random_seed, args.num_rounds) == (1e-3, 4, 5, 3)
    with pytest.raises(SystemExit):
        train_cbst.get_arguments(["--help"])
    shown = capsys.readouterr().out
    assert "--learning-rate" in shown and "--base-lr" not in shown and "--kvstore" not in shown


@pytest.mark.parametrize("script", OLD_NAMES)
def test_old_names_lead_to_flags_that_exist(script, monkeypatch):
    parser = parser_of(script if script in SCRIPTS else f"scripts/{script}", monkeypatch)
    real, names = set(parser._option_string_actions), OLD_NAMES[script]
    from utils.old_names import SHARED

    assert not [new for old, new in names.aliases.items() if new not in real and old not in SHARED]
    assert not set(names.ignored) & {option.lower() for option in real}


def test_flags_stay_as_parsed():
    args = train_adaptsegnet.get_arguments([])
    with pytest.raises(AttributeError, match="flags do not change after parsing"):
        args.batch_size = 2
    assert args.with_values(batch_size=2).batch_size == 2 and args.batch_size == 1
    with pytest.raises(AttributeError, match="no such flag: batch_sise"):
        args.with_values(batch_sise=2)


@pytest.mark.parametrize(
    "convert, word, message",
    [
        (size, "1280x720", "WIDTH,HEIGHT"),
        (size, "0,5", "positive"),
        (truth, "maybe", "neither true nor false"),
        (numbers, "a,b", "numbers"),
        (not_negative, "-1", "at least 0"),
    ],
)
def test_values_that_cannot_be_read(convert, word, message):
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        convert(word)


class Parsed(Exception):
    pass


def parser_of(script, monkeypatch):
    """The parser of a script, without parsing anything."""

    def stop(self, *rest):
        raise Parsed(self)

    monkeypatch.setattr(Parser, "parse_args", stop)
    with pytest.raises(Parsed) as caught:
        module_of(script).get_arguments([])
    monkeypatch.undo()
    return caught.value.args[0]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_explains_every_flag(script, monkeypatch, capsys):
    parser = parser_of(script, monkeypatch)
    assert all(len(action.help.split()) >= 2 for action in parser._actions)
    parser.print_help()
    shown = capsys.readouterr().out
    assert parser.description.splitlines()[0] in shown
    assert all(option in shown for action in parser._actions for option in action.option_strings)
    assert "no effect" not in shown


# For each training script, runs that together read every flag.
RUNS = {
    "train_source.py": ["--multi --val-every 2"],
    "train_adaptsegnet.py": ["--val-every 2"],
    "train_maxsquare.py": ["--multi --val-source", "--target-mode hard --epoch-num 1 --val-every 0"],
    "train_clan.py": ["--val-every 2"],
    "train_dacs.py": ["--val-every 2 --mask --rare-class-sampling 0.1 --rare-class-pixels 50"],
    "train_fada.py": ["--stage all --batch-size 2 --input-size-test 96,48 --num-steps 2"],
    "train_cbst.py": [
        "--num-rounds 2 --epochs-per-round 1 --with-prior --prior {prior} --mr-weight-kld 0.1",
        "--model ResNet38 --input-size 60 --test-scales 90 --num-rounds 1 --epochs-per-round 1",
    ],
}


@pytest.mark.parametrize("script", TRAINING)
def test_every_flag_is_read(script, mini_data, tmp_path, monkeypatch):
    """Not searched for in the text, but recorded while the script runs."""
    read = set()
    original = Flags.__getattribute__

    def record(self, name):
        read.add(name)
        return original(self, name)

    parser = parser_of(script, monkeypatch)
    declared = {action.dest for action in parser._actions} - {"help"}
    declared -= {"city_name", "condition"}  # read only for data sets that are divided so
    declared -= {"fast", "config"}  # are other flags
    if script == "train_cbst.py":
        from scripts import spatial_prior

        count = f"--source gta5 --data-dir {mini_data}/GTA5 --size 96,48 --output {tmp_path}/prior.mat --workers 1"
        spatial_prior.main(spatial_prior.get_arguments(count.split()))
    for number, run in enumerate(RUNS[script]):
        words = f"--data-dir {mini_data}/GTA5 --source-split train --restore-from none --device cpu --num-workers 0"
        if "ResNet38" not in run:
            words += " --model MiniResNet18 --input-size 96,48"
        if script != "train_cbst.py":
            words += " --save-pred-every 2"
            words += "" if "--num-steps" in run or "--epoch-num" in run else " --num-steps 2 --num-steps-stop 2"
        if script != "train_source.py":
            words += f" --data-dir-target {mini_data}/Cityscapes --input-size-target 96,48"
        words += f" --snapshot-dir {tmp_path}/{number} {run.format(prior=tmp_path / 'prior.mat')}"
        monkeypatch.setattr(Flags, "__getattribute__", record)
        module_of(script).main(module_of(script).get_arguments(words.split()))
        monkeypatch.undo()
    assert sorted(declared - read) == []


def test_scripts_start_from_anywhere(tmp_path):
    """Also from a folder that is not the repository's root."""
    for script in ("scripts/make_mini_data.py", "compute_iou.py"):
        result = subprocess.run([sys.executable, str(ROOT / script), "--help"], cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0 and "usage:" in result.stdout, result.stderr


@pytest.mark.parametrize("script", TRAINING)
def test_errors_are_one_line_and_exit_status_1(script, tmp_path):
    command = [sys.executable, str(ROOT / script), "--data-dir", "nowhere", "--restore-from", "none", "--device", "cpu"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == f"{script}: error: nowhere: no such folder (the root of gta5)"
    assert "Traceback" not in result.stderr


def test_an_error_of_the_program_keeps_its_traceback():
    code = "from utils.errors import exit_with_message\nwith exit_with_message():\n    raise ValueError('a bug')"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1 and "Traceback" in result.stderr and "ValueError: a bug" in result.stderr


def test_the_operating_systems_errors_name_their_path(tmp_path):
    code = f"from utils.errors import exit_with_message\nwith exit_with_message():\n    open('{tmp_path}/no/file')"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1 and f"{tmp_path}/no/file: No such file" in result.stderr and "Traceback" not in result.stderr


def test_training_does_not_start_from_random_weights_by_accident(mini_data, tmp_path):
    command = [sys.executable, str(ROOT / "train_source.py"), "--data-dir", str(mini_data / "GTA5"), "--device", "cpu"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1 and "start from random weights with --restore-from none" in result.stderr


def test_fada_and_cbst_have_defaults_of_their_own():
    assert train_fada.get_arguments(["--source", "synthia"]).num_classes == 16
    assert train_cbst.get_arguments([]).batch_size == 2
