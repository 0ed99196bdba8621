"""--config: the `args.json` of a run as the words of its command line.

What a run notes are the flags as they were filled in, so a changed default of today changes nothing.
"""

import argparse
import glob
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from .errors import RunError

# What `args.json` says beside the flags.
NOTES = {"network", "classes", "versions", "earlier", "command", "processes", "parts"}
SHOWN = 5  # unknown keys, in an error


def read_flags(path: str) -> dict[str, Any]:
    """{dest: value} of the flags that the `args.json` of a run notes.

    Raises:
        RunError: it cannot be read, or belongs to one stage or round of a run and not to the whole.
    """
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except OSError as error:
        raise RunError(f"--config {path}: {error.strerror}; name the args.json of a run") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"--config {path}: is no args.json of a run ({error})") from error
    if not isinstance(found, dict) or "snapshot_dir" not in found:
        raise RunError(f"--config {path}: is no args.json of a run (it has no snapshot_dir)")
    whole = _whole_run(path)
    if whole:
        raise RunError(f"--config {path}: is one part of a run; name {whole}, which holds the flags that were given")
    _tell_processes(path, found.get("processes", 1))
    return {key: value for key, value in found.items() if key not in NOTES}


def _whole_run(path: str) -> str | None:
    """The file with the flags of the run whose stage or round this `args.json` belongs to."""
    above = os.path.dirname(os.path.dirname(os.path.abspath(path)))
    for other in sorted(glob.glob(os.path.join(glob.escape(above), "args*.json"))):
        try:
            with open(other, encoding="utf-8") as file:
                parts = json.load(file).get("parts", [])
        except (OSError, ValueError, AttributeError):
            continue
        if os.path.basename(os.path.dirname(os.path.abspath(path))) in parts:
            return other
    return None


def _tell_processes(path: str, then: int) -> None:
    now = int(os.environ.get("WORLD_SIZE", "1"))
    if then != now:
        tell(f"note: the run of {path} had {then} process(es), this one has {now}: it is not the same run")


def tell(line: str) -> None:
    """Print it, in the main process alone."""
    if os.environ.get("RANK", "0") == "0":
        print(line)


def as_words(path: str, values: Mapping[str, Any], actions: Iterable[argparse.Action]) -> tuple[list[str], dict[str, None]]:
    """The words of the command line that give these values, and the flags that were not given, which no word can say.

    Raises:
        RunError: a key is no flag of this script, or its value is none that a flag can have.
    """
    options = {action.dest: option for action in actions for option in action.option_strings[:1] if action.nargs != 0}
    # A value of None may also be of what a script fills in later, without a flag.
    unknown = [key for key, value in values.items() if key not in options and value is not None]
    if unknown:
        shown = ", ".join(unknown[:SHOWN]) + (f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else "")
        raise RunError(
            f"--config {path}: no flags of this script: {shown}; the file is another script's or an older version's: take them "
            "out of a copy of it"
        )
    words = [f"{options[key]}={_word(path, key, value)}" for key, value in values.items() if value is not None]
    return words, {key: None for key, value in values.items() if value is None}


def _word(path: str, key: str, value: Any) -> str:
    parts = value if isinstance(value, list) else [value]
    if not parts or not all(isinstance(part, str | int | float) for part in parts):
        raise RunError(f"--config {path}: {key} is {value!r}, which no flag can be")
    return ",".join(map(str, parts))


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """`--lr-x 2 (was 1), ...` of the flags whose values differ, in alphabetical order."""
    changed = sorted(key for key in after if key in before and before[key] != after[key])
    return ", ".join(f"--{key.replace('_', '-')} {_shown(after[key])} (was {_shown(before[key])})" for key in changed)


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
