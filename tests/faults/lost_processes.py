"""Runs of several processes of which one is killed, or stands still for a while: loader workers, ranks, and a whole node."""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from . import runs
from .injection import ROOT
from .trials import last_line

STEPS = 8
ARGUMENTS = ("--num-steps", str(STEPS), "--num-steps-stop", str(STEPS), "--save-pred-every", "4", "--val-every", "4")
SECONDS = 300
STANDSTILL = 3.0

Launch = Callable[[Path], list[list[str]]]


def one_process(data: Path) -> Launch:
    """A run with two loader workers."""
    return lambda directory: [[sys.executable, *_script(data, directory), "--num-workers", "2"]]


def two_ranks(data: Path) -> Launch:
    """A run of two processes under one torchrun."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return lambda directory: [[*torchrun, *_script(data, directory)]]


def two_nodes(data: Path) -> Launch:
    """A run of two torchrun agents with one process each, which meet on the loopback interface."""

    def commands(directory: Path) -> list[list[str]]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
        torchrun += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
        return [[*torchrun, "--node-rank", str(node), *_script(data, directory)] for node in (0, 1)]

    return commands


def _script(data: Path, directory: Path) -> list[str]:
    script, *arguments = runs.command("train_adaptsegnet", data, directory, *ARGUMENTS)
    return [f"{script}.py", *arguments]


def run(commands: Sequence[Sequence[str]], disturb: Callable[[list[subprocess.Popen]], None] | None = None) -> list[str]:
    """Run these commands side by side to their end; an error message for each that failed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(each, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for each in commands
    ]
    try:
        if disturb is not None:
            disturb(processes)
        errors = [process.communicate(timeout=SECONDS)[1] for process in processes]
    finally:
        for process in processes:
            kill(family(process.pid))
            process.wait()
    pairs = zip(processes, errors, strict=True)
    return [f"status {process.returncode}: {last_line(text)}" for process, text in pairs if process.returncode]


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found, new = [], [pid]
    while new:
        found += new
        new = [child for each in new for child in children(each)]
    return found


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(word) for word in file.read().split()]
    return []


def kill(pids: Sequence[int], number: int = signal.SIGKILL) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def problems(launch: Launch, root: Path, fault: str, rng: random.Random) -> list[str]:
    """What is wrong after a run in which a process was lost, and after the same commands again; a line each.

    Args:
        fault: `kill` or `stop` (for some seconds) of a process that the run has started, or `node`: all of the last command.
    """
    whole, parts = root / "whole", root / "parts"
    if not whole.exists():
        failed = run(launch(whole))
        if failed:
            raise RuntimeError(f"the run fails even when nothing happens to it: {failed}")
    shutil.rmtree(parts, ignore_errors=True)
    step = rng.randrange(1, STEPS - 1)

    def disturb(processes: list[subprocess.Popen]) -> None:
        wait_for_step(parts, step, processes)
        if fault == "node":
            kill(family(processes[-1].pid))
            return
        started = [pid for process in processes for pid in family(process.pid)[1:] if _computes(pid)]
        if not started:
            return
        chosen = rng.choice(started)
        if fault == "kill":
            kill([chosen])
        else:
            kill([chosen], signal.SIGSTOP)
            time.sleep(STANDSTILL)
            kill([chosen], signal.SIGCONT)

    failed = run(launch(parts), disturb)
    found = [f"a standstill ended it: {failed[0]}"] if fault == "stop" and failed else []
    failed = run(launch(parts))
    if failed:
        return [*found, f"the same command again: {failed[0]}"]
    return [*found, *runs.differences(runs.left_by(parts), runs.left_by(whole))]


def wait_for_step(directory: Path, step: int, processes: list[subprocess.Popen]) -> None:
    """Wait until a run has logged so many steps, or has ended."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and all(process.poll() is None for process in processes):
        with contextlib.suppress(OSError):
            if (directory / "metrics.jsonl").read_bytes().count(b'"loss_seg"') >= step:
                return
        time.sleep(0.01)


def _computes(pid: int) -> bool:
    """Whether a process is a rank or a worker, and not one of PyTorch's own that share memory."""
    with contextlib.suppress(OSError):
        with open(f"/proc/{pid}/cmdline") as file:
            return "train_adaptsegnet.py" in file.read()
    return False
