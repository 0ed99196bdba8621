"""Segment your own images with a trained network: colour overlays beside, or instead of, maps of train ids.

    python scripts/predict.py --restore-from snapshots/multi/GTA5_150000.pth photo.jpg --out result
    python scripts/predict.py --restore-from FILE frames/ --out result        # a folder, for example of a video's frames
    ffmpeg -i drive.mp4 frames/%06d.png                                       # how to get those

For each image: <name>_overlay.png (the image with the classes' colours over it) and, with --ids, <name>.png with train ids.
Images of any size; they are resized to --input-size for the network, and the prediction back to their own size.
"""

import os
import sys
from collections import Counter
from collections.abc import Sequence

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np
from tqdm import tqdm

from dataset.catalogue import CLASS_SETS, ClassSet
from dataset.errors import DataError, MissingDataError
from dataset.layouts import IMAGE_ENDINGS, Record
from dataset.loader import sequential_loader
from dataset.reading import read_image
from dataset.segmentation import SegmentationDataset
from dataset.transforms import FitWithin, Resize
from model import describe, load_model
from utils.device import autocast, choose, prepare
from utils.errors import exit_with_message
from utils.evaluation import classes_of_network, predictions
from utils.files import make_parent, sweep_below
from utils.flags import add_speed_flags
from utils.locks import locked
from utils.old_names import OLD_NAMES
from utils.outputs import check_folder
from utils.parser import Flags, Parser, fraction, size
from utils.pictures import colorize, save_ids, save_picture

INPUT_SIZE = "images are resized to this (default 1024,512; own classes: the image's own shape, at most 1024 wide or high)"


def get_arguments(arguments: list[str] | None = None) -> Flags:
    parser = Parser(__doc__, OLD_NAMES["predict.py"])
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    parser.add_argument("--restore-from", required=True, metavar="FILE", help="a checkpoint, recognised by its content")
    parser.add_argument("--model", metavar="NAME", help="network, where the checkpoint alone cannot tell")
    parser.add_argument("--out", default="./result/overlays", metavar="DIR", help="where pictures go")
    parser.add_argument("--input-size", type=size, metavar="W,H", help=INPUT_SIZE)
    parser.add_switch("--keep-size", help="give the network images at their own size instead")
    parser.add_argument("--opacity", type=fraction, default=0.5, help="of the colours: 0 none, 1 only colours")
    parser.add_switch("--flip", help="average with the mirror image: somewhat better, half as fast")
    parser.add_switch("--ids", help="also write maps of train ids")
    add_speed_flags(parser, workers=2)
    return Flags(**vars(parser.parse_args(arguments)))


def main(args: Flags) -> None:
    check_folder("--out", args.out)
    with locked(args.out):
        sweep_below(args.out, (".png",))
        draw_overlays(args)


def draw_overlays(args: Flags) -> None:
    """Predict and write, one image after the other."""
    device = choose(args)
    records = find_images(args.images)
    model = load_model(args.restore_from, args.model)
    print(f"{describe(model)}; {model.load_report}; {len(records)} images")
    prepare(model, args, device)
    classes = classes_of_network(model)
    transform = None if args.keep_size else input_transform(args.input_size, classes)
    loader = sequential_loader(SegmentationDataset(records, None, transform, labels=False), args.num_workers)
    results = predictions(model, loader, device, autocast=lambda: autocast(args, device), flip=args.flip)
    for batch, prediction in tqdm(results, total=len(records), unit="image"):
        ids, stem = prediction[0].cpu().numpy(), os.path.join(args.out, os.path.splitext(batch["name"][0])[0])
        make_parent(stem)
        image = read_image(batch["path"][0]).permute(1, 2, 0).numpy()
        save_picture(f"{stem}_overlay.png", overlay(image, ids, classes, args.opacity))
        if args.ids:
            save_ids(f"{stem}.png", ids)
    print(f"written to {args.out}")


def input_transform(size: tuple[int, int] | None, classes: ClassSet) -> Resize | FitWithin:
    """To --input-size, or else to what the network was most likely trained at."""
    if size is not None:
        return Resize(size)
    return Resize((1024, 512)) if classes in CLASS_SETS.values() else FitWithin(1024)


def find_images(paths: Sequence[str]) -> list[Record]:
    """A `Record` for each image file, and each in a folder or below it, in order of names.

    Raises:
        MissingDataError: there is no such file, or a folder without images.
        DataError: two images would be written to one name.
    """
    records = []
    for path in paths:
        if os.path.isdir(path):
            inside = images_below(path)
            if not inside:
                raise MissingDataError(f"{path}: no images ({', '.join(IMAGE_ENDINGS)}) in this folder")
            records += [Record(image, None, os.path.relpath(image, path)) for image in inside]
        elif os.path.isfile(path):
            records.append(Record(path, None, os.path.basename(path)))
        else:
            raise MissingDataError(f"{path}: no such image or folder")
    names = Counter(os.path.splitext(record.name)[0] for record in records)
    twice = next((name for name, count in names.items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{twice}: two images have this name; give them to two runs with different --out")
    return records


def images_below(folder: str) -> list[str]:
    """The image files in a folder and its sub-folders, without hidden ones."""
    found = (os.path.join(place, name) for place, _, names in os.walk(folder) for name in names)
    return sorted(path for path in found if path.lower().endswith(IMAGE_ENDINGS) and not os.path.basename(path).startswith("."))


def overlay(image: np.ndarray, ids: np.ndarray, classes: ClassSet, opacity: float) -> np.ndarray:
    """(H,W,3) uint8: the image with the colours of its (H,W) ids over it."""
    mixed = (1 - opacity) * image + opacity * colorize(ids, classes)
    return np.rint(mixed).astype(np.uint8)


if __name__ == "__main__":
    with exit_with_message():
        main(get_arguments())
