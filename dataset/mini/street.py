"""The measures and materials that everything in one scene shares."""

import numpy as np

from .canvas import Colour, Material
from .domains import Parameters


class Street:
    """The measures and materials of one scene, drawn at random around a domain's parameters.

    Attributes:
        road, pavement: distance in metres from the middle of the road to its edge and to the outer edge of the pavement.
        camera_x: how far to the right of the middle the camera is, in metres.
        sun_side: the side of the street that lies in the shadow: -1 left, 1 right.
    """

    def __init__(self, parameters: Parameters, rng: np.random.Generator) -> None:
        self.parameters, self.rng = parameters, rng
        self.road = self.vary("road_half_width", 0.15)
        self.pavement = self.road + self.vary("pavement_width", 0.25)
        self.camera_x = rng.uniform(-0.35, 0.35) * self.road
        self.sun_side = rng.choice((-1, 1))

    def vary(self, name: str, spread: float) -> float:
        """A parameter, more or less by up to the share `spread`."""
        return float(self.parameters[name] * self.rng.uniform(1 - spread, 1 + spread))

    def count(self, name: str) -> int:
        """How many there are of something, with the parameter as the mean."""
        return int(self.rng.poisson(self.parameters[name]))

    def colour(self, name: str, spread: float = 0.12, hue: float = 0.06) -> Colour:
        """A parameter's colour with random brightness and a little random hue."""
        base = self.parameters[name] * self.rng.uniform(1 - spread, 1 + spread)
        return tuple(np.clip(base * self.rng.uniform(1 - hue, 1 + hue, 3), 0, 255))

    def paint_colour(self) -> Colour:
        """The colour of something painted or worn: a random hue at the domain's saturation."""
        saturation = float(self.parameters["paint_saturation"]) * self.rng.uniform(0.3, 1.0)
        grey, colour = self.rng.uniform(30, 220), self.rng.uniform(20, 235, 3)
        return tuple(grey + saturation * (colour - grey))

    def material(self, name: str, second: float = 0.7, *, pattern: int, scale: tuple[float, float]) -> Material:
        """A patterned material of a parameter's colour, whose second colour is `second` times as bright."""
        colour = self.colour(name)
        return Material(colour, tuple(second * np.array(colour)), pattern, scale, float(self.parameters["grain"]))
