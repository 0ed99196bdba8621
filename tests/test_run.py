"""Runs: exact resume, state files, guards, validation, several processes."""

import json
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from functools import partial

import pytest
import torch
from conftest import ROOT

import train_adaptsegnet
import train_source
from dataset.loader import LoaderStateError
from model import read_weights
from utils import state
from utils.device import choose
from utils.errors import RunError
from utils.run import NotFiniteError, Run
from utils.state import StateError, load_state, predecessor


def flags(mini_data, directory, *more, steps=6):
    return [
        *("--data-dir", f"{mini_data}/GTA5", "--data-dir-target", f"{mini_data}/Cityscapes"),
        *("--input-size", "96,48", "--input-size-target", "96,48", "--model", "MiniResNet18", "--restore-from", "none"),
        *("--device", "cpu", "--num-workers", "0", "--log-every", "1", "--save-state-every", "2", "--learning-rate", "1e-3"),
        *("--num-steps", str(steps), "--snapshot-dir", str(directory), *more),
    ]


def adapt(mini_data, directory, *more, steps=6):
    arguments = flags(mini_data, directory, *more, "--num-steps-stop", str(steps), steps=steps)
    train_adaptsegnet.main(train_adaptsegnet.get_arguments(arguments))


def final_weights(directory, steps=6):
    return {
        f"{suffix}/{key}": value
        for suffix in ("", "_D1", "_D2")
        for key, value in torch.load(directory / f"GTA5_{steps}{suffix}.pth", weights_only=True).items()
    }


def losses(directory):
    rows = [json.loads(line) for line in open(directory / "metrics.jsonl")]
    return [{key: value for key, value in row.items() if key.startswith(("step", "loss", "lr"))} for row in rows]


def assert_same_run(a, b):
    first, second = final_weights(a), final_weights(b)
    assert first.keys() == second.keys()
    different = [key for key in first if not torch.equal(first[key], second[key])]
    assert not different, different[:3]
    assert losses(a) == losses(b)


@pytest.fixture(scope="module")
def uninterrupted(mini_data, tmp_path_factory):
    directory = tmp_path_factory.mktemp("uninterrupted")
    adapt(mini_data, directory)
    return directory


class Killed(Exception):
    pass


@pytest.mark.parametrize("step", (0, 1, 3, 5))
def test_resumed_run_equals_an_uninterrupted_one(step, mini_data, uninterrupted, tmp_path, monkeypatch):
    """Stopped after the update of any step: whether or not its state was just written, the same weights come out."""
    end_step = Run.end_step

    def end_and_die(self, now, *rest, **shown):
        end_step(self, now, *rest, **shown)
        if now == step:
            raise Killed

    monkeypatch.setattr(Run, "end_step", end_and_die)
    with pytest.raises(Killed):
        adapt(mini_data, tmp_path)
    monkeypatch.setattr(Run, "end_step", end_step)
    adapt(mini_data, tmp_path, *(["--resume"] if (tmp_path / "state.pth").exists() else []))
    assert_same_run(tmp_path, uninterrupted)


@pytest.mark.parametrize("rename", (0, 1, 2))
def test_killed_in_the_middle_of_saving(rename, mini_data, uninterrupted, tmp_path, monkeypatch):
    """Killed before any of the renames that put the second state in its place."""
    calls = []

    def replace(source, destination):
        if "state" in str(destination):
            calls.append(destination)
            if len(calls) == 3 + rename:  # the first state takes two renames, the second three
                raise Killed
        return os.rename(source, destination)

    monkeypatch.setattr(state.os, "replace", replace)
    with pytest.raises(Killed):
        adapt(mini_data, tmp_path)
    monkeypatch.undo()
    adapt(mini_data, tmp_path, "--resume")
    assert_same_run(tmp_path, uninterrupted)


def test_sigkill_and_resume(mini_data, uninterrupted, tmp_path):
    command = [sys.executable, "train_adaptsegnet.py", *flags(mini_data, tmp_path, "--num-steps-stop", "6")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "state.pth").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = subprocess.run([*command, "--resume"], cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert_same_run(tmp_path, uninterrupted)


def test_workers_do_not_change_the_run(mini_data, uninterrupted, tmp_path):
    adapt(mini_data, tmp_path, "--num-workers", "2")
    assert_same_run(tmp_path, uninterrupted)


def test_a_finished_run_resumes_to_nothing(mini_data, tmp_path):
    adapt(mini_data, tmp_path, steps=2)
    before = (tmp_path / "metrics.jsonl").read_text()
    adapt(mini_data, tmp_path, "--resume", steps=2)
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_a_truncated_state_falls_back_to_the_one_before(mini_data, uninterrupted, tmp_path, capsys):
    adapt(mini_data, tmp_path)
    path = tmp_path / "state.pth"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    adapt(mini_data, tmp_path, "--resume")
    warning = capsys.readouterr().err
    assert "state.pth: truncated or not a state file" in warning and "continuing from the state before it" in warning
    assert_same_run(tmp_path, uninterrupted)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "truncated"),
        (b"hello", "truncated or not a state file"),
        (None, "no such file"),
        ("weights", "not the state of a run"),
    ],
)
def test_states_that_cannot_be_used(content, message, tmp_path):
    path = str(tmp_path / "state.pth")
    if content == "weights":
        torch.save({"conv1.weight": torch.zeros(1)}, path)
    elif content is not None:
        (tmp_path / "state.pth").write_bytes(content)
    with pytest.raises(StateError, match=message):
        load_state(path)
    state.save_state(dict.fromkeys(state.KEYS, 3), predecessor(path))
    found, problems = load_state(path)
    assert found["next_step"] == 3 and len(problems) == 1


def test_a_used_directory_needs_resume_and_resume_needs_the_same_flags(mini_data, tmp_path):
    adapt(mini_data, tmp_path, steps=2)
    with pytest.raises(StateError, match="holds a run already: continue it with --resume"):
        adapt(mini_data, tmp_path, steps=2)
    with pytest.raises(StateError, match=r"started with other flags: --gan Vanilla \(now LS\)"):
        adapt(mini_data, tmp_path, "--resume", "--gan", "LS", steps=2)
    with pytest.raises(StateError, match="nothing to resume from.*no such file"):
        adapt(mini_data, tmp_path / "elsewhere", "--resume", steps=2)


def test_an_infinite_loss_stops_the_run_and_keeps_the_last_good_state(mini_data, tmp_path, monkeypatch):
    original = train_adaptsegnet.cross_entropy
    calls = []

    def sometimes_nan(logits, label):
        calls.append(1)
        return original(logits, label) * (float("nan") if len(calls) > 6 else 1)  # two levels: from step 3 on

    monkeypatch.setattr(train_adaptsegnet, "cross_entropy", sometimes_nan)
    with pytest.raises(
        NotFiniteError, match=r"step 3: loss_seg_low is nan.*GTA5/images/\d+\.png.*leftImg8bit\.png.*last good state"
    ):
        adapt(mini_data, tmp_path)
    saved, _ = load_state(str(tmp_path / "state.pth"))
    assert saved["next_step"] == 2
    assert all(value.isfinite().all() for value in saved["networks"][""].values())


def infinite_gradients(monkeypatch, steps, of="D1"):
    """Make the gradients of one optimizer infinite in these steps, counted from 0, as a too high loss scale does."""
    update, count = Run.update, []

    def update_after_overflow(self, *optimizers):
        if len(count) in steps:
            for parameter in self.optimizers[of].param_groups[0]["params"]:
                parameter.grad.fill_(torch.inf)
        count.append(1)
        update(self, *optimizers)

    monkeypatch.setattr(Run, "update", update_after_overflow)
    # A scale that is not too high by itself.
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=1.0))


def test_an_infinite_gradient_skips_one_optimizer_with_fp16(mini_data, tmp_path, monkeypatch):
    infinite_gradients(monkeypatch, {0, 2})
    adapt(mini_data, tmp_path, "--amp", "fp16", "--num-steps-stop", "3", steps=3)
    rows = [json.loads(line) for line in open(tmp_path / "metrics.jsonl")]
    assert rows[-1]["skipped_updates"] == 2
    saved, _ = load_state(str(tmp_path / "state.pth"))
    steps = {name: {int(value["step"]) for value in saved["optimizers"][name]["state"].values()} for name in ("D1", "D2")}
    assert steps == {"D1": {1}, "D2": {3}}
    assert saved["skipped"] == {"updates": 2, "steps_in_a_row": 1}


def test_an_infinite_loss_is_survived_only_with_fp16_and_only_without_a_trace(mini_data, tmp_path, monkeypatch):
    original = train_source.cross_entropy
    calls = []

    def infinite_once(logits, label):
        calls.append(1)
        return original(logits, label) * (torch.inf if len(calls) == 2 else 1)

    def train(directory, amp):
        calls.clear()
        one_domain = ("--data-dir-target", "--input-size-target")
        arguments = flags(mini_data, directory, "--amp", amp, steps=4)
        arguments = [a for i, a in enumerate(arguments) if not {a, arguments[i - 1]} & set(one_domain)]
        train_source.main(train_source.get_arguments(arguments))

    monkeypatch.setattr(train_source, "cross_entropy", infinite_once)
    train(tmp_path / "fp16", "fp16")
    rows = [json.loads(line) for line in open(tmp_path / "fp16/metrics.jsonl")]
    assert rows[1]["loss_seg"] is None and all(row["loss_seg"] is not None for row in (rows[0], *rows[2:]))
    with pytest.raises(NotFiniteError, match="step 1: loss_seg is inf"):
        train(tmp_path / "bf16", "bf16")
    monkeypatch.setattr(Run, "_is_intact", lambda self: False)
    with pytest.raises(NotFiniteError, match="step 1: loss_seg is inf"):
        train(tmp_path / "traces", "fp16")


def test_gradients_that_stay_infinite_end_the_run(mini_data, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.run.MOST_SKIPPED_STEPS", 3)
    infinite_gradients(monkeypatch, range(1, 9), of="G")
    with pytest.raises(NotFiniteError, match="the gradients of 3 steps in a row were not finite"):
        adapt(mini_data, tmp_path, "--amp", "fp16")


@pytest.mark.parametrize("gpu, device, current", [(None, "cuda", 0), ("1", "auto", 1), (None, "cuda:1", 1)])
def test_the_chosen_gpu_becomes_the_current_one(gpu, device, current, monkeypatch):
    made_current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", made_current.append)
    assert choose(Namespace(gpu=gpu, device=device)) == torch.device("cuda", current)
    assert made_current == [current]
    with pytest.raises(RunError, match="--device cuda:2: there is no such GPU here"):
        choose(Namespace(gpu=None, device="cuda:2"))


def test_target_labels_are_never_opened(mini_data, tmp_path):
    (tmp_path / "Cityscapes/leftImg8bit").mkdir(parents=True)
    os.symlink(mini_data / "Cityscapes/leftImg8bit/train", tmp_path / "Cityscapes/leftImg8bit/train")
    adapt(mini_data, tmp_path / "run", "--data-dir-target", str(tmp_path / "Cityscapes"), steps=1)
    assert (tmp_path / "run/GTA5_1.pth").exists()


def test_validation_keeps_best_and_last_apart(mini_data, tmp_path, capsys):
    adapt(mini_data, tmp_path, "--val-every", "2", "--save-pred-every", "3")
    rows = [json.loads(line) for line in open(tmp_path / "metrics.jsonl")]
    scores = {row["step"]: row["val_miou"] for row in rows if "val_miou" in row}
    assert list(scores) == [1, 3, 5]
    assert (tmp_path / "GTA5_best.pth").exists() and (tmp_path / "GTA5_3.pth").exists()
    output = capsys.readouterr().out
    assert f"last validation, after step 6: mIoU {100 * scores[5]:.2f} (best {100 * max(scores.values()):.2f} after" in output
    assert set(json.loads((tmp_path / "args.json").read_text())) > {"network", "versions", "learning_rate"}
    assert list(tmp_path.glob("events.*"))


@pytest.mark.parametrize("when", ("before the state", "after the state"))
def test_a_kill_around_a_validation_loses_nothing_of_it(when, mini_data, tmp_path, monkeypatch):
    """Rows, best and last are those of the uninterrupted run, whichever side of the save the kill falls on."""
    more = ("--val-every", "2", "--save-pred-every", "3")
    adapt(mini_data, tmp_path / "whole", *more)
    save = Run._save

    def save_and_die(self, step):
        if when == "after the state":
            save(self, step)
        if step == 3:
            raise Killed
        save(self, step)

    monkeypatch.setattr(Run, "_save", save_and_die)
    with pytest.raises(Killed):
        adapt(mini_data, tmp_path / "parts", *more)
    monkeypatch.undo()
    adapt(mini_data, tmp_path / "parts", *more, "--resume")
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    rows = [[json.loads(line) for line in open(tmp_path / name / "metrics.jsonl")] for name in ("whole", "parts")]
    validations = [[row for row in each if "val_miou" in row] for each in rows]
    assert validations[0] == validations[1] and len(validations[0]) == 3
    states = [load_state(str(tmp_path / name / "state.pth"))[0] for name in ("whole", "parts")]
    assert states[0]["best"] == states[1]["best"] and states[0]["last"] == states[1]["last"]
    best = [torch.load(tmp_path / name / "GTA5_best.pth", weights_only=True) for name in ("whole", "parts")]
    assert all(torch.equal(best[0][key], best[1][key]) for key in best[0])


@pytest.mark.parametrize("amp", ("bf16", pytest.param("fp16", marks=pytest.mark.slow)))
def test_mixed_precision_and_channels_last_resume_exactly(amp, mini_data, tmp_path, monkeypatch):
    for name, stops in (("whole", (4,)), ("parts", (2, 4))):
        for stop in stops:
            more = ["--resume"] if stop == 4 and name == "parts" else []
            arguments = flags(mini_data, tmp_path / name, "--amp", amp, "--channels-last", "--num-steps-stop", str(stop), *more)
            train_adaptsegnet.main(train_adaptsegnet.get_arguments(arguments))
    whole, parts = final_weights(tmp_path / "whole", 4), final_weights(tmp_path / "parts", 4)
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


@pytest.mark.parametrize("optimizer", ("SGD", "Adam"))
def test_source_training_resumes_exactly(optimizer, mini_data, tmp_path):
    for name, stops in (("whole", (4,)), ("parts", (3, 4))):
        for stop in stops:
            arguments = [
                *(
                    "--data-dir",
                    f"{mini_data}/GTA5",
                    "--input-size",
                    "96,48",
                    "--model",
                    "MiniResNet18",
                    "--restore-from",
                    "none",
                ),
                *("--device", "cpu", "--num-workers", "0", "--optim", optimizer, "--lr", "1e-3", "--multi", "True"),
                *("--iter_max", "10", "--iter_stop", str(stop), "--snapshot-dir", str(tmp_path / name)),
                *(["--resume"] if name == "parts" and stop == 4 else []),
            ]
            train_source.main(train_source.get_arguments(arguments))
    whole, parts = (torch.load(tmp_path / name / "GTA5_4.pth", weights_only=True) for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def run_torchrun(processes, script, arguments):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
        script,
        *arguments,
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]


def test_two_processes_do_what_one_does_with_the_doubled_batch(mini_data, tmp_path):
    """BatchNorm is frozen: its batch statistics are each process's own by design."""
    common = ("--batch-norm", "frozen", "--iter-size", "2", "--val-every", "4", "--num-steps-stop", "4")
    run_torchrun(2, "train_adaptsegnet.py", flags(mini_data, tmp_path / "two", *common, steps=4))
    adapt(mini_data, tmp_path / "one", *common, "--batch-size", "2", steps=4)
    one, two = final_weights(tmp_path / "one", 4), final_weights(tmp_path / "two", 4)
    for key in one:
        if key.startswith("_D"):
            # Adam divides by the gradient's size, so where that is near 0 rounding decides: compare whole tensors against
            # the width of its four steps of 1e-4.
            difference = (two[key] - one[key]).square().mean().sqrt()
            assert difference < 0.05 * 4e-4, key
        else:
            torch.testing.assert_close(two[key], one[key], rtol=1e-5, atol=1e-7, msg=key)
    scores = [
        [row["val_miou"] for row in map(json.loads, open(tmp_path / name / "metrics.jsonl")) if "val_miou" in row]
        for name in ("one", "two")
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4) and len(scores[0]) == 1
    # Begun in one process and resumed in two, which share the batch.
    half = flags(mini_data, tmp_path / "half", *common[:-2], "--batch-size", "2", "--num-steps-stop", "2", steps=4)
    train_adaptsegnet.main(train_adaptsegnet.get_arguments(half))
    run_torchrun(2, "train_adaptsegnet.py", flags(mini_data, tmp_path / "half", *common, "--resume", steps=4))
    half = final_weights(tmp_path / "half", 4)
    for key in (key for key in one if not key.startswith("_D")):
        torch.testing.assert_close(half[key], one[key], rtol=1e-5, atol=1e-7, msg=key)
    with pytest.raises(LoaderStateError, match="global batch size 2, not 1"):
        adapt(mini_data, tmp_path / "half", *common[:-2], "--resume", steps=4)


@pytest.mark.parametrize(
    "script, more",
    [
        pytest.param("train_source.py", "--updates clean", marks=pytest.mark.slow),
        pytest.param("train_maxsquare.py", "--multi --target-mode IW_maxsquare --val-every 0", marks=pytest.mark.slow),
        ("train_clan.py", "--preheat-steps 1 --lambda-adv 0.1"),
        ("train_dacs.py", "--batch-size 1 --mask --rare-class-sampling 0.1 --rare-class-pixels 50 --blur False"),
        ("train_fada.py", "--stage all --lambda-adv 0.1 --batch-size 4 --input-size-test 96,48 --scale-range 1,1"),
        ("train_cbst.py", "--num-rounds 2 --batch-size 1 --mr-weight-kld 0.1 --init-src-port 0.5"),
    ],
)
def test_every_script_trains_in_two_processes(script, more, mini_data, tmp_path):
    """As above: the same weights as one process with the doubled batch."""
    data = ["--data-dir", f"{mini_data}/GTA5", "--input-size", "96,48", "--model", "MiniResNet18", "--restore-from", "none"]
    data += (
        [] if script == "train_source.py" else ["--data-dir-target", f"{mini_data}/Cityscapes", "--input-size-target", "96,48"]
    )
    common = [
        *data,
        "--device",
        "cpu",
        "--num-workers",
        "0",
        "--batch-norm",
        "frozen",
        "--num-steps",
        "3",
        "--num-steps-stop",
        "3",
    ]
    common += [*more.split(), "--learning-rate", "1e-3"]
    run_torchrun(2, script, [*common, "--snapshot-dir", str(tmp_path / "two")])
    doubled = [] if script == "train_fada.py" else ["--batch-size", "2"]  # FADA's is the global one
    command = [sys.executable, script, *common, *doubled, "--snapshot-dir", str(tmp_path / "one")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    last = {"train_fada.py": "adversarial/model_iter000003.pth", "train_cbst.py": "round0/gta52cityscapes_round0_epoch2.pth"}
    last["train_dacs.py"] = "checkpoint-iter3.pth"
    last = last.get(script, "GTA5_3.pth")
    one, two = (read_weights(tmp_path / name / last).tensors for name in ("one", "two"))
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("more", ([], ["--amp", "bf16", "--channels-last"], ["--amp", "fp16"], ["--compile"]))
def test_a_gpu_trains_like_the_cpu(more, mini_data, uninterrupted, tmp_path):
    adapt(mini_data, tmp_path, "--device", "cuda", *more)
    expected, actual = losses(uninterrupted), losses(tmp_path)
    for row, other in zip(actual, expected, strict=True):
        for key in row:
            assert row[key] == pytest.approx(other[key], rel=0.05 if "--amp" in more else 0.01)
