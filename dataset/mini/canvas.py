"""A pinhole camera and a map of parts: geometry is painted from far to near, colours are computed afterwards, per pixel.

Lengths are in metres: x to the right of the camera, y up from the ground, z forward from the camera.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

# Planes that a part can lie in; they give every pixel its depth and its texture coordinates in metres.
GROUND, SIDE, FRONT, SKY = range(4)
# Patterns, as functions of the texture coordinates; see shading.py.
PLAIN, WINDOWS, BRICKS, BARS, TILES, LEAVES, RIBS = range(7)
NEAR = 1.2

Colour = tuple[float, float, float]  # red, green, blue in 0..255
Outline = Sequence[tuple[float, float]]  # the corners (x, y) of a polygon that faces the camera


@dataclass
class Material:
    """What a surface is made of.

    Args:
        colour, second: the two colours that the pattern mixes; without a second one the surface has one colour.
        pattern: one of the constants above.
        scale: width and height of one repeat of the pattern, in metres.
        grain: standard deviation of the fine noise, relative to the colour.
    """

    colour: Colour
    second: Colour | None = None
    pattern: int = PLAIN
    scale: tuple[float, float] = (1.0, 1.0)
    grain: float = 0.05


@dataclass
class Canvas:
    """A camera that looks along z, the map of part ids that it sees, and the table of those parts.

    Every shape that is painted is a part: it has a row in `rows`, and its id (from 1; 0 is unpainted) is the row's number.

    Args:
        width, height: of the picture, in pixels.
        focal: focal length in pixels.
        horizon: the pixel row of the horizon.
        camera_height: metres above the ground.
    """

    width: int
    height: int
    focal: float
    horizon: float
    camera_height: float
    rows: list[tuple[float, ...]] = field(default_factory=list)
    instances: int = 0

    def __post_init__(self) -> None:
        self.parts = Image.new("I", (self.width, self.height), 0)
        self.draw = ImageDraw.Draw(self.parts)
        self.shadow = Image.new("L", (self.width, self.height), 0)
        self.shadow_draw = ImageDraw.Draw(self.shadow)

    def project(self, points: Sequence[tuple[float, float, float]]) -> list[tuple[float, float]]:
        """Points (x, y, z) to pixel positions (u, v); points nearer than NEAR are moved away to it."""
        x, y, z = np.asarray(points, np.float64).T
        z = np.maximum(z, NEAR)
        u = self.width / 2 + self.focal * x / z
        v = self.horizon + self.focal * (self.camera_height - y) / z
        limit = 20 * self.width
        return list(zip(np.clip(u, -limit, limit).tolist(), np.clip(v, -limit, limit).tolist(), strict=True))

    def new_instance(self) -> int:
        """The id of one more person or vehicle, from 1."""
        self.instances += 1
        return self.instances

    def _part(self, plane: int, offset: float, train_id: int, material: Material, instance: int) -> int:
        """Add a row to the table; `offset` is the plane's coordinate: y of GROUND, x of SIDE, z of FRONT. Returns the id."""
        second = material.colour if material.second is None else material.second
        pattern = (material.pattern, *material.scale, material.grain)
        self.rows.append((plane, offset, train_id, instance, *pattern, *material.colour, *second))
        return len(self.rows)

    def sky(self, train_id: int, material: Material) -> None:
        """Everything, before anything else is painted."""
        self.draw.rectangle((0, 0, self.width, self.height), fill=self._part(SKY, 0, train_id, material, 0))

    def ground(self, x0: float, x1: float, z0: float, z1: float, train_id: int, material: Material, y: float = 0.0) -> None:
        """A rectangle on the ground."""
        part = self._part(GROUND, y, train_id, material, 0)
        self.draw.polygon(self.project([(x0, y, z0), (x1, y, z0), (x1, y, z1), (x0, y, z1)]), fill=part)

    def side(
        self, x: float, z0: float, z1: float, y0: float, y1: float, train_id: int, material: Material, instance: int = 0
    ) -> None:
        """A rectangle in the plane at x, which runs along the street."""
        if z1 <= NEAR:
            return
        part = self._part(SIDE, x, train_id, material, instance)
        self.draw.polygon(self.project([(x, y0, z0), (x, y0, z1), (x, y1, z1), (x, y1, z0)]), fill=part)

    def front(
        self, z: float, x0: float, x1: float, y0: float, y1: float, train_id: int, material: Material, instance: int = 0
    ) -> None:
        """A rectangle that faces the camera at depth z."""
        self.shape(z, [(x0, y0), (x1, y0), (x1, y1), (x0, y1)], train_id, material, instance)

    def shape(self, z: float, outline: Outline, train_id: int, material: Material, instance: int = 0) -> None:
        """A polygon that faces the camera at depth z."""
        if z <= NEAR:
            return
        part = self._part(FRONT, z, train_id, material, instance)
        self.draw.polygon(self.project([(x, y, z) for x, y in outline]), fill=part)

    def disc(
        self,
        z: float,
        x: float,
        y: float,
        radius_x: float,
        radius_y: float,
        train_id: int,
        material: Material,
        instance: int = 0,
        jitter: np.ndarray | None = None,
    ) -> None:
        """An ellipse that faces the camera; `jitter` (16 factors of the radius) makes it irregular."""
        angle = np.linspace(0, 2 * np.pi, 16, endpoint=False)
        factor = 1 if jitter is None else jitter
        outline = list(zip(x + radius_x * factor * np.cos(angle), y + radius_y * factor * np.sin(angle), strict=True))
        self.shape(z, outline, train_id, material, instance)

    def shade(self, x0: float, x1: float, z0: float, z1: float, darkness: float) -> None:
        """Darken a rectangle of the ground by `darkness`: 0 not at all, 1 to black."""
        self.shadow_draw.polygon(self.project([(x0, 0, z0), (x1, 0, z0), (x1, 0, z1), (x0, 0, z1)]), fill=int(255 * darkness))


Painter = Callable[[Canvas], None]


class Item(NamedTuple):
    """Something to paint, and its depth in metres: what is further away is painted first."""

    depth: float
    paint: Painter


def ordered(a: float, b: float) -> tuple[float, float]:
    """The smaller one first."""
    return min(a, b), max(a, b)
