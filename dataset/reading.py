"""Decoding images and labels; every error names the file.

Images are decoded by TorchCodec, which is fastest, or else by Pillow; labels always by Pillow, so that PyTorch is not needed.
"""

import io
import os
from collections.abc import Callable, Collection, Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageFile

from .errors import DataError, MissingDataError
from .matlab import read_variable

if TYPE_CHECKING:
    from torch import Tensor

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")
# PNG's colour types.
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
TITLES = {GREY: "grey", RGB: "RGB", PALETTE: "palette", GREY_ALPHA: "grey and alpha (2 channels)", RGB_ALPHA: "RGBA"}
# Pillow's modes of grey images with more than 8 bits, which its conversion to RGB would cut off at 255.
DEEP_GREY = ("I", "I;16", "I;16B", "I;16L", "I;16N")
# In bytes: more than one map or picture in memory, and less than the 32 MB up to which glibc's threshold grows.
LARGE_BLOCK = 24 * 2**20


class ReadError(DataError, OSError):
    """A file cannot be decoded, or is not what it should be."""


def keep_freed_memory() -> None:
    """Let this process read image after image into the same memory.

    glibc gives every block above a threshold back to the system and asks for new pages the next time, which takes longer than
    anything else done to a label map. The threshold follows the largest block freed so far.
    """
    np.empty(LARGE_BLOCK, np.uint8)  # freed at once, and never touched


def read_image(path: str) -> "Tensor":
    """Read a PNG, JPEG, WebP or TIFF as a (3,H,W) uint8 RGB tensor: the stored pixels, whatever an EXIF orientation says.

    Of 16-bit images the high bytes are taken. A pixel's channels lie side by side in memory, which resizing is fastest with.

    Raises:
        MissingDataError, ReadError: naming the file.
    """
    import torch

    _check_exists(path)
    try:
        with open(path, "rb") as file:
            encoded = file.read()
        with Image.open(io.BytesIO(encoded)) as image:
            decode = torchcodec_decoder() if _same_with_torchcodec(image, encoded) else None
            if decode is not None:
                return decode(encoded)
            return torch.from_numpy(_rgb(image)).permute(2, 0, 1)
    except Exception as error:
        raise _unreadable(path, error) from error


@cache
def torchcodec_decoder() -> "Callable[[bytes], Tensor] | None":
    """TorchCodec's function from encoded bytes to a (3,H,W) uint8 tensor; None where it is not installed or does not load."""
    try:
        from torchcodec.decoders import decode_image
    except (ImportError, OSError, RuntimeError):
        return None
    return decode_image


def _same_with_torchcodec(image: Image.Image, encoded: bytes) -> bool:
    """Whether TorchCodec gives the pixels that Pillow gives: it turns images by their EXIF orientation, and rounds 16 bits."""
    if image.format not in ("PNG", "JPEG", "WEBP") or "exif" in image.info or getattr(image, "is_animated", False):
        return False
    return image.format != "PNG" or encoded[24] <= 8


def _rgb(image: Image.Image) -> np.ndarray:
    """(H,W,3) uint8."""
    if image.mode == "F":
        raise ReadError("its pixels are floats")
    if image.mode not in DEEP_GREY:
        return np.array(image.convert("RGB"))
    grey = np.asarray(image) >> 8
    if grey.min() < 0 or grey.max() > 255:
        raise ReadError("its pixels are not of 8 or 16 bits")
    return np.repeat(grey[..., None].astype(np.uint8), 3, axis=2)


def read_label(path: str, colours: Mapping[tuple[int, int, int], int] | None = None) -> np.ndarray:
    """Read an 8-bit grey or a palette PNG as an (H,W) uint8 array of raw ids.

    Args:
        colours: {(red, green, blue): id} (see `read_gta5_colours`), for labels that were saved as RGB pictures.

    Raises:
        MissingDataError, ReadError: naming the file; without `colours` an RGB picture is refused, for it holds no ids.
    """
    depth, kind = _png_header(path)
    if depth == 8 and kind in (RGB, RGB_ALPHA):
        if colours is not None:
            return _ids_of_colours(path, colours)
        raise ReadError(
            f"{path}: an RGB picture, not a label map of ids (a colour version of the labels? With the official mapping.mat in "
            "its root GTA5 is read from colours too)"
        )
    if kind != PALETTE and (depth != 8 or kind != GREY):
        raise ReadError(f"{path}: {_described(depth, kind)}; maps of ids are 8-bit grey or palette PNGs")
    return _decoded(path, np.array)


def read_synthia_label(path: str) -> np.ndarray:
    """Read a SYNTHIA label: the class ids 0..22 in the first channel of a 16-bit RGB PNG, as (H,W) uint8.

    Pillow's and OpenCV's defaults must not be used: they keep the high byte, and every class becomes 0.

    Raises:
        MissingDataError, ReadError: naming the file; an 8-bit picture is refused, it has lost its classes.
    """
    depth, kind = _png_header(path)
    if (depth, kind) != (16, RGB):
        raise ReadError(
            f"{path}: {_described(depth, kind)}, but SYNTHIA's labels (GT/LABELS) are 16-bit RGB; this one was converted or "
            "holds colours"
        )
    high, low = (_decoded(path, partial(_bytes_of_16_bits, order=order)) for order in "BL")
    if high.any():
        largest = (high.astype(int) * 256 + low).max()
        raise ReadError(f"{path}: class ids up to {largest} in the first channel; is this a SYNTHIA label?")
    return low


def _bytes_of_16_bits(image: ImageFile.ImageFile, order: str) -> np.ndarray:
    """The first channel's high bytes (`order` B) or low bytes (L): Pillow keeps one of the two, and can be told which."""
    tiles: list[Any] = image.tile
    codec, extents, offset, raw_mode = tiles[0]
    tiles[0] = (codec, extents, offset, raw_mode.replace("16B", f"16{order}"))
    return np.array(image.getchannel(0))


def read_gta5_colours(path: str, class_ids: Collection[int]) -> dict[tuple[int, int, int], int]:
    """The official GTA5 toolkit's `mapping.mat`: the label id that each colour of `cityscapesMap` stands for.

    Row i is the colour of id i, in 0..1. Where ids share a colour, the one of `class_ids` counts (car and licence plate do).

    Raises:
        ReadError: no MATLAB file, or without a colour for each of the label ids.
    """
    try:
        table = read_variable(path, "cityscapesMap").astype(np.float64)
    except Exception as error:
        raise ReadError(f"{path}: cannot be read as GTA5's mapping.mat ({type(error).__name__}: {error})") from error
    right_shape = table.ndim == 2 and table.shape[1] == 3 and len(table) > max(class_ids)
    if not right_shape or not 0 <= table.min() <= table.max() <= 1:
        raise ReadError(f"{path}: its cityscapesMap is no table of colours (34 or more rows of 3 numbers in 0..1)")
    colours = [(red, green, blue) for red, green, blue in np.rint(table * 255).astype(int).tolist()]
    ids = {colour: label_id for label_id, colour in enumerate(colours)}
    return ids | {colours[label_id]: label_id for label_id in class_ids}


def image_size(path: str) -> tuple[int, int]:
    """(width, height) of an image from its header alone.

    Raises:
        MissingDataError, ReadError: naming the file.
    """
    return _decoded(path, lambda image: image.size)


def _ids_of_colours(path: str, colours: Mapping[tuple[int, int, int], int]) -> np.ndarray:
    pixels = _decoded(path, _rgb).astype(np.int32)
    packed = pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]
    present, where = np.unique(packed, return_inverse=True)
    found = [(value >> 16, value >> 8 & 255, value & 255) for value in present.tolist()]
    unknown = [colour for colour in found if colour not in colours]
    if unknown:
        raise ReadError(f"{path}: {len(unknown)} of its colours stand for no label id, the first is {unknown[0]}")
    return np.array([colours[colour] for colour in found], np.uint8)[where].reshape(packed.shape)


def _png_header(path: str) -> tuple[int, int]:
    """Bits a channel, and the colour type."""
    _check_exists(path)
    with open(path, "rb") as file:
        header = file.read(26)
    if len(header) < 26 or header[:8] != b"\x89PNG\r\n\x1a\n":
        raise ReadError(f"{path}: not a PNG file (labels are PNGs)")
    return header[24], header[25]


def _described(depth: int, kind: int) -> str:
    return f"{'an' if depth == 8 else 'a'} {depth}-bit {TITLES.get(kind, 'unknown')} PNG"


def _decoded(path: str, read: Callable[[ImageFile.ImageFile], Any]) -> Any:
    """What `read` makes of the opened image."""
    _check_exists(path)
    try:
        with Image.open(path) as image:
            return read(image)
    except Exception as error:
        raise _unreadable(path, error) from error


def _check_exists(path: str) -> None:
    if not os.path.isfile(path):
        raise MissingDataError(f"{path}: no such file")


def _unreadable(path: str, error: Exception) -> ReadError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ReadError(f"{path}: cannot be read, truncated or not an image ({reason})")
