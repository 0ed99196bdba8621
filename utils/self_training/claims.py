"""Directories of several stages or rounds: used by one process at a time, and what their files were made from, so that those of
two runs never mix."""

import contextlib
import json
import os
from argparse import Namespace
from collections.abc import Iterator, Mapping
from typing import Any

from .. import distributed
from ..files import sweep, write_json
from ..locks import Lock
from ..outputs import check_outside_data
from ..state import StateError
from ..stop_signals import StopSignals
from ..watchdog import watching

NOTE = "made_from.json"
FINISHED = "finished.json"
GENERATED = (".json", ".png", ".npz")


@contextlib.contextmanager
def working_in(args: Namespace) -> Iterator[None]:
    """What surrounds the stages or rounds below --snapshot-dir, as `Run` does each of their trainings: the directory is locked,
    signals are listened to, and the process is ended when it makes no progress for --timeout seconds.

    Raises:
        RunError: the directory is in use, or belongs to a data set.
    """
    check_outside_data("--snapshot-dir", args.snapshot_dir, args.data_dir, args.data_dir_target)
    signals = StopSignals()
    with contextlib.ExitStack() as stack:

        def lock() -> None:
            stack.callback(Lock(args.snapshot_dir).release)
            sweep(args.snapshot_dir, lambda name: name.endswith((".json", ".diff")))

        distributed.in_main(lock)
        signals.listen()
        stack.callback(signals.close)
        stack.enter_context(watching(args.timeout))
        yield


def claim_directory(directory: str, made_from: Mapping[str, Any], resume: bool | str) -> None:
    """Note in a directory of generated files what they are made from.

    What a killed process left half-written in and below it is removed. A note without files, as a start leaves that failed at
    once, counts for nothing; so do other JSON files, and noted changes, beside it.

    Args:
        made_from: values as JSON gives them back.
        resume: as --resume: True goes on with the files that are there, "auto" does if there are any.

    Raises:
        StateError: it holds files made from something else already, or from the same without `resume`; or none with
            `resume` True.
    """
    found = read_claim(directory)
    if found and _holds_files(directory):
        if not resume:
            raise StateError(f"{directory} holds files already: go on with --resume, remove them, or choose another directory")
        changed = [key for key in {**found, **made_from} if found.get(key) != made_from.get(key)]
        if changed:
            changes = ", ".join(f"{key} {found.get(key)} (now {made_from.get(key)})" for key in changed)
            raise StateError(f"{directory} holds files already, made with other settings: {changes}")
    elif resume is True:
        raise StateError(f"{directory}: nothing to resume from; start without --resume, or with --resume auto")
    distributed.wait_for_all()
    if distributed.is_main():
        os.makedirs(directory, exist_ok=True)
        for folder, _, _ in os.walk(directory):
            sweep(folder, lambda name: name.endswith(GENERATED))
        write_json(os.path.join(directory, NOTE), made_from)
    distributed.wait_for_all()


def read_claim(directory: str) -> dict[str, Any]:
    """What a directory's files were made from; empty where nothing is noted.

    Raises:
        StateError: the note is damaged.
    """
    path = os.path.join(directory, NOTE)
    if not os.path.exists(path):
        return {}
    try:
        with open(path) as file:
            return dict(json.load(file))
    except (ValueError, TypeError, RecursionError) as error:
        raise StateError(f"{path}: damaged, no note of what the files there were made from ({error})") from error


def _holds_files(directory: str) -> bool:
    return any(
        folder != directory or not name.endswith((".json", ".diff"))
        for folder, _, names in os.walk(directory)
        for name in names
    )


def finish(directory: str, **outcome: Any) -> None:
    """Note that a stage or round has come to its end, and with what."""
    write_json(os.path.join(directory, FINISHED), outcome)


def outcome_of(directory: str, key: str) -> Any:
    """What `finish` noted under this key; None if the stage or round has not come to its end.

    Raises:
        StateError: the note is damaged.
    """
    path = os.path.join(directory, FINISHED)
    if not os.path.exists(path):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)[key]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise StateError(f"{path}: damaged; remove it, and --resume finishes what it stands for again") from error
