"""From a map of parts to a photograph: depth and texture per pixel, light, air, lens and sensor."""

import numpy as np
from PIL import Image, ImageFilter

from .canvas import BARS, BRICKS, FRONT, GROUND, LEAVES, RIBS, SIDE, TILES, WINDOWS, Canvas
from .domains import Parameters

FAR = 400.0  # depth of the sky, and the largest there is, in metres
TILE = 256  # side of the square of noise that is repeated over a surface


def shade(canvas: Canvas, parameters: Parameters, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Colour a painted canvas.

    Returns:
        The image, (H,W,3) uint8 RGB, and the part of each pixel, (H,W) int32: part i is row i - 1 of `canvas.rows`.
    """
    parts = np.array(canvas.parts, np.int32)
    rows = np.array(canvas.rows, np.float32)
    u = (np.arange(canvas.width, dtype=np.float32) + 0.5)[None, :] - canvas.width / 2
    v = (np.arange(canvas.height, dtype=np.float32) + 0.5)[:, None] - canvas.horizon
    table = rows[parts - 1]
    depth, s, t = _surface(canvas, table[..., 0], table[..., 1], u, v)
    mixed = _pattern(table[..., 4], s / table[..., 5], t / table[..., 6], depth, rng)[..., None]
    colour = table[..., 8:11] * (1 - mixed) + table[..., 11:14] * mixed
    colour *= 1 + table[..., 7:8] * (_noise(s * 7, t * 7, rng) * _fade(depth, 14.0))[..., None]
    shadow = np.where(table[..., 0] == GROUND, np.asarray(canvas.shadow, np.float32), 0)
    colour *= 1 - shadow[..., None] / 255
    return _photograph(colour, depth, parameters, rng), parts


def _surface(
    canvas: Canvas, plane: np.ndarray, offset: np.ndarray, u: np.ndarray, v: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Depth and texture coordinates s and t of every pixel, in metres, from the plane that its part lies in.

    Args:
        plane, offset: (H,W), from the table of parts.
        u, v: (1,W) and (H,1), pixels to the right of the centre and below the horizon.
    """
    safe_v = np.where(np.abs(v) < 0.5, 0.5, v)
    safe_u = np.where(np.abs(u) < 0.5, 0.5, u)
    ground = canvas.focal * (canvas.camera_height - offset) / safe_v
    side = canvas.focal * offset / safe_u
    depth = np.select([plane == GROUND, plane == SIDE, plane == FRONT], [ground, side, offset], FAR)
    depth = np.clip(depth, 0.5, FAR).astype(np.float32)
    x = u * depth / canvas.focal
    y = canvas.camera_height - v * depth / canvas.focal
    s = np.where(plane == SIDE, depth, x)
    t = np.where(plane == GROUND, depth, y)
    sky = plane > FRONT
    scale = canvas.height / 4
    return depth, np.where(sky, u / scale, s), np.where(sky, v / scale, t)


def _pattern(kind: np.ndarray, s: np.ndarray, t: np.ndarray, depth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How much of the second colour a pixel shows, 0..1, from texture coordinates in units of the pattern."""
    in_s, in_t = s % 1, t % 1
    odd_row = np.floor(t) % 2 * 0.5
    result = np.zeros_like(s)
    for name, values in (
        (WINDOWS, (in_s > 0.25) & (in_s < 0.75) & (in_t > 0.3) & (in_t < 0.82)),
        (BRICKS, ((s + odd_row) % 1 < 0.1) | (in_t < 0.16)),
        (BARS, ((in_s > 0.3) & (in_t > 0.2)) * 1.0),
        (TILES, (in_s < 0.07) | (in_t < 0.07)),
        (RIBS, in_s < 0.25),
    ):
        chosen = kind == name
        if chosen.any():
            result[chosen] = values[chosen]
    leaves = kind == LEAVES
    result[leaves] = np.clip(0.5 + 0.6 * _noise(s * 3, t * 3, rng)[leaves], 0, 1)
    # Far away a pattern is finer than a pixel: it blends into its mean instead of flickering.
    fade = _fade(depth, 45.0)
    return result * fade + 0.3 * (1 - fade)


def _fade(depth: np.ndarray, reach: float) -> np.ndarray:
    """How much of a pattern's detail is left at a depth, 1..0: it falls to 1/e at `reach`. The sky keeps all of it."""
    return np.where(depth >= FAR, 1.0, np.exp(-depth / reach)).astype(np.float32)


def _noise(s: np.ndarray, t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise of mean 0 and variance about 1 at texture coordinates (s, t)."""
    tile = rng.standard_normal((TILE, TILE), dtype=np.float32)
    coarse = np.repeat(np.repeat(rng.standard_normal((TILE // 4, TILE // 4), dtype=np.float32), 4, 0), 4, 1)
    tile = 0.6 * tile + 0.8 * coarse
    return tile[np.floor(t).astype(np.int64) % TILE, np.floor(s).astype(np.int64) % TILE]


def _photograph(colour: np.ndarray, depth: np.ndarray, parameters: Parameters, rng: np.random.Generator) -> np.ndarray:
    """What the camera makes of the scene's colours: air, tone, vignette, blur and noise. (H,W,3) uint8."""
    colour = _air(colour, depth, parameters, rng)
    colour = _tone(colour, parameters, rng)
    height, width = depth.shape
    vignette = float(parameters["vignette"])
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    colour *= (1 - vignette * (x**2 + y**2) / 2)[..., None]
    blur = float(parameters["blur"]) * rng.uniform(0.6, 1.4) * height / 128
    picture = Image.fromarray(np.clip(colour, 0, 255).astype(np.uint8))
    if blur > 0.05:
        picture = picture.filter(ImageFilter.GaussianBlur(blur))
    noise = rng.standard_normal((height, width, 3), dtype=np.float32) * (float(parameters["noise"]) * rng.uniform(0.7, 1.3))
    return np.clip(np.asarray(picture, np.float32) + noise, 0, 255).astype(np.uint8)


def _air(colour: np.ndarray, depth: np.ndarray, parameters: Parameters, rng: np.random.Generator) -> np.ndarray:
    """Haze: the further away, the more of the sky's colour."""
    density = float(parameters["haze"]) * rng.uniform(0.6, 1.5)
    clear = np.exp(-density * np.minimum(depth, 150))[..., None]
    haze = 0.5 * (parameters["sky_colour"] + 225).astype(np.float32)
    return colour * clear + haze * (1 - clear)


def _tone(colour: np.ndarray, parameters: Parameters, rng: np.random.Generator) -> np.ndarray:
    """White balance, exposure, saturation and gamma of the camera."""
    exposure = rng.uniform(0.88, 1.12)
    colour = colour * (parameters["gain"] * exposure * rng.uniform(0.97, 1.03, 3)).astype(np.float32)
    grey = colour.mean(-1, keepdims=True)
    colour = grey + float(parameters["saturation"]) * (colour - grey)
    return 255 * (np.clip(colour, 0, 255) / 255) ** np.float32(float(parameters["gamma"]))
