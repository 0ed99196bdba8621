"""Choosing and setting up the device."""

import torch

from . import distributed
from .state import seed_everything


def set_up(args):
    """Seed everything, join the process group under torchrun, and return the device that --device and --gpu name.

    Raises:
        ValueError: a GPU is asked for and there is none.
    """
    name = f"cuda:{args.gpu}" if args.gpu is not None and args.device == "auto" else args.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        if args.gpu is None:
            raise ValueError(f"--device {name}: no GPU is available here; use --device cpu")
        print(f"note: --gpu {args.gpu}: no GPU is available here, using the CPU")
        name = "cpu"
    device = distributed.start(torch.device(name))
    if device.type == "cuda":
        # Image sizes are constant, so the search for the fastest convolutions pays. It costs bit-exact repeatability on GPUs.
        torch.backends.cudnn.benchmark = True
    seed_everything(args.random_seed)
    return device


def prepare(network, args, device):
    """Move a network to the device in the memory layout of --channels-last, and compile it with --compile."""
    network.to(device, memory_format=torch.channels_last if args.channels_last else torch.preserve_format)
    if args.compile:
        network.compile()
    return network
