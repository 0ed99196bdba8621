"""A pinhole camera and a map of parts: geometry is painted far to near, colours are computed afterwards per pixel."""

from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

# Planes that a part can lie in; they give every pixel its depth and its texture coordinates in metres.
GROUND, SIDE, FRONT, SKY = range(4)
# Patterns, as functions of the texture coordinates; see shading.py.
PLAIN, WINDOWS, BRICKS, BARS, TILES, LEAVES, RIBS = range(7)
NEAR = 1.2


@dataclass
class Material:
    """What a surface is made of: two colours (0..255), the pattern that mixes them, its scale in metres, its grain."""

    colour: tuple
    second: tuple | None = None
    pattern: int = PLAIN
    scale: tuple = (1.0, 1.0)
    grain: float = 0.05


@dataclass
class Canvas:
    """A camera at height `camera_height` looking along z over a map of part ids, and the table of those parts.

    Coordinates in metres: x to the right, y up from the ground, z forward.
    """

    width: int
    height: int
    focal: float
    horizon: float
    camera_height: float
    rows: list = field(default_factory=list)
    instances: int = 0

    def __post_init__(self):
        self.parts = Image.new("I", (self.width, self.height), 0)
        self.draw = ImageDraw.Draw(self.parts)
        self.shadow = Image.new("L", (self.width, self.height), 0)
        self.shadow_draw = ImageDraw.Draw(self.shadow)

    def project(self, points):
        """(n,3) world points to a list of pixel positions; points nearer than NEAR are pulled to it."""
        x, y, z = np.asarray(points, np.float64).T
        z = np.maximum(z, NEAR)
        u = self.width / 2 + self.focal * x / z
        v = self.horizon + self.focal * (self.camera_height - y) / z
        limit = 20 * self.width
        return list(zip(np.clip(u, -limit, limit).tolist(), np.clip(v, -limit, limit).tolist(), strict=True))

    def new_instance(self):
        self.instances += 1
        return self.instances

    def _part(self, plane, offset, train_id, material, instance):
        second = material.colour if material.second is None else material.second
        self.rows.append((plane, offset, train_id, instance, material.pattern, *material.scale, material.grain,
                          *material.colour, *second))  # fmt: skip
        return len(self.rows)

    def sky(self, train_id, material):
        self.draw.rectangle((0, 0, self.width, self.height), fill=self._part(SKY, 0, train_id, material, 0))

    def ground(self, x0, x1, z0, z1, train_id, material, y=0.0):
        """A rectangle on the ground."""
        part = self._part(GROUND, y, train_id, material, 0)
        self.draw.polygon(self.project([(x0, y, z0), (x1, y, z0), (x1, y, z1), (x0, y, z1)]), fill=part)

    def side(self, x, z0, z1, y0, y1, train_id, material, instance=0):
        """A rectangle in a plane along the street."""
        if z1 <= NEAR:
            return
        part = self._part(SIDE, x, train_id, material, instance)
        self.draw.polygon(self.project([(x, y0, z0), (x, y0, z1), (x, y1, z1), (x, y1, z0)]), fill=part)

    def front(self, z, x0, x1, y0, y1, train_id, material, instance=0):
        """A rectangle that faces the camera."""
        self.shape(z, [(x0, y0), (x1, y0), (x1, y1), (x0, y1)], train_id, material, instance)

    def shape(self, z, outline, train_id, material, instance=0):
        """A polygon of (x, y) points that faces the camera at depth z."""
        if z <= NEAR:
            return
        part = self._part(FRONT, z, train_id, material, instance)
        self.draw.polygon(self.project([(x, y, z) for x, y in outline]), fill=part)

    def disc(self, z, x, y, radius_x, radius_y, train_id, material, instance=0, jitter=None):
        """An ellipse that faces the camera; `jitter` (16 factors of the radius) makes it irregular."""
        angle = np.linspace(0, 2 * np.pi, 16, endpoint=False)
        factor = 1 if jitter is None else jitter
        outline = list(zip(x + radius_x * factor * np.cos(angle), y + radius_y * factor * np.sin(angle), strict=True))
        self.shape(z, outline, train_id, material, instance)

    def shade(self, x0, x1, z0, z1, darkness):
        """Darken a rectangle of the ground by `darkness` (0..1)."""
        self.shadow_draw.polygon(self.project([(x0, 0, z0), (x1, 0, z0), (x1, 0, z1), (x0, 0, z1)]), fill=int(255 * darkness))
