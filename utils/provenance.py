"""What a run was made with, kept in its directory: flags, versions, the commit, and what had been changed since."""

import hashlib
import json
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from .distributed import world_size
from .files import write_bytes, write_json

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# A longer `git diff` is cut: somebody has changed more than code.
MOST_BYTES = 1_000_000
GIT_SECONDS = 30


def write_args(path: str, args: Namespace, device: torch.device, resumed: bool, **notes: Any) -> None:
    """Write the `args.json` of a run: its flags, `notes`, and what it was made with. Uncommitted changes go to
    `changes-<hash>.diff` beside it. Where it goes on with a run, the versions of the starts before are kept as `earlier`.
    """
    versions = _versions(device)
    changes = uncommitted_changes() if versions["git"] else b""
    versions["changes"] = _write_changes(os.path.dirname(path), changes) if changes else None
    made_with = {"versions": versions, "command": sys.argv, "processes": world_size()}
    before = _versions_before(path, versions) if resumed else []
    write_json(path, {**vars(args), **notes, **made_with, **({"earlier": before} if before else {})})


def _versions(device: torch.device) -> dict[str, str | None]:
    return {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "torchvision": _package_version("torchvision"),
        "timm": _package_version("timm"),
        "cuda": torch.version.cuda,
        "card": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "git": commit(),
    }


def _package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def commit(root: str = ROOT) -> str | None:
    """The commit that is checked out in `root`; None where there is no git, or `root` is not the root of what it knows: an
    installed copy may lie inside of another project."""
    found = _git(root, "rev-parse", "--show-toplevel", "HEAD").decode(errors="replace").splitlines()
    return found[1] if len(found) == 2 and os.path.realpath(found[0]) == os.path.realpath(root) else None


def uncommitted_changes(root: str = ROOT) -> bytes:
    """`git diff HEAD` of the files that git knows."""
    return _git(root, "diff", "--no-color", "--no-ext-diff", "--no-textconv", "HEAD")


def _git(root: str, *words: str) -> bytes:
    try:
        result = subprocess.run(["git", *words], capture_output=True, cwd=root, timeout=GIT_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return b""
    return result.stdout if result.returncode == 0 else b""


def _write_changes(directory: str, changes: bytes) -> str:
    """The name of the file that they are in; it is called after its content, so that a later start keeps those before."""
    name = f"changes-{hashlib.sha256(changes).hexdigest()[:8]}.diff"
    if len(changes) > MOST_BYTES:
        print(
            f"note: {name}: the uncommitted changes are {len(changes)} bytes; the first {MOST_BYTES} are kept", file=sys.stderr
        )
        changes = changes[:MOST_BYTES] + f"\n# cut here: {len(changes) - MOST_BYTES} more bytes\n".encode()
    write_bytes(os.path.join(directory, name), changes)
    return name


def _versions_before(path: str, now: Mapping[str, Any]) -> list[Any]:
    """The versions of the starts so far, as far as they differ from the next one's."""
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        before = [*found.get("earlier", []), *([found["versions"]] if "versions" in found else [])]
    except (OSError, ValueError, RecursionError, AttributeError, TypeError):
        return []  # damaged: it is written anew
    return before[:-1] if before and before[-1] == now else before
