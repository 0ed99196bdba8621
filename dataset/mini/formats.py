"""Writers of the data sets' own on-disk formats."""

import struct
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image
from scipy.io import savemat

from utils.files import make_parent, replacing

from ..catalogue import CITYSCAPES, LABEL_IDS, SYNTHIA_IDS
from . import Scene

CITIES = {"train": ("aachen", "bremen", "cologne"), "val": ("frankfurt", "lindau")}
FRAME = "000019"

_TO_SYNTHIA = np.zeros(256, np.uint16)
_TO_SYNTHIA[list(LABEL_IDS)] = list(SYNTHIA_IDS)


def write_gta5(root: str, number: int, scene: Scene) -> None:
    """`images/00001.png` and `labels/00001.png`, a palette PNG whose index is the label id."""
    _save(Image.fromarray(scene.image), f"{root}/images/{number:05d}.png")
    label = Image.fromarray(scene.label_ids, "P")
    colours = np.zeros((256, 3), np.uint8)
    colours[list(LABEL_IDS)] = CITYSCAPES.colors
    label.putpalette(colours.ravel().tolist())
    _save(label, f"{root}/labels/{number:05d}.png")


def write_synthia(root: str, number: int, scene: Scene) -> None:
    """`RGB/0000000.png` and `GT/LABELS/0000000.png`, a 16-bit PNG: class, instance, 0."""
    _save(Image.fromarray(scene.image), f"{root}/RGB/{number:07d}.png")
    channels = np.zeros((*scene.label_ids.shape, 3), np.uint16)
    channels[..., 0], channels[..., 1] = _TO_SYNTHIA[scene.label_ids], scene.instances
    _write_bytes(png_16bit(channels), f"{root}/GT/LABELS/{number:07d}.png")


def write_cityscapes(root: str, split: str, number: int, scene: Scene) -> None:
    """`leftImg8bit/<split>/<city>/..._leftImg8bit.png` and `gtFine/..._gtFine_labelIds.png`."""
    city = CITIES[split][number % len(CITIES[split])]
    stem = f"{split}/{city}/{city}_{number:06d}_{FRAME}"
    _save(Image.fromarray(scene.image), f"{root}/leftImg8bit/{stem}_leftImg8bit.png")
    _save(Image.fromarray(scene.label_ids), f"{root}/gtFine/{stem}_gtFine_labelIds.png")


def write_crosscity(root: str, city: str, split: str, number: int, scene: Scene) -> None:
    """`<City>/Images/{Train,Test}/pano_00000.jpg`, and for Test `<City>/Labels/Test/pano_00000_eval.png`."""
    part = "Train" if split == "train" else "Test"
    _save(Image.fromarray(scene.image), f"{root}/{city}/Images/{part}/pano_{number:05d}.jpg", quality=92)
    if part == "Test":
        _save(Image.fromarray(scene.label_ids), f"{root}/{city}/Labels/Test/pano_{number:05d}_eval.png")


def write_split(root: str, train: Sequence[int], val: Sequence[int]) -> None:
    """`split.mat` as in GTA5's official toolkit: column vectors of image numbers; there are no test images."""
    numbers: dict[str, Sequence[int]] = {"trainIds": train, "valIds": val, "testIds": []}
    columns = {key: np.array(ids, np.float64).reshape(-1, 1) for key, ids in numbers.items()}
    with replacing(f"{root}/split.mat") as file:
        savemat(file, columns)


def png_16bit(channels: np.ndarray) -> bytes:
    """Encode an (H,W,3) uint16 array as a 16-bit RGB PNG (which Pillow cannot write)."""
    height, width, _ = channels.shape
    rows = channels.astype(">u2").reshape(height, -1).view(np.uint8)
    raw = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(raw, 6)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def _save(image: Image.Image, path: str, **options: int) -> None:
    make_parent(path)
    with replacing(path, sync=False) as file:
        image.save(file, "JPEG" if path.endswith(".jpg") else "PNG", **options)


def _write_bytes(data: bytes, path: str) -> None:
    make_parent(path)
    with replacing(path, sync=False) as file:
        file.write(data)
