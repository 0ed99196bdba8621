"""How snapshots are named and what is in them."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import nn


class SnapshotFormat(Protocol):
    """What `Run` wants to know; methods whose originals name files in another way bring a class of their own."""

    def tag(self, step: int, every: int) -> int | None:
        """What the snapshot after the update of `step` (counted from 0) is called, or None if none is due."""

    def files(self, tag: int | str, networks: Mapping[str, nn.Module]) -> dict[str, Any]:
        """{file name: content} of the snapshot with this tag: a number of steps, or a word such as `best`."""


class Snapshots:
    """As AdaptSegNet and CLAN write them: `<name>_<step><suffix>.pth`, plain state dicts."""

    def __init__(self, name: str) -> None:
        self.name = name

    def tag(self, step: int, every: int) -> int | None:
        # As in the originals the snapshot named i follows the update of step i, so it has seen i + 1.
        return step if step > 0 and step % every == 0 else None

    def files(self, tag: int | str, networks: Mapping[str, nn.Module]) -> dict[str, Any]:
        return {f"{self.name}_{tag}{suffix}.pth": network.state_dict() for suffix, network in networks.items()}
