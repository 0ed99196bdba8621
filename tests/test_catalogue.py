"""The catalogue: classes, tables between raw ids and train ids, and what is wrong with a classes.json."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from dataset.catalogue import (
    CITYSCAPES,
    CLASS_SETS,
    CROSSCITY_13,
    DATA_SETS,
    LABEL_IDS,
    MAPILLARY_IDS,
    SYNTHIA_16,
    ClassSet,
    class_set,
    class_set_from_json,
    data_set,
    fitted_size,
    identity_table,
    label_table,
    read_classes,
    to_label_ids,
)
from dataset.errors import DataError, MissingDataError


def test_published_sets_are_parts_of_each_other():
    assert [len(CLASS_SETS[size]) for size in (19, 16, 13)] == [19, 16, 13]
    assert set(CITYSCAPES.names) - set(SYNTHIA_16.names) == {"terrain", "truck", "train"}
    assert set(SYNTHIA_16.names) - set(CROSSCITY_13.names) == {"wall", "fence", "pole"}
    for classes in (SYNTHIA_16, CROSSCITY_13):
        colors = dict(zip(CITYSCAPES.names, CITYSCAPES.colors, strict=True))
        assert all(colors[name] == color for name, color in zip(classes.names, classes.colors, strict=True))
    assert CITYSCAPES.palette.shape == (256, 3) and tuple(CITYSCAPES.palette[18]) == (119, 11, 32)
    assert not CITYSCAPES.palette[19:].any()


@pytest.mark.parametrize("number", (2, 7, 254))
def test_sets_of_any_size_have_names_and_colours_of_their_own(number):
    classes = class_set(number)
    assert classes.names[-1] == str(number - 1) and len(set(classes.colors)) == number
    assert (0, 0, 0) not in classes.colors


@pytest.mark.parametrize("number", (0, 1, 255))
def test_sets_that_are_too_small_or_large_are_refused(number):
    with pytest.raises(DataError, match=f"{number} classes; between 2 and 254"):
        class_set(number)


def test_a_set_survives_json():
    own = ClassSet(("sky", "lava"), ((1, 2, 3), (4, 5, 6)))
    assert class_set_from_json(json.loads(json.dumps(own.to_json()))) == own
    assert class_set_from_json(json.loads(json.dumps(CITYSCAPES.to_json()))) is CITYSCAPES
    black = [0, 0, 0]
    for names, colors in (
        (["a", "b"], [black]),
        (["a", "b"], [[0, 0]] * 2),
        (["a", "a"], [black] * 2),
        (["a", "b"], [[0, 0, 256]] * 2),
    ):
        with pytest.raises(DataError):
            class_set_from_json({"names": names, "colors": colors})
    with pytest.raises(DataError, match="not a set of classes with names and colors"):
        class_set_from_json({})


def test_the_table_follows_from_the_names():
    ids = {3: "sky", 4: "road", 9: "sky"}
    table = label_table(ids, ClassSet(("road", "sky", "lava"), ((0, 0, 1),) * 3))
    assert {raw: int(table[raw]) for raw in ids} == {3: 1, 4: 0, 9: 1}
    assert (np.delete(table, [3, 4, 9]) == 255).all() and table.dtype == np.uint8
    np.testing.assert_array_equal(identity_table(2)[:4], [0, 1, 255, 255])


def test_label_ids_of_the_server_need_cityscapes_classes():
    np.testing.assert_array_equal(to_label_ids(np.array([0, 12, 255]), CROSSCITY_13), [7, 33, 0])
    with pytest.raises(DataError, match="Cityscapes has no class 'lava'; wanted: road, lava; it has: road, sidewalk"):
        to_label_ids(np.array([0]), ClassSet(("road", "lava"), ((0, 0, 1),) * 2))


def test_every_record_is_consistent():
    for name, known in DATA_SETS.items():
        assert not set(known.ids) & known.void_ids, name
        assert set(known.ids.values()) == (set() if name == "folder" else set(CITYSCAPES.names))
        assert set(known.usual_parts) <= set(known.parts) and bool(known.parts) == bool(known.part_flag)
        for layout in known.layouts:
            assert set(known.images) <= set(layout.splits) and set(layout.labelled or ()) <= set(layout.splits)
    assert set(MAPILLARY_IDS) | DATA_SETS["mapillary"].void_ids == {*range(66), 255}
    assert LABEL_IDS[7] == "road" and len(LABEL_IDS) == 19


def test_unknown_data_sets():
    with pytest.raises(DataError, match="unknown data set 'gta'; known: gta5, synthia, cityscapes, crosscity, acdc"):
        data_set("gta")


@pytest.mark.parametrize(
    "size, fitted",
    [
        ((640, 480), (640, 480)),
        ((4000, 3000), (1024, 768)),
        ((1914, 1052), (1024, 560)),
        ((50, 3000), (32, 1024)),
        ((20, 9), (32, 32)),
    ],
)
def test_fitted_size(size, fitted):
    assert fitted_size(size) == fitted


# classes.json


def classes_of(tmp_path, content):
    path = tmp_path / "classes.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_classes(str(path))


def test_a_list_of_names(tmp_path):
    classes, ids = classes_of(tmp_path, ["road", "lava"])
    assert classes.names == ("road", "lava") and ids == {0: "road", 1: "lava"}
    assert classes.colors[0] == (128, 64, 128) and classes.colors[1] != classes.colors[0]


def test_records_with_ids_and_colours(tmp_path):
    entries = [{"name": "plant", "ids": [3, 7], "color": [0, 255, 0]}, "rock", {"name": "path"}]
    classes, ids = classes_of(tmp_path, entries)
    assert classes.names == ("plant", "rock", "path") and classes.colors[0] == (0, 255, 0)
    assert ids == {3: "plant", 7: "plant", 1: "rock", 2: "path"}
    known = data_set("folder", str(tmp_path))
    assert known.classes == classes and known.num_classes == 3 and known.ids == ids
    assert data_set("folder").classes is None and data_set("folder", str(tmp_path / "away")).classes is None


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "cannot be read as JSON"),
        ("[" * 100000, "cannot be read as JSON"),
        ("{", "cannot be read as JSON"),
        ({"road": 1}, "not a list of classes"),
        ([], "0 classes; between 2 and 254"),
        (["road"], "1 classes; between 2 and 254"),
        ([str(number) for number in range(255)], "255 classes; between 2 and 254"),
        (["road", "road"], "two classes are called 'road'"),
        (["road", ""], "'' is no name of a class"),
        (["road", 5], "5 is no name of a class"),
        (["road", {"ids": [1]}], "None is no name of a class"),
        (["road", {"name": ["x"]}], "is no name of a class"),
        (["road", {"name": "sky", "id": 3}], "class 'sky' has 'id'; known: name, ids, color"),
        (["road", {"name": "sky", "ids": [255]}], "ids of class 'sky' are no list of whole numbers in 0..254"),
        (["road", {"name": "sky", "ids": [-1]}], "ids of class 'sky'"),
        (["road", {"name": "sky", "ids": [True]}], "ids of class 'sky'"),
        (["road", {"name": "sky", "ids": 3}], "ids of class 'sky'"),
        (["road", {"name": "sky", "ids": []}], "ids of class 'sky'"),
        (["road", {"name": "sky", "ids": [4, 0]}], "the id 0 belongs to 'road' and to 'sky'"),
        (["road", {"name": "sky", "color": [1, 2]}], "color of class 'sky'"),
        (["road", {"name": "sky", "color": [1, 2, 256]}], "color of class 'sky'"),
        (["road", {"name": "sky", "color": "#ffffff"}], "color of class 'sky'"),
        (["road", {"name": "sky", "color": None}], "color of class 'sky'"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(content, message, tmp_path):
    with pytest.raises(DataError, match=message) as error:
        classes_of(tmp_path, content)
    assert str(error.value).startswith(f"{tmp_path}/classes.json: ") and "\n" not in str(error.value)


def test_no_classes_file(tmp_path):
    with pytest.raises(MissingDataError, match="classes.json: no such file; it names the classes"):
        read_classes(str(tmp_path / "classes.json"))


def test_what_needs_no_torch_loads_none():
    code = (
        "import sys, dataset.layouts, dataset.catalogue, utils.iou, utils.parser, compute_iou\n"
        "print({'torch', 'torchvision', 'torchcodec', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    code = "import sys, dataset.segmentation, dataset.loader, dataset.spatial_prior\n"
    code += "print({'torchvision', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
