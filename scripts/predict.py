"""Segment your own images and videos with a trained network: colour overlays, maps of train ids, pseudo-labels, probabilities.

    python scripts/predict.py --restore-from snapshots/multi/GTA5_150000.pth photo.jpg --out result
    python scripts/predict.py --restore-from FILE frames/ --out result --page     # a folder, and a page to look at
    python scripts/predict.py --restore-from FILE drive.mp4 --out result          # a video becomes a video (with FFmpeg)
    python scripts/predict.py --restore-from A.pth --restore-from B.pth photo.jpg # the mean of several checkpoints
    python scripts/predict.py --restore-from FILE aerial.tif --window 1024,1024   # an image too large for the GPU's memory

For each image: <name>_overlay.png (the image with the classes' colours over it) and, as far as asked for,

    --ids                 <name>.png                  train ids
    --pseudo-labels 0.9   pseudo_labels/<name>.png    train ids where the highest probability is at least 0.9, elsewhere 255
    --probabilities       <name>_probabilities.npz    `probabilities` (C,H,W) float16 and the names of the `classes`
    --page                index.html                  image and overlay side by side, one self-contained file (60 at most)

For a video: <name>_overlay.mp4 (or with --frames pictures), and the rest for each frame, as <name>/000001 and so on.

Images of any size; they are resized to --input-size for the network, and the prediction back to their own size. With --window
they keep their size unless --input-size is given, and the network sees one window at a time; the windows' scores are blended.
"""

import contextlib
import os
import random
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dataset.catalogue import CLASS_SETS, IGNORED, ClassSet
from dataset.errors import DataError, MissingDataError
from dataset.layouts import IMAGE_ENDINGS, Record
from dataset.loader import sequential_loader
from dataset.segmentation import SegmentationDataset
from dataset.transforms import FitWithin, Resize
from model import describe, load_model, upsample
from model.segmenter import Segmenter
from utils.device import autocast, choose, prepare
from utils.errors import RunError, exit_with_message
from utils.evaluation import classes_of_network, predict
from utils.files import make_parent, replacing, sweep_below
from utils.flags import add_speed_flags
from utils.html_page import figure, is_our_page, legend, row, write_page
from utils.locks import locked
from utils.old_names import OLD_NAMES
from utils.outputs import check_file, check_folder
from utils.parser import Flags, Parser, fraction, size
from utils.pictures import colorize, save_ids, save_picture
from utils.sliding_window import predict_windows
from utils.video import Video, is_video, writing_video

INPUT_SIZE = "images are resized to this (default 1024,512; own classes: the image's own shape, at most 1024 wide or high)"
OVERLAP = "the part of a window that it shares with the next one, at least"
MOST_ON_A_PAGE = 60
NO_DRAWS = random.Random(0)  # nothing here is random


def get_arguments(arguments: list[str] | None = None) -> Flags:
    parser = Parser(__doc__, OLD_NAMES["predict.py"])
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image or video files, or folders of images")
    parser.add_argument(
        "--restore-from", required=True, action="append", metavar="FILE", help="a checkpoint; given several times: their mean"
    )
    parser.add_argument("--model", metavar="NAME", help="network, where the checkpoint alone cannot tell")
    parser.add_argument("--out", default="./result/overlays", metavar="DIR", help="where pictures go")
    parser.add_argument("--input-size", type=size, metavar="W,H", help=INPUT_SIZE)
    parser.add_switch("--keep-size", help="give the network images at their own size instead")
    parser.add_argument("--window", type=size, metavar="W,H", help="predict windows of this size and blend their scores")
    parser.add_argument("--overlap", type=fraction, default=0.25, help=OVERLAP)
    parser.add_argument("--opacity", type=fraction, default=0.5, help="of the colours: 0 none, 1 only colours")
    parser.add_switch("--flip", help="average with the mirror image: somewhat better, half as fast")
    parser.add_switch("--ids", help="also write maps of train ids")
    parser.add_argument("--pseudo-labels", type=fraction, metavar="P", help="also write labels of pixels at least this certain")
    parser.add_switch("--probabilities", help="also write all probabilities, 2 bytes each")
    parser.add_switch("--page", help="also write a page with images and overlays side by side")
    parser.add_switch("--frames", help="write a video's overlays as pictures, not as a video")
    add_speed_flags(parser, workers=2)
    args = Flags(**vars(parser.parse_args(arguments)))
    if args.overlap > 0.9:
        parser.error(f"--overlap {args.overlap}: at most 0.9, or there would be windows without end")
    return args


def main(args: Flags) -> None:
    check_folder("--out", args.out)
    with locked(args.out), torch.inference_mode():
        sweep_below(args.out, (".png", ".npz", ".mp4", ".html"))
        predict_all(args)


def predict_all(args: Flags) -> None:
    """Predict and write, one image and one video after the other."""
    device = choose(args)
    videos = [Video(path) for path in args.images if is_video(path)]
    records = find_images([path for path in args.images if not is_video(path)])
    check_files(args, records, videos)
    models = load_models(args.restore_from, args.model)
    count = len(records) + sum(map(len, videos))
    print("\n".join(f"{describe(model)}; {model.load_report}" for model in models))
    print(f"{len(records)} images" + (f", {len(videos)} videos of {count - len(records)} frames" if videos else ""))
    writer = Writer(args, [prepare(model, args, device) for model in models], device, count)
    with tqdm(total=count, unit="image") as bar:
        dataset = SegmentationDataset(records, None, labels=False)
        for batch in sequential_loader(dataset, args.num_workers) if records else ():
            stem = os.path.splitext(batch["name"][0])[0]
            save_picture(writer.path(f"{stem}_overlay.png"), writer.write(stem, batch["image"][0]))
            bar.update()
        for video in videos:
            with overlays_of(args, video, writer) as add:
                for number, frame in enumerate(video, 1):
                    name = f"{stem_of(video)}/{number:06d}"
                    add(name, writer.write(name, frame))
                    bar.update()
    writer.finish()
    print(f"written to {args.out}")


def load_models(paths: Sequence[str], name: str | None) -> list[Segmenter]:
    """The networks of all checkpoints.

    Raises:
        RunError: their classes differ.
    """
    models = [load_model(path, name) for path in paths]
    names = [classes_of_network(model).names for model in models]
    other = next((i for i, found in enumerate(names) if found != names[0]), None)
    if other is not None:
        reason = f"{len(names[other])} classes, {paths[0]} {len(names[0])}"
        reason = reason if len(names[other]) != len(names[0]) else f"other classes than {paths[0]}"
        raise RunError(f"--restore-from {paths[other]}: has {reason}; only checkpoints of the same classes can be averaged")
    return models


class Writer:
    """Predicts images and writes what the flags ask for into --out."""

    def __init__(self, args: Flags, models: list[Segmenter], device: torch.device, count: int) -> None:
        self.args, self.models, self.device = args, models, device
        self.classes = classes_of_network(models[0])
        self.transform = None if keeps_size(args) else input_transform(args.input_size, self.classes)
        self.shown = (
            {i * count // min(count, MOST_ON_A_PAGE) for i in range(min(count, MOST_ON_A_PAGE))} if args.page else set()
        )
        self.rows: list[str] = []
        self.done = 0

    def path(self, name: str) -> str:
        """Where the file of this name goes; its folder is made."""
        path = os.path.join(self.args.out, name)
        make_parent(path)
        return path

    def write(self, stem: str, image: Tensor) -> np.ndarray:
        """Predict an image (3,H,W) uint8, write all but the overlay, and return the overlay (H,W,3) uint8."""
        scores = self.scores(image)
        ids = scores.argmax(1)[0].to(torch.uint8).cpu().numpy()
        if self.args.ids:
            save_ids(self.path(f"{stem}.png"), ids)
        if self.args.probabilities or self.args.pseudo_labels is not None:
            probability = scores if self.args.flip or len(self.models) > 1 else scores.softmax(1)
            self.write_probability(stem, probability[0], ids)
        picture = image.permute(1, 2, 0).numpy()
        painted = overlay(picture, ids, self.classes, self.args.opacity)
        if self.done in self.shown:
            self.rows.append(row(figure(picture, stem), figure(painted)))
        self.done += 1
        return painted

    def write_probability(self, stem: str, probability: Tensor, ids: np.ndarray) -> None:
        """Write what --pseudo-labels and --probabilities ask for, of probabilities (C,H,W)."""
        if self.args.pseudo_labels is not None:
            certain = probability.amax(0).cpu().numpy() >= self.args.pseudo_labels
            save_ids(self.path(f"pseudo_labels/{stem}.png"), np.where(certain, ids, IGNORED))
        if self.args.probabilities:
            with replacing(self.path(f"{stem}_probabilities.npz"), sync=False) as file:
                np.savez_compressed(file, probabilities=probability.half().cpu().numpy(), classes=np.array(self.classes.names))

    def scores(self, image: Tensor) -> Tensor:
        """Scores (1,C,H,W) at the image's own size: one checkpoint's logits, or probabilities with --flip or several."""
        shape = image.shape[1], image.shape[2]
        resized = image if self.transform is None else self.transform(image, None, NO_DRAWS, NO_DRAWS)[0]
        if len(self.models) == 1:
            return self.scores_of(self.models[0], resized[None], shape)
        total = None
        for model in self.models:
            scores = self.scores_of(model, resized[None], shape)
            probability = scores if self.args.flip else scores.softmax(1)
            total = probability if total is None else total + probability
        assert total is not None  # --restore-from is required
        return total / len(self.models)

    def scores_of(self, model: Segmenter, image: Tensor, shape: tuple[int, int]) -> Tensor:
        """One checkpoint's scores of an image (1,3,h,w) at size `shape` (H,W): logits, or probabilities with --flip."""
        with autocast(self.args, self.device):
            if self.args.window is None:
                return predict(model, image.to(self.device), shape, flip=self.args.flip)

            def predict_window(window: Tensor) -> Tensor:
                return predict(model, window, window.shape[-2:], flip=self.args.flip)

            scores = predict_windows(predict_window, image, self.args.window[::-1], self.args.overlap, self.device)
        return scores if scores.shape[-2:] == shape else upsample(scores, shape)

    def finish(self) -> None:
        """Write the page."""
        if self.args.page:
            title = f"Predictions of {', '.join(map(os.path.basename, self.args.restore_from))}"
            some = f"<p>{len(self.rows)} of {self.done} images.</p>" if len(self.rows) < self.done else ""
            write_page(self.path("index.html"), title, legend(self.classes) + some + "\n".join(self.rows))


@contextlib.contextmanager
def overlays_of(args: Flags, video: Video, writer: Writer) -> Iterator[Callable[[str, np.ndarray], None]]:
    """A function of name and (H,W,3) picture that adds a frame to the video's overlays: to a video, or to the pictures."""
    if args.frames:
        yield lambda name, picture: save_picture(writer.path(f"{name}_overlay.png"), picture)
        return
    with writing_video(writer.path(f"{stem_of(video)}_overlay.mp4"), video.rate) as add:
        yield lambda name, picture: add(torch.from_numpy(picture).permute(2, 0, 1))


def check_files(args: Flags, records: Sequence[Record], videos: Sequence[Video]) -> None:
    """Refuse to write over files that are not ours; pictures are looked at by `check_folder`.

    Raises:
        DataError: a video has the name of another or of an image.
        RunError: naming the file in the way.
    """
    check_names([*(os.path.splitext(record.name)[0] for record in records), *map(stem_of, videos)])
    if args.page:
        check_file("--page", os.path.join(args.out, "index.html"), is_our_page)
    if args.probabilities:
        for record in records:
            check_file(
                "--out", f"{os.path.join(args.out, os.path.splitext(record.name)[0])}_probabilities.npz", is_probabilities
            )
    for video in videos:
        if not args.frames:
            check_file("--out", os.path.join(args.out, f"{stem_of(video)}_overlay.mp4"))


def is_probabilities(path: str) -> bool:
    """True for a file that --probabilities has written."""
    try:
        with np.load(path, allow_pickle=False) as found:
            return set(found.files) == {"probabilities", "classes"}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return False


def stem_of(video: Video) -> str:
    """The name that a video's files have."""
    return os.path.splitext(os.path.basename(video.path))[0]


def keeps_size(args: Flags) -> bool:
    """Whether images go to the network at their own size."""
    return args.keep_size or (args.window is not None and args.input_size is None)


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
    check_names([os.path.splitext(record.name)[0] for record in records])
    return records


def check_names(names: Sequence[str]) -> None:
    """See that everything is written under a name of its own.

    Raises:
        DataError: two have one name.
    """
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{twice}: two images have this name; give them to two runs with different --out")


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
