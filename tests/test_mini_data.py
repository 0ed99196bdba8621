"""The mini data: classes, formats, determinism and the gap."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat

from dataset.catalogue import CITYSCAPES, LABEL_IDS, label_table
from dataset.mini import PARTS, domain_parameters, render
from dataset.mini.domains import GAP
from dataset.reading import image_size, read_synthia_label
from dataset.segmentation import build_dataset
from scripts import make_mini_data

TABLE = label_table(LABEL_IDS, CITYSCAPES)


def make(*arguments):
    make_mini_data.main(make_mini_data.get_arguments([*map(str, arguments), "--workers", "1"]))


@pytest.mark.parametrize("domain", ("source", "target"))
def test_every_class_occurs_often_enough_to_be_learned(domain):
    images = np.zeros(19)
    for index in range(40):
        images[np.unique(TABLE[render(domain, 0, index, (96, 48)).label_ids]).astype(int) % 255 % 19] += 1
    assert images.min() >= 4, images


@pytest.mark.parametrize("size", [(96, 48), (311, 160)])
def test_a_scene_is_a_pure_function_of_its_arguments(size):
    first, again = render("target", 3, 7, size), render("target", 3, 7, size)
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a, b) and a.shape[:2] == size[::-1]
    assert not np.array_equal(first.label_ids, render("target", 3, 8, size).label_ids)
    assert not np.array_equal(first.label_ids, render("target", 4, 7, size).label_ids)
    assert not np.array_equal(first.label_ids, render("target", 3, 7, size, split="val").label_ids)


def test_the_bonnet_of_the_target_is_ignored():
    scene = render("target", 0, 0)
    assert (scene.label_ids[-1] == 1).all() and (TABLE[scene.label_ids[-1]] == 255).all()
    assert (render("source", 0, 0).label_ids != 1).all()


def test_parts_of_the_gap_are_independent():
    assert set(part for part, _, _ in GAP.values()) == set(PARTS)
    source = domain_parameters("source", 1.0)
    for part in PARTS:
        target = domain_parameters("target", 1.0, {other: 0.0 for other in PARTS if other != part})
        moved = {name for name in GAP if not np.array_equal(source[name], target[name])}
        assert moved == {name for name in GAP if GAP[name][0] == part}
    assert all(np.array_equal(source[name], domain_parameters("target", 0.0)[name]) for name in GAP)
    half = domain_parameters("target", 0.5)["gamma"]
    assert half == pytest.approx((GAP["gamma"][1] + GAP["gamma"][2]) / 2)
    with pytest.raises(ValueError, match="unknown part of the gap 'colour'"):
        domain_parameters("target", 0.5, {"colour": 1.0})


def test_files_are_the_official_formats(mini_data):
    label = Image.open(mini_data / "GTA5/labels/00001.png")
    assert label.mode == "P" and set(np.unique(np.array(label))) <= {7, 8, 11, 12, 13, 17, *range(19, 34)}
    split = loadmat(mini_data / "GTA5/split.mat")
    assert split["trainIds"].tolist() == [[i] for i in range(1, 7)] and split["valIds"].ravel().tolist() == [7, 8, 9]
    raw = (mini_data / "SYNTHIA/GT/LABELS/0000000.png").read_bytes()
    assert raw[24] == 16 and raw[25] == 2  # 16 bit, RGB
    assert set(np.unique(read_synthia_label(mini_data / "SYNTHIA/GT/LABELS/0000000.png"))) <= set(range(22))
    assert (mini_data / "Cityscapes/gtFine/val/frankfurt/frankfurt_000006_000019_gtFine_labelIds.png").exists()
    assert len(list((mini_data / "NTHU_Datasets").glob("*/Labels/Test/*_eval.png"))) == 12
    assert not list(mini_data.rglob("*.tmp"))


def test_synthia_and_gta5_show_the_same_classes(mini_data):
    first = build_dataset("gta5", mini_data / "GTA5", "train")[0]["label"]
    scene = render("source", 0, 1, (96, 48))
    np.testing.assert_array_equal(first.numpy(), TABLE[scene.label_ids])
    synthia = build_dataset("synthia", mini_data / "SYNTHIA", "train")[1]["label"]
    np.testing.assert_array_equal(synthia.numpy(), TABLE[scene.label_ids])


def test_made_once_and_never_overwritten_unasked(tmp_path, capsys):
    counts = "--size 64,32 --source-train 2 --source-val 1 --target-train 2 --target-val 1".split()
    make(tmp_path, *counts)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    assert len(before) == 2 * (3 + 3)
    make(tmp_path, *counts)
    assert "already there" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"made with other parameters: seed 0 .asked for: 1."):
        make(tmp_path, *counts, "--seed", "1")
    make(tmp_path, *counts, "--seed", "1", "--overwrite")
    assert json.loads((tmp_path / "mini_data.json").read_text())["seed"] == 1
    assert all(path.read_bytes() != content for path, content in before.items() if "GTA5/images" in str(path))


def test_odd_sizes_and_preview(tmp_path):
    counts = "--size 64,40 --source-train 7 --source-val 1 --target-train 1 --target-val 1 --formats gta5 --odd-sizes".split()
    make(tmp_path, *counts, "--preview", tmp_path / "preview.png", "--part", "layout=2")
    assert {image_size(path) for path in (tmp_path / "GTA5/images").iterdir()} == {(64, 40), (64, 34), (64, 35)}
    assert image_size(tmp_path / "preview.png")[0] > 4 * 64
