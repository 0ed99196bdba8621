"""Interpolation to full size, band after band of rows.

Scores of 19 classes at 2048x1024 are 160 MB, and every operation on all of them moves so much; a band stays in the cache.
Interpolating is linear, so along one axis it is a matrix: what it makes of the identity.
"""

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from model import upsample

# On a CPU. On a GPU, where every band would cost launches, all rows are one.
ROWS_OF_A_BAND = 16


def bands(columns: Tensor, weights: Tensor) -> Iterator[Tensor]:
    """`weights @ columns` from top to bottom, some rows at a time.

    Args:
        columns: (...,h,W), on any device.
        weights: (H,h) on the CPU; in each row only a few neighbours are not 0.

    Yields (...,rows,W) on the device of `columns`.
    """
    for part in weights.split(ROWS_OF_A_BAND if columns.device.type == "cpu" else len(weights)):
        used = part.any(0).nonzero()
        window = slice(int(used.min()), int(used.max()) + 1)
        yield product(part[:, window].to(columns.device, non_blocking=True), columns[..., window, :])


def product(left: Tensor, right: Tensor) -> Tensor:
    """The matrix product, in full precision also where mixed precision is on: it stands for an interpolation."""
    with torch.autocast(right.device.type, enabled=False):
        return left @ right


@lru_cache(8)
def logit_weights(length: int, new_length: int) -> Tensor:
    """(new_length, length): `model.upsample` along one axis."""
    return upsample(torch.eye(length)[None, None], (new_length, length))[0, 0]
