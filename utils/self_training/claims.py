"""What the files in a directory were made from, so that those of two runs never mix."""

import json
import os
from collections.abc import Mapping
from typing import Any

from .. import distributed
from ..files import write_json
from ..state import StateError

NOTE = "made_from.json"


def claim_directory(directory: str, made_from: Mapping[str, Any], resume: bool) -> None:
    """Note in a directory of generated files what they are made from.

    A note without files, as a start leaves that failed at once, counts for nothing; so do other JSON files beside it.

    Args:
        made_from: values as JSON gives them back.

    Raises:
        StateError: it holds files made from something else already, or from the same without `resume`.
    """
    found = read_claim(directory)
    if found and _holds_files(directory):
        if not resume:
            raise StateError(f"{directory} holds files already: go on with --resume, remove them, or choose another directory")
        changed = [key for key in {**found, **made_from} if found.get(key) != made_from.get(key)]
        if changed:
            changes = ", ".join(f"{key} {found.get(key)} (now {made_from.get(key)})" for key in changed)
            raise StateError(f"{directory} holds files already, made with other settings: {changes}")
    distributed.wait_for_all()
    if distributed.is_main():
        os.makedirs(directory, exist_ok=True)
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
    except (ValueError, TypeError) as error:
        raise StateError(f"{path}: damaged, no note of what the files there were made from ({error})") from error


def _holds_files(directory: str) -> bool:
    return any(folder != directory or not name.endswith(".json") for folder, _, names in os.walk(directory) for name in names)
