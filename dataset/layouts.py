"""Which files belong to a data set: found in the official layout, or named by a list file of any of the originals."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from . import list_lines
from .catalogue import DataSet, Layout, data_set
from .errors import DataError, MissingDataError
from .reading import IMAGE_ENDINGS

__all__ = ["IMAGE_ENDINGS", "Record", "find_records", "has_labels"]


class Record(NamedTuple):
    """One image, its label (None where the data set has none) and the name that predictions are filed under.

    The name is the image file's, in a plain folder the path below the folder of the split's images, with `/`.
    """

    image: str
    label: str | None
    name: str


class _Place(NamedTuple):
    """The folders of one split and part: of the images, and of the labels (None where there are none)."""

    layout: Layout
    images: str
    labels: str | None


def find_records(name: str, root: str, split: str, list_file: str | None = None, part: str | None = None) -> list[Record]:
    """The records of `split` of data set `name` (see `dataset.catalogue.DATA_SETS`) below `root`, sorted by folder and name.

    Args:
        split: train, val, test or all, as far as the data set has them; all means train where every split has its own folder.
        list_file: names the images to take, in order; see docs/data.md for the formats.
        part: CrossCity's city, the condition of ACDC and Dark Zurich (several with commas between them; without one the
            data set's usual parts). Data sets without parts take no notice of it.

    Raises:
        MissingDataError: a folder or file is missing; the message says what was looked for.
        DataError: an unknown data set, split or part, a list that cannot be understood, or images that are named twice.
    """
    root = os.fspath(root)
    if list_file is not None and not os.path.isfile(list_file):
        raise MissingDataError(f"{list_file}: no such list file")
    known = data_set(name)
    if not root:
        raise MissingDataError(f"the root of the {known.title} is not given; there is no usual place for it")
    if not os.path.isdir(root):
        raise MissingDataError(f"{root}: no such folder (the root of {name})")
    parts = _chosen_parts(known, part)
    layout, base = _fitting(known.layouts, root, parts)
    _check_split(name, root, split, layout, known.layouts)
    places = [_place(layout, base, split, part) for part in parts]
    if list_file is None:
        records = [record for place in places for record in _found(place, base, split)]
    else:
        records = [_listed(line, known, (root, base), places) for line in list_lines.read_lines(list_file)]
    if not records:
        raise MissingDataError(f"{root}: no images of {name}, split {split}" + (f", in {list_file}" if list_file else ""))
    _check_records(records, os.fspath(list_file or root))
    return records


def has_labels(name: str, root: str, split: str, part: str | None = None) -> bool:
    """Whether there is a split with labels: so that a script can validate where it is possible.

    Raises:
        DataError: as `find_records`, except for what is missing.
    """
    try:
        label = find_records(name, root, split, part=part)[0].label
    except MissingDataError:
        return False
    return label is not None and os.path.exists(label)


def _chosen_parts(known: DataSet, part: str | None) -> Sequence[str]:
    if not known.parts:
        return ("",)
    names = ", ".join(known.parts)
    if not part and not known.usual_parts:
        raise DataError(f"{known.title} needs {known.part_flag} {names}")
    chosen = part.split(",") if part else known.usual_parts
    found = {word.lower(): word for word in known.parts}
    unknown = [word for word in chosen if word.lower() not in found]
    if unknown:
        raise DataError(f"{known.title} has no {unknown[0]!r} ({known.part_flag}); known: {names}")
    return [found[word.lower()] for word in chosen]


def _fitting(layouts: Sequence[Layout], root: str, parts: Sequence[str]) -> tuple[Layout, str]:
    """The first layout that has a folder of images of any split, and the root or inner root that has it."""
    for layout in layouts:
        for base in (root, *(os.path.join(root, inner) for inner in layout.inner_roots)):
            folders = [os.path.join(base, layout.images.format(split=split, part=parts[0])) for split in layout.splits.values()]
            if any(os.path.isdir(folder) for folder in folders):
                return layout, base
    inner = [os.path.join(root, inner) for inner in layouts[0].inner_roots]
    return layouts[0], next(filter(os.path.isdir, inner), root)


def _check_split(name: str, root: str, split: str, layout: Layout, layouts: Sequence[Layout]) -> None:
    if split in layout.splits:
        return
    if any(split in other.splits for other in layouts):
        raise MissingDataError(f"{root}: has no split {split}: there is no folder {layouts[0].images.format(split=split)}")
    raise DataError(f"{name} has no split {split!r}; known: {', '.join(layout.splits)}")


def _place(layout: Layout, base: str, split: str, part: str) -> _Place:
    names = {"split": layout.splits[split], "part": part}
    images = os.path.join(base, layout.images.format(**names))
    if not os.path.isdir(images):
        found = ", ".join(sorted(entry.name for entry in os.scandir(base))[:8]) or "nothing"
        raise MissingDataError(f"{images}: no such folder; below {base} there is {found}. docs/data.md shows the layouts")
    if layout.labelled is not None and split not in layout.labelled:
        return _Place(layout, images, None)
    labels = (os.path.join(base, pattern.format(**names)) for pattern in layout.labels)
    return _Place(layout, images, next(filter(os.path.isdir, labels), None))


def _found(place: _Place, base: str, split: str) -> Iterable[Record]:
    names = _pictures(place)
    if place.layout.choose:
        names = place.layout.choose(base, split, names)
    return (_record(place, name) for name in names)


def _pictures(place: _Place) -> list[str]:
    """The images below a folder, as paths with `/`."""
    found: list[str] = []
    for folder, folders, names in os.walk(place.images, followlinks=True):
        # Hidden files are none of the data set's: macOS puts `._00001.png` beside images.
        folders[:] = [name for name in folders if place.layout.nested and not name.startswith(".")]
        below = os.path.relpath(folder, place.images).split(os.sep)
        names = [name for name in names if _is_image(name, place.layout) and not name.startswith(".")]
        found += ["/".join((*below, name) if below != ["."] else (name,)) for name in names]
    return sorted(found, key=lambda name: name.split("/"))


def _is_image(name: str, layout: Layout) -> bool:
    return name.endswith(layout.image_ending) if layout.image_ending else name.lower().endswith(IMAGE_ENDINGS)


def _record(place: _Place, name: str) -> Record:
    image = os.path.join(place.images, name)
    filed = name if place.layout.named_by_path else os.path.basename(name)
    if place.labels is None:
        return Record(image, None, filed)
    stem = name.removesuffix(place.layout.image_ending or os.path.splitext(name)[1])
    return Record(image, os.path.join(place.labels, stem + place.layout.label_ending), filed)


def _listed(line: list_lines.Line, known: DataSet, roots: tuple[str, str], places: Sequence[_Place]) -> Record:
    """What a line of a list names, below the data's root and the inner root of its layout.

    Raises:
        DataError: naming list and line.
    """
    root, base = roots
    pair = list_lines.pair(line.text)
    try:
        if pair:
            image, label = (_existing(base, path) for path in pair)
            record = Record(image, label, os.path.basename(image))
        else:
            records = [_record(place, known.list_line(line.text, place.images)) for place in places]
            record = next((record for record in records if os.path.exists(record.image)), records[0])
    except DataError as error:
        raise DataError(f"{line.place}: {error}") from error
    outside = next((path for path in (record.image, record.label) if path and not _is_inside(root, path)), None)
    if outside:
        raise DataError(f"{line.place}: {outside} is not below the root {root}; a list names files of its data set alone")
    return record


def _is_inside(root: str, path: str) -> bool:
    """Whether a path is below the root as it is written, or where it leads to: a root may be a link, and hold links."""
    ways = ([written(each) for each in (root, path)] for written in (os.path.abspath, os.path.realpath))
    return any(os.path.commonpath(way) == way[0] for way in ways)


def _existing(base: str, path: str) -> str:
    """A listed path, relative to the data's root, to the working directory, or absolute."""
    return next((found for found in (os.path.join(base, path), path) if os.path.exists(found)), os.path.join(base, path))


def _check_records(records: Sequence[Record], source: str) -> None:
    repeated = [image for image, count in Counter(record.image for record in records).items() if count > 1]
    if repeated:
        raise DataError(f"{source}: names {repeated[0]} more than once ({len(repeated)} such images)")
    stems = Counter(os.path.splitext(record.image)[0] for record in records)
    twins = [record.image for record in records if stems[os.path.splitext(record.image)[0]] > 1]
    if twins:
        raise DataError(f"{twins[0]} and {os.path.basename(twins[1])} differ in their endings only and would share a label")
    missing = [record.image for record in records if not os.path.exists(record.image)]
    if missing:
        raise MissingDataError(f"{missing[0]}: no such image, named by {source} ({len(missing)} missing)")
