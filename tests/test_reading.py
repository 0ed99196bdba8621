"""Decoding: the same pixels with TorchCodec and without, and damaged files."""

import io
import random
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from conftest import GOLDEN, ROOT
from PIL import Image

from dataset import reading
from dataset.mini.formats import png_16bit
from dataset.reading import ReadError, read_image, read_label, read_synthia_label

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 255, (24, 40, 3), np.uint8)
SMOOTH = np.array(Image.fromarray(NOISE[:6, :10]).resize((200, 120), Image.BICUBIC))
TURNED = Image.Exif()
TURNED[0x0112] = 6  # orientation: turn by 90 degrees


def png(array, mode=None):
    buffer = io.BytesIO()
    Image.fromarray(array, mode).save(buffer, "PNG")
    return buffer.getvalue()


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


COLOURS = [int(value) for value in RNG.integers(0, 255, 48)]


def palette_image():
    image = Image.fromarray(NOISE[..., 0] % 16)
    image.putpalette(COLOURS)
    return image


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def late_exif(encoded):
    end = encoded.rindex(b"IEND") - 4
    return encoded[:end] + chunk(b"eXIf", TURNED.tobytes()[6:]) + encoded[end:]


PICTURES = {
    "rgb.png": png(NOISE),
    "grey.png": png(NOISE[..., 0]),
    "bit.png": saved(Image.fromarray(NOISE[..., 0] > 99), "PNG"),
    "palette.png": saved(palette_image(), "PNG"),
    "transparent.png": saved(palette_image(), "PNG", transparency=3),
    "rgba.png": png(np.dstack([NOISE, NOISE[..., :1]])),
    "grey_alpha.png": png(NOISE[..., :2]),
    "grey_16.png": png(NOISE[..., 0].astype(np.uint16) * 257),
    "rgb_16.png": png_16bit(NOISE.astype(np.uint16) * 256 + 255),
    "turned.png": saved(Image.fromarray(NOISE), "PNG", exif=TURNED),
    "turned_late.png": late_exif(png(NOISE)),
    "lossless.webp": saved(Image.fromarray(NOISE), "WEBP", lossless=True),
    "turned.webp": saved(Image.fromarray(NOISE), "WEBP", lossless=True, exif=TURNED),
    "rgb.tif": saved(Image.fromarray(NOISE), "TIFF"),
    "grey.tiff": saved(Image.fromarray(NOISE[..., 0]), "TIFF"),
}
JPEGS = {
    "rgb.jpg": saved(Image.fromarray(SMOOTH), "JPEG", quality=80),
    "progressive.jpg": saved(Image.fromarray(SMOOTH), "JPEG", progressive=True),
    "grey.jpeg": saved(Image.fromarray(SMOOTH[..., 0]), "JPEG"),
    "turned.jpg": saved(Image.fromarray(SMOOTH), "JPEG", exif=TURNED),
    "lossy.webp": saved(Image.fromarray(SMOOTH), "WEBP"),
}


@pytest.fixture(params=("torchcodec", "pillow"))
def decoder(request, monkeypatch):
    if request.param == "pillow":
        monkeypatch.setattr(reading, "torchcodec_decoder", lambda: None)
    else:
        pytest.importorskip("torchcodec")
        assert reading.torchcodec_decoder() is not None
    return request.param


@pytest.mark.parametrize("name", PICTURES)
def test_stored_pixels_whatever_decodes(name, decoder, tmp_path):
    (tmp_path / name).write_bytes(PICTURES[name])
    image = read_image(str(tmp_path / name))
    expected = NOISE
    if "grey" in name:
        expected = np.repeat(NOISE[..., :1], 3, axis=2)
    elif name in ("palette.png", "transparent.png"):
        expected = np.array(Image.open(io.BytesIO(PICTURES["palette.png"])).convert("RGB"))
    elif name == "bit.png":
        expected = np.repeat((NOISE[..., :1] > 99) * 255, 3, axis=2)
    assert image.dtype == torch.uint8 and image.shape == (3, 24, 40)
    np.testing.assert_array_equal(image.permute(1, 2, 0), expected)


@pytest.mark.parametrize("name", JPEGS)
def test_lossy_pictures_are_within_a_grey_level(name, tmp_path, monkeypatch):
    path = tmp_path / name
    path.write_bytes(JPEGS[name])
    first = read_image(str(path))
    monkeypatch.setattr(reading, "torchcodec_decoder", lambda: None)
    second = read_image(str(path))
    assert first.shape == second.shape == (3, 120, 200)
    assert (first.int() - second.int()).abs().max() <= 1


def test_torchcodec_decodes_what_it_can(tmp_path, monkeypatch):
    used = []
    monkeypatch.setattr(reading, "torchcodec_decoder", lambda: lambda encoded: used.append(encoded) or torch.zeros(3, 1, 1))
    for name, encoded in {**PICTURES, **JPEGS}.items():
        (tmp_path / name).write_bytes(encoded)
        read_image(str(tmp_path / name))
    by_pillow = {name for name, encoded in {**PICTURES, **JPEGS}.items() if encoded not in used}
    assert by_pillow == {"grey_16.png", "rgb_16.png", "turned.png", "turned.webp", "turned.jpg", "rgb.tif", "grey.tiff"}


def test_without_torchcodec_it_is_pillow(tmp_path):
    (tmp_path / "a.png").write_bytes(PICTURES["rgb.png"])
    code = (
        "import sys\nsys.modules['torchcodec'] = None\nfrom dataset.reading import read_image, torchcodec_decoder\n"
        f"print(torchcodec_decoder(), int(read_image({str(tmp_path / 'a.png')!r}).sum()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None", str(NOISE.sum(dtype=int))]


def test_synthia_labels_keep_both_bytes(tmp_path):
    channels = RNG.integers(0, 23, (9, 14, 3)).astype(np.uint16)
    channels[..., 1] += 5000  # instances
    path = tmp_path / "label.png"
    path.write_bytes(png_16bit(channels))
    np.testing.assert_array_equal(read_synthia_label(str(path)), channels[..., 0])
    channels[3, 3, 0] = 22 + 256
    path.write_bytes(png_16bit(channels))
    with pytest.raises(ReadError, match="label.png: class ids up to 278"):
        read_synthia_label(str(path))
    recorded = GOLDEN / "clan/loaders/SYNTHIA/GT/LABELS/0000000.png"
    decode_image = pytest.importorskip("torchcodec.decoders").decode_image
    expected = decode_image(str(recorded), mode="UNCHANGED", output_dtype=torch.uint16)[0]
    np.testing.assert_array_equal(read_synthia_label(str(recorded)), expected)


@pytest.mark.parametrize("name", ("grey.png", "palette.png", "grey_16.png", "bit.png"))
def test_synthia_labels_of_another_kind_are_refused(name, tmp_path):
    (tmp_path / name).write_bytes(PICTURES[name])
    with pytest.raises(ReadError, match=f"{name}: an? .* PNG, but SYNTHIA's labels .GT/LABELS. are 16-bit RGB"):
        read_synthia_label(str(tmp_path / name))


@pytest.mark.parametrize("bits", (1, 2, 4, 8))
def test_ids_of_palettes_of_any_depth(bits, tmp_path):
    ids = (NOISE[..., 0].astype(int) % 2**bits).astype(np.uint8)
    image = Image.fromarray(ids)
    image.putpalette(list(range(3 * 2**bits)) if bits < 8 else [7] * 768)
    image.save(tmp_path / "label.png", bits=bits)
    label = read_label(str(tmp_path / "label.png"))
    assert label.dtype == np.uint8 and isinstance(label, np.ndarray)
    np.testing.assert_array_equal(label, ids)


def test_tiffs_of_other_numbers(tmp_path):
    Image.fromarray(NOISE[..., 0].astype(np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(NOISE[..., 0].astype(np.int32) * 10**6).save(tmp_path / "deep.tif")
    for name in ("float.tif", "deep.tif"):
        with pytest.raises(ReadError, match=name):
            read_image(str(tmp_path / name))


def damaged(encoded, rng):
    """A flipped bit, 1 kB of zeros, or an end too early."""
    kind, place = rng.randrange(3), rng.randrange(len(encoded))
    if kind == 0:
        return encoded[:place] + bytes([encoded[place] ^ 1 << rng.randrange(8)]) + encoded[place + 1 :]
    if kind == 1:
        return encoded[:place] + bytes(min(1024, len(encoded) - place)) + encoded[place + 1024 :]
    return encoded[:place]


def test_damaged_files_are_errors_and_end_no_process(decoder, tmp_path):
    """PNGs have checksums. JPEGs and WebPs have none: of them some damage looks like an image, but of the same size."""
    sources = {
        "noise.png": PICTURES["rgb.png"],
        "rgb.jpg": JPEGS["rgb.jpg"],
        "lossy.webp": JPEGS["lossy.webp"],
        "label.png": PICTURES["palette.png"],
        "progressive.jpg": JPEGS["progressive.jpg"],
    }
    rng, refused = random.Random(0), 0
    for number in range(50):
        name, encoded = rng.choice(list(sources.items()))
        path = tmp_path / f"{number}_{name}"
        path.write_bytes(damaged(encoded, rng))
        try:
            image = read_image(str(path))
        except ReadError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
        else:
            expected = reading._decoded(str(path), np.array)
            assert image.shape[1:] == expected.shape[:2]
            assert name != "noise.png"
    assert refused >= 25


def test_damaged_labels_are_errors(tmp_path):
    rng = random.Random(1)
    original = np.array(Image.open(io.BytesIO(PICTURES["palette.png"])))
    wide = png_16bit(RNG.integers(0, 23, (9, 14, 3)).astype(np.uint16))
    for number in range(50):
        path = tmp_path / f"{number}.png"
        read, encoded = ((read_label, PICTURES["palette.png"]), (read_synthia_label, wide))[number % 2]
        path.write_bytes(damaged(encoded, rng))
        try:
            label = read(str(path))
        except ReadError as error:
            assert str(path) in str(error)
        else:  # what is damaged is not the ids: the palette, or what follows them
            assert read is read_synthia_label or np.array_equal(label, original)
