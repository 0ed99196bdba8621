"""Choosing and setting up the device."""

import contextlib

import torch

from . import distributed
from .state import seed_everything

AMP_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose(args):
    """The device that --device and --gpu name; `auto` is a GPU if there is one.

    Raises:
        ValueError: --device asks for a GPU and there is none.
    """
    name = f"cuda:{args.gpu}" if args.gpu is not None and args.device == "auto" else args.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        if args.gpu is None:
            raise ValueError(f"--device {name}: no GPU is available here; use --device cpu")
        print(f"note: --gpu {args.gpu}: no GPU is available here, using the CPU")
        name = "cpu"
    return torch.device(name)


def set_up(args):
    """Seed everything, join the process group under torchrun, and return this process's device (see `choose`)."""
    device = distributed.start(choose(args))
    if device.type == "cuda":
        # Image sizes are constant, so the search for the fastest convolutions pays. It costs bit-exact repeatability on GPUs.
        torch.backends.cudnn.benchmark = True
    seed_everything(args.random_seed)
    return device


def autocast(args, device):
    """The context of the mixed precision that --amp chooses."""
    if args.amp == "off":
        return contextlib.nullcontext()
    return torch.autocast(device.type, AMP_TYPES[args.amp])


def prepare(network, args, device):
    """Move a network to the device in the memory layout of --channels-last, and compile it with --compile."""
    network.to(device, memory_format=torch.channels_last if args.channels_last else torch.preserve_format)
    if args.compile:
        network.compile()
    return network
