"""Label maps and predictions as pictures."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from dataset.catalogue import CITYSCAPES, ClassSet

from .files import replacing
from .outputs import SOFTWARE

# zlib level of maps of ids: a third of the usual level's time, for a third more bytes.
FAST = 1


def colorize(ids: Any, classes: ClassSet = CITYSCAPES) -> np.ndarray:
    """(..., H, W) ids to (..., H, W, 3) uint8 colours of the classes, black for anything that is no class."""
    return classes.palette[np.asarray(ids)]


def save_ids(path: str, ids: Any) -> None:
    """Write (H,W) uint8 ids as an 8-bit grey PNG."""
    _save(Image.fromarray(np.asarray(ids, np.uint8), "L"), path, FAST)


def save_colours(path: str, ids: Any, classes: ClassSet = CITYSCAPES) -> None:
    """Write (H,W) uint8 ids as a palette PNG: the ids are kept, the viewer shows the colours."""
    picture = Image.fromarray(np.asarray(ids, np.uint8), "P")
    picture.putpalette(classes.palette.ravel().tolist())
    _save(picture, path, FAST)


def save_picture(path: str, picture: np.ndarray) -> None:
    """Write an (H,W,3) uint8 array."""
    _save(Image.fromarray(picture), path)


def prediction_panel(batch: dict[str, Any], logits: Tensor, count: int, classes: ClassSet) -> np.ndarray:
    """Rows of image, prediction and (if there is one) label for the first `count` of a batch, as one (H,W,3) uint8 array.

    Args:
        batch: a loader's batch, `image` (N,3,h,w) uint8 and maybe `label` (N,h,w).
        logits: (N,C,h',w') of the same batch.
    """
    rows = []
    for i in range(min(count, len(logits))):
        height, width = batch["image"].shape[-2:]
        pictures = [batch["image"][i].permute(1, 2, 0).cpu().numpy(), colorize(logits[i].argmax(0).cpu(), classes)]
        if "label" in batch:
            pictures.append(colorize(batch["label"][i].cpu(), classes))
        rows.append([_fit(picture, (width, height)) for picture in pictures])
    return grid(rows) if rows else np.full((16, 16, 3), 255, np.uint8)


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


def _save(image: Image.Image, path: str, compress_level: int = 6) -> None:
    note = PngInfo()
    note.add_text(*SOFTWARE)  # tells our pictures from those that must not be overwritten
    with replacing(path, sync=False) as file:
        image.save(file, "PNG", compress_level=compress_level, pnginfo=note)
