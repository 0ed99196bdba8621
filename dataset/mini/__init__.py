"""The embedded pair of domains: rendered street scenes of all 19 classes, with a gap whose parts can be turned up and down."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ..catalogue import LABEL_IDS
from .domains import PARTS, SOURCE, TARGET, domain_parameters
from .scene import paint_street
from .shading import shade

__all__ = ["PARTS", "SOURCE", "TARGET", "Scene", "domain_parameters", "render"]

EGO_VEHICLE = 1  # Cityscapes label id of the car that carries the camera; ignored in training


class Scene(NamedTuple):
    """A rendered scene: `image` (H,W,3) uint8 RGB, `label_ids` (H,W) uint8 Cityscapes ids, `instances` (H,W) uint16."""

    image: np.ndarray
    label_ids: np.ndarray
    instances: np.ndarray


def render(
    domain: str,
    seed: int,
    index: int,
    size: tuple[int, int] = (192, 96),
    strength: float = 0.5,
    parts: Mapping[str, float] | None = None,
    split: str = "train",
) -> Scene:
    """Render scene `index` of a domain: the same arguments give the same pixels.

    Args:
        domain: "source" or "target"; in the target the bonnet of the camera car is in the picture.
        seed: another seed gives other scenes, for all indices.
        size: (width, height) in pixels.
        strength, parts: of the gap; see `domain_parameters`.
        split: another split has other scenes.

    Raises:
        ValueError: unknown domain or part of the gap.
    """
    parameters = domain_parameters(domain, strength, parts)
    rng = np.random.default_rng([seed, index, *f"{domain}/{split}".encode()])
    canvas = paint_street(parameters, rng, *size)
    image, parts_map = shade(canvas, parameters, rng)
    rows = np.array(canvas.rows, np.int64)
    label_ids = np.array(list(LABEL_IDS), np.uint8)[rows[:, 2]][parts_map - 1]
    instances = rows[:, 3].astype(np.uint16)[parts_map - 1]
    if domain == TARGET:
        _add_bonnet(image, label_ids, instances)
    return Scene(image, label_ids, instances)


def _add_bonnet(image: np.ndarray, label_ids: np.ndarray, instances: np.ndarray) -> None:
    """Paint the camera car's bonnet over the lowest rows of a scene, in place."""
    height, width = label_ids.shape
    x = np.linspace(-1, 1, width)
    top = height * (0.93 + 0.05 * x**2)
    bonnet = np.arange(height)[:, None] > top[None, :]
    gradient = np.linspace(70, 40, height)[:, None].repeat(width, 1)
    image[bonnet] = gradient[bonnet][:, None].astype(np.uint8)
    label_ids[bonnet] = EGO_VEHICLE
    instances[bonnet] = 0
