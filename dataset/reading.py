"""Decoding images and labels; every error names the file."""

import os
import warnings

import numpy as np
import torch
from PIL import Image
from scipy.io import loadmat
from torchvision.io import ImageReadMode, decode_image, read_file

from .classes import TRAINID_TO_LABELID

# It decodes PNGs faster than Pillow, and SYNTHIA's 16-bit labels at all; deprecated since 0.29, present up to 0.30.
warnings.filterwarnings("ignore", message="The image decoding and encoding capabilities", category=DeprecationWarning)


class ReadError(OSError):
    """A file cannot be decoded, or is not what it should be."""


def read_image(path):
    """Read a PNG or JPEG as a (3,H,W) uint8 RGB tensor.

    Raises:
        FileNotFoundError, ReadError: naming the file.
    """
    return _decode(path, ImageReadMode.RGB)


def read_label(path, colours=None):
    """Read a label file as an (H,W) tensor of raw ids: uint8 for grey and palette PNGs, and SYNTHIA's first channel.

    Args:
        colours: {(red, green, blue): id} (see `read_gta5_colours`), for labels that were saved as RGB pictures.

    Raises:
        FileNotFoundError, ReadError: naming the file; without `colours` an RGB picture is refused, for it holds no ids.
    """
    kind = _png_kind(path)
    if kind == "16-bit":
        return _synthia_classes(path)
    if kind == "rgb" and colours is not None:
        return _ids_of_colours(path, colours)
    if kind == "rgb":
        raise ReadError(
            f"{path}: an RGB picture, not a label map of ids (a colour version of the labels? With the official mapping.mat in "
            "its root GTA5 is read from colours too)"
        )
    try:
        with Image.open(path) as image:
            return torch.from_numpy(np.array(image))
    except Exception as error:
        raise _unreadable(path, error) from error


def read_synthia_label(path):
    """Read a SYNTHIA label: the class ids 0..22 in the first channel of a 16-bit three-channel PNG, as uint8.

    Pillow and OpenCV's defaults must not be used: they keep the high byte, and every class becomes 0.

    Raises:
        FileNotFoundError, ReadError: naming the file; an 8-bit picture is refused, it has lost its classes.
    """
    kind = _png_kind(path)
    if kind == "16-bit":
        return _synthia_classes(path)
    if kind == "rgb":
        raise ReadError(
            f"{path}: an 8-bit RGB PNG, but SYNTHIA's labels (GT/LABELS) are 16-bit; this one was converted or holds colours"
        )
    return read_label(path)


def read_gta5_colours(path):
    """The official GTA5 toolkit's `mapping.mat`: the label id that each colour of `cityscapesMap` stands for.

    Row i is the colour of id i, in 0..1. Where ids share a colour, the one that is a class counts (car and licence plate do).

    Raises:
        ReadError: no MATLAB file, or without a colour for each of the 34 label ids.
    """
    try:
        table = np.asarray(loadmat(path)["cityscapesMap"], np.float64)
    except Exception as error:
        raise ReadError(f"{path}: cannot be read as GTA5's mapping.mat ({type(error).__name__}: {error})") from error
    if (
        table.ndim != 2
        or table.shape[1] != 3
        or len(table) <= max(TRAINID_TO_LABELID)
        or not 0 <= table.min() <= table.max() <= 1
    ):
        raise ReadError(f"{path}: its cityscapesMap is no table of colours (34 or more rows of 3 numbers in 0..1)")
    colours = [tuple(colour) for colour in np.rint(table * 255).astype(int).tolist()]
    ids = {colour: label_id for label_id, colour in enumerate(colours)}
    return ids | {colours[label_id]: label_id for label_id in TRAINID_TO_LABELID}


def image_size(path):
    """(width, height) of an image from its header alone.

    Raises:
        FileNotFoundError, ReadError: naming the file.
    """
    _check_exists(path)
    try:
        with Image.open(path) as image:
            return image.size
    except Exception as error:
        raise _unreadable(path, error) from error


def _ids_of_colours(path, colours):
    packed = _decode(path, ImageReadMode.RGB).long()
    packed = packed[0] << 16 | packed[1] << 8 | packed[2]
    present, where = packed.unique(return_inverse=True)
    present = [(value >> 16, value >> 8 & 255, value & 255) for value in present.tolist()]
    unknown = [colour for colour in present if colour not in colours]
    if unknown:
        raise ReadError(f"{path}: {len(unknown)} of its colours stand for no label id, the first is {unknown[0]}")
    return torch.tensor([colours[colour] for colour in present], dtype=torch.uint8)[where]


def _synthia_classes(path):
    classes = _decode(path, ImageReadMode.UNCHANGED)[0].numpy()
    if classes.max() > 255:
        raise ReadError(f"{path}: class ids up to {classes.max()} in the first channel; is this a SYNTHIA label?")
    return torch.from_numpy(classes.astype(np.uint8))


def _png_kind(path):
    """ "16-bit", "rgb" or "ids", from the PNG header: bit depth and colour type."""
    _check_exists(path)
    with open(path, "rb") as file:
        header = file.read(26)
    if len(header) < 26 or header[:8] != b"\x89PNG\r\n\x1a\n":
        raise ReadError(f"{path}: not a PNG file (labels are PNGs)")
    depth, colour_type = header[24], header[25]
    if depth == 16:
        return "16-bit"
    return "rgb" if colour_type in (2, 6) else "ids"


def _decode(path, mode):
    _check_exists(path)
    try:
        return decode_image(read_file(str(path)), mode)
    except Exception as error:
        raise _unreadable(path, error) from error


def _check_exists(path):
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file")


def _unreadable(path, error):
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ReadError(f"{path}: cannot be read, truncated or not an image ({reason})")
