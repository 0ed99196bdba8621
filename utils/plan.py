"""What a run's flags come to, worked out once before the first step and told at its start."""

import math
import shutil
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import nn
from torch.optim import Adam, Optimizer

from dataset.catalogue import ClassSet
from dataset.loader import EndlessLoader
from model.segmenter import Segmenter

from . import distributed
from .errors import RunError

# By the model of docs/benchmarks.md this is much the same for all cards that compute in bf16, and all methods.
FASTER = "; --fast would take about half the time and two thirds of the memory (--estimate tells it by card)"


@dataclass(frozen=True)
class Plan:
    """The numbers that a training loop goes by.

    Attributes:
        classes: of the network, in the order of its outputs.
        steps: training stops after so many.
        schedule_steps: the poly schedule would reach 0 after so many.
        val_every: steps between validations, 0 for none.
        epoch: steps of what the method calls an epoch, where it counts in epochs.
    """

    classes: ClassSet
    steps: int
    schedule_steps: int
    val_every: int
    epoch: int | None = None


def plan_steps(args: Namespace, classes: ClassSet) -> Plan:
    """The plan of a method that counts in steps: what the flags say."""
    return Plan(classes, args.num_steps_stop, args.num_steps, args.val_every)


def describe(
    plan: Plan, args: Namespace, device: torch.device, networks: Mapping[str, nn.Module], loaders: Mapping[str, EndlessLoader]
) -> str:
    """The plan in a few lines: device, precision, data, steps, disk."""
    lines = [_device(args, device)]
    batches = [f"{_images(loader)} {domain}" for domain, loader in loaders.items()]
    processes = distributed.world_size()
    lines.append(
        f"{plan.steps} steps of {' + '.join(batches)} images ({processes} process{'es' * (processes > 1)}); "
        f"the learning rate is laid out for {plan.schedule_steps}"
    )
    lines += _network(cast(Segmenter, networks[""]), args)
    for domain, loader in loaders.items():
        epochs = plan.steps * _images(loader) / len(loader.dataset)
        lines.append(f"{domain}: {len(loader.dataset)} images, {epochs:.3g} epochs")
    lines.append(f"{len(plan.classes)} classes; {_disk(plan, args, networks)}")
    return "\n".join(lines)


def _network(network: Segmenter, args: Namespace) -> list[str]:
    """What the network does with the flags that a user may not expect."""
    lines = [] if network.norms() else ["the network has no BatchNorm: --batch-norm changes nothing"]
    sizes = [getattr(args, name, None) for name in ("input_size", "input_size_target")]
    for width, height in dict.fromkeys(size for size in sizes if size):
        fitted = network.fitted((height, width))
        if fitted != (height, width):
            lines.append(f"images of {width}x{height} are resized to {fitted[1]}x{fitted[0]} for the network, whole patches")
    return lines


def _images(loader: EndlessLoader) -> int:
    return loader.batch_size * loader.world_size


def _device(args: Namespace, device: torch.device) -> str:
    if device.type == "cuda":
        name = f"{device} ({torch.cuda.get_device_name(device)})"
    else:
        name = f"{device}, {torch.get_num_threads()} threads" + (" (no GPU found)" if args.device == "auto" else "")
    precision = "fp32, the published precision" if args.amp == "off" else f"{args.amp} mixed precision"
    faster = FASTER if args.amp == "off" and device.type == "cuda" else ""
    return f"{name}; {precision}{faster}"


def _disk(plan: Plan, args: Namespace, networks: Mapping[str, nn.Module]) -> str:
    """How much the run will write: snapshots, and two states of weights and about as much for the optimizers."""
    snapshot = _snapshot_size(networks)
    count = math.ceil(plan.steps / args.save_pred_every)
    need = snapshot * (count + 2 * bool(plan.val_every) + 4)
    return (
        f"about {need / 1e9:.2g} GB in {args.snapshot_dir} ({count} snapshot{'s' * (count > 1)} and the state), "
        f"{_free(args.snapshot_dir) / 1e9:.3g} GB free"
    )


def check_space(directory: str, networks: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer]) -> None:
    """See that the state and two snapshots fit on the disk.

    Raises:
        RunError: naming the directory, and what it needs and has.
    """
    need = 3 * _snapshot_size(networks) + sum(_moments_size(optimizer) for optimizer in optimizers.values())
    free = _free(directory)
    if need > free:
        raise RunError(
            f"{directory}: the disk is too full: the state and two snapshots need {need} bytes, {free} are free; make room or "
            "name another --snapshot-dir"
        )


def _snapshot_size(networks: Mapping[str, nn.Module]) -> int:
    return sum(value.nbytes for network in networks.values() for value in network.state_dict().values())


def _moments_size(optimizer: Optimizer) -> int:
    """Bytes of what an optimizer keeps for each parameter: SGD a momentum, Adam two moments."""
    parameters = sum(parameter.nbytes for group in optimizer.param_groups for parameter in group["params"])
    return parameters * (2 if isinstance(optimizer, Adam) else 1)


def _free(directory: str) -> int:
    path = Path(directory).absolute()
    return shutil.disk_usage(next(parent for parent in (path, *path.parents) if parent.exists())).free
