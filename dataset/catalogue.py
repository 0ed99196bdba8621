"""What is known about data sets and classes: one record each, and nothing of it anywhere else.

A class is known by its name. A data set says which class each raw id of its labels stands for; a network's classes are a
`ClassSet` in the order of its outputs (train ids). The table between the two follows from the names.
"""

import colorsys
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from . import list_lines
from .errors import DataError, MissingDataError
from .reading import read_gta5_colours, read_label, read_synthia_label
from .splits import by_official_split, by_synthia_split

IGNORED = 255
MOST_CLASSES = 254


@dataclass(frozen=True)
class ClassSet:
    """The classes of a network in the order of its outputs.

    Attributes:
        names, colors: of each class; colours are (red, green, blue) in 0..255.
        reported: the sizes of the smaller published sets whose mIoU is reported beside the set's own.
    """

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    reported: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def palette(self) -> np.ndarray:
        """(256,3) uint8: the colour of each id, black for ids that are no class."""
        table = np.zeros((256, 3), np.uint8)
        table[: len(self)] = self.colors
        return table

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"names": list(self.names), "colors": [list(color) for color in self.colors]}


def class_set_from_json(record: Mapping[str, Any]) -> ClassSet:
    """The inverse of `ClassSet.to_json`; a published set is given back as itself.

    Raises:
        DataError: the record is no set of classes.
    """
    try:
        found = ClassSet(tuple(record["names"]), tuple((red, green, blue) for red, green, blue in record["colors"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"not a set of classes with names and colors ({type(error).__name__}: {error})") from error
    _check_names(found.names)
    if len(found.colors) != len(found.names) or not all(map(_is_color, found.colors)):
        raise DataError("not a set of classes: each name needs a color of three numbers in 0..255")
    return next((known for known in CLASS_SETS.values() if (known.names, known.colors) == (found.names, found.colors)), found)


def class_set(num_classes: int) -> ClassSet:
    """The published set of 19, 16 or 13 classes; for any other number, classes named by their numbers.

    The latter serves checkpoints that do not say what their classes are.

    Raises:
        DataError: not between 2 and 254.
    """
    if num_classes in CLASS_SETS:
        return CLASS_SETS[num_classes]
    names = tuple(str(number) for number in range(num_classes))
    _check_names(names)
    return ClassSet(names, spread_colors(names))


def _check_names(names: Sequence[Any]) -> None:
    wrong = [name for name in names if not isinstance(name, str) or not name.strip()]
    if wrong:
        raise DataError(f"{wrong[0]!r} is no name of a class")
    repeated = [name for position, name in enumerate(names) if name in names[:position]]
    if repeated:
        raise DataError(f"two classes are called {repeated[0]!r}")
    if not 2 <= len(names) <= MOST_CLASSES:
        raise DataError(f"{len(names)} classes; between 2 and {MOST_CLASSES} are possible")


def _is_color(color: Any) -> bool:
    whole = isinstance(color, list | tuple) and all(type(value) is int for value in color)
    return whole and len(color) == 3 and 0 <= min(color) <= max(color) <= 255


def spread_colors(names: Sequence[str]) -> tuple[tuple[int, int, int], ...]:
    """A colour for each name: that of the Cityscapes class of this name, or else hues far apart from each other."""
    known = dict(zip(CITYSCAPES.names, CITYSCAPES.colors, strict=True))
    return tuple(known.get(name) or _hue(number) for number, name in enumerate(names))


def _hue(number: int) -> tuple[int, int, int]:
    golden_ratio = 0.618034  # steps of this width never come close to an earlier hue
    shades = colorsys.hsv_to_rgb(number * golden_ratio % 1, 0.55 + 0.4 * (number % 2), 0.95 - 0.15 * (number % 3))
    red, green, blue = (round(255 * shade) for shade in shades)
    return red, green, blue


CITYSCAPES = ClassSet(
    (
        *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain"),
        *("sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
    ),
    (
        *((128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30)),
        *((220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142)),
        *((0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32)),
    ),
    (16, 13),
)


def _without(classes: ClassSet, left_out: set[str], reported: tuple[int, ...]) -> ClassSet:
    kept = [i for i, name in enumerate(classes.names) if name not in left_out]
    return ClassSet(tuple(classes.names[i] for i in kept), tuple(classes.colors[i] for i in kept), reported)


# SYNTHIA has no terrain, truck and train worth the name; its second figure, and CrossCity's classes, leave out three more.
SYNTHIA_16 = _without(CITYSCAPES, {"terrain", "truck", "train"}, (13,))
CROSSCITY_13 = _without(SYNTHIA_16, {"wall", "fence", "pole"}, ())
CLASS_SETS: Mapping[int, ClassSet] = {19: CITYSCAPES, 16: SYNTHIA_16, 13: CROSSCITY_13}


def _ids(raw_ids: Iterable[int]) -> Mapping[int, str]:
    """Raw ids in the order of Cityscapes' classes."""
    return dict(zip(raw_ids, CITYSCAPES.names, strict=True))


LABEL_IDS = _ids((7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33))
VOID_LABEL_IDS = frozenset({*range(7), 9, 10, 14, 15, 16, 18, 29, 30, 255})
SYNTHIA_IDS = _ids((3, 4, 2, 21, 5, 7, 15, 9, 6, 16, 1, 10, 17, 8, 18, 19, 20, 12, 11))
TRAIN_IDS = _ids(range(19))
# Mapillary Vistas 1.2: which of its 66 classes count as one of Cityscapes'. Reductions in the literature differ slightly: here
# lane markings (24) and manholes (41) are road, curbs (2) sidewalk, utility poles (47) poles, and 20 to 22 are all riders.
_MAPILLARY = {
    "road": (13, 24, 41),
    "sidewalk": (2, 15),
    "building": (17,),
    "wall": (6,),
    "fence": (3,),
    "pole": (45, 47),
    "traffic light": (48,),
    "traffic sign": (50,),
    "vegetation": (30,),
    "terrain": (29,),
    "sky": (27,),
    "person": (19,),
    "rider": (20, 21, 22),
    "car": (55,),
    "truck": (61,),
    "bus": (54,),
    "train": (58,),
    "motorcycle": (57,),
    "bicycle": (52,),
}
MAPILLARY_IDS = {raw: name for name, raw_ids in _MAPILLARY.items() for raw in raw_ids}


@dataclass(frozen=True)
class Layout:
    """Where the images and labels of a data set lie below its root. `{split}` and `{part}` stand for folders' names.

    Attributes:
        images: folder of the images.
        labels: folders where labels may be, at the same path below as their image; the first that is there counts.
        splits: {split: the name of its folder}.
        image_ending: what the names of images end in (default: of any kind that can be read).
        label_ending: what takes its place in the names of labels.
        nested: images may be in sub-folders too.
        named_by_path: images in different sub-folders may have the same name.
        labelled: the splits that have labels (default: all).
        inner_roots: folders below the root that may take its place.
        choose: from (root, split, names) to the names that belong to the split, where folders do not say.
    """

    images: str
    labels: tuple[str, ...]
    splits: Mapping[str, str]
    image_ending: str = ""
    label_ending: str = ".png"
    nested: bool = False
    named_by_path: bool = False
    labelled: tuple[str, ...] | None = None
    inner_roots: tuple[str, ...] = ()
    choose: Callable[[str, str, list[str]], list[str]] | None = None


def _same_reader(root: str) -> Callable[[str], np.ndarray]:
    return read_label


def _synthia_reader(root: str) -> Callable[[str], np.ndarray]:
    return read_synthia_label


def _gta5_reader(root: str) -> Callable[[str], np.ndarray]:
    """GTA5's `mapping.mat` in the root lets labels be read that were saved in colours."""
    mapping = os.path.join(root, "mapping.mat")
    return partial(read_label, colours=read_gta5_colours(mapping, LABEL_IDS)) if os.path.exists(mapping) else read_label


@dataclass(frozen=True)
class DataSet:
    """One data set as its authors publish it. Sizes are (width, height).

    Attributes:
        title: for people.
        root: where it is looked for without a flag ("": a flag has to say it).
        layouts: where images and labels lie, one for each way it was published; the first that fits counts.
        ids: the class name of each raw id in the labels.
        void_ids: raw ids that mean "no class" on purpose; other unknown ids are worth a warning.
        train_size, test_size: images are resized to these; None: by the first image, see `fitted_size`.
        num_classes: how many of its classes are counted and trained without a flag.
        label_reader: from the root to the function that reads a label file as (H,W) uint8 raw ids.
        list_line: from a line of a list file and the folder of images to the image's name below that folder.
        parts: places or conditions that it is divided into; `part_flag` is the flag that chooses, `usual_parts` are taken
            without it (none: the flag is needed).
        image_size: of the official images, None where they differ.
        longest_side: of the official images; CBST relates its scales to it.
        images: {split: number of official images} of the usual parts (of each part where the flag is needed).
        classes: of a plain folder, whose classes.json names them; None for all others.
    """

    title: str
    root: str
    layouts: tuple[Layout, ...]
    ids: Mapping[int, str]
    void_ids: frozenset[int] = frozenset({IGNORED})
    train_size: tuple[int, int] | None = (1024, 512)
    test_size: tuple[int, int] | None = (1024, 512)
    num_classes: int = 19
    label_reader: Callable[[str], Callable[[str], np.ndarray]] = _same_reader
    list_line: Callable[[str, str], str] = list_lines.below_images
    parts: tuple[str, ...] = ()
    part_flag: str = ""
    usual_parts: tuple[str, ...] = ()
    image_size: tuple[int, int] | None = None
    longest_side: int = 2048
    images: Mapping[str, int] = field(default_factory=dict)
    classes: ClassSet | None = None


# In these layouts `all` means train: every split has a folder of its own.
_TRAIN_VAL_TEST = {"all": "train", "train": "train", "val": "val", "test": "test"}

DATA_SETS: Mapping[str, DataSet] = {
    "gta5": DataSet(
        title="GTA5",
        root="./data/GTA5",
        layouts=(Layout("images", ("labels",), dict.fromkeys(("all", "train", "val", "test"), ""), choose=by_official_split),),
        ids=LABEL_IDS,
        void_ids=VOID_LABEL_IDS | {34},
        train_size=(1280, 720),
        label_reader=_gta5_reader,
        list_line=partial(list_lines.numbered, digits=5),
        image_size=(1914, 1052),
        images={"all": 24966, "train": 12403, "val": 6382, "test": 6181},
    ),
    "synthia": DataSet(
        title="SYNTHIA",
        root="./data/SYNTHIA",
        layouts=(
            Layout(
                images="RGB",
                labels=("GT/LABELS",),
                splits=dict.fromkeys(("all", "train", "val"), ""),
                inner_roots=("RAND_CITYSCAPES",),
                choose=by_synthia_split,
            ),
        ),
        ids=SYNTHIA_IDS,
        void_ids=frozenset({0, 13, 14, 22}),  # 13 is parking, 14 road work, 22 lane marking
        train_size=(1280, 760),
        num_classes=16,
        label_reader=_synthia_reader,
        list_line=partial(list_lines.numbered, digits=7),
        image_size=(1280, 760),
        longest_side=1280,
        images={"all": 9400, "train": 9000, "val": 400},
    ),
    "cityscapes": DataSet(
        title="Cityscapes",
        root="./data/Cityscapes",
        layouts=(
            Layout(
                images="leftImg8bit/{split}",
                labels=("gtFine/{split}",),
                splits=_TRAIN_VAL_TEST,
                image_ending="_leftImg8bit.png",
                label_ending="_gtFine_labelIds.png",
                nested=True,
                inner_roots=("data",),
            ),
        ),
        ids=LABEL_IDS,
        void_ids=VOID_LABEL_IDS,
        list_line=list_lines.of_cityscapes,
        image_size=(2048, 1024),
        images={"train": 2975, "val": 500, "test": 1525},
    ),
    "crosscity": DataSet(
        title="CrossCity",
        root="./data/NTHU_Datasets",
        layouts=(
            Layout(
                images="{part}/Images/{split}",
                labels=("{part}/Labels/{split}",),
                splits={"all": "Train", "train": "Train", "val": "Test", "test": "Test"},
                label_ending="_eval.png",
                labelled=("val", "test"),
                inner_roots=("NTHU_Datasets",),
            ),
        ),
        ids=LABEL_IDS,
        void_ids=VOID_LABEL_IDS,
        list_line=list_lines.without_ending,
        parts=("Rome", "Rio", "Tokyo", "Taipei"),
        part_flag="--city-name",
        image_size=(2048, 1024),
        images={"train": 3200, "val": 100, "test": 100},
    ),
    "acdc": DataSet(
        title="ACDC",
        root="./data/ACDC",
        layouts=(
            Layout(
                images="rgb_anon/{part}/{split}",
                labels=("gt/{part}/{split}",),
                splits=_TRAIN_VAL_TEST,
                image_ending="_rgb_anon.png",
                label_ending="_gt_labelIds.png",
                nested=True,
                labelled=("all", "train", "val"),
            ),
        ),
        ids=LABEL_IDS,
        void_ids=VOID_LABEL_IDS,
        train_size=(960, 540),
        test_size=(960, 540),
        parts=("fog", "night", "rain", "snow"),
        part_flag="--condition",
        usual_parts=("fog", "night", "rain", "snow"),
        image_size=(1920, 1080),
        longest_side=1920,
        images={"train": 1600, "val": 406, "test": 2000},
    ),
    "darkzurich": DataSet(
        title="Dark Zurich",
        root="./data/Dark_Zurich",
        layouts=(
            Layout(
                images="rgb_anon/{split}/{part}",
                labels=("gt/{split}/{part}",),
                splits=_TRAIN_VAL_TEST,
                image_ending="_rgb_anon.png",
                label_ending="_gt_labelIds.png",
                nested=True,
                labelled=("val",),
            ),
        ),
        ids=LABEL_IDS,
        void_ids=VOID_LABEL_IDS,
        train_size=(960, 540),
        test_size=(960, 540),
        parts=("night", "twilight", "day"),
        part_flag="--condition",
        usual_parts=("night",),
        image_size=(1920, 1080),
        longest_side=1920,
        images={"train": 2416, "val": 50, "test": 151},
    ),
    "bdd100k": DataSet(
        title="BDD100K",
        root="./data/bdd100k",
        layouts=(
            Layout(
                images="images/10k/{split}",
                labels=("labels/sem_seg/masks/{split}",),
                splits=_TRAIN_VAL_TEST,
                labelled=("all", "train", "val"),
                inner_roots=("bdd100k",),
            ),
            Layout(
                images="seg/images/{split}",
                labels=("seg/labels/{split}",),
                splits=_TRAIN_VAL_TEST,
                label_ending="_train_id.png",
                labelled=("all", "train", "val"),
                inner_roots=("bdd100k",),
            ),
        ),
        ids=TRAIN_IDS,
        train_size=(1024, 576),
        test_size=(1024, 576),
        image_size=(1280, 720),
        longest_side=1280,
        images={"train": 7000, "val": 1000, "test": 2000},
    ),
    "mapillary": DataSet(
        title="Mapillary Vistas",
        root="./data/Mapillary",
        layouts=(
            Layout(
                images="{split}/images",
                labels=("{split}/labels", "{split}/v1.2/labels"),  # of 1.2, of 2.0
                splits={"all": "training", "train": "training", "val": "validation", "test": "testing"},
                labelled=("all", "train", "val"),
            ),
        ),
        ids=MAPILLARY_IDS,
        void_ids=frozenset({*range(66), IGNORED} - MAPILLARY_IDS.keys()),
        train_size=(1024, 768),
        test_size=(1024, 768),
        images={"train": 18000, "val": 2000, "test": 5000},
    ),
    "folder": DataSet(
        title="plain folder",
        root="",
        layouts=(
            Layout(
                images="images/{split}", labels=("labels/{split}",), splits=_TRAIN_VAL_TEST, nested=True, named_by_path=True
            ),
            Layout(images="images", labels=("labels",), splits={"all": "", "train": ""}, nested=True, named_by_path=True),
        ),
        ids={},
        train_size=None,
        test_size=None,
    ),
}


def data_set(name: str, root: str | None = None) -> DataSet:
    """The record of a data set; that of a plain folder is completed from the `classes.json` in its root, if there is one.

    Raises:
        DataError: an unknown data set, or a classes.json that does not say what the classes are.
    """
    if name not in DATA_SETS:
        raise DataError(f"unknown data set {name!r}; known: {', '.join(DATA_SETS)}")
    known = DATA_SETS[name]
    path = os.path.join(root or "", "classes.json")
    if name != "folder" or not root or not os.path.exists(path):
        return known
    classes, ids = read_classes(path)
    return replace(known, ids=ids, classes=classes, num_classes=len(classes))


def read_classes(path: str) -> tuple[ClassSet, dict[int, str]]:
    """The classes of a plain folder and the class name of each raw id, from its classes.json.

    The file is a list with an entry for each class: a name, or `{"name": ..., "ids": [...], "color": [r, g, b]}`. Without
    ids the entry's position (from 0) is the raw id, without a color one is chosen.

    Raises:
        MissingDataError: no such file.
        DataError: it is not JSON, or does not say what the classes are; the message names the entry.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            entries = json.load(file)
    except FileNotFoundError as error:
        raise MissingDataError(
            f"{path}: no such file; it names the classes of the labels (docs/data.md, Your own data)"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from error
    try:
        return _classes_of(entries)
    except DataError as error:
        raise DataError(f"{path}: {error} (docs/data.md, Your own data, shows how it is written)") from error


def _classes_of(entries: Any) -> tuple[ClassSet, dict[int, str]]:
    if not isinstance(entries, list):
        raise DataError("not a list of classes")
    records = [entry if isinstance(entry, dict) else {"name": entry} for entry in entries]
    _check_names([record.get("name") for record in records])
    names = tuple(record["name"] for record in records)
    ids: dict[int, str] = {}
    colors = list(spread_colors(names))
    for position, record in enumerate(records):
        _check_entry(record)
        for raw in record.get("ids", [position]):
            if raw in ids:
                raise DataError(f"the id {raw} belongs to {ids[raw]!r} and to {record['name']!r}")
            ids[raw] = record["name"]
        if "color" in record:
            colors[position] = tuple(record["color"])
    return ClassSet(names, tuple(colors)), ids


def _check_entry(record: Mapping[str, Any]) -> None:
    name, raw_ids = record["name"], record.get("ids", [0])
    unknown = sorted(record.keys() - {"name", "ids", "color"})
    if unknown:
        raise DataError(f"class {name!r} has {unknown[0]!r}; known: name, ids, color")
    if not isinstance(raw_ids, list) or not raw_ids or not all(type(raw) is int and 0 <= raw < IGNORED for raw in raw_ids):
        raise DataError(f"the ids of class {name!r} are no list of whole numbers in 0..254 (255 is always ignored)")
    if "color" in record and not _is_color(record["color"]):
        raise DataError(f"the color of class {name!r} is no list of three whole numbers in 0..255")


def label_table(ids: Mapping[int, str], classes: ClassSet) -> np.ndarray:
    """uint8[256] look-up table from raw ids to positions in `classes`, 255 where there is none.

    With all 19 classes SYNTHIA keeps terrain, truck and train (CLAN's way); with 16 they are ignored (MaxSquare, FADA, CBST).
    """
    table = np.full(256, IGNORED, np.uint8)
    position = {name: number for number, name in enumerate(classes.names)}
    for raw, name in ids.items():
        table[raw] = position.get(name, IGNORED)
    return table


def identity_table(num_classes: int) -> np.ndarray:
    """uint8[256] look-up table that keeps ids 0..num_classes-1 and ignores the rest: for labels made by a network."""
    table = np.full(256, IGNORED, np.uint8)
    table[:num_classes] = np.arange(num_classes)
    return table


def to_label_ids(train_ids: np.ndarray, classes: ClassSet = CITYSCAPES) -> np.ndarray:
    """Ids of `classes` to Cityscapes label ids, as its server wants them; anything else becomes 0 (unlabelled).

    Raises:
        DataError: some of the classes are none of Cityscapes'.
    """
    label_ids = {name: raw for raw, name in LABEL_IDS.items()}
    check_known(classes, LABEL_IDS, "Cityscapes")
    table = np.zeros(256, np.uint8)
    table[: len(classes)] = [label_ids[name] for name in classes.names]
    return table[np.asarray(train_ids)]


def check_known(classes: ClassSet, ids: Mapping[int, str], title: str) -> None:
    """All of `classes` must be among those that `ids` stand for.

    Raises:
        DataError: they are not; the message lists both.
    """
    names = list(dict.fromkeys(ids.values()))
    unknown = [name for name in classes.names if name not in names]
    if unknown:
        raise DataError(f"{title} has no class {unknown[0]!r}; wanted: {', '.join(classes.names)}; it has: {', '.join(names)}")


def fitted_size(size: tuple[int, int], longest: int = 1024) -> tuple[int, int]:
    """The (width, height) that images of this size are resized to where no data set says it: the longer side at most
    `longest`, both sides multiples of 8 and at least 32."""
    factor = min(1.0, longest / max(size))
    width, height = (max(32, 8 * round(side * factor / 8)) for side in size)
    return width, height
