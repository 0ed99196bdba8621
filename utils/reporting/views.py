"""What a method looks at: maps of an image that show what drives it, and numbers for each class."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .runs import TrainingRun


@dataclass(frozen=True)
class View:
    """What one method looks at, for people.

    Attributes:
        title, text: what is shown, and how to read it.
        maps: for each image {title: numbers (H,W)}.
        low, high: what the darkest and the lightest colour of the maps mean.
        per_class: {title: a number for each class}.
    """

    title: str
    text: str
    maps: Sequence[Mapping[str, np.ndarray]] = ()
    low: str = "low"
    high: str = "high"
    per_class: Mapping[str, Sequence[float]] = field(default_factory=dict)


# From a run and the paths of images to what its method looks at; None if it is not known or nothing was left to see it from.
Viewer = Callable[[TrainingRun, Sequence[str]], View | None]
