"""Every official layout is found, with its labels; each fixture has the folders and names of the data set's own release."""

import os
import shutil

import pytest
from PIL import Image

from dataset.catalogue import CITYSCAPES, MAPILLARY_IDS, class_set
from dataset.errors import DataError, MissingDataError
from dataset.layouts import find_records, has_labels
from dataset.segmentation import build_dataset

SIZE = (12, 8)


def put(root, *paths, ids=7):
    """Write a small image or, for names of labels, a map of one id."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        label = any(folder in f"/{path}" for folder in ("/gt/", "/labels/", "/v1.2/"))
        Image.new("L" if label else "RGB", SIZE, ids if label else (9, 9, 9)).save(root / path)


def names(records):
    return [record.name for record in records]


@pytest.fixture
def acdc(tmp_path):
    for condition, number in (("fog", 475), ("night", 351), ("rain", 400), ("snow", 122)):
        for split in ("train", "val", "test"):
            frame = f"{condition}/{split}/GOPR0{number}/GOPR0{number}_frame_000041"
            put(tmp_path, f"rgb_anon/{frame}_rgb_anon.png")
            put(tmp_path, f"rgb_anon/{condition}/{split}_ref/GOPR0{number}/GOPR0{number}_frame_000041_rgb_ref_anon.png")
            if split != "test":
                put(
                    tmp_path, f"gt/{frame}_gt_labelIds.png", f"gt/{frame}_gt_labelTrainIds.png", f"gt/{frame}_gt_labelColor.png"
                )
    return tmp_path


def test_acdc(acdc):
    records = find_records("acdc", acdc, "train")
    assert names(records) == [f"GOPR0{n}_frame_000041_rgb_anon.png" for n in (475, 351, 400, 122)]
    assert records[0].label == str(acdc / "gt/fog/train/GOPR0475/GOPR0475_frame_000041_gt_labelIds.png")
    assert names(find_records("acdc", acdc, "val", part="snow,Fog")) == [
        "GOPR0122_frame_000041_rgb_anon.png",
        "GOPR0475_frame_000041_rgb_anon.png",
    ]
    assert has_labels("acdc", acdc, "val") and not has_labels("acdc", acdc, "test")
    assert (build_dataset("acdc", acdc, "val", part="night")[0]["label"] == 0).all()
    with pytest.raises(MissingDataError, match="split test of acdc has no labels"):
        build_dataset("acdc", acdc, "test")
    assert len(build_dataset("acdc", acdc, "test", labels=False)) == 4
    with pytest.raises(DataError, match="ACDC has no 'dusk' .--condition.; known: fog, night, rain, snow"):
        find_records("acdc", acdc, "val", part="dusk")


def test_a_list_of_acdc_may_name_images_of_all_conditions(acdc, tmp_path):
    lines = [f"rgb_anon/{part}/train/GOPR0{n}/GOPR0{n}_frame_000041_rgb_anon.png" for part, n in (("rain", 400), ("fog", 475))]
    (tmp_path / "list.txt").write_text("\n".join([*lines, "GOPR0122/GOPR0122_frame_000041_rgb_anon.png"]))
    records = find_records("acdc", acdc, "train", tmp_path / "list.txt")
    assert [record.label.split("/gt/")[1].split("/")[0] for record in records] == ["rain", "fog", "snow"]


def test_dark_zurich(tmp_path):
    for split, part in (("train", "night"), ("train", "twilight"), ("train", "day"), ("val", "night"), ("test", "night")):
        put(tmp_path, f"rgb_anon/{split}/{part}/GOPR0356/GOPR0356_{split}_{part}_rgb_anon.png")
    put(tmp_path, "rgb_anon/val_ref/day/GOPR0356_ref/GOPR0356_frame_000001_rgb_anon.png")
    put(tmp_path, *(f"gt/val/night/GOPR0356/GOPR0356_val_night_gt_{kind}.png" for kind in ("labelIds", "labelTrainIds")))
    assert names(find_records("darkzurich", tmp_path, "train")) == ["GOPR0356_train_night_rgb_anon.png"]
    assert names(find_records("darkzurich", tmp_path, "train", part="day,twilight")) == [
        "GOPR0356_train_day_rgb_anon.png",
        "GOPR0356_train_twilight_rgb_anon.png",
    ]
    assert [has_labels("darkzurich", tmp_path, split) for split in ("train", "val", "test")] == [False, True, False]
    assert (build_dataset("darkzurich", tmp_path, "val")[0]["label"] == 0).all()


@pytest.mark.parametrize("inner", ("", "bdd100k/"))
def test_both_layouts_of_bdd100k(inner, tmp_path):
    new, old = tmp_path / "new", tmp_path / "old"
    for split in ("train", "val", "test"):
        put(new / inner, f"images/10k/{split}/0a-{split}.jpg", f"images/100k/{split}/other.jpg")
        put(old / inner, f"seg/images/{split}/0a-{split}.jpg")
        if split != "test":
            put(
                new / inner,
                f"labels/sem_seg/masks/{split}/0a-{split}.png",
                f"labels/sem_seg/colormaps/{split}/0a-{split}.png",
                ids=13,
            )
            put(old / inner, f"seg/labels/{split}/0a-{split}_train_id.png", ids=255)
    for root, expected in ((new, 13), (old, 255)):
        assert names(find_records("bdd100k", root, "val")) == ["0a-val.jpg"]
        assert (build_dataset("bdd100k", root, "train")[0]["label"] == expected).all()
        assert not has_labels("bdd100k", root, "test") and len(find_records("bdd100k", root, "test")) == 1


@pytest.mark.parametrize("version, labels", (("1.2", "labels"), ("2.0", "v1.2/labels")))
def test_both_versions_of_mapillary(version, labels, tmp_path):
    for split in ("training", "validation", "testing"):
        put(tmp_path, f"{split}/images/abc_{split}.jpg")
        if split != "testing":
            put(tmp_path, f"{split}/{labels}/abc_{split}.png", ids=21)
            if version == "2.0":
                put(tmp_path, f"{split}/v2.0/labels/abc_{split}.png", ids=1)
    assert names(find_records("mapillary", tmp_path, "val")) == ["abc_validation.jpg"]
    rider = CITYSCAPES.names.index("rider")
    assert (build_dataset("mapillary", tmp_path, "train")[0]["label"] == rider).all()
    assert not has_labels("mapillary", tmp_path, "test")
    assert MAPILLARY_IDS[58] == "train" and MAPILLARY_IDS[55] == "car"


def test_hidden_files_are_not_images(tmp_path):
    put(tmp_path, "images/00001.png", "labels/00001.png")
    (tmp_path / "images/._00001.png").write_bytes(b"\0\5\x16\7 macOS")
    (tmp_path / "images/.hidden.png").write_bytes(b"")
    assert names(find_records("gta5", tmp_path, "all")) == ["00001.png"]


def test_cityscapes_in_the_order_of_cities_then_names(tmp_path):
    for name in ("ab/ab_000000_000019", "a/a_000001_000019", "a/a_000000_000019", "a-b/a-b_000000_000019"):
        put(tmp_path, f"leftImg8bit/train/{name}_leftImg8bit.png", f"leftImg8bit/train/{name}_notes.png")
    found = [name.split("_left")[0] for name in names(find_records("cityscapes", tmp_path, "train"))]
    assert found == ["a_000000_000019", "a_000001_000019", "a-b_000000_000019", "ab_000000_000019"]
    assert find_records("cityscapes", tmp_path, "train")[0].label is None


def test_crosscity_needs_a_city_of_its_own(mini_data):
    with pytest.raises(DataError, match="CrossCity needs --city-name Rome, Rio, Tokyo, Taipei"):
        find_records("crosscity", mini_data, "train")
    with pytest.raises(DataError, match="CrossCity has no 'Paris' .--city-name.; known: Rome"):
        find_records("crosscity", mini_data, "train", part="Paris")
    assert len(find_records("crosscity", mini_data, "train", part="rome")) == 5
    assert len(find_records("cityscapes", mini_data / "Cityscapes", "train", part="Rome")) == 5  # means nothing there


def test_numbers_that_are_none(tmp_path):
    put(tmp_path, "RGB/first.png")
    with pytest.raises(DataError, match="first.png: the name of this image is no number"):
        find_records("synthia", tmp_path, "train")


def test_a_binary_file_is_no_list(tmp_path):
    put(tmp_path, "images/00001.png")
    with pytest.raises(DataError, match="00001.png: not a text file"):
        find_records("gta5", tmp_path, "all", tmp_path / "images/00001.png")


def test_the_network_s_classes_must_be_the_data_set_s(mini_data):
    for number in (19, 16, 13):
        for name, folder in (("synthia", "SYNTHIA"), ("gta5", "GTA5")):
            build_dataset(name, mini_data / folder, "all", classes=class_set(number))
    with pytest.raises(DataError, match="GTA5 .*GTA5 has no class '0'; wanted: 0, 1, 2; it has: road, sidewalk"):
        build_dataset("gta5", mini_data / "GTA5", "all", classes=class_set(3))
    build_dataset("gta5", mini_data / "GTA5", "all", classes=class_set(3), labels=False)


@pytest.mark.parametrize(
    "line",
    [
        "../outside.png\tlabels/00001.png",
        "images/00001.png\t../outside.png",
        "{outside}\tlabels/00001.png",
        "images/../../outside.png\tlabels/00001.png",
    ],
)
def test_a_list_does_not_lead_out_of_its_data_set(line, mini_data, tmp_path):
    shutil.copytree(mini_data / "GTA5", tmp_path / "GTA5")
    shutil.copy(mini_data / "GTA5/images/00001.png", tmp_path / "outside.png")
    (tmp_path / "list.txt").write_text("00002.png\n\n" + line.format(outside=tmp_path / "outside.png"))
    with pytest.raises(DataError, match=r"list.txt, line 3: \S*outside.png is not below the root"):
        find_records("gta5", tmp_path / "GTA5", "all", tmp_path / "list.txt")


def test_absolute_paths_and_links_below_the_root_are_fine(mini_data, tmp_path, monkeypatch):
    os.symlink(mini_data / "GTA5", tmp_path / "link")
    lines = [f"{mini_data}/GTA5/images/00001.png\t{tmp_path}/link/labels/00001.png", "link/images/00002.png\tlabels/00002.png"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    assert len(find_records("gta5", tmp_path / "link", "all", tmp_path / "list.txt")) == 2


def test_a_list_with_zero_bytes_is_no_list(mini_data, tmp_path):
    (tmp_path / "list.txt").write_bytes(b"00001.png\n000\x0002.png\n")
    with pytest.raises(DataError, match=r"list.txt: not a text file with one image a line \(it holds zero bytes\)"):
        find_records("gta5", mini_data / "GTA5", "all", tmp_path / "list.txt")
