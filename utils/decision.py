"""Which class wins."""

import torch
from torch import Tensor


def highest(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The highest of the classes' scores (...,C,H,W) and the class that has it, (...,H,W) uint8; of equal ones the first.

    As `scores.max(-3)`, which takes several times as long on a CPU.
    """
    best = scores.amax(-3)
    num_classes = scores.shape[-3]
    from_last = torch.arange(num_classes, 0, -1, dtype=torch.uint8, device=scores.device)[:, None, None]
    reaches_it = (scores < best.unsqueeze(-3)).logical_not_().view(torch.uint8)
    return best, num_classes - (reaches_it * from_last).amax(-3)
