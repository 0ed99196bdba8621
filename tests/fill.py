"""Deterministic network weights, so that two implementations of one network can be compared without shipping it.

``fill(state_dict, seed)`` gives every tensor values that depend only on its key, its shape and ``seed``: load the result
into any network that uses the same keys and the same forward pass, and the outputs agree. ``noise`` makes the inputs.
"""

import zlib

import numpy as np


def _generator(name, seed):
    return np.random.default_rng([zlib.crc32(name.encode()), seed])


def noise(name, shape, seed=0, scale=1.0):
    """Return a float32 array of ``shape`` drawn from N(0, scale), the same for the same name and seed."""
    return (_generator(name, seed).standard_normal(shape) * scale).astype(np.float32)


def fill(shapes, seed=0):
    """Return {key: float32 array} for ``shapes``, a {key: shape} mapping (integer buffers such as num_batches_tracked: 0).

    Weights with two or more axes: N(0, 1/fan_in). ``running_var``: 1 + 0.1 |n|. One-axis ``weight`` (norm scales):
    1 + 0.1 n. Everything else (biases, running means): 0.1 n, with n ~ N(0, 1).
    """
    filled = {}
    for key, shape in shapes.items():
        shape = tuple(shape)
        if key.endswith("num_batches_tracked"):
            filled[key] = np.zeros(shape, np.int64)
            continue
        n = _generator(key, seed).standard_normal(shape)
        if len(shape) >= 2:
            value = n / np.sqrt(np.prod(shape[1:]))
        elif key.endswith("running_var"):
            value = 1 + 0.1 * np.abs(n)
        elif key.endswith("weight"):
            value = 1 + 0.1 * n
        else:
            value = 0.1 * n
        filled[key] = value.astype(np.float32)
    return filled
