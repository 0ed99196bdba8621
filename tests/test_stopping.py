"""Signals: the step is finished, the state saved, and the run goes on as if nothing had been."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT
from test_run import Killed, adapt, assert_same_run, flags, losses, run_torchrun

import utils.run
from utils.errors import STOPPED, Stopped
from utils.locks import NAME, InUseError
from utils.run import Run
from utils.state import StateError, load_state

MORE = ("--val-every", "2", "--save-pred-every", "4")


@pytest.fixture(scope="module")
def whole(mini_data, tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    adapt(mini_data, directory, *MORE)
    return directory


def validations(directory):
    return [row for row in map(json.loads, open(directory / "metrics.jsonl")) if "val_miou" in row]


def assert_same(parts, whole):
    assert_same_run(parts, whole)
    assert validations(parts) == validations(whole) and len(validations(parts)) == 3
    states = [load_state(str(directory / "state.pth"))[0] for directory in (parts, whole)]
    assert all(states[0][key] == states[1][key] for key in ("best", "last", "next_step", "unfinished"))
    best = [torch.load(directory / "GTA5_best.pth", weights_only=True) for directory in (parts, whole)]
    assert all(torch.equal(best[0][key], best[1][key]) for key in best[0])


@pytest.mark.parametrize("step, number", [(0, signal.SIGTERM), (2, signal.SIGINT), (3, signal.SIGUSR1), (5, signal.SIGTERM)])
def test_a_signal_in_a_step(step, number, mini_data, whole, tmp_path, monkeypatch):
    before, start_step, steps = signal.getsignal(number), Run.start_step, iter(range(6))

    def start_and_signal(self, **rates):
        start_step(self, **rates)
        if next(steps) == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Run, "start_step", start_and_signal)
    with pytest.raises(Stopped, match=rf"stopped by {number.name} after step {step + 1}; --resume continues"):
        adapt(mini_data, tmp_path, *MORE)
    monkeypatch.undo()
    assert signal.getsignal(number) == before and not (tmp_path / NAME).exists()
    saved = load_state(str(tmp_path / "state.pth"))[0]
    assert saved["next_step"] == step + 1 and saved["unfinished"] == (step % 2 == 1)
    adapt(mini_data, tmp_path, *MORE, "--resume", "auto")
    assert_same(tmp_path, whole)


@pytest.mark.parametrize("image", (0, 2))
def test_a_signal_in_a_validation(image, mini_data, whole, tmp_path, monkeypatch):
    """It is given up at the next image, and made anew after the resume."""
    evaluate, seen = utils.run.evaluate, []

    def evaluate_and_signal(network, loader, *rest, **options):
        def batches():
            for batch in loader:
                seen.append(batch["name"])
                if len(seen) == 3 + image + 1:  # in the second validation of three images
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

        return evaluate(network, batches(), *rest, **options)

    monkeypatch.setattr(utils.run, "evaluate", evaluate_and_signal)
    with pytest.raises(Stopped, match="after step 4"):
        adapt(mini_data, tmp_path, *MORE)
    monkeypatch.undo()
    assert len(seen) <= 3 + image + 2 and len(validations(tmp_path)) == 1
    assert load_state(str(tmp_path / "state.pth"))[0]["unfinished"]
    adapt(mini_data, tmp_path, *MORE, "--resume")
    assert_same(tmp_path, whole)


def start(mini_data, directory, *more, launcher=()):
    command = [sys.executable, *launcher, "train_adaptsegnet.py", *flags(mini_data, directory, *more, steps=100000)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (directory / "state.pth").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return process


@pytest.mark.parametrize("workers", ("0", "2"))
def test_the_status_tells_a_scheduler_to_come_again(workers, mini_data, tmp_path):
    process = start(mini_data, tmp_path, "--num-workers", workers)
    os.kill(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == STOPPED == 75
    assert re.search(r"\ntrain_adaptsegnet.py: stopped by SIGTERM after step \d+; --resume continues \S+\n$", errors), errors
    assert not (tmp_path / NAME).exists() and len(losses(tmp_path)) == load_state(str(tmp_path / "state.pth"))[0]["next_step"]


def test_a_second_signal_ends_it_at_once(mini_data, tmp_path, monkeypatch):
    code = """
import os, signal, sys, time
from utils.stop_signals import StopSignals
signals = StopSignals()
signals.listen()
os.kill(os.getpid(), signal.SIGTERM)
os.kill(os.getpid(), signal.SIGINT)
assert signals.received == "SIGTERM"
time.sleep(1.1)
os.kill(os.getpid(), signal.SIGINT)
time.sleep(60)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == -signal.SIGINT


def test_several_processes_stop_at_the_same_step(mini_data, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = start(mini_data, tmp_path, launcher=launcher)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert "stopped by SIGTERM after step" in errors
    step = load_state(str(tmp_path / "state.pth"))[0]["next_step"]
    assert len(losses(tmp_path)) == step and not (tmp_path / NAME).exists()
    stop = ("--num-steps-stop", str(step + 1), "--resume", "auto")
    run_torchrun(2, "train_adaptsegnet.py", flags(mini_data, tmp_path, *stop, steps=100000))


def test_two_runs_in_one_directory(mini_data, tmp_path):
    process = start(mini_data, tmp_path)
    before = (tmp_path / "args.json").read_bytes()
    for more in ((), ("--resume",)):
        with pytest.raises((InUseError, StateError), match="is in use by process|holds a run already"):
            adapt(mini_data, tmp_path, *more)
    assert (tmp_path / "args.json").read_bytes() == before
    process.kill()
    process.communicate()


def test_auto_starts_and_continues(mini_data, whole, tmp_path, monkeypatch):
    """One command line for every start; also after a kill between the first snapshot and the first state."""
    save_state = Run._save_state

    def die(self, *rest, **options):
        raise Killed

    monkeypatch.setattr(Run, "_save_state", die)
    with pytest.raises(Killed):
        adapt(mini_data, tmp_path, *MORE, "--resume", "auto", "--save-pred-every", "1")
    assert (tmp_path / "GTA5_1.pth").exists() and not (tmp_path / "state.pth").exists()
    monkeypatch.setattr(Run, "_save_state", save_state)
    with pytest.raises(StateError, match=r"snapshots of an earlier run, such as GTA5_1\.pth, but no state"):
        adapt(mini_data, tmp_path, *MORE)
    with pytest.raises(StateError, match=r"snapshots of an earlier run"):
        adapt(mini_data, tmp_path, *MORE, "--resume", "auto", "--gan", "LS")
    for _ in range(2):
        adapt(mini_data, tmp_path, *MORE, "--resume", "auto")
    assert_same(tmp_path, whole)


def test_a_fresh_start_leaves_the_state_before_alone(mini_data, tmp_path):
    adapt(mini_data, tmp_path)
    (tmp_path / "state.pth").unlink()
    before = {path: path.read_bytes() for path in tmp_path.glob("*.pth")}
    with pytest.raises(StateError, match="holds a run already"):
        adapt(mini_data, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.glob("*.pth")} == before
