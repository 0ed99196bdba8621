"""Label maps and predictions as pictures."""

import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from dataset.catalogue import CITYSCAPES, ClassSet
from dataset.reading import GREY, PALETTE

from .files import replacing
from .outputs import SOFTWARE

# zlib level of maps of ids: a third of the usual level's time, for a third more bytes.
FAST = 1

# From low to high: each lighter than the one before, so that they are told apart without seeing colours.
HEAT = ((12, 20, 60), (30, 75, 150), (45, 135, 165), (120, 190, 130), (235, 215, 90), (255, 250, 205))
WRONG = (235, 95, 0)


def colorize(ids: Any, classes: ClassSet = CITYSCAPES) -> np.ndarray:
    """(..., H, W) ids to (..., H, W, 3) uint8 colours of the classes, black for anything that is no class."""
    return classes.palette[np.asarray(ids)]


def save_ids(path: str, ids: Any) -> None:
    """Write (H,W) uint8 ids as an 8-bit grey PNG."""
    _save_map(path, np.asarray(ids, np.uint8), GREY)


def save_colours(path: str, ids: Any, classes: ClassSet = CITYSCAPES) -> None:
    """Write (H,W) uint8 ids as a palette PNG: the ids are kept, the viewer shows the colours."""
    _save_map(path, np.asarray(ids, np.uint8), PALETTE, (b"PLTE", classes.palette.tobytes()))


def save_picture(path: str, picture: np.ndarray) -> None:
    """Write an (H,W,3) uint8 array."""
    _save(Image.fromarray(picture), path)


def heat(values: Any, low: float, high: float) -> np.ndarray:
    """(H,W) numbers as (H,W,3) uint8 colours, dark at `low` and light at `high`; what is beyond has the colour of the end."""
    place = np.clip((np.asarray(values, np.float64) - low) / max(high - low, 1e-12), 0, 1) * (len(HEAT) - 1)
    channels = np.transpose(HEAT)
    return np.stack([np.interp(place, range(len(HEAT)), channel) for channel in channels], axis=-1).round().astype(np.uint8)


def errors(image: np.ndarray, truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """The (H,W,3) uint8 image in dim grey, with wrong pixels in orange and those without a label in black; (H,W,3) uint8.

    Args:
        truth, prediction: (H,W) uint8 ids; ids of `truth` that are no class are without a label.
    """
    grey = 40 + 0.5 * np.asarray(image, np.float32).mean(2, keepdims=True)
    picture = np.repeat(grey, 3, axis=2).astype(np.uint8)
    picture[truth != prediction] = WRONG
    picture[truth >= num_classes] = 0
    return picture


def prediction_panel(
    batch: dict[str, Any], logits: Tensor, count: int, classes: ClassSet, maps: Mapping[str, Tensor] | None = None
) -> np.ndarray:
    """Rows of image, prediction and (if there is one) label for the first `count` of a batch, as one (H,W,3) uint8 array.

    Args:
        batch: a loader's batch, `image` (N,3,h,w) uint8 and maybe `label` (N,h,w).
        logits: (N,C,h',w') of the same batch.
        maps: {title: numbers (N,h'',w'') or (N,1,h'',w'') of the same batch}, which follow as heat maps; their titles and
            the numbers of the darkest and the lightest colour stand above.
    """
    count = min(count, len(logits))
    if count == 0:
        return np.full((16, 16, 3), 255, np.uint8)
    rows: list[list[np.ndarray]] = []
    maps = {
        title: values.detach().float().reshape(len(values), *values.shape[-2:]).cpu() for title, values in (maps or {}).items()
    }
    ranges = {title: (float(values[:count].min()), float(values[:count].max())) for title, values in maps.items()}
    for i in range(count):
        height, width = batch["image"].shape[-2:]
        pictures = [batch["image"][i].permute(1, 2, 0).cpu().numpy(), colorize(logits[i].argmax(0).cpu(), classes)]
        if "label" in batch:
            pictures.append(colorize(batch["label"][i].cpu(), classes))
        pictures += [heat(values[i], *ranges[title]) for title, values in maps.items()]
        rows.append([_fit(picture, (width, height)) for picture in pictures])
    legends = [f"{title}, {low:.2g} to {high:.2g}" for title, (low, high) in ranges.items()]
    return grid(rows, ["image", "prediction", "label"][: len(rows[0]) - len(maps)] + legends if maps else None)


def grid(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str] | None = None, gap: int = 4) -> np.ndarray:
    """Rows of equally sized (H,W,3) uint8 pictures as one picture, with `titles` above the columns."""
    height, width = rows[0][0].shape[:2]
    top = 16 if titles else 0
    columns = max(map(len, rows))
    canvas = np.full((top + len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            y, x = top + r * (height + gap), c * (width + gap)
            canvas[y : y + height, x : x + width] = picture
    if not titles:
        return canvas
    image = Image.fromarray(canvas)
    draw = ImageDraw.Draw(image)
    for c, title in enumerate(titles):
        draw.text((c * (width + gap) + 2, 1), title, fill=(0, 0, 0))
    return np.array(image)


def curve(points: Sequence[tuple[float, float]], title: str, size: tuple[int, int] = (720, 360)) -> np.ndarray:
    """A line through (x, y) points as an (H,W,3) uint8 picture, with the range of both axes and the highest point marked."""
    margin, (width, height) = 48, size
    xs, ys = zip(*sorted(points), strict=True)
    low, high = min(ys), max(ys)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - xs[0]) / max(xs[-1] - xs[0], 1e-9)
        up = (y - low) / max(high - low, 1e-9)
        return margin + across * (width - 2 * margin), height - margin - up * (height - 2 * margin)

    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((margin, margin, width - margin, height - margin), outline="grey")
    corners = [place(x, y) for x, y in zip(xs, ys, strict=True)]
    draw.line(corners, fill=(0, 0, 142), width=2)
    best = corners[ys.index(high)]
    for x, y in corners:
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=(220, 20, 60) if (x, y) == best else (0, 0, 142))
    draw.text((margin, 16), title, fill="black")
    draw.text((best[0] + 5, best[1] - 12), f"{high:.2f}", fill=(220, 20, 60))
    for text, position in ((f"{high:.1f}", (8, margin - 6)), (f"{low:.1f}", (8, height - margin - 6))):
        draw.text(position, text, fill="black")
    for text, x in ((f"{xs[0]:g}", margin), (f"{xs[-1]:g}", width - margin - 30)):
        draw.text((x, height - margin + 8), text, fill="black")
    return np.array(image)


def _fit(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if picture.shape[1::-1] == size:
        return picture
    return np.array(Image.fromarray(picture).resize(size, Image.Resampling.NEAREST))


def _save(image: Image.Image, path: str) -> None:
    note = PngInfo()
    note.add_text(*SOFTWARE)  # tells our pictures from those that must not be overwritten
    with replacing(path, sync=False) as file:
        image.save(file, "PNG", pnginfo=note)


def _save_map(path: str, ids: np.ndarray, kind: int, *chunks: tuple[bytes, bytes]) -> None:
    """Write (H,W) uint8 as a PNG of colour type `kind`, with these chunks before its pixels.

    Pillow tries five filters for each row, none of which helps with ids, and lets no other thread run meanwhile.
    """
    height, width = ids.shape
    rows = np.zeros((height, width + 1), np.uint8)  # each begins with the number of its filter, 0: none
    rows[:, 1:] = ids
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    note = "\0".join(SOFTWARE).encode("latin-1")
    pixels = zlib.compress(rows.tobytes(), FAST)
    with replacing(path, sync=False) as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for name, data in ((b"IHDR", header), (b"tEXt", note), *chunks, (b"IDAT", pixels), (b"IEND", b"")):
            file.write(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))
