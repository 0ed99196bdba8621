"""The gap between the two domains: every parameter of the renderer as a (source, target) pair in one of five parts.

A parameter's value in the target domain is source + strength * part_strength * (target - source): strength 0 makes the
domains the same, 1 goes all the way, and each part can be turned up or down by itself.
"""

from collections.abc import Mapping

import numpy as np

# A domain's parameters by name: float64, numbers as arrays without dimensions, colours and gains of shape (3,).
Parameters = Mapping[str, np.ndarray]
Value = float | tuple[float, float, float]

PARTS = ("tone", "texture", "light", "sensor", "layout")
SOURCE, TARGET = "source", "target"

# name: (part, source, target). Lengths in metres, colours in 0..255, probabilities and counts per scene or side.
GAP: dict[str, tuple[str, Value, Value]] = {
    # colour and tone of the camera
    "gain": ("tone", (1.0, 1.0, 1.0), (0.916, 0.952, 0.988)),
    "gamma": ("tone", 1.0, 1.11),
    "saturation": ("tone", 1.15, 0.892),
    # materials: their colours and the amplitude and scale of their patterns
    "road_colour": ("texture", (104, 104, 108), (53, 50, 54)),
    "pavement_colour": ("texture", (158, 152, 146), (77, 74, 83)),
    "building_colour": ("texture", (182, 142, 112), (86, 97, 106)),
    "wall_colour": ("texture", (150, 108, 88), (114, 129, 130)),
    "fence_colour": ("texture", (120, 92, 62), (78, 101, 125)),
    "vegetation_colour": ("texture", (66, 128, 44), (63, 62, 47)),
    "terrain_colour": ("texture", (128, 158, 74), (119, 95, 83)),
    "pole_colour": ("texture", (116, 118, 122), (50, 55, 56)),
    "grain": ("texture", 0.05, 0.275),
    "window_size": ("texture", 1.3, 2.8),
    "window_contrast": ("texture", 0.75, 0.3),
    "paint_saturation": ("texture", 0.9, 0.075),
    # illumination and air
    "sky_colour": ("light", (112, 158, 222), (197, 203, 213)),
    "haze": ("light", 0.003, 0.0201),
    "shadow": ("light", 0.5, 0.158),
    "vignette": ("light", 0.05, 0.32),
    # sensor; blur and sharpening in pixels of an image 128 high
    "noise": ("sensor", 2.0, 6.2),
    "blur": ("sensor", 0, 0.45),
    # layout and class frequency
    "camera_height": ("layout", 1.75, 1.45),
    "horizon": ("layout", 0.46, 0.424),
    "focal": ("layout", 0.95, 1.07),
    "road_half_width": ("layout", 5.6, 4.58),
    "pavement_width": ("layout", 2.2, 2.92),
    "terrain_strip": ("layout", 0.45, 0.6),
    "building_share": ("layout", 0.62, 0.5),
    "wall_share": ("layout", 0.14, 0.152),
    "fence_share": ("layout", 0.14, 0.164),
    "building_height": ("layout", 13.0, 10.3),
    "trees": ("layout", 1.6, 2.68),
    "poles": ("layout", 2.2, 2.68),
    "people": ("layout", 2.2, 3.04),
    "riders": ("layout", 1.0, 1.42),
    "cars": ("layout", 3.4, 4.12),
    "large_vehicles": ("layout", 1.1, 0.98),
    "parked_two_wheelers": ("layout", 0.7, 1.0),
}


def domain_parameters(domain: str, strength: float = 0.5, parts: Mapping[str, float] | None = None) -> Parameters:
    """The value of every parameter of GAP in a domain.

    Args:
        domain: SOURCE or TARGET.
        strength: of the whole gap: 0 none, 1 all the way.
        parts: factors of `strength` for some of PARTS; 1 for the others.

    Raises:
        ValueError: unknown domain or part.
    """
    if domain not in (SOURCE, TARGET):
        raise ValueError(f"unknown domain {domain!r}; known: source, target")
    factors = {**dict.fromkeys(PARTS, 1.0), **(parts or {})}
    unknown = set(factors) - set(PARTS)
    if unknown:
        raise ValueError(f"unknown part of the gap {sorted(unknown)[0]!r}; known: {', '.join(PARTS)}")
    values = {}
    for name, (part, source, target) in GAP.items():
        amount = 0.0 if domain == SOURCE else strength * factors[part]
        start, end = np.asarray(source, np.float64), np.asarray(target, np.float64)
        values[name] = np.asarray(start + amount * (end - start))
    return values
