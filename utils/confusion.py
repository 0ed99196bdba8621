"""The confusion matrix of predictions, counted where they are made. What it says is in `utils.iou`."""

import torch

from .distributed import sum_across_processes


class ConfusionMatrix:
    """Counts of (ground truth, prediction) pairs, rows ground truth, on the device of what is counted.

    Pixels whose label is not in 0..num_classes-1 are left out.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def add(self, label: torch.Tensor, prediction: torch.Tensor) -> None:
        """Count one or more label maps against predictions of the same shape (any integer type).

        Raises:
            ValueError: the shapes differ, or a counted pixel's prediction is no class.
        """
        if label.shape != prediction.shape:
            raise ValueError(f"prediction of shape {tuple(prediction.shape)} for a label of shape {tuple(label.shape)}")
        # Counting what is no class in a row and a column of its own is 10 times faster than picking out the rest.
        size = self.num_classes + 1
        cells = _clipped(label, self.num_classes) * size + _clipped(prediction, self.num_classes)
        counts = torch.bincount(cells.flatten(), minlength=size**2).view(size, size)[:-1]
        if counts[:, -1].any():
            raise ValueError(f"{int(counts[:, -1].sum())} predicted pixels are no class (0..{self.num_classes - 1})")
        self.matrix += counts[:, :-1].to(self.matrix.device)

    def reduce(self) -> "ConfusionMatrix":
        """Sum over all processes, in place."""
        self.matrix = sum_across_processes(self.matrix)
        return self


def _clipped(ids: torch.Tensor, limit: int) -> torch.Tensor:
    """Ids as int32, `limit` for everything outside 0..limit-1."""
    if ids.dtype.is_signed:
        ids = torch.where(ids < 0, limit, ids)
    return ids.clamp(max=limit).to(torch.int32)
