"""Files that a killed process cannot leave half-written, and the random state that an exact resume needs."""

import json
import os
import random

import numpy as np
import torch

from . import distributed


class StateError(RuntimeError):
    """A run's state cannot be read or does not belong to this run."""


def save_atomically(value, path, for_originals=False):
    """`torch.save` to a temporary file beside `path`, synced to the disk, then renamed: `path` is old or new, never partial.

    With `for_originals` in the format that PyTorch reads since 0.4; today's needs 1.6.
    """
    temporary = f"{path}.tmp"
    with open(temporary, "wb") as file:
        torch.save(value, file, _use_new_zipfile_serialization=not for_originals)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(value, path):
    """Write JSON to a temporary file beside `path`, then rename."""
    with open(f"{path}.tmp", "w") as file:
        json.dump(value, file, indent=2)
    os.replace(f"{path}.tmp", path)


def claim_directory(directory, made_from, resume):
    """Note in a directory of generated files what they are made from (`made_from.json`), so that two sets never mix.

    A note without files, as a start leaves that failed at once, counts for nothing; so do other JSON files beside it.

    Raises:
        StateError: it holds files made from something else already, or from the same without `resume`.
    """
    note = os.path.join(directory, "made_from.json")
    if os.path.exists(note) and _holds_files(directory):
        with open(note) as file:
            found = json.load(file)
        if not resume:
            raise StateError(f"{directory} holds files already: go on with --resume, remove them, or choose another directory")
        changed = [key for key in {**found, **made_from} if found.get(key) != made_from.get(key)]
        if changed:
            changes = ", ".join(f"{key} {found.get(key)} (now {made_from.get(key)})" for key in changed)
            raise StateError(f"{directory} holds files already, made with other settings: {changes}")
    distributed.wait_for_all()
    if distributed.is_main():
        os.makedirs(directory, exist_ok=True)
        write_json(made_from, note)
    distributed.wait_for_all()


def _holds_files(directory):
    return any(folder != directory or not name.endswith(".json") for folder, _, names in os.walk(directory) for name in names)


def save_state(state, path):
    """Save a run's state to `path`, keeping the one that was there as its predecessor (`predecessor(path)`)."""
    temporary = f"{path}.new"
    save_atomically(state, temporary)
    if os.path.exists(path):
        os.replace(path, predecessor(path))
    os.replace(temporary, path)


def predecessor(path):
    root, extension = os.path.splitext(path)
    return f"{root}.previous{extension}"


def has_state(directory):
    """True if a run directory holds a state to resume from, be it the predecessor of one that was being written."""
    path = os.path.join(directory, "state.pth")
    return os.path.exists(path) or os.path.exists(predecessor(path))


def load_state(path):
    """Return (state, notes): the newest readable one of `path` and its predecessor, and why a newer one was passed over.

    Raises:
        StateError: neither can be read; the message says why for each.
    """
    problems = []
    for candidate in (path, predecessor(path)):
        try:
            return _read(candidate), problems
        except StateError as error:
            problems.append(str(error))
    raise StateError("nothing to resume from: " + "; ".join(problems))


def _read(path):
    if not os.path.exists(path):
        raise StateError(f"{path}: no such file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StateError(f"{path}: truncated or not a state file ({reason})") from error
    if not isinstance(state, dict) or "next_step" not in state:
        raise StateError(f"{path}: a PyTorch file, but not the state of a run (weights go to --restore-from)")
    return state


def random_state():
    """The state of every random generator of this process."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "python": [version, list(internal), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state):
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state.get("cuda", ())) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def seed_everything(seed):
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
