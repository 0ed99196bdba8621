"""Choosing and setting up the device."""

import contextlib
import os
from argparse import Namespace
from typing import TypeVar, cast

import torch
from torch import nn

from . import distributed
from .errors import RunError
from .parser import Flags
from .seeding import seed_everything

Network = TypeVar("Network", bound=nn.Module)

AMP_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose(args: Namespace) -> torch.device:
    """The device that --device and --gpu name, a GPU with its number; `auto` is a GPU if there is one.

    A GPU becomes the current one: events, and everything else that is made without naming a device, belong to it.

    Raises:
        RunError: --device asks for a GPU, or for one of a number, that is not there.
    """
    name = f"cuda:{args.gpu}" if args.gpu is not None and args.device == "auto" else args.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        if args.gpu is None:
            raise RunError(f"--device {name}: no GPU is available here; use --device cpu")
        print(f"note: --gpu {args.gpu}: no GPU is available here, using the CPU")
        name = "cpu"
    device = torch.device(name)
    return _make_current(device) if device.type == "cuda" else device


def _make_current(gpu: torch.device) -> torch.device:
    number, count = gpu.index or 0, torch.cuda.device_count()
    if number >= count:
        raise RunError(f"--device {gpu}: there is no such GPU here, they are cuda:0 to cuda:{count - 1}")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def set_up(args: Namespace) -> torch.device:
    """Seed everything, join the process group under torchrun, and return this process's device (see `choose`).

    With --estimate the program ends here.
    """
    if getattr(args, "estimate", False):
        from .estimate import tell  # it knows everything about a run, so it cannot be imported by what runs need

        tell(cast(Flags, args))
    device = distributed.start(choose(args), getattr(args, "timeout", distributed.USUAL_TIMEOUT))
    if device.type == "cuda":
        # Image sizes are constant, so the search for the fastest convolutions pays. It costs bit-exact repeatability on GPUs.
        torch.backends.cudnn.benchmark = True
    if args.compile and hasattr(args, "snapshot_dir"):
        # With the run, so that it goes on without compiling again, also on another machine of a cluster.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.abspath(os.path.join(args.snapshot_dir, "compiled")))
    seed_everything(args.random_seed)
    return device


def autocast(args: Namespace, device: torch.device) -> contextlib.AbstractContextManager:
    """The context of the mixed precision that --amp chooses."""
    if args.amp == "off":
        return contextlib.nullcontext()
    return torch.autocast(device.type, AMP_TYPES[args.amp])


def prepare(network: Network, args: Namespace, device: torch.device) -> Network:
    """Move a network to the device in the memory layout of --channels-last, and compile it with --compile."""
    network.to(device)
    if args.channels_last:
        network.to(memory_format=torch.channels_last)
    if args.compile:
        # Each size of image gets kernels of its own. There are more of them than PyTorch expects: two domains, training and
        # validation, CLAN's random scales, discriminators that learn or only judge.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 32)
        network.compile(dynamic=False)
    return network


def peak_memory(device: torch.device) -> int:
    """The most memory so far in bytes: allocated on the GPU, or resident in this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
