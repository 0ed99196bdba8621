"""The gap between the two domains: every parameter of the renderer as a (source, target) pair in one of five parts.

A parameter's value in the target domain is source + strength * part_strength * (target - source): strength 0 makes the
domains the same, 1 goes all the way, and each part can be turned up or down by itself.
"""

import numpy as np

PARTS = ("tone", "texture", "light", "sensor", "layout")
SOURCE, TARGET = "source", "target"

# name: (part, source, target). Lengths in metres, colours in 0..255, probabilities and counts per scene or side.
GAP = {
    # colour and tone of the camera
    "gain": ("tone", (1.0, 1.0, 1.0), (0.86, 0.92, 0.98)),
    "gamma": ("tone", 1.0, 1.18),
    "saturation": ("tone", 1.15, 0.72),
    # materials: their colours and the amplitude and scale of their patterns
    "road_colour": ("texture", (104, 104, 108), (70, 68, 72)),
    "pavement_colour": ("texture", (158, 152, 146), (104, 100, 104)),
    "building_colour": ("texture", (182, 142, 112), (118, 112, 108)),
    "wall_colour": ("texture", (150, 108, 88), (126, 122, 116)),
    "fence_colour": ("texture", (120, 92, 62), (92, 98, 104)),
    "vegetation_colour": ("texture", (66, 128, 44), (64, 84, 46)),
    "terrain_colour": ("texture", (128, 158, 74), (122, 116, 80)),
    "pole_colour": ("texture", (116, 118, 122), (72, 76, 78)),
    "grain": ("texture", 0.05, 0.20),
    "window_size": ("texture", 1.3, 2.3),
    "window_contrast": ("texture", 0.75, 0.45),
    "paint_saturation": ("texture", 0.9, 0.35),
    # illumination and air
    "sky_colour": ("light", (112, 158, 222), (206, 208, 212)),
    "haze": ("light", 0.003, 0.022),
    "shadow": ("light", 0.5, 0.12),
    "vignette": ("light", 0.05, 0.35),
    # sensor; blur and sharpening in pixels of an image 128 high
    "noise": ("sensor", 2.0, 9.0),
    "blur": ("sensor", 0.0, 0.75),
    # layout and class frequency
    "camera_height": ("layout", 1.75, 1.25),
    "horizon": ("layout", 0.46, 0.40),
    "focal": ("layout", 0.95, 1.15),
    "road_half_width": ("layout", 5.6, 3.9),
    "pavement_width": ("layout", 2.2, 3.4),
    "terrain_strip": ("layout", 0.45, 0.7),
    "building_share": ("layout", 0.62, 0.42),
    "wall_share": ("layout", 0.14, 0.16),
    "fence_share": ("layout", 0.14, 0.18),
    "building_height": ("layout", 13.0, 8.5),
    "trees": ("layout", 1.6, 3.4),
    "poles": ("layout", 2.2, 3.0),
    "people": ("layout", 2.2, 3.6),
    "riders": ("layout", 1.0, 1.7),
    "cars": ("layout", 3.4, 4.6),
    "large_vehicles": ("layout", 1.1, 0.9),
    "parked_two_wheelers": ("layout", 0.7, 1.2),
}


def domain_parameters(domain, strength=0.5, parts=None):
    """{name: value} of a domain; `parts` maps names of PARTS to multipliers of `strength` (default 1 each).

    Raises:
        ValueError: unknown domain or part.
    """
    if domain not in (SOURCE, TARGET):
        raise ValueError(f"unknown domain {domain!r}; known: source, target")
    parts = {**dict.fromkeys(PARTS, 1.0), **(parts or {})}
    unknown = set(parts) - set(PARTS)
    if unknown:
        raise ValueError(f"unknown part of the gap {sorted(unknown)[0]!r}; known: {', '.join(PARTS)}")
    values = {}
    for name, (part, source, target) in GAP.items():
        amount = 0.0 if domain == SOURCE else strength * parts[part]
        source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
        values[name] = source + amount * (target - source)
    return values
