"""The loaders against what the originals' loaders returned, label tables, list formats, and what is wrong with files."""

import shutil

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from PIL import Image
from scipy.io import savemat

from dataset.catalogue import CITYSCAPES, DATA_SETS, LABEL_IDS, class_set, label_table, to_label_ids
from dataset.layouts import find_records
from dataset.mini.formats import png_16bit
from dataset.reading import ReadError, image_size, read_image, read_label, read_synthia_label
from dataset.segmentation import build_dataset
from dataset.transforms import Compose, RandomBlur, RandomImageScale, RandomMirror, Resize

CAFFE_MEAN = np.array([104.00698793, 116.66876762, 122.67891434], np.float32).reshape(3, 1, 1)
ADAPTSEGNET, CLAN, MAXSQUARE = (GOLDEN / name for name in ("adaptsegnet/loaders", "clan/loaders", "maxsquare/inputs"))


class Draws:
    """Stands in for random.Random: hands out recorded draws and notices when some are left."""

    def __init__(self, *values):
        self.values = list(values)

    def random(self):
        return self.values.pop(0)


def item(dataset, index, draws=(), batch_draws=()):
    """Sample `index` with the given draws."""
    record = dataset.records[index]
    rng, batch_rng = Draws(*draws), Draws(*batch_draws)
    transform = dataset.transform
    dataset.transform = lambda image, label, *_: transform(image, label, rng, batch_rng)
    sample = dataset[index]
    dataset.transform = transform
    assert not rng.values and not batch_rng.values, "draws left over"
    assert sample["path"] == record.image
    return sample


def assert_image(sample, recorded):
    """Within 2 grey levels of the original's pixels (they resize with Pillow, we with torchvision).

    The recordings were made with Pillow 13, which takes the columns first where the height shrinks more, unlike the authors'
    Pillow and torchvision; there a few pixels may be up to 4 levels off.
    """
    pixels = np.rint(recorded + CAFFE_MEAN)[::-1]
    difference = np.abs(sample["image"].numpy().astype(int) - pixels)
    width, height = image_size(sample["path"])
    columns_first = height / pixels.shape[1] > width / pixels.shape[2]
    assert sample["image"].dtype == torch.uint8
    assert difference.max() <= (4 if columns_first else 2)
    assert (difference > 2).mean() < 1e-3


def assert_label(sample, recorded):
    expected = np.where(np.asarray(recorded) < 0, 255, recorded)
    np.testing.assert_array_equal(sample["label"].numpy(), expected)


@pytest.mark.parametrize("index", range(3))
def test_adaptsegnet_source(index, golden):
    recorded = golden("adaptsegnet/loaders.npz")
    dataset = build_dataset("gta5", ADAPTSEGNET / "GTA5", "all", ADAPTSEGNET / "GTA5/train.txt",
                            transform=Resize(tuple(recorded["source_crop_wh"].tolist())))  # fmt: skip
    sample = item(dataset, index)
    assert sample["name"] == recorded[f"gta5/{index}/name"]
    assert_image(sample, recorded[f"gta5/{index}/image"])
    assert_label(sample, recorded[f"gta5/{index}/label"])


@pytest.mark.parametrize("index", range(2))
def test_adaptsegnet_target(index, golden):
    recorded = golden("adaptsegnet/loaders.npz")
    dataset = build_dataset("cityscapes", ADAPTSEGNET / "Cityscapes", "train", ADAPTSEGNET / "Cityscapes/train.txt",
                            transform=Resize(tuple(recorded["target_crop_wh"].tolist())), labels=False)  # fmt: skip
    sample = item(dataset, index)
    assert str(recorded[f"cityscapes/{index}/name"]).endswith(sample["name"])
    assert_image(sample, recorded[f"cityscapes/{index}/image"])
    assert "label" not in sample


@pytest.mark.parametrize(
    "name, folder, count", [("gta5", "GTA5", 3), ("synthia", "SYNTHIA", 3), ("cityscapes", "Cityscapes", 2)]
)
def test_clan_scales_the_image_and_mirrors_both(name, folder, count, golden):
    recorded = golden("clan/loaders.npz")
    size = tuple(recorded["target_crop_wh" if name == "cityscapes" else "source_crop_wh"].tolist())
    labels = name != "cityscapes"
    split = "train" if name == "cityscapes" else "all"
    transform = Compose([RandomImageScale(size), RandomMirror()])
    dataset = build_dataset(name, CLAN / folder, split, CLAN / folder / "train.txt", transform=transform, labels=labels)
    for index in range(count):
        scale, mirror = recorded[f"{name}/draws"][index]
        sample = item(dataset, index, draws=[mirror], batch_draws=[scale])
        assert_image(sample, recorded[f"{name}/{index}/image"])
        if labels:
            assert_label(sample, recorded[f"{name}/{index}/label"])


MIRROR_AND_BLUR = {
    "mirror_blur": (0.3, 0.2, 0.7),
    "mirror_only": (0.49, 0.5),
    "blur_only": (0.5, 0.49, 0.25),
    "neither": (0.9, 0.9),
}
MAXSQUARE_SETS = {
    "gta5": ("gta5", "GTA5", "GTA5/list/{}.txt", 19, (64, 36)),
    "synthia16": ("synthia", "SYNTHIA", "SYNTHIA/list/{}.txt", 16, (64, 36)),
    "synthia19": ("synthia", "SYNTHIA", "SYNTHIA/list/{}.txt", 19, (64, 36)),
    "city19": ("cityscapes", "Cityscapes", "city_list/{}.txt", 19, (48, 24)),
    "city16": ("cityscapes", "Cityscapes", "city_list/{}.txt", 16, (48, 24)),
    "city13": ("cityscapes", "Cityscapes", "city_list/{}.txt", 13, (48, 24)),
    "nthu13": ("crosscity", "NTHU_Datasets", "NTHU_list/Rome/List/{}.txt", 13, (48, 24)),
}


@pytest.mark.parametrize("key", MAXSQUARE_SETS)
def test_maxsquare_items(key, golden):
    recorded = golden("maxsquare/loaders.npz")
    name, folder, list_file, classes, size = MAXSQUARE_SETS[key]
    cases = sorted({path.rsplit("/", 1)[0] for path in recorded if path.startswith(f"{key}/")})
    assert cases
    for case in cases:
        part, index = case.split("/")[1][:-1], int(case.split("/")[1][-1])
        split = "test" if name == "crosscity" and part == "val" else part
        labels = name != "crosscity" or split == "test"
        draws = MIRROR_AND_BLUR[case.split("/")[2]] if part == "train" else ()
        transform = Compose([RandomMirror(), Resize(size), RandomBlur()]) if part == "train" else Resize(size)
        dataset = build_dataset(
            name, MAXSQUARE / folder, split, MAXSQUARE / list_file.format(split), class_set(classes), transform, labels, "Rome"
        )
        sample = item(dataset, index, draws)
        if f"{case}/image" in recorded:
            assert_image(sample, recorded[f"{case}/image"])
        if f"{case}/label" in recorded:
            assert_label(sample, recorded[f"{case}/label"])


def test_label_tables(golden):
    for source, key in (("adaptsegnet", "id_to_trainid"), ("clan", "gta5/id_to_trainid")):
        pairs = golden(f"{source}/loaders.npz")[key]
        expected = np.full(256, 255)
        expected[pairs[:, 0]] = pairs[:, 1]
        np.testing.assert_array_equal(label_table(LABEL_IDS, CITYSCAPES), expected)
    maps = golden("maxsquare/loaders.npz")
    for key, name, classes in (
        ("gta5_raw_to_19", "gta5", 19),
        ("city_raw_to_16", "cityscapes", 16),
        ("city_raw_to_13", "cityscapes", 13),
        ("synthia_raw_to_16", "synthia", 16),
        ("synthia_raw_to_19", "synthia", 19),
        ("nthu_raw_to_13", "crosscity", 13),
    ):
        expected = maps[f"maps/{key}"].astype(int)
        np.testing.assert_array_equal(
            label_table(DATA_SETS[name].ids, class_set(classes)), np.where(expected < 0, 255, expected)
        )
    np.testing.assert_array_equal(to_label_ids(np.array([0, 15, 255]), class_set(16)), [7, 33, 0])


def test_synthia_labels_are_16_bit(golden):
    path = CLAN / "SYNTHIA/GT/LABELS/0000000.png"
    assert golden("clan/loaders.npz")["synthia/pil8_max"] == 0  # what Pillow makes of it
    assert 3 < read_synthia_label(path).max() <= 22
    with pytest.raises(ReadError, match="a 16-bit RGB PNG; maps of ids are 8-bit"):
        read_label(path)


def test_every_layout_is_found_without_lists(mini_data):
    def count(*arguments, **options):
        return len(find_records(*arguments, **options))

    assert [count("gta5", mini_data / "GTA5", split) for split in ("all", "train", "val")] == [9, 6, 3]
    assert [count("synthia", mini_data / "SYNTHIA", split) for split in ("all", "train", "val")] == [9, 6, 3]
    assert [count("cityscapes", mini_data / "Cityscapes", split) for split in ("all", "train", "val")] == [5, 5, 3]
    assert [count("crosscity", mini_data / "NTHU_Datasets", split, part="Rio") for split in ("train", "test")] == [5, 3]
    assert count("crosscity", mini_data, "val", part="Rome") == 3
    record = find_records("cityscapes", mini_data / "Cityscapes", "val")[0]
    assert (
        record.label.endswith(record.name.replace("_leftImg8bit.png", "_gtFine_labelIds.png")) and "gtFine/val/" in record.label
    )


def test_layouts_one_folder_further_down(mini_data, tmp_path):
    (tmp_path / "city").mkdir()
    (tmp_path / "city/data").symlink_to(mini_data / "Cityscapes")
    (tmp_path / "synthia").mkdir()
    (tmp_path / "synthia/RAND_CITYSCAPES").symlink_to(mini_data / "SYNTHIA")
    assert len(find_records("cityscapes", tmp_path / "city", "train")) == 5
    assert len(find_records("synthia", tmp_path / "synthia", "all")) == 9


@pytest.mark.parametrize(
    "lines", ("00002.png\r\n00004.png", "2\n4\n", "images/00002.png\tlabels/00002.png\n1\timages/00004.png\tlabels/00004.png")
)
def test_list_formats_of_gta5(lines, mini_data, tmp_path):
    (tmp_path / "list.txt").write_bytes(lines.encode())
    records = find_records("gta5", mini_data / "GTA5", "all", tmp_path / "list.txt")
    assert [record.name for record in records] == ["00002.png", "00004.png"]
    assert all(record.label.endswith(f"labels/{record.name}") for record in records)


@pytest.mark.parametrize(
    "form", ("{city}/{stem}_leftImg8bit.png", "train_{stem}", "leftImg8bit/train/{city}/{stem}_leftImg8bit.png")
)
def test_list_formats_of_cityscapes(form, mini_data, tmp_path):
    (tmp_path / "list.txt").write_text("\n".join(form.format(city=city, stem=f"{city}_{number}_000019")
                                                 for city, number in (("bremen", "000001"), ("aachen", "000003"))))  # fmt: skip
    records = find_records("cityscapes", mini_data / "Cityscapes", "train", tmp_path / "list.txt")
    assert [record.name for record in records] == [
        "bremen_000001_000019_leftImg8bit.png",
        "aachen_000003_000019_leftImg8bit.png",
    ]


@pytest.mark.parametrize(
    "lines, error, message",
    [
        ("1\n1\n", ValueError, "names .*00001.png more than once"),
        ("1\n77\n", FileNotFoundError, "00077.png: no such image, named by .*list.txt"),
        ("", FileNotFoundError, "no images of gta5"),
    ],
)
def test_wrong_lists(lines, error, message, mini_data, tmp_path):
    (tmp_path / "list.txt").write_text(lines)
    with pytest.raises(error, match=message):
        find_records("gta5", mini_data / "GTA5", "all", tmp_path / "list.txt")


@pytest.mark.parametrize("arguments, error, message", [
    (("gta5", "nowhere", "all"), FileNotFoundError, "nowhere: no such folder .the root of gta5"),
    (("gta5", "Cityscapes", "all"), FileNotFoundError, "images: no such folder; below .* there is gtFine, leftImg8bit"),
    (("gta5", "GTA5", "validation"), ValueError, "no split 'validation'; known: all, train"),
    (("gta5", "GTA5", "test"), FileNotFoundError, "no images of gta5, split test"),
    (("crosscity", "NTHU_Datasets", "train"), ValueError, "--city-name Rome"),
    (("kitti", "GTA5", "all"), ValueError, "unknown data set 'kitti'")])  # fmt: skip
def test_wrong_folders_and_splits(arguments, error, message, mini_data):
    name, folder, split = arguments
    with pytest.raises(error, match=message):
        find_records(name, mini_data / folder, split)
    if name == "crosscity":
        with pytest.raises(FileNotFoundError, match="has no labels"):
            build_dataset(name, mini_data / folder, split, part="Rome")


@pytest.fixture
def pair(tmp_path):
    """A GTA5 folder with one pair."""
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)).save(tmp_path / "images/00001.png")
    Image.fromarray(np.full((40, 60), 7, np.uint8)).save(tmp_path / "labels/00001.png")
    return tmp_path


def broken_label(pair, array):
    Image.fromarray(array).save(pair / "labels/00001.png")


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize(
    "breakage, message",
    [
        (lambda pair: (pair / "labels/00001.png").unlink(), "labels/00001.png: no such file"),
        (lambda pair: cut(pair / "images/00001.png", 600), "images/00001.png: cannot be read, truncated"),
        (lambda pair: cut(pair / "labels/00001.png", 60), "labels/00001.png: cannot be read, truncated"),
        (lambda pair: broken_label(pair, np.zeros((40, 60, 3), np.uint8)), "labels/00001.png: an RGB picture"),
        (
            lambda pair: broken_label(pair, np.zeros((40, 90), np.uint8)),
            "labels/00001.png: its size does not fit .*images/00001.png .90x40 against 60x40",
        ),
        (lambda pair: (pair / "labels/00001.png").write_text("<html>not found, sorry</html>"), "labels/00001.png: not a PNG"),
    ],
)
def test_broken_files_are_errors_that_name_them(breakage, message, pair):
    breakage(pair)
    with pytest.raises(OSError, match=message):
        build_dataset("gta5", pair, "all")[0]


def test_a_few_rows_difference_are_fine(pair):
    broken_label(pair, np.full((44, 60), 7, np.uint8))
    sample = build_dataset("gta5", pair, "all", transform=Resize((32, 16)))[0]
    assert sample["image"].shape == (3, 16, 32) and sample["label"].shape == (16, 32) and (sample["label"] == 0).all()


def test_synthia_label_that_was_converted_is_refused(tmp_path):
    Image.fromarray(np.full((8, 8, 3), 3, np.uint8)).save(tmp_path / "eight.png")
    (tmp_path / "large.png").write_bytes(png_16bit(np.full((8, 8, 3), 700, np.uint16)))
    with pytest.raises(ReadError, match="eight.png: an 8-bit RGB PNG, but SYNTHIA"):
        read_synthia_label(tmp_path / "eight.png")
    with pytest.raises(ReadError, match="large.png: class ids up to 700"):
        read_synthia_label(tmp_path / "large.png")


def test_image_size_and_grey_images(tmp_path):
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "grey.png")
    assert image_size(tmp_path / "grey.png") == (30, 20) and read_image(tmp_path / "grey.png").shape == (3, 20, 30)
    with pytest.raises(FileNotFoundError, match="none.png: no such file"):
        image_size(tmp_path / "none.png")


def test_resizing_the_image_alone(pair):
    sample = build_dataset("gta5", pair, "all", transform=Resize((32, 16), label=False))[0]
    assert sample["image"].shape == (3, 16, 32) and sample["label"].shape == (40, 60)


# GTA5's official mapping


def gta5_mapping(path):
    """Like the official file: a colour in 0..1 for each label id, the same for some of them."""
    table = np.zeros((35, 3))
    table[list(LABEL_IDS)] = np.array(CITYSCAPES.colors) / 255
    table[34] = table[26]  # the licence plate's colour is the car's
    savemat(path, {"cityscapesMap": table, "camvidMap": table, "classes": np.array(["unlabeled"] * 35, dtype=object)})
    return table


def test_gta5_labels_in_colours_are_read_with_the_official_mapping(mini_data, tmp_path):
    root = tmp_path / "GTA5"
    shutil.copytree(mini_data / "GTA5", root)
    expected = build_dataset("gta5", root, "all")[0]["label"]
    path = sorted((root / "labels").iterdir())[0]
    ids = np.array(Image.open(path))
    Image.fromarray(np.rint(gta5_mapping(tmp_path / "away.mat") * 255).astype(np.uint8)[ids]).save(path)
    with pytest.raises(ReadError, match="an RGB picture.*With the official mapping.mat in its root"):
        build_dataset("gta5", root, "all")[0]
    gta5_mapping(root / "mapping.mat")
    dataset = build_dataset("gta5", root, "all")
    assert torch.equal(dataset[0]["label"], expected)
    assert torch.equal(dataset[1]["label"], build_dataset("gta5", mini_data / "GTA5", "all")[1]["label"])
    with Image.open(path) as image:
        image.putpixel((3, 2), (1, 2, 3))
        image.save(path)
    with pytest.raises(ReadError, match=r"1 of its colours stand for no label id, the first is \(1, 2, 3\)"):
        dataset[0]
    (root / "mapping.mat").write_bytes(b"nothing")
    with pytest.raises(ReadError, match="mapping.mat: cannot be read as GTA5's mapping.mat"):
        build_dataset("gta5", root, "all")
    savemat(root / "mapping.mat", {"cityscapesMap": np.zeros((19, 3))})
    with pytest.raises(ReadError, match="is no table of colours"):
        build_dataset("gta5", root, "all")
