"""Nothing that was not written here is overwritten, by any script: an error before the first byte."""

import hashlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from filled import filled_state
from PIL import Image

import compute_iou
import evaluate_cityscapes
import train_source
from model import build_model
from scripts import adabn, check_data, class_statistics, make_mini_data, predict, spatial_prior
from utils.errors import RunError


@pytest.fixture
def place(mini_data, tmp_path):
    """A data set of its own, a checkpoint and a text file, all of them foreign."""
    shutil.copytree(mini_data / "Cityscapes", tmp_path / "Cityscapes")
    shutil.copytree(mini_data / "GTA5", tmp_path / "GTA5")
    torch.save(filled_state(build_model("MiniResNet18")), tmp_path / "weights.pth")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "other.json").write_text('{"mine": 1}')
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    return tmp_path


def contents(folder):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def evaluate(place, *arguments):
    words = ["--restore-from", place / "weights.pth", "--data-dir", place / "Cityscapes", "--device", "cpu"]
    words += ["--num-workers", "0", "--input-size", "64,32", "--save", "none", *arguments]
    return evaluate_cityscapes.main(evaluate_cityscapes.get_arguments([*map(str, words)]))


def train(place, folder):
    words = ["--data-dir", place / "GTA5", "--input-size", "64,32", "--model", "MiniResNet18", "--restore-from", "none"]
    words += ["--device", "cpu", "--num-workers", "0", "--num-steps", "1", "--snapshot-dir", folder]
    train_source.main(train_source.get_arguments([*map(str, words)]))


@pytest.mark.parametrize(
    "flag, target",
    [
        ("--save", "Cityscapes"),
        ("--save", "Cityscapes/leftImg8bit/val"),
        ("--save", "Cityscapes/leftImg8bit/new"),
        ("--save", "Cityscapes/gtFine/val/frankfurt"),
        ("--save", "GTA5/images"),
        ("--save", "GTA5/labels"),
        ("--save-label-ids", "GTA5"),
        ("--save-label-ids", "Cityscapes/leftImg8bit/val/frankfurt"),
        ("--json", "weights.pth"),
        ("--json", "other.json"),
        ("--json", "notes.txt"),
        ("--json", "Cityscapes"),
        ("--csv", "weights.pth"),
        ("--csv", "other.csv"),
        ("--csv", "notes.txt"),
        ("--plot", "weights.pth"),
        ("--plot", "GTA5/images/00001.png"),
    ],
)
def test_an_evaluation_destroys_nothing(flag, target, place):
    before = contents(place)
    with pytest.raises(RunError, match=f"{flag} {place / target}: "):
        evaluate(place, flag, place / target)
    assert contents(place) == before


def test_an_evaluation_may_replace_its_own_outputs(place):
    flags = ["--save", place / "out", "--save-label-ids", place / "ids", "--json", place / "a.json", "--csv", place / "a.csv"]
    first = evaluate(place, *flags)
    (place / "out/notes.txt").write_text("kept")
    assert evaluate(place, *flags) == first and (place / "out/notes.txt").read_text() == "kept"
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(place / "out/mine.png")
    with pytest.raises(RunError, match="mine.png"):
        evaluate(place, *flags)


@pytest.mark.parametrize("target", ("GTA5", "GTA5/images", "GTA5/labels/run"))
def test_a_run_goes_into_no_data_set(target, place):
    before = contents(place)
    with pytest.raises(RunError, match=f"--snapshot-dir {place / target}: "):
        train(place, place / target)
    assert contents(place) == before


def test_a_run_may_lie_beside_the_images(place):
    train(place, place / "GTA5/runs/a")
    assert (place / "GTA5/runs/a/GTA5_1.pth").exists()


def test_a_run_leaves_foreign_notes_alone(place):
    (place / "args.json").write_text('{"mine": 1}')
    with pytest.raises(RunError, match="args.json: exists already"):
        train(place, place)
    assert (place / "args.json").read_text() == '{"mine": 1}'


def test_overlays(place):
    words = [place / "GTA5/images", "--restore-from", place / "weights.pth", "--device", "cpu", "--num-workers", "0"]
    before = contents(place)
    for folder in ("GTA5/images", "GTA5"):
        with pytest.raises(RunError, match="holds pictures that were not written here"):
            predict.main(predict.get_arguments([*map(str, words), "--out", str(place / folder), "--ids"]))
    assert contents(place) == before


@pytest.mark.parametrize("output", ("weights.pth", "notes.txt"))
def test_other_scripts(output, place):
    target, before = str(place / output), contents(place)
    gta5, weights = str(place / "GTA5"), str(place / "weights.pth")
    calls = [
        (adabn, ["--restore-from", weights, "--save", target, "--data-dir-target", str(place / "Cityscapes")]),
        (class_statistics, ["--data-dir", gta5, "--output", target]),
        (spatial_prior, ["--data-dir", gta5, "--output", target]),
        (spatial_prior, ["--data-dir", gta5, "--draw", target]),
        (compute_iou, [str(place / "Cityscapes/gtFine/val"), str(place), "--json", target]),
        (compute_iou, [str(place / "Cityscapes/gtFine/val"), str(place), "--csv", target]),
        (check_data, ["gta5", gta5, "--json", target]),
        (make_mini_data, [str(place / "mini"), "--preview", target]),
    ]
    for script, words in calls:
        with pytest.raises(RunError, match=f"{output}: exists already"):
            script.main(script.get_arguments(words))
    assert contents(place) == before


def test_a_table_of_our_own_is_replaced(place):
    words = ["--data-dir", str(place / "GTA5"), "--output", str(place / "statistics.json"), "--workers", "1"]
    for _ in range(2):
        class_statistics.main(class_statistics.get_arguments(words))
    assert "file_to_label" in json.loads((place / "statistics.json").read_text())


def test_mini_data_spare_the_real_ones(place):
    words = "--size 64,32 --source-train 1 --source-val 1 --target-train 1 --target-val 1 --workers 1".split()
    before = contents(place)
    for more in ([], ["--overwrite"]):
        with pytest.raises(RunError, match="holds pictures that were not written here"):
            make_mini_data.main(make_mini_data.get_arguments([str(place), *words, *more]))
    assert contents(place) == before
    make_mini_data.main(make_mini_data.get_arguments([str(place / "mini"), *words]))
    (place / "mini/mini_data.json").rename(place / "mini/mini_data_begun.json")  # as after an interruption
    make_mini_data.main(make_mini_data.get_arguments([str(place / "mini"), *words]))
    assert (place / "mini/mini_data.json").exists() and not (place / "mini/mini_data_begun.json").exists()


def test_it_is_told_in_one_line(place):
    command = [sys.executable, "compute_iou.py", place / "Cityscapes/gtFine/val", place, "--json", place / "weights.pth"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1 and result.stderr.count("\n") == 1 and "weights.pth: exists already" in result.stderr
