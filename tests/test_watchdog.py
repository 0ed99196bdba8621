"""Processes that wait for ever: the watchdog says for what, and ends them."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from test_run import flags

from utils.errors import TIMED_OUT
from utils.locks import NAME

# Of --timeout; on a busy machine the first steps take some.
SECONDS = "30"

UNIT = """
import sys, threading, time
from utils import watchdog
from utils.locks import Lock
lock = Lock(sys.argv[1])
with watchdog.watching(1.0):
    for step in range(12):
        watchdog.at(f"step {step}")
        time.sleep(0.2)
    with watchdog.watching(0.001):
        watchdog.waiting_for(lambda: "x.png")
        {then}
        threading.Event().wait()
"""


def run_unit(directory, then="pass"):
    command = [sys.executable, "-c", UNIT.replace("{then}", then), str(directory)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_it_says_what_is_waited_for_and_gives_the_lock_free(tmp_path):
    result = run_unit(tmp_path)
    assert result.returncode == TIMED_OUT == 124
    assert result.stderr == "-c: no progress for 1 seconds (--timeout): step 11, waiting for x.png; --resume auto continues\n"
    assert os.listdir(tmp_path) == []


def test_it_ends_the_process_even_if_nobody_can_say(tmp_path):
    assert run_unit(tmp_path, "watchdog.waiting_for(lambda: 1 / 0)").returncode == TIMED_OUT


def test_a_process_that_was_stopped_itself_does_not_hang(tmp_path):
    code = UNIT.replace("watching(1.0)", "watching(6.0)").replace("        threading.Event().wait()\n", "")
    code = code.replace("time.sleep(0.2)", "print(step, flush=True), time.sleep(0.2)").replace("{then}", "print('done')")
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "0\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(8)
    process.send_signal(signal.SIGCONT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and output.endswith("done\n")


def start(mini_data, directory, timeout, *more, **environment):
    words = flags(mini_data, directory, "--timeout", timeout, *more, steps=100000)
    command = [sys.executable, "train_adaptsegnet.py", *words]
    environment = {**os.environ, **environment}
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for_state(process, directory):
    deadline = time.monotonic() + 300
    while not (directory / "state.pth").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()[1]


def children_of(process):
    """Those that run the script, which torchrun's helpers do not."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout.split()
    return [int(pid) for pid in found if b"\0train_adaptsegnet" in open(f"/proc/{pid}/cmdline", "rb").read()]


def last_line(errors):
    return errors.rstrip().splitlines()[-1]


def is_gone(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("number, status, message", [
    (signal.SIGSTOP, TIMED_OUT,
     r"no progress for 30 seconds .*: step \d+, waiting for the next batch of (source|target) \(\S+\.png\); --resume"),
    (signal.SIGKILL, 1, r"error: step \d+.*: DataLoader worker .* is killed by signal: Killed"),
])  # fmt: skip
def test_a_worker_that_is_stopped_or_killed(number, status, message, mini_data, tmp_path):
    process = start(mini_data, tmp_path, SECONDS, "--num-workers", "1")
    wait_for_state(process, tmp_path)
    workers = children_of(process)
    assert len(workers) == 2  # one for each domain
    os.kill(workers[0], number)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == status and re.search(message, last_line(errors)), errors
    # A thread of Python's own, which hands tensors over, may complain of a killed worker first.
    assert number == signal.SIGKILL or "Traceback" not in errors
    assert not (tmp_path / NAME).exists()
    deadline = time.monotonic() + 60
    while not all(map(is_gone, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert all(map(is_gone, workers))


def start_two(mini_data, directory, timeout):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [start(mini_data, directory, timeout, RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("number, status, message", [
    (signal.SIGSTOP, TIMED_OUT,
     r"no progress for 30 seconds .*: rank 0, step \d+, waiting for the (computation|(gradients of the )?other processes);"),
    (signal.SIGKILL, 1, r"error: rank 0, step \d+.*: another process has ended"),
])  # fmt: skip
def test_a_rank_that_is_stopped_or_killed(number, status, message, mini_data, tmp_path):
    processes = start_two(mini_data, tmp_path, SECONDS)
    try:
        wait_for_state(processes[0], tmp_path)
        processes[1].send_signal(number)
        _, errors = processes[0].communicate(timeout=300)
        assert processes[0].returncode == status and re.search(message, last_line(errors)), errors
        assert "Traceback" not in errors and not (tmp_path / NAME).exists()
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.slow
def test_torchrun_starts_again_after_a_hang(mini_data, tmp_path):
    words = flags(mini_data, tmp_path, "--timeout", SECONDS, "--resume", "auto", "--num-workers", "1", steps=8)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    process = subprocess.Popen(
        [sys.executable, *launcher, "train_adaptsegnet.py", *words],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},  # or those who start again find addresses of before
    )
    wait_for_state(process, tmp_path)
    (stopped,) = (pid for pid in children_of(process) if b"\0RANK=1\0" in open(f"/proc/{pid}/environ", "rb").read())
    os.kill(stopped, signal.SIGSTOP)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0 and "no progress for 30 seconds (--timeout): rank 0" in errors, errors
    assert (tmp_path / "GTA5_8.pth").exists() and is_gone(stopped)
    steps = [json.loads(line)["step"] for line in open(tmp_path / "metrics.jsonl")]
    assert steps == list(range(8))
