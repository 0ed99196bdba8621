"""Scripts of several stages or rounds: their directory is locked, and signals stop them inside labelling too."""

import json
import os
import signal

import pytest
import torch
from test_cbst import train
from test_fada import chain
from test_locks import holder  # noqa: F401  # a fixture

import evaluate_cityscapes
from model import read_weights
from utils import watchdog
from utils.errors import Stopped
from utils.locks import NAME, InUseError
from utils.self_training import label_folders
from utils.self_training.claims import claim_directory
from utils.state import StateError
from utils.stop_signals import StopSignals


def signal_at_label(monkeypatch, number):
    """Send SIGTERM while label `number` is written; returns the list of those that are."""
    save, saved = label_folders.save_colours, []

    def save_and_signal(*arguments):
        saved.append(watchdog.now())
        if len(saved) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        save(*arguments)

    monkeypatch.setattr(label_folders, "save_colours", save_and_signal)
    return saved


def test_a_signal_in_a_labelling_round(mini_data, tmp_path, monkeypatch):
    train(mini_data, tmp_path / "whole")
    before, saved = signal.getsignal(signal.SIGTERM), signal_at_label(monkeypatch, 7)
    with pytest.raises(Stopped, match="stopped by SIGTERM in stage labels; --resume continues") as caught:
        train(mini_data, tmp_path / "parts", "--resume", "auto")
    assert len(saved) == 7 and saved[6] == "labels, waiting for image 2" and not caught.value.together  # in the second round
    assert signal.getsignal(signal.SIGTERM) == before and StopSignals.listening is None
    assert not list((tmp_path / "parts").rglob(NAME))
    (tmp_path / "parts/round1/pseudo_labels/x.png.17.tmp").write_bytes(b"half")
    train(mini_data, tmp_path / "parts", "--resume", "auto")
    assert len(saved) == 10 and not list((tmp_path / "parts").rglob("*.tmp"))
    name = "round1/gta52cityscapes_round1_epoch1.pth"
    whole, parts = (torch.load(tmp_path / folder / name, weights_only=True) for folder in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_a_signal_in_the_pseudo_label_stage(mini_data, tmp_path, monkeypatch):
    chain(mini_data, tmp_path / "whole")
    saved = signal_at_label(monkeypatch, 2)
    with pytest.raises(Stopped, match="in stage labels"):
        chain(mini_data, tmp_path / "parts", "--resume", "auto")
    assert len(saved) == 2
    chain(mini_data, tmp_path / "parts", "--resume", "auto")
    assert len(saved) == 5
    whole, parts = (read_weights(tmp_path / name / "distill/model_iter000003.pth").tensors for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_a_signal_between_two_runs_reaches_the_next(monkeypatch):
    outer, inner = StopSignals(), StopSignals()
    outer.listen()
    os.kill(os.getpid(), signal.SIGUSR1)
    inner.listen()
    assert inner.received == "SIGUSR1" and inner.received_by_any()
    inner.close()
    outer.close()
    assert StopSignals.listening is None


@pytest.mark.parametrize("start", (train, chain))
def test_two_scripts_in_one_directory(start, holder, mini_data, tmp_path):  # noqa: F811
    with pytest.raises(InUseError, match=f"is in use by process {holder.pid}"):
        start(mini_data, tmp_path)
    assert os.listdir(tmp_path) == [NAME]


@pytest.mark.parametrize("resume, files, message", [
    (False, False, None),
    ("auto", False, None),
    (True, False, "nothing to resume from; start without --resume, or with --resume auto"),
    (False, True, "holds files already"),
    ("auto", True, None),
    (True, True, None),
])  # fmt: skip
def test_claims_agree_with_resume(resume, files, message, tmp_path):
    claim_directory(str(tmp_path), {"a": 1}, False)
    if files:
        (tmp_path / "weights.pth").write_bytes(b"")
    if message is None:
        claim_directory(str(tmp_path), {"a": 1}, resume)
    else:
        with pytest.raises(StateError, match=message):
            claim_directory(str(tmp_path), {"a": 1}, resume)
    assert json.load(open(tmp_path / "made_from.json")) == {"a": 1}


def test_an_evaluation_sweeps_what_a_killed_one_has_left(mini_data, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate_cityscapes, "evaluate", lambda args: {})
    (tmp_path / "run/aachen").mkdir(parents=True)
    for name in ("run/a.png.17.tmp", "run/aachen/b.png.17.tmp", "run/notes.tmp", "run/c.txt.17.tmp"):
        (tmp_path / name).write_bytes(b"")
    words = f"--restore-from x --save {tmp_path}/run --data-dir {mini_data}/Cityscapes"
    evaluate_cityscapes.main(evaluate_cityscapes.get_arguments(words.split()))
    assert sorted(path.name for path in tmp_path.rglob("*.tmp")) == ["c.txt.17.tmp", "notes.tmp"]
