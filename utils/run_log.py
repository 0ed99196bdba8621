"""What a run writes down while it trains: `metrics.jsonl` and TensorBoard."""

import itertools
import json
import math
import os
import threading
from argparse import Namespace
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from .files import naming, replacing
from .wandb_writer import WandbWriter


class Board(Protocol):
    """TensorBoard's SummaryWriter, and whatever else takes what it takes."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...

    def add_image(self, tag: str, img_tensor: np.ndarray, global_step: int, *, dataformats: str) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class RunLog:
    """The log of the run in `directory`, from step `first_step` on; lines that an interrupted run wrote beyond it are dropped.

    Every process has one, but only the main one (`writes`) has files. With --wandb in `args` it tells Weights & Biases, too.
    """

    def __init__(self, directory: str, first_step: int, writes: bool, args: Namespace | None = None) -> None:
        self.writes = writes
        if not writes:
            return
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only runs need it

        self.path, self.board_file = (os.path.join(directory, name) for name in ("metrics.jsonl", "events.out.tfevents"))
        drop_lines_from(self.path, first_step)
        self.metrics = open(self.path, "a", buffering=1)
        threading.excepthook = _without_system_errors
        # A run that starts again, killed before its first state, has events of its first steps, too.
        with naming(self.board_file):
            self.boards: list[Board] = [SummaryWriter(directory, purge_step=first_step)]
        if args is not None and args.wandb:
            self.boards.append(WandbWriter(args.wandb, directory, vars(args), resumed=first_step > 0))

    def line(self, step: int, groups: Mapping[str, Mapping[str, float]]) -> None:
        """A line of `metrics.jsonl`, and the same numbers in TensorBoard under the names of their groups; one that is not
        finite is null, which JSON can say."""
        if not self.writes:
            return
        numbers = {name: _finite(value) for values in groups.values() for name, value in values.items()}
        self._write({"step": step, **numbers})
        with naming(self.board_file):
            for board, (group, values) in itertools.product(self.boards, groups.items()):
                for name, value in values.items():
                    board.add_scalar(f"{group}/{name}", value, step)

    def validation(self, step: int, domain: str, miou: float, iou: Mapping[str, float]) -> None:
        """The IoU of a validation, in fractions; classes that are absent (nan) are null."""
        if not self.writes:
            return
        prefix = f"{domain}_" if domain else ""
        known = {name: _finite(value) for name, value in iou.items()}
        self._write({"step": step, f"{prefix}val_miou": miou, f"{prefix}val_iou": known})
        with naming(self.board_file):
            for board in self.boards:
                board.add_scalar(f"{prefix}validation/mIoU", miou, step)
                for name, value in known.items():
                    if value is not None:
                        board.add_scalar(f"{prefix}validation IoU/{name}", value, step)

    def damaged(self, step: int, error: str) -> None:
        """A sample of this step that was replaced by another one."""
        if self.writes:
            self._write({"step": step, "damaged": error})

    def picture(self, step: int, title: str, picture: np.ndarray) -> None:
        """An (H,W,3) uint8 picture in TensorBoard."""
        if self.writes:
            with naming(self.board_file):
                for board in self.boards:
                    board.add_image(title, picture, step, dataformats="HWC")

    def flush(self) -> None:
        """Wait until TensorBoard's thread has written everything, so that a state that is saved next has its events."""
        if self.writes:
            with naming(self.board_file):
                for board in self.boards:
                    board.flush()

    def close(self) -> None:
        if self.writes:
            self.flush()
            self.metrics.close()
            with naming(self.board_file):
                for board in self.boards:
                    board.close()

    def _write(self, row: Mapping[str, Any]) -> None:
        with naming(self.path):
            self.metrics.write(json.dumps(row) + "\n")


def _without_system_errors(args: threading.ExceptHookArgs) -> None:
    """Print no traceback of what TensorBoard's thread could not write: the next call here raises it and names the file."""
    if not isinstance(args.exc_value, OSError):
        threading.__excepthook__(args)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def drop_lines_from(path: str, step: int) -> None:
    if not os.path.exists(path):
        return
    with open(path, "rb") as file:
        kept = [line for line in file if _step_of(line) < step]
    with replacing(path) as file:
        file.writelines(kept)


def _step_of(line: bytes) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return math.inf  # the last line of a killed process may be cut off, and on a damaged disk anything may stand there
