"""Pictures inside the page: as data URIs, which need no file beside it and no network."""

import base64
import io

import numpy as np
from PIL import Image

from dataset.catalogue import ClassSet

WIDEST = 384  # pixels; enough for a tile of the page, and small enough for many of them


def photo(picture: np.ndarray) -> str:
    """An (H,W,3) uint8 picture as a JPEG."""
    image = Image.fromarray(picture)
    return _uri(image.resize(_size(image), Image.Resampling.BILINEAR), "JPEG", quality=82)


def flat(picture: np.ndarray) -> str:
    """An (H,W,3) uint8 picture of few colours as a PNG."""
    image = Image.fromarray(picture)
    small = image.resize(_size(image), Image.Resampling.BILINEAR)
    return _uri(small.quantize(64, dither=Image.Dither.NONE), "PNG", optimize=True)


def class_map(ids: np.ndarray, classes: ClassSet) -> str:
    """An (H,W) uint8 map of ids as a PNG in exactly the classes' colours, which the page reads to name what is pointed at."""
    image = Image.fromarray(np.asarray(ids, np.uint8), "P")
    image.putpalette(classes.palette.ravel().tolist())
    return _uri(image.resize(_size(image), Image.Resampling.NEAREST), "PNG", optimize=True)


def _size(image: Image.Image) -> tuple[int, int]:
    width = min(WIDEST, image.width)
    return width, max(1, round(image.height * width / image.width))


def _uri(image: Image.Image, kind: str, **options: int | bool) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]  # Pillow declares no types for a writer's options
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
