"""Which files belong to a data set: found in the official layout, or named by a list file of any of the originals.

All functions return a list of `Record`s; files that are missing, named twice, or not there at all are errors.
"""

import os
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from scipy.io import loadmat

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg")


class Record(NamedTuple):
    """One image, its label (None where the data set has none) and the name that predictions are filed under."""

    image: str
    label: str | None
    name: str


def find_records(name, root, split, list_file=None, city=None):
    """The records of `split` of data set `name` (gta5, synthia, cityscapes, crosscity) below `root`.

    Args:
        split: GTA5 and SYNTHIA: all, train, val, test; Cityscapes: train, val, test (all means train); CrossCity: train, test
            (val means test).
        list_file: names the images to take, in order; see docs/data.md for the formats.
        city: CrossCity's Rome, Rio, Tokyo or Taipei.

    Raises:
        FileNotFoundError: a folder or file is missing; the message says what was looked for.
        ValueError: an unknown split, or a list that cannot be understood.
    """
    if list_file is not None and not os.path.isfile(list_file):
        raise FileNotFoundError(f"{list_file}: no such list file")
    layouts = {"gta5": _gta5, "synthia": _synthia, "cityscapes": _cityscapes, "crosscity": _crosscity}
    if name not in layouts:
        raise ValueError(f"unknown data set {name!r}; known: {', '.join(layouts)}")
    if not os.path.isdir(root):
        raise FileNotFoundError(f"{root}: no such folder (the root of {name})")
    records = layouts[name](Path(root), split, _lines(list_file), city)
    if not records:
        raise FileNotFoundError(f"{root}: no images of {name}, split {split}" + (f", in {list_file}" if list_file else ""))
    _check_names(records, list_file or root)
    return records


def _gta5(root, split, lines, city):
    images, labels = _folder(root, "images"), root / "labels"
    _check_split("gta5", split, ("all", "train", "val", "test"))
    if lines is None:
        names = _of_split(root, split, _pictures(images), "GTA5")
    else:
        names = [_pair(line) or _numbered(line, 5) for line in lines]
    return [_record(root, images, labels, name) for name in names]


def _synthia(root, split, lines, city):
    root = root / "RAND_CITYSCAPES" if (root / "RAND_CITYSCAPES").is_dir() else root
    images, labels = _folder(root, "RGB"), root / "GT" / "LABELS"
    _check_split("synthia", split, ("all", "train", "val"))
    if lines is not None:
        names = [_pair(line) or _numbered(line, 7) for line in lines]
    elif (root / "split.mat").exists() or split == "all":
        names = _of_split(root, split, _pictures(images), "SYNTHIA")
    else:  # MaxSquare's split: 0..8999 to train on, the rest to validate
        names = [name for name in _pictures(images) if (int(Path(name).stem) < 9000) == (split == "train")]
    return [_record(root, images, labels, name) for name in names]


def _cityscapes(root, split, lines, city):
    root = root / "data" if not (root / "leftImg8bit").is_dir() and (root / "data").is_dir() else root
    _check_split("cityscapes", split, ("all", "train", "val", "test"))
    split = "train" if split == "all" else split
    images = _folder(root, "leftImg8bit", split)
    labels = root / "gtFine" / split
    if lines is None:
        names = [
            f"{folder.name}/{name}" for folder in sorted(images.iterdir()) if folder.is_dir() for name in _pictures(folder)
        ]
    else:
        names = [_pair(line) or _cityscapes_name(line) for line in lines]
    return [
        _record(root, images, labels, name, lambda stem: stem.replace("_leftImg8bit", "") + "_gtFine_labelIds")
        for name in names
    ]


def _crosscity(root, split, lines, city):
    if not city:
        raise ValueError("CrossCity needs a city: --city-name Rome, Rio, Tokyo or Taipei")
    root = root / "NTHU_Datasets" if (root / "NTHU_Datasets").is_dir() else root
    _check_split("crosscity", split, ("all", "train", "val", "test"))
    part = "Train" if split in ("train", "all") else "Test"
    images = _folder(root, city, "Images", part)
    labels = root / city / "Labels" / "Test" if part == "Test" else None
    names = _pictures(images) if lines is None else [_with_ending(images, line) for line in lines]
    return [_record(root, images, labels, name, lambda stem: f"{stem}_eval") for name in names]


def _record(root, images, labels, name, label_stem=lambda stem: stem):
    """The record of `name`, a path relative to `images`, or of an (image, label) pair of paths relative to the root."""
    if isinstance(name, tuple):
        image, label = (_existing(root, path) for path in name)
        return Record(str(image), str(label), image.name)
    image = images / name
    if labels is None or not labels.is_dir():
        return Record(str(image), None, image.name)
    label = labels / Path(name).parent / f"{label_stem(Path(name).stem)}.png"
    return Record(str(image), str(label), image.name)


def _existing(root, path):
    """A listed path, relative to the data root, to the working directory, or absolute."""
    return next((found for found in (root / path, Path(path)) if found.exists()), root / path)


def _lines(list_file):
    if list_file is None:
        return None
    with open(list_file, encoding="utf-8-sig") as file:
        return [line.strip() for line in file if line.strip()]


def _pair(line):
    """CBST's and CRST's lists: image and label path with a tab between them (a leading number is dropped)."""
    parts = [part for part in line.split("\t") if part]
    return tuple(parts[-2:]) if len(parts) >= 2 else None


def _numbered(line, digits):
    """`00001.png`, `images/00001.png`, or MaxSquare's bare `1`."""
    return f"{int(line):0{digits}d}.png" if line.isdigit() and len(line) < digits else _plain_name(line)


def _plain_name(line):
    name = line.rsplit("/", 1)[-1]
    return name if name.lower().endswith(IMAGE_ENDINGS) else f"{name}.png"


def _cityscapes_name(line):
    """`aachen/aachen_..._leftImg8bit.png`, with folders before it, or MaxSquare's `train_aachen_000000_000019`."""
    found = re.search(r"(?:^|/|(?:train|val|test)_)([a-z-]+)_(\d{6}_\d{6})", line)
    if not found:
        raise ValueError(f"{line!r} in a Cityscapes list names no <city>_<sequence>_<frame>")
    city, rest = found.groups()
    return f"{city}/{city}_{rest}_leftImg8bit.png"


def _with_ending(folder, line):
    name = line.rsplit("/", 1)[-1]
    if name.lower().endswith(IMAGE_ENDINGS):
        return name
    return next((name + ending for ending in (".jpg", ".png") if (folder / (name + ending)).exists()), f"{name}.jpg")


def _of_split(root, split, names, title):
    """The names whose numbers the official `split.mat` puts into `split`."""
    if split == "all":
        return names
    path = root / "split.mat"
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such file; the official {title} split is needed for split {split} (or a list file)"
        )
    try:
        numbers = set(loadmat(path)[f"{split}Ids"].ravel().tolist())
    except Exception as error:
        raise ValueError(f"{path}: holds no {split}Ids ({error})") from error
    return [name for name in names if int(Path(name).stem) in numbers]


def _pictures(folder):
    return sorted(entry.name for entry in os.scandir(folder) if entry.name.lower().endswith(IMAGE_ENDINGS))


def _folder(root, *parts):
    folder = root.joinpath(*parts)
    if not folder.is_dir():
        found = ", ".join(sorted(entry.name for entry in os.scandir(root))[:8]) or "nothing"
        raise FileNotFoundError(f"{folder}: no such folder; below {root} there is {found}. docs/data.md shows the layouts")
    return folder


def _check_split(name, split, known):
    if split not in known:
        raise ValueError(f"{name} has no split {split!r}; known: {', '.join(known)}")


def _check_names(records, source):
    repeated = [image for image, count in Counter(record.image for record in records).items() if count > 1]
    if repeated:
        raise ValueError(f"{source}: names {repeated[0]} more than once ({len(repeated)} such images)")
    missing = [record.image for record in records if not os.path.exists(record.image)]
    if missing:
        raise FileNotFoundError(f"{missing[0]}: no such image, named by {source} ({len(missing)} missing)")
