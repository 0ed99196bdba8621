"""Render the mini data: a small pair of domains in the data sets' own on-disk formats, made from a seed.

    python scripts/make_mini_data.py data/mini                       # GTA5 and Cityscapes at 192x96, about half a minute
    python scripts/make_mini_data.py data/mini --formats synthia,crosscity --preview preview.png
    python scripts/make_mini_data.py data/full --size 2048,1024 --source-train 4 --target-train 4 --source-val 2 --target-val 2

Below OUT it writes GTA5/, SYNTHIA/, Cityscapes/ and NTHU_Datasets/, which the ordinary loaders read. The domain gap has
five parts (tone, texture, light, sensor, layout), each of the overall --strength, turned up or down by --part NAME=FACTOR.
"""

import json
import os
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any, NamedTuple

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np
from tqdm import tqdm

from dataset.catalogue import CITYSCAPES, LABEL_IDS, label_table
from dataset.mini import PARTS, SOURCE, TARGET, formats, render
from utils.errors import RunError
from utils.files import make_parent, write_json
from utils.outputs import check_file, check_folder, is_our_picture
from utils.parser import Parser, not_negative, positive, seed, size
from utils.pictures import colorize, grid, save_picture

FOLDERS = {"gta5": "GTA5", "synthia": "SYNTHIA", "cityscapes": "Cityscapes", "crosscity": "NTHU_Datasets"}
FORMATS = tuple(FOLDERS)
CITIES = ("Rome", "Rio", "Tokyo", "Taipei")
# A few of GTA5's images are some rows shorter than 1914x1052; --odd-sizes imitates that.
ODD_ROWS = (0, 0, 0, 6, 0, 0, 5, 0)


class Job(NamedTuple):
    """One image to render: its `format` is one of FORMATS, its `city` one of CITIES for crosscity and None for the others."""

    format: str
    city: str | None
    split: str
    number: int


def get_arguments(arguments: list[str] | None = None) -> Namespace:
    parser = Parser(__doc__)
    parser.add_argument("out", metavar="OUT", help="folder to write to")
    parser.add_argument("--formats", type=format_list, default=("gta5", "cityscapes"), metavar="LIST",
                        help=f"comma-separated, of {', '.join(FORMATS)}")  # fmt: skip
    parser.add_argument("--size", type=size, default=(192, 96), metavar="W,H", help="of the images, in pixels")
    for name, default in (("source-train", 800), ("source-val", 160), ("target-train", 600), ("target-val", 160)):
        parser.add_argument(f"--{name}", type=positive, default=default, metavar="N", help="number of images")
    parser.add_argument("--strength", type=not_negative, default=0.5, help="of the domain gap: 0 none, 1 large")
    parser.add_argument("--part", type=part, action="append", default=[], metavar="NAME=FACTOR",
                        help=f"multiply the strength of one part ({', '.join(PARTS)}); may be repeated")  # fmt: skip
    parser.add_argument("--seed", type=seed, default=0, help="another seed renders other scenes")
    parser.add_argument("--workers", type=positive, default=os.cpu_count(), help="processes that render")
    parser.add_switch("--odd-sizes", help="make some GTA5 images a few rows shorter, as in the official data")
    parser.add_switch("--overwrite", help="replace data that was made with other parameters")
    parser.add_argument("--preview", metavar="FILE", help="also write a sheet of source and target scenes to this PNG")
    return parser.parse_args(arguments)


def format_list(word: str) -> tuple[str, ...]:
    """`gta5,cityscapes` to their names."""
    names = tuple(word.lower().split(","))
    unknown = [name for name in names if name not in FORMATS]
    if unknown:
        raise ArgumentTypeError(f"unknown format {unknown[0]!r}; known: {', '.join(FORMATS)}")
    return names


def part(word: str) -> tuple[str, float]:
    """`tone=0.5` to ("tone", 0.5)."""
    name, _, factor = word.partition("=")
    if name not in PARTS:
        raise ArgumentTypeError(f"unknown part {name!r}; known: {', '.join(PARTS)}")
    return name, not_negative(factor)


def main(args: Namespace) -> None:
    record = {"formats": sorted(args.formats), "size": list(args.size), "seed": args.seed, "strength": args.strength,
              "parts": dict(args.part), "odd_sizes": args.odd_sizes,
              "images": [args.source_train, args.source_val, args.target_train, args.target_val]}  # fmt: skip
    check_file("--preview", args.preview, is_our_picture)
    path, begun = (os.path.join(args.out, f"{name}.json") for name in ("mini_data", "mini_data_begun"))
    if not already_there(path, record, args.overwrite):
        for name in set(args.formats) - formats_of(path) - formats_of(begun):
            check_folder("OUT", os.path.join(args.out, FOLDERS[name]))
        make_parent(begun)
        write_json(begun, record)  # from here on the pictures below are ours, finished or not
        if os.path.exists(path):
            os.remove(path)
        jobs = [job for name in args.formats for job in jobs_of(name, args)]
        with ProcessPoolExecutor(args.workers) as pool:
            list(tqdm(pool.map(partial(write, args), jobs, chunksize=8), total=len(jobs), unit="image"))
        for name, folder in (("gta5", "GTA5"), ("synthia", "SYNTHIA")):
            if name in args.formats:
                numbers = [job.number for job in jobs_of(name, args)]
                formats.write_split(f"{args.out}/{folder}", numbers[: args.source_train], numbers[args.source_train :])
        write_json(path, record)
        os.remove(begun)
    if args.preview:
        save_picture(args.preview, preview(args))


def formats_of(path: str) -> set[str]:
    """The formats that a record says were rendered; none without a record."""
    if not os.path.exists(path):
        return set()
    with open(path) as file:
        return set(json.load(file)["formats"])


def already_there(path: str, record: Mapping[str, Any], overwrite: bool) -> bool:
    """True if the data was made before with the same parameters: then the record is in `path`, which is written last.

    Raises:
        RunError: it was made with others, and is not to be overwritten.
    """
    if not os.path.exists(path):
        return False
    with open(path) as file:
        found = json.load(file)
    if found == record:
        print(f"{os.path.dirname(path)}: already there")
        return True
    if not overwrite:
        changed = ", ".join(
            f"{key} {found.get(key)} (asked for: {record[key]})" for key in record if found.get(key) != record[key]
        )
        raise RunError(f"{path}: holds data made with other parameters: {changed}. Choose another folder, or --overwrite it")
    return False


def jobs_of(name: str, args: Namespace) -> list[Job]:
    """Every image of a format; the numbers of val go on where those of train end."""
    source = name in ("gta5", "synthia")
    train, val = (args.source_train, args.source_val) if source else (args.target_train, args.target_val)
    first = 1 if name == "gta5" else 0
    splits = [("train" if i < train else "val", first + i) for i in range(train + val)]
    cities = CITIES if name == "crosscity" else (None,)
    return [Job(name, city, split, number) for city in cities for split, number in splits]


def write(args: Namespace, job: Job) -> None:
    """Render and write one image; runs in a worker process."""
    name, city, split, number = job
    domain = SOURCE if name in ("gta5", "synthia") else TARGET
    # Every city is a target of its own: other scenes, and a gap between 0.8 and 1.2 times as wide.
    place = CITIES.index(city) + 1 if city else 0
    strength = args.strength * (0.8 + 0.4 * (place - 1) / (len(CITIES) - 1) if city else 1)
    width, height = args.size
    if args.odd_sizes and name == "gta5":
        height -= ODD_ROWS[number % len(ODD_ROWS)]
    scene = render(domain, args.seed + 1000 * place, number, (width, height), strength, dict(args.part), split)
    if name == "gta5":
        formats.write_gta5(f"{args.out}/GTA5", number, scene)
    elif name == "synthia":
        formats.write_synthia(f"{args.out}/SYNTHIA", number, scene)
    elif name == "cityscapes":
        formats.write_cityscapes(f"{args.out}/Cityscapes", split, number, scene)
    elif city:
        formats.write_crosscity(f"{args.out}/NTHU_Datasets", city, split, number, scene)


def preview(args: Namespace, count: int = 4) -> np.ndarray:
    """Source scenes with labels beside target scenes with labels, as one (H,W,3) uint8 picture."""
    table = label_table(LABEL_IDS, CITYSCAPES)
    rows = []
    for index in range(count):
        scenes = [render(domain, args.seed, index, args.size, args.strength, dict(args.part)) for domain in (SOURCE, TARGET)]
        rows.append([picture for scene in scenes for picture in (scene.image, colorize(table[scene.label_ids]))])
    return grid(rows, ["source image", "source label", "target image", "target label"])


if __name__ == "__main__":
    try:
        main(get_arguments())
    except (ValueError, OSError) as error:
        sys.exit(f"make_mini_data.py: error: {error}")
