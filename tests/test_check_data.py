"""scripts/check_data.py: what it finds, counts and concludes."""

import json
import os
import shutil
from functools import partial

import numpy as np
import pytest
from PIL import Image

from dataset.catalogue import CITYSCAPES, LABEL_IDS, label_table
from dataset.layouts import find_records
from dataset.reading import read_label
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


def test_synthia_labels_of_8_bits_are_errors(data, capsys):
    path = data / "SYNTHIA/GT/LABELS/0000001.png"
    Image.fromarray(np.full((48, 96), 3, np.uint8)).save(path)
    assert check("synthia", data / "SYNTHIA") == 1
    assert "0000001.png: an 8-bit grey PNG, but SYNTHIA's labels" in capsys.readouterr().out


def read_label_or_die(path):
    """A decoder that crashes on one file."""
    if path.endswith("00003.png"):
        os._exit(139)
    return read_label(path)


@pytest.mark.parametrize("workers", (1, 2))
def test_a_process_that_dies_is_charged_to_its_file(workers, mini_data):
    records = find_records("gta5", mini_data / "GTA5", "all")
    check = partial(check_data.check_record, read_label=read_label_or_die, label_ids=True)
    findings = list(check_data.check_all(records, check, workers))
    assert [finding.path for finding in findings] == [record.image for record in records]
    errors = [finding.error for finding in findings if finding.error]
    assert errors == [f"{mini_data}/GTA5/images/00003.png: it or its label ended the process that read it"]
    assert all(finding.ids for finding in findings if not finding.error)


def test_damaged_images_are_reported_and_the_rest_is_read(data, capsys):
    for name, start in (("00002.png", 200), ("00005.png", 2000)):
        path = data / "GTA5/images" / name
        content = bytearray(path.read_bytes())
        content[start : start + 1024] = bytes(1024)
        path.write_bytes(content)
    assert check("gta5", data / "GTA5") == 1
    output = capsys.readouterr().out
    assert "images/00002.png: cannot be read" in output and "images/00005.png: cannot be read" in output
    assert "verdict: NOT USABLE, 2 of 9 pairs are broken" in output


@pytest.fixture
def field(tmp_path):
    for folder, mode, value in (("images", "RGB", (9, 9, 9)), ("labels", "L", 3)):
        for name in ("a/1", "2"):
            path = tmp_path / folder / "train" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new(mode, (30, 20), value).save(path)
    return tmp_path


def test_a_plain_folder(field, capsys):
    with pytest.raises(FileNotFoundError, match="classes.json: no such file"):
        check("folder", field)
    (field / "classes.json").write_text(json.dumps([{"name": "a plant of any kind", "ids": [3]}, {"name": "soil", "ids": [7]}]))
    assert check("folder", field) == 0
    output = capsys.readouterr().out
    assert "folder, train: 2 images; sizes: 30x20 (2)" in output and "a plant of any kind  100.00%       2" in output
    assert "warning: classes that never occur: soil" in output and "official" not in output and "are not" not in output
    Image.new("L", (30, 20), 77).save(field / "labels/train/2.png")
    assert check("folder", field) == 0
    assert "raw id 77 in 1 labels is in no table of folder" in capsys.readouterr().out


def test_a_plain_folder_without_labels(field, capsys):
    shutil.rmtree(field / "labels")
    assert check("folder", field) == 0
    assert "2 images" in capsys.readouterr().out


def test_labels_that_show_no_class_at_all(data, capsys):
    for path in (data / "GTA5/labels").iterdir():
        Image.fromarray(np.full((48, 96), 200, np.uint8)).save(path)
    assert check("gta5", data / "GTA5") == 0
    assert "classes that never occur: road, sidewalk" in capsys.readouterr().out


def test_conditions_of_acdc(tmp_path, capsys):
    for part in ("fog", "night", "rain", "snow"):
        for folder, ending, mode in (("rgb_anon", "rgb_anon", "RGB"), ("gt", "gt_labelIds", "L")):
            path = tmp_path / folder / part / "val/GOPR0001" / f"GOPR0001_{part}_{ending}.png"
            path.parent.mkdir(parents=True)
            Image.new(mode, (32, 18), 7 if mode == "L" else None).save(path)
    assert check("acdc", tmp_path, "--split", "val", "--condition", "fog") == 0
    output = capsys.readouterr().out
    assert "1 images" in output and "official" not in output and "are not 1920x1080" in output
    assert check("acdc", tmp_path, "--split", "val") == 0
    assert "4 images, the official val set has 406" in capsys.readouterr().out
