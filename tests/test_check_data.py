"""scripts/check_data.py: what it finds, counts and concludes."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from dataset.catalogue import CITYSCAPES, LABEL_IDS, label_table
from scripts import check_data


@pytest.fixture
def data(mini_data, tmp_path):
    """A copy that may be broken."""
    shutil.copytree(mini_data, tmp_path / "data")
    return tmp_path / "data"


def check(*arguments):
    return check_data.main(check_data.get_arguments([*map(str, arguments), "--workers", "1"]))


@pytest.mark.parametrize(
    "arguments, count",
    [
        (("gta5", "GTA5"), 9),
        (("synthia", "SYNTHIA", "--num-classes", "16"), 9),
        (("cityscapes", "Cityscapes", "--split", "val"), 3),
        (("crosscity", "NTHU_Datasets", "--city-name", "Rome", "--split", "test", "--num-classes", "13"), 3),
        (("crosscity", "NTHU_Datasets", "--city-name", "Rio"), 5),
    ],
)
def test_good_data_is_fine_with_warnings(arguments, count, mini_data, capsys):
    name, folder, *more = arguments
    assert check(name, mini_data / folder, *more) == 0
    output = capsys.readouterr().out
    assert f"{count} images; sizes: 96x48 ({count})" in output and "verdict: fine, with" in output
    assert "the official" in output and "are not" in output and "error" not in output


def test_the_histogram_counts_pixels_and_images(mini_data, tmp_path):
    assert check("gta5", mini_data / "GTA5", "--json", tmp_path / "report.json") == 0
    report = json.loads((tmp_path / "report.json").read_text())
    labels = [np.array(Image.open(path)) for path in (mini_data / "GTA5/labels").iterdir()]
    ids = label_table(LABEL_IDS, CITYSCAPES)[np.stack(labels)]
    assert report["classes"]["road"]["share"] == pytest.approx((ids == 0).mean())
    assert report["classes"]["car"]["images"] == (ids == 13).any((1, 2)).sum()
    assert sum(entry["share"] for entry in report["classes"].values()) + report["ignored_share"] == pytest.approx(1)


def label_path(data):
    return sorted((data / "GTA5/labels").iterdir())[0]


def write_label(data, array):
    Image.fromarray(array).save(label_path(data))


@pytest.mark.parametrize(
    "breakage, message",
    [
        (lambda data: label_path(data).unlink(), "labels/00001.png: no such file"),
        (
            lambda data: label_path(data).write_bytes(label_path(data).read_bytes()[:100]),
            "labels/00001.png: cannot be read, truncated",
        ),
        (lambda data: (data / "GTA5/images/00002.png").write_bytes(b"\x89PNG\r\n\x1a\n"), "images/00002.png: cannot be read"),
        (lambda data: write_label(data, np.zeros((48, 96, 3), np.uint8)), "labels/00001.png: an RGB picture"),
        (lambda data: write_label(data, np.zeros((48, 200), np.uint8)), "label is 200x48, image 96x48"),
    ],
)
def test_what_would_stop_training_is_an_error(breakage, message, data, capsys):
    breakage(data)
    assert check("gta5", data / "GTA5") == 1
    output = capsys.readouterr().out
    assert message in output and "verdict: NOT USABLE, 1 of 9 pairs are broken" in output


def test_odd_ids_sizes_and_train_ids_are_warnings(data, capsys):
    write_label(data, np.full((50, 96), 77, np.uint8))
    second = sorted((data / "GTA5/labels").iterdir())[1]
    Image.fromarray(label_table(LABEL_IDS, CITYSCAPES)[np.array(Image.open(second))]).save(second)
    assert check("gta5", data / "GTA5") == 0
    output = capsys.readouterr().out
    assert "raw id 77 in 1 labels is in no table" in output and "label is 96x50, image 96x48" in output
    assert "00002.png: label holds ids 0..18 only: train ids" in output


def test_a_converted_synthia_label_is_an_error(data, capsys):
    path = data / "SYNTHIA/GT/LABELS/0000000.png"
    Image.open(path).convert("RGB").save(path)
    assert check("synthia", data / "SYNTHIA") == 1
    assert "an 8-bit RGB PNG, but SYNTHIA's labels" in capsys.readouterr().out
