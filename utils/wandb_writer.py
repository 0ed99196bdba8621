"""Weights & Biases as a second TensorBoard: a writer with the methods of SummaryWriter that a run's log calls."""

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from .files import write_json

# The service's name of the run in a directory, so that a resumed run goes on there, too.
NOTE = "wandb.json"


class WandbWriter:
    """Sends to `project`, as a run that is called after the last two folders of `directory`.

    Its package is imported here and nowhere else: without --wandb nothing of it is loaded, and nothing leaves the machine.
    """

    def __init__(self, project: str, directory: str, flags: Mapping[str, Any], resumed: bool) -> None:
        import wandb  # type: ignore[import-not-found]  # an extra

        self.wandb = wandb
        path = os.path.join(directory, NOTE)
        name = "/".join(os.path.abspath(directory).split(os.sep)[-2:])
        self.run = wandb.init(
            project=project, name=name, dir=directory, config=dict(flags), id=_noted(path) if resumed else None, resume="allow"
        )
        write_json(path, {"id": self.run.id})
        # Lines come late and a resumed run repeats some: the x axis is our step, not the service's count of messages.
        self.run.define_metric("*", step_metric="step")

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.run.log({tag: scalar_value, "step": global_step})

    def add_image(self, tag: str, img_tensor: np.ndarray, global_step: int, dataformats: str) -> None:
        """An (H,W,3) uint8 picture: `dataformats` is HWC."""
        self.run.log({tag: self.wandb.Image(img_tensor), "step": global_step})

    def flush(self) -> None:
        """Nothing to do: a resumed run sends again what its last state does not know of."""

    def close(self) -> None:
        self.run.finish()


def _noted(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)["id"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # the run was started without --wandb
