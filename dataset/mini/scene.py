"""What stands where: one random street, painted onto a canvas from far to near."""

from collections.abc import Callable

import numpy as np

from .canvas import BARS, BRICKS, LEAVES, TILES, WINDOWS, Canvas, Item, Material, Painter, ordered
from .domains import Parameters
from .objects import OBJECTS
from .street import Street

(ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN, VEGETATION, TERRAIN, SKY, PERSON, RIDER, CAR, TRUCK, BUS, TRAIN,
 MOTORCYCLE, BICYCLE) = range(19)  # fmt: skip
FAR = 110.0  # up to where frontages stand, in metres


def paint_street(parameters: Parameters, rng: np.random.Generator, width: int, height: int) -> Canvas:
    """Paint one random scene, `width` by `height` pixels, and return its canvas."""
    street = Street(parameters, rng)
    canvas = Canvas(
        width,
        height,
        focal=float(parameters["focal"]) * width * rng.uniform(0.9, 1.1) / 2,
        horizon=height * (float(parameters["horizon"]) + rng.uniform(-0.04, 0.04)),
        camera_height=street.vary("camera_height", 0.08),
    )
    _paint_ground(canvas, street)
    items = _frontages(street) + _objects(street)
    for item in sorted(items, key=lambda item: -item.depth):
        item.paint(canvas)
    return canvas


def _paint_ground(canvas: Canvas, street: Street) -> None:
    """The sky, the ground with road, pavements, markings and grass, and the shadow of one side of the street."""
    rng, x = street.rng, street.camera_x
    canvas.sky(SKY, Material(street.colour("sky_colour", 0.08, 0.03), (235, 238, 240), LEAVES, (0.9, 0.35), 0.02))
    canvas.ground(-400, 400, 0.5, 4000, TERRAIN, street.material("terrain_colour", 0.8, pattern=LEAVES, scale=(0.8, 0.8)))
    pavement = street.material("pavement_colour", 0.82, pattern=TILES, scale=(0.9, 0.9))
    road = street.material("road_colour", 0.9, pattern=LEAVES, scale=(1.5, 1.5))
    canvas.ground(-street.pavement - x, street.pavement - x, 0.5, 400, SIDEWALK, pavement)
    canvas.ground(-street.road - x, street.road - x, 0.5, 400, ROAD, road)
    if rng.random() < 0.35:  # a side road
        z = rng.uniform(12, 40)
        canvas.ground(*ordered(0, rng.choice((-1, 1)) * 60), z, z + rng.uniform(5, 9), ROAD, road)
    marking = Material((214, 212, 202), grain=road.grain)
    for z in np.arange(rng.uniform(1, 6), 70, 6.0):
        canvas.ground(-0.12 - x, 0.12 - x, z, z + 3, ROAD, marking)
    for side in (-1, 1):
        edge = side * (street.road - 0.4) - x
        canvas.ground(edge - 0.08, edge + 0.08, 0.5, 70, ROAD, marking)
        if rng.random() < street.parameters["terrain_strip"]:
            inner, z = side * (street.road + 0.3) - x, rng.uniform(2, 15)
            outer = side * (street.road + 0.3 + rng.uniform(1.0, 1.9)) - x
            grass = street.material("terrain_colour", 0.8, pattern=LEAVES, scale=(0.5, 0.5))
            canvas.ground(*ordered(inner, outer), z, z + rng.uniform(10, 40), TERRAIN, grass)
    shadow = float(street.parameters["shadow"])
    reach = street.sun_side * (street.road + rng.uniform(-4, 1)) - x
    canvas.shade(*ordered(reach, street.sun_side * 60 - x), rng.uniform(1, 10), rng.uniform(30, 80), shadow)


def _frontages(street: Street) -> list[Item]:
    """Rows of buildings, walls, fences and hedges along both sides of the street."""
    items, rng = [], street.rng
    makers: tuple[Callable[[Street, int, float, float, float], Painter], ...] = (_building, _wall, _fence, _hedge)
    shares = [float(street.parameters[name]) for name in ("building_share", "wall_share", "fence_share")]
    for side in (-1, 1):
        z = rng.uniform(-6, 2)
        while z < FAR:
            length = rng.uniform(7, 20)
            x = side * (street.pavement + rng.uniform(0.0, 1.5)) - street.camera_x
            make = makers[rng.choice(4, p=[*shares, 1 - sum(shares)])]
            items.append(Item(z + length, make(street, side, x, z, z + length)))
            z += length + (rng.uniform(1, 5) if rng.random() < 0.3 else 0)
    return items


def _building(street: Street, side: int, x: float, z0: float, z1: float) -> Painter:
    """A building on one side of the street (-1 left, 1 right), from z0 to z1, with its front at x."""
    rng = street.rng
    height = max(4.0, street.vary("building_height", 0.5))
    window = float(street.parameters["window_size"]) * rng.uniform(0.8, 1.25)
    colour = np.array(street.colour("building_colour", 0.3, 0.12))
    glass = colour * (1 - float(street.parameters["window_contrast"])) + rng.uniform(0, 25)
    material = Material(tuple(colour), tuple(glass), WINDOWS, (1.8 * window, 2.0 * window), float(street.parameters["grain"]))

    def paint(canvas: Canvas) -> None:
        canvas.front(z1, *ordered(x, x + side * 14), 0, height, BUILDING, material)
        canvas.side(x, z0, z1, 0, height, BUILDING, material)
        canvas.front(max(z0, 1.0), *ordered(x, x + side * 14), 0, height, BUILDING, material)

    return paint


def _wall(street: Street, side: int, x: float, z0: float, z1: float) -> Painter:
    """A wall, with a tall hedge behind it."""
    height = street.rng.uniform(1.8, 3.2)
    bricks = street.material("wall_colour", 0.6, pattern=BRICKS, scale=(0.9, 0.45))
    backdrop = _hedge(street, side, x + side * 4, z0, z1, tall=True)

    def paint(canvas: Canvas) -> None:
        backdrop(canvas)
        canvas.side(x, z0, z1, 0, height, WALL, bricks)

    return paint


def _fence(street: Street, side: int, x: float, z0: float, z1: float) -> Painter:
    """A fence, with a hedge behind it."""
    height = street.rng.uniform(1.4, 2.4)
    bars = street.material("fence_colour", 0.25, pattern=BARS, scale=(0.5, 0.5))
    backdrop = _hedge(street, side, x + side * 4, z0, z1, tall=street.rng.random() < 0.5)

    def paint(canvas: Canvas) -> None:
        backdrop(canvas)
        canvas.side(x, z0, z1, 0, height, FENCE, bars)

    return paint


def _hedge(street: Street, side: int, x: float, z0: float, z1: float, tall: bool = False) -> Painter:
    """A row of bushes, or with `tall` of trees."""
    height = street.rng.uniform(3.5, 8) if tall else street.rng.uniform(1.0, 3.0)
    leaves = street.material("vegetation_colour", 0.5, pattern=LEAVES, scale=(0.7, 0.7))
    bushes = [(z, street.rng.uniform(0.7, 1.2)) for z in np.arange(z1, max(z0, 2), -3.0)]

    def paint(canvas: Canvas) -> None:
        for z, factor in bushes:
            canvas.disc(z, x + side * 1.5, 0.4 * height, 2.4, 0.6 * height * factor, VEGETATION, leaves)
        canvas.side(x, z0, z1, 0, 0.75 * height, VEGETATION, leaves)

    return paint


def _objects(street: Street) -> list[Item]:
    """Everything that stands on the ground by itself."""
    items, rng = [], street.rng
    for parameter, choices in OBJECTS.items():
        for _ in range(street.count(parameter)):
            make = choices[rng.choice(len(choices))]
            items.append(make(street))
    return items
