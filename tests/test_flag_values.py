"""Values of flags that have no meaning are refused by the parser, or before anything is written."""

import argparse
import contextlib
from importlib import import_module

import pytest
import torch
from test_flags import SCRIPTS, parser_of

import train_clan
from utils.device import choose
from utils.errors import RunError
from utils.parser import (
    above_zero,
    count,
    fraction,
    not_negative,
    numbers,
    positive,
    positive_numbers,
    scale_range,
    seed,
    share,
    size,
)

NUMBERS = (above_zero, count, fraction, not_negative, numbers, positive, positive_numbers, scale_range, seed, share, size)
WITHOUT_NUMBERS = {f"scripts/{name}.py" for name in ("convert_checkpoint", "compare_runs", "report")}


@pytest.mark.parametrize(
    "script, words, message",
    [
        ("train_adaptsegnet.py", "--momentum -1", "--momentum: -1 is not a number of at least 0"),
        ("train_adaptsegnet.py", "--momentum nan", "--momentum: nan is not a number of at least 0"),
        ("train_adaptsegnet.py", "--gpu abc", "--gpu: invalid count value: 'abc'"),
        ("train_adaptsegnet.py", "--gpu -1", "--gpu: -1 is below 0"),
        ("train_adaptsegnet.py", "--device mps", "--device: 'mps' is not a device known here: auto, cpu, cuda or cuda:N"),
        ("train_adaptsegnet.py", "--device cuda:x", "not a device known here"),
        ("train_adaptsegnet.py", "--val-every -5", "--val-every: -5 is below 0"),
        ("train_adaptsegnet.py", "--num-workers -1", "--num-workers: -1 is below 0"),
        ("train_adaptsegnet.py", "--lambda-adv-target1 -0.1", "not a number of at least 0"),
        ("train_adaptsegnet.py", "--resume maybe", "'maybe' is neither true nor false"),
        ("train_clan.py", "--epsilon nan", "--epsilon: nan is not a number of at least 0"),
        ("train_clan.py", "--preheat-steps -1", "--preheat-steps: -1 is below 0"),
        ("train_maxsquare.py", "--threshold 1.5", "--threshold: 1.5 is not between 0 and 1"),
        ("train_maxsquare.py", "--IW-ratio -1", "-1 is not between 0 and 1"),
        ("train_source.py", "--warmup -1", "--warmup: -1 is below 0"),
        ("evaluate_cityscapes.py", "--restore-from x --scales 0,1", "all numbers must be above 0"),
        ("scripts/predict.py", "x --restore-from x --opacity 2", "--opacity: 2 is not between 0 and 1"),
        ("scripts/spatial_prior.py", "--sigma 0", "--sigma: 0 is not a number above 0"),
    ],
)
def test_values_without_a_meaning_are_refused(script, words, message, capsys):
    with pytest.raises(SystemExit) as caught:
        import_module(script.removesuffix(".py").replace("/", ".")).get_arguments(words.split())
    assert caught.value.code == 2 and message in capsys.readouterr().err


# Numbers that look odd and are allowed: none so far.
ALLOWED: set[tuple[str, str]] = set()
ODD_NUMBERS = ("nan", "inf", "-inf", "-1", "nan,nan", "inf,inf", "-1,-1", "0.5,nan", "nan,nan,nan,nan", "-1,-1,-1,-1")


def is_number(value):
    return isinstance(value, int | float) or isinstance(value, tuple) and all(map(is_number, value))


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_flag_takes_a_number_that_is_none(script, monkeypatch, capsys):
    """Every numeric flag of every script refuses NaN, infinity and -1, and the message names the flag."""
    parser = parser_of(script, monkeypatch)
    numeric = 0
    for action in parser._actions:
        taken = []
        for word in ODD_NUMBERS if action.type and action.choices is None else ():
            with contextlib.suppress(ValueError, TypeError, argparse.ArgumentTypeError):
                taken += [word] if is_number(action.type(word)) else []
        option = action.option_strings[0] if action.option_strings else action.dest
        assert not {(option, word) for word in taken} - ALLOWED
        if action.option_strings and action.type in NUMBERS:
            numeric += 1
            with pytest.raises(SystemExit):
                parser.parse_args([f"{option}=nan"])
            assert option in capsys.readouterr().err
    assert numeric or script in WITHOUT_NUMBERS


def test_a_color_jitter_of_four_numbers(capsys):
    for word in ("nan,0,0,0", "0.5", "-1,0,0,0", "inf,0,0,0", "0,0,0,0.6"):
        with pytest.raises(SystemExit):
            import_module("train_fada").get_arguments([f"--color-jitter={word}"])
        assert "--color-jitter" in capsys.readouterr().err


@pytest.mark.parametrize("word", ("0,0", "0.5", "2,1", "-1,1", "1,inf", "x"))
def test_ranges_of_scales(word):
    assert scale_range("0.5,1.5") == (0.5, 1.5)
    with pytest.raises(argparse.ArgumentTypeError):
        scale_range(word)


def test_a_warm_up_that_outlasts_the_run_is_refused():
    with pytest.raises(RunError, match="--preheat-steps 100: the run ends before, after 100 steps"):
        train_clan.get_arguments("--num-steps 100 --preheat-steps 100".split())
    assert train_clan.get_arguments("--num-steps 100 --preheat-steps 99".split()).preheat_steps == 99


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: None)
    assert choose(argparse.Namespace(device="cuda:1", gpu=None)) == torch.device("cuda:1")
    for device, gpu in (("cuda:2", None), ("auto", 2)):
        with pytest.raises(RunError, match="--device cuda:2: there is no such GPU here, they are cuda:0 to cuda:1"):
            choose(argparse.Namespace(device=device, gpu=gpu))
