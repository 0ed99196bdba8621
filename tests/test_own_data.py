"""A user's own data: plain folders with five classes, through the command line, as docs/data.md shows it."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from model import load_model

NAMES = ["soil", "plant", "stone", "water", "pole"]
RAW_IDS = [[0], [3], [7, 8], [20], [254]]
COLORS = [(120, 90, 60), (40, 160, 60), (150, 150, 160), (40, 90, 200), (240, 200, 60)]
SIZE = (64, 48)
# What the documented commands become so that they run in seconds: words, then steps in flags and names of snapshots.
SMALLER = {
    "ResNet101": "MiniResNet18",
    "torchvision:ResNet101_Weights.IMAGENET1K_V1": "none",
    "1000": "2",
    "20000": "3",
    "5000": "2",
}


def write_domain(root, brightness, splits, labelled):
    """Rendered scenes: rectangles of the classes on soil; the target is darker."""
    rng = np.random.default_rng(0)
    for split, count in splits.items():
        for number in range(count):
            raw = np.zeros(SIZE[::-1], np.uint8)
            color = np.full((*raw.shape, 3), COLORS[0], float)
            for ids, shade in zip(RAW_IDS[1:], COLORS[1:], strict=True):
                top, left = rng.integers(0, 24), rng.integers(0, 40)
                window = np.s_[top : top + 20, left : left + 18]
                raw[window], color[window] = rng.choice(ids), shade
            image = (brightness * color + rng.normal(0, 8, color.shape)).clip(0, 255).astype(np.uint8)
            folder = root / "images" / split / ("a" if number % 2 else "b")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number}.{'png' if number % 2 else 'webp'}", lossless=True)
            if split in labelled:
                (root / "labels" / split / folder.name).mkdir(parents=True, exist_ok=True)
                Image.fromarray(raw).save(root / "labels" / split / folder.name / f"{number}.png")


def write_classes(root, names=NAMES):
    entries = [
        {"name": name, "ids": ids, "color": list(color)} for name, ids, color in zip(names, RAW_IDS, COLORS, strict=True)
    ]
    (root / "classes.json").write_text(json.dumps(entries))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder to work in, with data/field (labelled) and data/robot (labels of val alone)."""
    folder = tmp_path_factory.mktemp("own")
    write_domain(folder / "data/field", 1.0, {"train": 6, "val": 2}, ("train", "val"))
    write_domain(folder / "data/robot", 0.6, {"train": 4, "val": 2}, ("val",))
    write_classes(folder / "data/field")
    write_classes(folder / "data/robot")
    return folder


def run(words, folder, fails=False):
    script, *rest = words
    result = subprocess.run([sys.executable, str(ROOT / script), *rest], cwd=folder, capture_output=True, text=True)
    assert bool(result.returncode) == fails, result.stdout + result.stderr
    return result.stderr if fails else result.stdout


def documented_commands():
    text = (ROOT / "docs/data.md").read_text()
    block = re.search(r"```sh\n(python scripts/check_data.py folder.*?)```", text, re.DOTALL)[1]
    for line in block.splitlines():
        words = [SMALLER.get(word, word) for word in shlex.split(line)[1:]]
        words = [word.replace("FOLDER_20000", "FOLDER_3").replace("FOLDER_5000", "FOLDER_2") for word in words]
        if "train" in words[0]:
            words += ["--device", "cpu", "--num-workers", "0"]
        elif words[0] != "compute_iou.py" and "check_data" not in words[0]:
            words += ["--device", "cpu"]
        yield words


def test_the_documented_example(folder, tmp_path):
    outputs = {}
    for words in documented_commands():
        outputs[words[0]] = run(words, folder)
    assert "verdict: fine" in outputs["scripts/check_data.py"] and "plant" in outputs["scripts/check_data.py"]
    assert "5 classes" in outputs["train_source.py"]
    assert (folder / "snapshots/maxsquare/FOLDER_best.pth").exists() and (
        folder / "snapshots/adaptsegnet/FOLDER_2.pth"
    ).exists()
    # The evaluator and the IoU tool agree, class by class, under the user's names.
    scored, counted = outputs["evaluate_cityscapes.py"], outputs["compute_iou.py"]
    for name in (*NAMES, "mIoU"):
        figure = rf"===> ?{name}:\s*([\d.]+|nan)"
        assert re.search(figure, scored)[1] == re.search(figure, counted)[1]
    # Predictions hold positions in classes.json and show the user's colours; names in sub-folders stay apart.
    prediction = Image.open(folder / "result/robot/a/1.png")
    assert prediction.size == SIZE and set(np.unique(prediction)) <= set(range(5))
    colored = np.array(Image.open(folder / "result/robot/a/1_color.png").convert("RGB"))
    np.testing.assert_array_equal(colored, np.array(COLORS, np.uint8)[np.array(prediction)])
    assert len(list((folder / "result/overlays").rglob("*_overlay.png"))) == 4
    # A checkpoint that was moved away from its run still knows its classes.
    shutil.copy(folder / "snapshots/field/FOLDER_3.pth", tmp_path / "alone.pth")
    assert load_model(str(tmp_path / "alone.pth")).classes == {"names": NAMES, "colors": [list(color) for color in COLORS]}


@pytest.mark.parametrize("script", ("train_maxsquare.py", "train_clan.py", "train_cbst.py", "train_fada.py"))
def test_a_target_without_any_labels(script, folder, tmp_path):
    """Neither labels nor classes.json nor a val split; --val-every is answered with a line, not an error."""
    write_domain(tmp_path / "target", 0.6, {"": 4}, ())
    words = f"--source folder --data-dir {folder}/data/field --source-split train --target folder"
    words += f" --data-dir-target {tmp_path}/target --restore-from none --device cpu --num-workers 0 --val-every 1"
    words += f" --model MiniResNet18 --snapshot-dir {tmp_path}/run --save-num-images 1"
    extra = {
        "train_cbst.py": "--num-rounds 2 --epochs-per-round 1 --init-src-port 0.5 --input-size 64,48",
        "train_fada.py": "--num-steps 1 --batch-size 2 --scale-range 1,1 --input-size-test 64,48",
    }.get(script, "--num-steps 1")
    output = run([script, *words.split(), *extra.split()], tmp_path)
    assert "no validation" in output and "target has no labelled val split" in output
    last = {"train_cbst.py": "round0/folder2folder_round0_epoch1.pth", "train_fada.py": "distill/model_iter000001.pth"}
    weights = tmp_path / "run" / last.get(script, "FOLDER_1.pth")
    words = f"evaluate_cityscapes.py --restore-from {weights} --dataset folder --data-dir {tmp_path}/target --set train"
    output = run([*words.split(), "--save", str(tmp_path / "predicted"), "--device", "cpu"], tmp_path)
    assert "no labels for split train, so there is no score" in output
    assert len(list((tmp_path / "predicted").rglob("*_color.png"))) == 4


def test_classes_that_do_not_fit_are_listed(folder, tmp_path):
    write_domain(tmp_path / "target", 0.6, {"train": 2, "val": 1}, ("train", "val"))
    write_classes(tmp_path / "target", ["soil", "plant", "rock", "water", "pole"])
    words = f"train_adaptsegnet.py --source folder --data-dir {folder}/data/field --source-split train --target folder"
    words += f" --data-dir-target {tmp_path}/target --model MiniResNet18 --restore-from none --device cpu --num-steps 1"
    words += " --val-every 1"
    error = run(words.split(), tmp_path, fails=True).splitlines()[-1]
    assert "stone" in error and "rock" in error and "train_adaptsegnet.py: error" in error
    error = run(["train_source.py", "--source", "folder", "--device", "cpu"], tmp_path, fails=True)
    assert "--source folder needs its root: name it with --data-dir DIR" in error
    words = f"train_source.py --source folder --data-dir {folder}/data/field --num-classes 7 --device cpu"
    assert "the classes.json of the source has 5 classes" in run(words.split(), tmp_path, fails=True)


def test_a_network_for_other_classes_starts_with_a_fresh_classifier(folder, tmp_path):
    from model import build_model

    torch.save(build_model("MiniResNet18").state_dict(), tmp_path / "cityscapes.pth")
    words = f"train_source.py --source folder --data-dir {folder}/data/field --source-split train --model MiniResNet18"
    words += (
        f" --restore-from {tmp_path}/cityscapes.pth --device cpu --num-workers 0 --num-steps 1 --snapshot-dir {tmp_path}/run"
    )
    assert "stay random" in run(words.split(), tmp_path)
