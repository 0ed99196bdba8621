"""Several processes by torchrun and DistributedDataParallel; everything here is a no-op in a single process."""

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar, cast

import torch
from torch import distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.debugging_hooks import noop_hook
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from model.segmenter import Segmenter

from . import watchdog
from .errors import RunError

T = TypeVar("T")

# How long a process waits for the others, in seconds, where no flag says so.
USUAL_TIMEOUT = 1800
# At least so long, for they do not all start at the same time.
LEAST_TIMEOUT = 300
_timeout = timedelta(seconds=2 * USUAL_TIMEOUT)


def start(device: torch.device, timeout: float = USUAL_TIMEOUT) -> torch.device:
    """Join the process group that torchrun describes, if any, and return this process's own device.

    Args:
        timeout: a process that waits for the others for twice as many seconds (but at least 5 minutes) gives up, so that
            `utils.watchdog` comes first, which says more; 0: after 30 days.
    """
    global _timeout
    _timeout = timedelta(seconds=max(2 * timeout, LEAST_TIMEOUT)) if timeout else timedelta(days=30)
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_timeout)
    return device


def finish() -> None:
    """Leave the process group."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def share_of_batch(batch_size: int, domains: int) -> int:
    """Images per process and domain, where a batch size counts those of all.

    Raises:
        RunError: they cannot be shared out evenly.
    """
    if batch_size % (world_size() * domains):
        both = " and two domains" if domains == 2 else ""
        raise RunError(f"--batch-size {batch_size} cannot be shared by {world_size()} processes{both}")
    return batch_size // (world_size() * domains)


def is_main() -> bool:
    """True in the one process that writes files and prints."""
    return rank() == 0


def wrap(network: nn.Module) -> nn.Module:
    """Wrap `network` so that backward passes average its gradients over the processes, unless within `averaging(False)`.

    A discriminator that judges with its own parameters frozen must be called unwrapped there: no gradient of it is to be
    averaged, and the wrapper would wait for them.
    """
    if world_size() == 1:
        return network
    device = next(network.parameters()).device
    wrapped = DistributedDataParallel(network, device_ids=[device.index] if device.type == "cuda" else None)
    wrapped.register_comm_hook(distributed.group.WORLD, _average)
    return wrapped


_averages = True


@contextlib.contextmanager
def averaging(now: bool) -> Iterator[None]:
    """With `now` False, backward passes in here add to each process's own gradients; the next one outside averages the sums.

    So the passes of a step need one average. The forward pass need not know, as it would with `no_sync`.
    """
    global _averages
    before, _averages = _averages, now
    try:
        yield
    finally:
        _averages = before


def _average(group: distributed.ProcessGroup, bucket: distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
    return allreduce_hook(group, bucket) if _averages else noop_hook(group, bucket)


def synchronize_norms(network: Segmenter, device: torch.device) -> Segmenter:
    """Let BatchNorm that uses batch statistics use those of all processes (GPUs only, as PyTorch has it)."""
    if world_size() == 1 or network.batch_norm != "train" or device.type != "cuda":
        return network
    network.synchronize_norms()
    return network


def sum_across_processes(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of `tensor` over all processes (the tensor itself in a single process)."""
    if world_size() > 1:
        tensor = tensor.clone()
        with watchdog.waiting("the other processes"):
            distributed.all_reduce(tensor)
    return tensor


def largest(*values: float) -> list[float]:
    """The largest of each value over all processes; all must ask at the same point."""
    if world_size() == 1:
        return list(values)
    found = torch.tensor(values, dtype=torch.float64)
    with watchdog.waiting("the other processes"):
        distributed.all_reduce(found, distributed.ReduceOp.MAX, group=_cpu_group())
    return found.tolist()


def any_process(truth: bool) -> bool:
    """Whether it is true in any process; all must ask at the same point."""
    return largest(float(truth))[0] > 0


def gather(value: T) -> list[T]:
    """Every process's value, in the order of their ranks, in all of them; all must come to the same point."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    with watchdog.waiting("the other processes"):
        distributed.all_gather_object(found, value, group=_cpu_group())
    return found


def in_main(action: Callable[[], None]) -> None:
    """Do it in the main process while the others wait; its error is raised in all of them."""
    problem: Exception | None = None
    if is_main():
        try:
            action()
        except Exception as error:
            problem = error
    if world_size() > 1:
        told = [problem]
        with watchdog.waiting("the other processes"):
            distributed.broadcast_object_list(told, group=_cpu_group())
        problem = told[0]
    if problem is not None:
        raise problem


@cache
def _cpu_group() -> distributed.ProcessGroup:
    """All processes, by a way that does not wait for the GPU."""
    return cast(distributed.ProcessGroup, distributed.new_group(backend="gloo", timeout=_timeout))


def wait_for_all() -> None:
    if world_size() > 1:
        with watchdog.waiting("the other processes"):
            distributed.barrier()
