"""Anyone's images in a plain folder: classes.json, splits, sub-folders, kinds of images, and what can be wrong."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from dataset.catalogue import CITYSCAPES, ClassSet, class_set, data_set, fitted_size
from dataset.class_statistics import StatisticsError, class_balanced_order, count_classes, read_statistics, write_statistics
from dataset.errors import DataError, MissingDataError
from dataset.layouts import find_records, has_labels
from dataset.reading import ReadError
from dataset.segmentation import build_dataset
from dataset.transforms import Resize

CLASSES = [{"name": "soil", "ids": [1]}, {"name": "plant", "ids": [2, 5], "color": [0, 200, 0]}, {"name": "stone", "ids": [9]}]


def image(path, size=(20, 12)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(len(path.name)).integers(0, 255, (size[1], size[0], 3), np.uint8)).save(path)


def label(path, ids=((1, 2), (5, 9)), size=(20, 12), palette=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.array(ids, np.uint8)).resize(size, Image.NEAREST)
    if palette:
        picture.putpalette([value for number in range(256) for value in (number, 0, 255 - number)])
    picture.save(path)


@pytest.fixture
def field(tmp_path):
    """Two splits; the same name in two sub-folders; four kinds of images."""
    for name, ending in (("a/1", "jpg"), ("b/1", "png"), ("2", "webp"), ("c/d/3", "TIFF")):
        image(tmp_path / f"images/train/{name}.{ending}")
        label(tmp_path / f"labels/train/{name}.png", palette=name == "2")
    image(tmp_path / "images/val/9.jpeg")
    label(tmp_path / "labels/val/9.png", ((0, 255), (77, 9)))
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES))
    return tmp_path


def classes_of(root):
    return data_set("folder", str(root)).classes


def test_samples(field):
    dataset = build_dataset("folder", field, "train", classes=classes_of(field), transform=Resize((16, 8)))
    assert [record.name for record in dataset.records] == ["2.webp", "a/1.jpg", "b/1.png", "c/d/3.TIFF"]
    assert [record.label.split("labels/train/")[1] for record in dataset.records] == [
        "2.png",
        "a/1.png",
        "b/1.png",
        "c/d/3.png",
    ]
    for sample in dataset:
        assert sample["image"].shape == (3, 8, 16) and sample["image"].dtype == torch.uint8
        assert torch.equal(sample["label"][::4, ::8], torch.tensor([[0, 1], [1, 2]], dtype=torch.uint8))


def test_what_has_no_name_is_ignored(field):
    sample = build_dataset("folder", field, "val", classes=classes_of(field))[0]
    assert torch.equal(sample["label"][::6, ::10], torch.tensor([[255, 255], [255, 2]], dtype=torch.uint8))


def test_splits(field, tmp_path):
    assert len(find_records("folder", field, "all")) == len(find_records("folder", field, "train")) == 4
    assert has_labels("folder", field, "val") and not has_labels("folder", field, "test")
    with pytest.raises(MissingDataError, match="images/test: no such folder"):
        find_records("folder", field, "test")
    with pytest.raises(DataError, match="folder has no split 'validation'; known: all, train, val, test"):
        find_records("folder", field, "validation")


def test_one_split_without_folders(tmp_path):
    image(tmp_path / "images/x/1.jpg")
    image(tmp_path / "images/2.jpg")
    label(tmp_path / "labels/x/1.png")
    label(tmp_path / "labels/2.png")
    assert [record.name for record in find_records("folder", tmp_path, "all")] == ["2.jpg", "x/1.jpg"]
    assert has_labels("folder", tmp_path, "train") and not has_labels("folder", tmp_path, "val")
    with pytest.raises(MissingDataError, match="has no split val: there is no folder images/val"):
        find_records("folder", tmp_path, "val")


def test_a_target_needs_images_only(tmp_path):
    image(tmp_path / "images/1.jpg")
    (tmp_path / "classes.json").write_text("broken")
    sample = build_dataset("folder", tmp_path, "train", classes=CITYSCAPES, labels=False)[0]
    assert sample["name"] == "1.jpg" and "label" not in sample
    (tmp_path / "classes.json").unlink()
    with pytest.raises(MissingDataError, match="split train of folder has no labels"):
        build_dataset("folder", tmp_path, "train", classes=CITYSCAPES)
    label(tmp_path / "labels/1.png")
    with pytest.raises(MissingDataError, match="classes.json: no such file; it names the classes"):
        build_dataset("folder", tmp_path, "train", classes=CITYSCAPES)


def test_classes_that_the_folder_does_not_have(field):
    with pytest.raises(DataError, match="has no class 'lava'; wanted: soil, lava; it has: soil, plant, stone"):
        build_dataset("folder", field, "train", classes=ClassSet(("soil", "lava"), ((1, 1, 1), (2, 2, 2))))
    fewer = ClassSet(("stone", "soil"), ((1, 1, 1), (2, 2, 2)))
    labels = build_dataset("folder", field, "train", classes=fewer)[0]["label"]
    assert torch.equal(labels[::6, ::10], torch.tensor([[1, 255], [255, 0]], dtype=torch.uint8))


def test_two_images_with_one_label(field):
    image(field / "images/train/a/1.png")
    with pytest.raises(DataError, match="a/1.jpg and 1.png differ in their endings only"):
        find_records("folder", field, "train")


def test_list_files(field, tmp_path):
    (tmp_path / "list.txt").write_text("b/1.png\nimages/train/a/1.jpg\nimages/val/9.jpeg\tlabels/val/9.png\n")
    records = find_records("folder", field, "train", tmp_path / "list.txt")
    assert [record.name for record in records] == ["b/1.png", "a/1.jpg", "9.jpeg"]
    assert records[1].label.endswith("labels/train/a/1.png")


@pytest.mark.parametrize(
    "save, message",
    [
        (lambda path: Image.new("1", (20, 12)).save(path), "labels/val/9.png: a 1-bit grey PNG; maps of ids are 8-bit grey"),
        (lambda path: Image.new("RGB", (20, 12)).save(path), "labels/val/9.png: an RGB picture"),
        (lambda path: Image.new("LA", (20, 12)).save(path), "labels/val/9.png: an 8-bit grey and alpha .2 channels. PNG"),
        (lambda path: Image.new("I;16", (20, 12)).save(path), "labels/val/9.png: a 16-bit grey PNG"),
        (lambda path: Image.new("L", (20, 12)).save(path, "JPEG"), "labels/val/9.png: not a PNG file"),
        (lambda path: path.unlink(), "labels/val/9.png: no such file"),
    ],
)
def test_labels_that_hold_no_ids(save, message, field):
    save(field / "labels/val/9.png")
    with pytest.raises((ReadError, MissingDataError), match=message):
        build_dataset("folder", field, "val", classes=classes_of(field))[0]


def test_statistics_tell_apart_labels_of_one_name(field, tmp_path):
    label(field / "labels/train/b/1.png", ((9, 9), (9, 9)))
    dataset = build_dataset("folder", field, "train", classes=classes_of(field))
    counted = count_classes(dataset, 1, progress=False)
    assert counted == {"2.png": [0, 1, 2], "a/1.png": [0, 1, 2], "b/1.png": [2], "c/d/3.png": [0, 1, 2]}
    path = str(tmp_path / "class_statistics_3.json")
    write_statistics(path, counted, classes_of(field))
    statistics = read_statistics(path, classes_of(field))
    assert statistics[0][0] == ["2.png", "a/1.png", "c/d/3.png"]
    assert sorted({class_balanced_order(dataset, statistics, 0)[k] for k in range(40)}) == [0, 1, 2, 3]
    with pytest.raises(StatisticsError, match="made for other classes .soil, plant, stone., not 0, 1, 2; make it anew"):
        read_statistics(path, class_set(3))


def test_the_usual_size_is_the_first_image_s(field):
    from dataset.reading import image_size

    assert data_set("folder", str(field)).train_size is None
    assert fitted_size(image_size(find_records("folder", field, "train")[0].image)) == (32, 32)
