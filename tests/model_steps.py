"""Counts steps of training scripts on a fake device: {name: [script, flags]} as JSON on the standard input, {name: counts or
error} on the output. Cases without flags are the faults below, which have to be found.

Started by tests/test_cuda.py, as a process with a fake device has to be started in a special way.
"""

import contextlib
import importlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from utils.cost_model import Recorder, cost_of_steps, pinned
from utils.fake_cuda import fake_cuda

FAULTS = {
    "reads a value": lambda x: x.sum().item(),
    "decides by a value": lambda x: bool(x.sum() > 0),
    "selects by a mask": lambda x: x[x > 0],
    "looks for values": lambda x: x.nonzero(),
    "copies to the host and waits": lambda x: x.cpu(),
    "copies from the host and waits": lambda x: pinned(torch.zeros(9)).to(x.device),
    "copies memory that is not pinned": lambda x: torch.zeros(9).to(x.device, non_blocking=True),
    "makes a tensor of numbers": lambda x: x + torch.tensor([1.0] * 9, device=x.device),
    "mixes devices": lambda x: x + torch.zeros(9),
    "nothing": lambda x: x.to("cpu", non_blocking=True),
}


def step_of(script, flags):
    module = importlib.import_module(script)
    with contextlib.redirect_stdout(sys.stderr):
        *_, cost = cost_of_steps(module, module.get_arguments(flags)).values()
    return cost


def step_with(fault):
    recorder = Recorder()
    with fake_cuda(), recorder, recorder.step() as cost:
        FAULTS[fault](torch.zeros(9, device="cuda"))
    return cost


def counts(case):
    try:
        cost = step_of(case[0], case[1].split()) if len(case) == 2 else step_with(*case)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"kernels": cost.kernels, "megabytes": cost.peak / 1e6, "tflop": cost.flops / 1e12, "waits": cost.waits}


if __name__ == "__main__":
    json.dump({name: counts(case) for name, case in json.load(sys.stdin).items()}, sys.stdout, indent=1)
