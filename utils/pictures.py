"""Label maps and predictions as pictures."""

import os

import numpy as np
from PIL import Image, ImageDraw

from dataset.classes import SUBSETS, palette

# zlib level of maps of ids: a third of the usual level's time, for a third more bytes.
FAST = 1


def colorize(ids, num_classes=19):
    """(..., H, W) ids to (..., H, W, 3) uint8 Cityscapes colours, black for anything that is no class."""
    return _colours(num_classes)[np.asarray(ids)]


def save_ids(path, ids):
    """Write (H,W) uint8 ids as an 8-bit grey PNG."""
    _save(Image.fromarray(np.asarray(ids, np.uint8), "L"), path, FAST)


def save_colours(path, ids, num_classes=19):
    """Write (H,W) uint8 ids as a palette PNG: the ids are kept, the viewer shows the colours."""
    picture = Image.fromarray(np.asarray(ids, np.uint8), "P")
    picture.putpalette(_colours(num_classes).ravel().tolist())
    _save(picture, path, FAST)


def save_picture(path, picture):
    """Write an (H,W,3) uint8 array."""
    _save(Image.fromarray(picture), path)


def prediction_panel(batch, logits, count):
    """Rows of image, prediction and (if there is one) label for the first `count` of a batch, as one (H,W,3) uint8 array.

    Args:
        batch: a loader's batch, `image` (N,3,h,w) uint8 and maybe `label` (N,h,w).
        logits: (N,C,h',w') of the same batch.
    """
    rows = []
    num_classes = logits.shape[1]
    for i in range(min(count, len(logits))):
        height, width = batch["image"].shape[-2:]
        pictures = [batch["image"][i].permute(1, 2, 0).cpu().numpy(), colorize(logits[i].argmax(0).cpu(), num_classes)]
        if "label" in batch:
            pictures.append(colorize(batch["label"][i].cpu(), num_classes))
        rows.append([_fit(picture, (width, height)) for picture in pictures])
    return grid(rows)


def grid(rows, titles=None, gap=4):
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


def _colours(num_classes):
    table = np.zeros((256, 3), np.uint8)
    if num_classes in SUBSETS:
        table[:num_classes] = palette(num_classes)
    else:
        table[:num_classes] = np.random.default_rng(0).integers(30, 256, (num_classes, 3))
    return table


def _fit(picture, size):
    if picture.shape[1::-1] == size:
        return picture
    return np.array(Image.fromarray(picture).resize(size, Image.NEAREST))


def _save(image, path, compress_level=6):
    # The process id keeps two writers of one file apart; the ending tells Pillow the format.
    temporary = f"{path}.{os.getpid()}.tmp"
    image.save(temporary, "PNG", compress_level=compress_level)
    os.replace(temporary, path)
