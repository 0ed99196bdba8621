"""The state that a run resumes from: saved so that a kill at any moment leaves one that can be read."""

import os
import zipfile
from typing import Any

import torch

from .errors import RunError
from .files import add_checksum, replacing

# What every state holds; `utils.run` puts it in.
KEYS = ("next_step", "args", "networks", "optimizers", "loaders", "scaler", "random", "best", "last")


class StateError(RunError):
    """A run's state cannot be read or does not belong to this run."""


def save_tensors(value: Any, path: str, for_originals: bool = False) -> None:
    """`torch.save` as a whole file or not at all, with checksums.

    With `for_originals` in the format that PyTorch reads since 0.4, which gets one checksum behind its end; today's needs 1.6
    and has one for each tensor. PyTorch itself checks neither.
    """
    with replacing(path) as file:
        torch.save(value, file, _use_new_zipfile_serialization=not for_originals)
        if for_originals:
            add_checksum(file)


def save_state(state: dict[str, Any], path: str) -> None:
    """Save a run's state to `path`, keeping the one that was there as its predecessor (`predecessor(path)`)."""
    new = f"{path}.new"
    save_tensors(state, new)
    if os.path.exists(path):
        os.replace(path, predecessor(path))
    os.replace(new, path)


def predecessor(path: str) -> str:
    root, extension = os.path.splitext(path)
    return f"{root}.previous{extension}"


def has_state(directory: str) -> bool:
    """True if a run directory holds a state to resume from, be it the predecessor of one that was being written."""
    path = os.path.join(directory, "state.pth")
    return os.path.exists(path) or os.path.exists(predecessor(path))


def load_state(path: str) -> tuple[dict[str, Any], list[str]]:
    """Return (state, notes): the newest readable one of `path` and its predecessor, and why a newer one was passed over. Who
    goes on from the predecessor must `discard_damaged` first, or the next save would put the damaged state in its place.

    Raises:
        StateError: neither can be read; the message says why for each.
    """
    problems: list[str] = []
    for candidate in (path, predecessor(path)):
        try:
            return _read(candidate), problems
        except StateError as error:
            problems.append(str(error))
    raise StateError("nothing to resume from: " + "; ".join(problems))


def discard_damaged(path: str) -> None:
    """Put the predecessor in the place of a state that cannot be read."""
    os.replace(predecessor(path), path)


def _read(path: str) -> dict[str, Any]:
    if not os.path.exists(path):
        raise StateError(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"{damaged} does not fit its checksum")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StateError(f"{path}: truncated or not a state file ({reason})") from error
    if not isinstance(state, dict) or "next_step" not in state:
        raise StateError(f"{path}: a PyTorch file, but not the state of a run (weights go to --restore-from)")
    missing = [key for key in KEYS if key not in state]
    if missing:
        raise StateError(f"{path}: the state of a run of another version, it lacks {', '.join(missing)}")
    return state
