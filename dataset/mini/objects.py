"""Trees, poles, people and vehicles: each public function makes up one at random, as an `Item` to paint.

In the functions here z and x are where an object stands: its depth, and metres to the right of the camera.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .canvas import LEAVES, PLAIN, RIBS, Canvas, Colour, Item, Material, Painter, ordered
from .street import Street

(POLE, LIGHT, SIGN, VEGETATION, PERSON, RIDER, CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE) = (
    5, 6, 7, 8, 11, 12, 13, 14, 15, 16, 17, 18)  # fmt: skip
GLASS = (38, 44, 52)
RUBBER = (24, 24, 26)

Maker = Callable[[Street], Item]
InstancePainter = Callable[[Canvas, int], None]  # the second argument is the instance's id


class Box(NamedTuple):
    """A cuboid's measures in metres; `bottom` and `top` are heights above the ground."""

    width: float
    top: float
    length: float
    bottom: float


def _depth(rng: np.random.Generator, near: float, far: float) -> float:
    """A random depth, more often near than far, so that near and far things get a similar share of the picture."""
    return float(np.exp(rng.uniform(np.log(near), np.log(far))))


def _beside_road(street: Street, inner: float = 0.3, outer: float = 0.6) -> float:
    """An x on one of the pavements, between the shares `inner` and `outer` of its width (0 at the kerb, 1 at the houses)."""
    side = street.rng.choice((-1, 1))
    width = street.pavement - street.road
    return side * (street.road + width * street.rng.uniform(inner, outer)) - street.camera_x


def tree(street: Street) -> Item:
    rng, z, x = street.rng, _depth(street.rng, 7, 60), _beside_road(street, 0.2, 1.2)
    trunk, radius, height = rng.uniform(0.2, 0.4), rng.uniform(1.3, 2.8), rng.uniform(3.5, 6.5)
    leaves = street.material("vegetation_colour", 0.45, pattern=LEAVES, scale=(0.5, 0.5))
    jitter, bark = rng.uniform(0.75, 1.2, 16), Material((74, 60, 46), grain=leaves.grain)

    def paint(canvas: Canvas) -> None:
        canvas.front(z, x - trunk / 2, x + trunk / 2, 0, height, VEGETATION, bark)
        canvas.disc(z, x, height, radius, radius * 0.9, VEGETATION, leaves, jitter=jitter)

    return Item(z, paint)


def _pole(street: Street, z: float, x: float, height: float, width: float) -> tuple[Painter, Material]:
    """A pole's painter, and what it is made of."""
    metal = Material(street.colour("pole_colour"), grain=float(street.parameters["grain"]) / 2)

    def paint(canvas: Canvas) -> None:
        canvas.front(z, x - width / 2, x + width / 2, 0, height, POLE, metal)

    return paint, metal


def lamp(street: Street) -> Item:
    rng, z, x = street.rng, _depth(street.rng, 6, 40), _beside_road(street, 0.05, 0.25)
    height, width = rng.uniform(5, 7.5), rng.uniform(0.22, 0.34)
    pole, metal = _pole(street, z, x, height, width)
    towards = -np.sign(x)

    def paint(canvas: Canvas) -> None:
        pole(canvas)
        canvas.front(z, *ordered(x, x + towards * 1.8), height - 0.22, height, POLE, metal)

    return Item(z, paint)


def sign(street: Street) -> Item:
    rng, z, x = street.rng, _depth(street.rng, 5, 28), _beside_road(street, 0.05, 0.3)
    size, height = rng.uniform(0.5, 0.8), rng.uniform(2.4, 3.2)
    pole, _ = _pole(street, z, x, height, rng.uniform(0.16, 0.26))
    colours = (((196, 30, 36), (236, 232, 226)), ((24, 66, 160), (40, 92, 190)), ((226, 180, 30), (240, 210, 60)))
    rim, face = colours[rng.choice(3)]
    corners = rng.choice((3, 4, 16))
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False) + np.pi / 2 + (np.pi / 4 if corners == 4 else 0)

    def paint(canvas: Canvas) -> None:
        pole(canvas)
        for radius, colour in ((size, rim), (0.68 * size, face)):
            outline = list(zip(x + radius * np.cos(angle), height + radius * np.sin(angle), strict=True))
            canvas.shape(z - 0.05, outline, SIGN, Material(colour, grain=0.03))

    return Item(z, paint)


def traffic_light(street: Street) -> Item:
    rng, z, x = street.rng, _depth(street.rng, 5, 28), _beside_road(street, 0.02, 0.25)
    height, half = rng.uniform(2.8, 4.0), rng.uniform(0.32, 0.45)
    pole, _ = _pole(street, z, x, height, rng.uniform(0.16, 0.26))
    lit = rng.choice(3)

    def paint(canvas: Canvas) -> None:
        pole(canvas)
        canvas.front(z - 0.05, x - half, x + half, height, height + 3.2 * half, LIGHT, Material((30, 34, 30), grain=0.03))
        for place, colour in enumerate(((30, 200, 110), (240, 180, 40), (230, 40, 36))):
            shown = colour if place == lit else tuple(np.array(colour) * 0.3)
            canvas.disc(z - 0.1, x, height + (0.65 + place) * half, 0.4 * half, 0.4 * half, LIGHT, Material(shown, grain=0.02))

    return Item(z, paint)


def _figure(street: Street, z: float, x: float, base: float, height: float, train_id: int) -> InstancePainter:
    """A person's legs, body and head; the feet are at the height `base`."""
    rng = street.rng
    width = rng.uniform(0.26, 0.36)
    grain = float(street.parameters["grain"])
    legs, body = (Material(street.paint_colour(), grain=grain) for _ in range(2))
    skin = Material(tuple(np.array((206, 160, 130)) * rng.uniform(0.45, 1.1)), grain=0.03)
    stride = rng.uniform(0.05, 0.3)

    def paint(canvas: Canvas, instance: int) -> None:
        hip, shoulder = base + 0.48 * height, base + 0.84 * height
        for lean in (-stride, stride):
            outline = [(x - 0.7 * width, hip), (x + 0.7 * width, hip), (x + lean + 0.12, base), (x + lean - 0.12, base)]
            canvas.shape(z, outline, train_id, legs, instance)
        outline = [(x - 0.75 * width, hip), (x + 0.75 * width, hip), (x + width, shoulder), (x - width, shoulder)]
        canvas.shape(z, outline, train_id, body, instance)
        canvas.disc(z, x, base + 0.92 * height, 0.075 * height, 0.09 * height, train_id, skin, instance)

    return paint


def person(street: Street) -> Item:
    z = _depth(street.rng, 4.5, 28)
    x = _beside_road(street, 0.1, 0.9) if street.rng.random() < 0.8 else street.rng.uniform(-0.8, 0.8) * street.road
    figure = _figure(street, z, x, 0.0, street.rng.uniform(1.55, 1.95), PERSON)

    def paint(canvas: Canvas) -> None:
        canvas.shade(x - 0.4, x + 0.4, z - 0.3, z + 0.3, 0.35)
        figure(canvas, canvas.new_instance())

    return Item(z, paint)


def _two_wheeler(z: float, x: float, train_id: int, paint_colour: Colour) -> InstancePainter:
    """A bicycle or motorcycle, seen from the side."""
    motor = train_id == MOTORCYCLE
    radius, half = (0.36, 0.72) if motor else (0.40, 0.62)
    tyre, body = Material(RUBBER, grain=0.04), Material(paint_colour, grain=0.04)
    metal = Material((150, 152, 156), grain=0.04)

    def paint(canvas: Canvas, instance: int) -> None:
        for wheel in (x - half, x + half):
            canvas.disc(z, wheel, radius, radius, radius, train_id, tyre, instance)
            canvas.disc(z, wheel, radius, 0.55 * radius, 0.55 * radius, train_id, metal, instance)
        top = 1.0 if motor else 0.95
        thickness = 0.36 if motor else 0.13
        beam = [(x - half, radius), (x - 0.2 * half, top), (x + 0.7 * half, top), (x + half, radius)]
        canvas.shape(z, [*beam, (x + 0.5 * half, top - thickness), (x - 0.1 * half, top - thickness)], train_id, body, instance)
        if motor:
            canvas.front(z, x - 0.6 * half, x + 0.6 * half, 0.3, 0.8, train_id, body, instance)
        canvas.front(z, x + 0.55 * half, x + 0.85 * half, top, top + 0.2, train_id, tyre, instance)

    return paint


def _ridden(train_id: int) -> Maker:
    """Makes two-wheelers on the road, with their riders."""

    def ridden(street: Street) -> Item:
        rng, z = street.rng, _depth(street.rng, 4.5, 22)
        x = rng.uniform(-0.95, 0.95) * street.road - street.camera_x
        machine = _two_wheeler(z, x, train_id, street.paint_colour())
        figure = _figure(street, z - 0.02, x - 0.1, 0.62, rng.uniform(1.3, 1.5), RIDER)

        def paint(canvas: Canvas) -> None:
            canvas.shade(x - 0.9, x + 0.9, z - 0.3, z + 0.3, 0.4)
            machine(canvas, canvas.new_instance())
            figure(canvas, canvas.new_instance())

        return Item(z, paint)

    return ridden


def _parked(train_id: int) -> Maker:
    """Makes two-wheelers that stand on the pavement."""

    def parked(street: Street) -> Item:
        z, x = _depth(street.rng, 4.5, 18), _beside_road(street, 0.05, 0.8)
        machine = _two_wheeler(z, x, train_id, street.paint_colour())
        return Item(z, lambda canvas: machine(canvas, canvas.new_instance()))

    return parked


def _in_lane(street: Street, parked: bool) -> tuple[float, int]:
    """An x in a lane, or with `parked` at the kerb, and the direction: 1 away from the camera (seen from behind), or -1."""
    side = street.rng.choice((-1, 1))
    place = street.rng.uniform(0.72, 0.85) if parked else street.rng.uniform(0.35, 0.6)
    return side * place * street.road - street.camera_x, side


def _box(canvas: Canvas, train_id: int, x: float, z: float, box: Box, material: Material, instance: int) -> float | None:
    """Paint the faces of a cuboid that the camera sees: the near one, and the side towards the middle of the picture.

    Returns:
        The x of that side, or None if the box is straight ahead and shows no side.
    """
    width, top, length, bottom = box
    inner = x - np.sign(x) * width / 2 if abs(x) > width / 2 else None
    canvas.shade(x - 0.6 * width, x + 0.6 * width, z - 0.4, z + length, 0.55)
    if inner is not None:
        canvas.side(inner, z, z + length, bottom, top, train_id, material, instance)
    canvas.front(z, x - width / 2, x + width / 2, bottom, top, train_id, material, instance)
    return inner


def _wheels(
    canvas: Canvas,
    train_id: int,
    x: float,
    z: float,
    width: float,
    length: float,
    inner: float | None,
    instance: int,
    radius: float = 0.34,
) -> None:
    """Paint the near wheels of a vehicle, and those of the side at x = `inner` if there is one (see `_box`)."""
    tyre = Material(RUBBER, grain=0.04)
    for place in (x - 0.38 * width, x + 0.38 * width):
        canvas.front(z - 0.02, place - 0.14, place + 0.14, 0, 2 * radius, train_id, tyre, instance)
    if inner is not None:
        for place in (0.18, 0.78):
            canvas.side(inner, z + place * length, z + place * length + 2 * radius, 0, 2 * radius, train_id, tyre, instance)


def car(street: Street) -> Item:
    rng, z = street.rng, _depth(street.rng, 5, 60)
    x, side = _in_lane(street, parked=rng.random() < 0.55)
    width, height, length = rng.uniform(1.7, 1.95), rng.uniform(1.4, 1.75), rng.uniform(3.8, 4.8)
    body, glass = Material(street.paint_colour(), grain=0.04), Material(GLASS, grain=0.04)
    lamps = Material((190, 26, 24) if side > 0 else (236, 232, 210), grain=0.02)
    belt = 0.56 * height

    def paint(canvas: Canvas) -> None:
        instance = canvas.new_instance()
        roof = Box(0.8 * width, height, 0.6 * length, belt)
        inner = _box(canvas, CAR, x, z, Box(width, belt, length, 0.22), body, instance)
        cabin = _box(canvas, CAR, x, z + 0.15 * length, roof, body, instance)
        back = z + 0.15 * length
        canvas.front(back - 0.01, x - 0.34 * width, x + 0.34 * width, belt + 0.06, height - 0.1, CAR, glass, instance)
        if cabin is not None:
            canvas.side(cabin, back + 0.2, back + 0.55 * length, belt + 0.06, height - 0.12, CAR, glass, instance)
        canvas.front(z, x - width / 2, x + width / 2, 0.22, belt, CAR, body, instance)
        for place in (x - 0.42 * width, x + 0.42 * width):
            canvas.front(z - 0.01, place - 0.13, place + 0.13, 0.62 * belt, 0.9 * belt, CAR, lamps, instance)
        canvas.front(z - 0.01, x - 0.2, x + 0.2, 0.35, 0.5, CAR, Material((225, 225, 215), grain=0.02), instance)
        _wheels(canvas, CAR, x, z, width, length, inner, instance)

    return Item(z, paint)


def truck(street: Street) -> Item:
    rng, z = street.rng, _depth(street.rng, 8, 45)
    x, side = _in_lane(street, parked=rng.random() < 0.3)
    width, height, length = rng.uniform(2.3, 2.6), rng.uniform(3.0, 3.8), rng.uniform(6, 9)
    colour = street.paint_colour()
    cargo = Material(colour, tuple(0.72 * np.array(colour)), RIBS, (0.6, 0.6), 0.05)
    dark = Material((52, 52, 56), grain=0.05)

    def paint(canvas: Canvas) -> None:
        instance = canvas.new_instance()
        _box(canvas, TRUCK, x, z, Box(width, 1.0, length, 0.4), dark, instance)
        inner = _box(canvas, TRUCK, x, z, Box(width, height, length, 1.0), cargo, instance)
        canvas.front(z - 0.01, x - 0.02, x + 0.02, 1.0, height, TRUCK, dark, instance)
        for place in (x - 0.42 * width, x + 0.42 * width):
            canvas.front(z - 0.01, place - 0.14, place + 0.14, 0.55, 0.8, TRUCK, Material((190, 30, 26), grain=0.02), instance)
        _wheels(canvas, TRUCK, x, z, width, length, inner, instance, 0.5)

    return Item(z, paint)


def _coach(train_id: int, height_range: tuple[float, float], length_range: tuple[float, float], two_tone: bool) -> Maker:
    """Makes buses or trains: long boxes with a row of windows, and either a stripe (`two_tone`) or wheels and a sign."""

    def coach(street: Street) -> Item:
        rng, z = street.rng, _depth(street.rng, 8, 45)
        x, _ = _in_lane(street, parked=False)
        width, height, length = rng.uniform(2.4, 2.7), rng.uniform(*height_range), rng.uniform(*length_range)
        body, glass = Material(street.paint_colour(), grain=0.04), Material(GLASS, (96, 104, 112), PLAIN, grain=0.04)
        stripe = Material(street.paint_colour(), grain=0.04)

        def paint(canvas: Canvas) -> None:
            instance = canvas.new_instance()
            inner = _box(canvas, train_id, x, z, Box(width, height, length, 0.3), body, instance)
            low, high = (0.42 * height, 0.78 * height) if train_id == BUS else (0.5 * height, 0.8 * height)
            if inner is not None:
                if two_tone:
                    canvas.side(inner, z, z + length, 0.3, 0.38 * height, train_id, stripe, instance)
                for start in np.arange(z + 0.4, z + length - 1.0, 1.7):
                    canvas.side(inner, start, start + 1.3, low, high, train_id, glass, instance)
            canvas.front(z - 0.01, x - 0.42 * width, x + 0.42 * width, low, high, train_id, glass, instance)
            if two_tone:
                canvas.front(z - 0.01, x - width / 2, x + width / 2, 0.3, 0.38 * height, train_id, stripe, instance)
                canvas.front(z - 0.01, x - 0.9, x + 0.9, 0.1, 0.3, train_id, Material((40, 40, 42)), instance)
            else:
                plate = Material((244, 170, 30), grain=0.02)
                canvas.front(z - 0.01, x - 0.6, x + 0.6, 0.84 * height, 0.93 * height, train_id, plate, instance)
                _wheels(canvas, train_id, x, z, width, length, inner, instance, 0.46)

        return Item(z, paint)

    return coach


# For each parameter that says how many there are: the makers that one is chosen from each time.
OBJECTS: dict[str, tuple[Maker, ...]] = {
    "trees": (tree,),
    "poles": (lamp, sign, sign, traffic_light, traffic_light),
    "people": (person,),
    "riders": (_ridden(BICYCLE), _ridden(MOTORCYCLE)),
    "parked_two_wheelers": (_parked(BICYCLE), _parked(MOTORCYCLE)),
    "cars": (car,),
    "large_vehicles": (truck, _coach(BUS, (2.9, 3.3), (9, 12), False), _coach(TRAIN, (3.2, 3.7), (16, 28), True)),
}
