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

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np
from tqdm import tqdm

from dataset.layouts import IMAGE_ENDINGS, Record
from dataset.loader import sequential_loader
from dataset.reading import read_image
from dataset.segmentation import SegmentationDataset
from dataset.transforms import Resize
from model import describe, load_model
from utils.arguments import Parser, add_speed_flags, size
from utils.device import autocast, choose, prepare
from utils.evaluation import predictions
from utils.pictures import colorize, save_ids, save_picture
from utils.start import exit_with_message


def get_arguments(arguments=None):
    parser = Parser(__doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    parser.add_argument("--restore-from", required=True, metavar="FILE", help="a checkpoint, recognised by its content")
    parser.add_argument("--model", metavar="NAME", help="network, where the checkpoint alone cannot tell")
    parser.add_argument("--out", default="./result/overlays", metavar="DIR", help="where pictures go")
    parser.add_argument("--input-size", type=size, default=(1024, 512), metavar="W,H", help="images are resized to this")
    parser.add_switch("--keep-size", help="give the network images at their own size instead")
    parser.add_argument("--opacity", type=float, default=0.5, help="of the colours: 0 none, 1 only colours")
    parser.add_switch("--flip", help="average with the mirror image: somewhat better, half as fast")
    parser.add_switch("--ids", help="also write maps of train ids")
    add_speed_flags(parser, workers=2)
    args = parser.parse_args(arguments)
    if not 0 <= args.opacity <= 1:
        parser.error(f"--opacity {args.opacity}: not between 0 and 1")
    return args


def main(args):
    device = choose(args)
    records = find_images(args.images)
    model = load_model(args.restore_from, args.model)
    print(f"{describe(model)}; {model.load_report}; {len(records)} images")
    prepare(model, args, device)
    transform = None if args.keep_size else Resize(args.input_size)
    loader = sequential_loader(SegmentationDataset(records, None, transform, labels=False), args.num_workers)
    os.makedirs(args.out, exist_ok=True)
    results = predictions(model, loader, device, autocast=lambda: autocast(args, device), flip=args.flip)
    for batch, prediction in tqdm(results, total=len(records), unit="image"):
        ids, stem = prediction[0].cpu().numpy(), os.path.join(args.out, os.path.splitext(batch["name"][0])[0])
        image = read_image(batch["path"][0]).permute(1, 2, 0).numpy()
        save_picture(f"{stem}_overlay.png", overlay(image, ids, model.settings["num_classes"], args.opacity))
        if args.ids:
            save_ids(f"{stem}.png", ids)
    print(f"written to {args.out}")


def find_images(paths):
    """A `Record` for each image file, and each in a folder, in order of names.

    Raises:
        FileNotFoundError: there is no such file, or a folder without images.
        ValueError: two images would be written to one name.
    """
    found = []
    for path in paths:
        if os.path.isdir(path):
            inside = sorted(entry.path for entry in os.scandir(path) if entry.name.lower().endswith(IMAGE_ENDINGS))
            if not inside:
                raise FileNotFoundError(f"{path}: no images ({', '.join(IMAGE_ENDINGS)}) in this folder")
            found += inside
        elif os.path.isfile(path):
            found.append(path)
        else:
            raise FileNotFoundError(f"{path}: no such image or folder")
    stems = [os.path.splitext(os.path.basename(path))[0] for path in found]
    twice = next((stem for stem, count in Counter(stems).items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"{twice}: two images have this name; give them to two runs with different --out")
    return [Record(path, None, os.path.basename(path)) for path in found]


def overlay(image, ids, num_classes, opacity):
    """(H,W,3) uint8: the image with the colours of its (H,W) ids over it."""
    mixed = (1 - opacity) * image + opacity * colorize(ids, num_classes)
    return np.rint(mixed).astype(np.uint8)


if __name__ == "__main__":
    with exit_with_message():
        main(get_arguments())
