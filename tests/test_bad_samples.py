"""--on-bad-sample skip: the next sample of the stream instead, the same for any number of workers and after a resume."""

import json
import shutil

import pytest
import torch
from test_cbst import train as train_rounds
from test_fada import chain
from test_run import Killed, adapt, assert_same_run, flags, run_torchrun

from dataset.errors import DataError
from dataset.loader import MOST_IN_A_ROW, EndlessLoader
from dataset.segmentation import build_dataset
from dataset.transforms import Compose, RandomMirror, Resize
from utils import run as run_module
from utils.run import DamagedDataError, Run, check_damaged
from utils.state import load_state


def damage(path):
    path.write_bytes(path.read_bytes()[:200])
    return path


@pytest.fixture
def damaged(mini_data, tmp_path):
    """Mini data with a damaged image and a damaged label in the source, and a damaged image in the target."""
    root = tmp_path / "data"
    shutil.copytree(mini_data, root)
    damage(root / "GTA5/images/00002.png")
    damage(root / "GTA5/labels/00004.png")
    damage(sorted(root.glob("Cityscapes/leftImg8bit/train/*/*.png"))[0])
    return root


def stream(root, workers=0, start=0, count=12, skip_bad=True):
    transform = Compose([RandomMirror(), Resize((48, 24))])
    loader = EndlessLoader(build_dataset("gta5", root / "GTA5", "train", transform=transform), 2, 0, workers, skip_bad=skip_bad)
    loader.position = start
    return [next(loader) for _ in range(count)]


def test_a_damaged_sample_is_replaced_by_the_next_one(damaged, mini_data):
    found, intact = (stream(root) for root in (damaged, mini_data))
    names = [name for batch in intact for name in batch["name"]]
    bad = {"00002.png", "00004.png"}
    expected = [next(name for name in names[k:] if name not in bad) for k in range(20)]
    assert [name for batch in found for name in batch["name"]][:20] == expected
    errors = [error for batch in found for error in batch["damaged"]]
    assert all(("00002.png: cannot be read" in error) or ("00004.png" in error) or not error for error in errors)
    assert [bool(error) for error in errors][:20] == [name in bad for name in names[:20]]
    for one, other in zip(found[:10], intact[:10], strict=True):
        kept = [i for i, error in enumerate(one["damaged"]) if not error]
        assert torch.equal(one["image"][kept], other["image"][kept])


@pytest.mark.parametrize("workers, start", [(2, 0), (0, 5)])
def test_neither_workers_nor_an_interruption_change_it(workers, start, damaged):
    whole, found = stream(damaged), stream(damaged, workers, start, 12 - start)
    for one, other in zip(whole[start:], found, strict=True):
        assert one["damaged"] == other["damaged"] and torch.equal(one["image"], other["image"])


def test_without_it_and_with_too_many_in_a_row_it_is_an_error(damaged):
    with pytest.raises(DataError, match="cannot be read"):
        stream(damaged, skip_bad=False)
    for path in damaged.glob("GTA5/images/*.png"):
        damage(path)
    with pytest.raises(DataError, match=rf"{MOST_IN_A_ROW} samples in a row are damaged: \S+\.png: cannot be read"):
        stream(damaged)


def rows(directory, key="damaged"):
    return [row for row in map(json.loads, open(directory / "metrics.jsonl")) if key in row]


def test_a_run_lists_them_and_resumes_exactly(damaged, tmp_path, monkeypatch, capsys):
    skip = ("--on-bad-sample", "skip")
    with pytest.raises(DataError, match="cannot be read"):
        adapt(damaged, tmp_path / "error")
    adapt(damaged, tmp_path / "whole", *skip)
    output = capsys.readouterr().out
    found = rows(tmp_path / "whole")
    assert f"{len(found)} damaged samples were replaced:" in output and found
    assert {row["damaged"].split(":")[0] for row in found} <= {line.strip().split(":")[0] for line in output.splitlines()}
    end_step = Run.end_step

    def end_and_die(self, step, *rest, **shown):
        end_step(self, step, *rest, **shown)
        if step == 2:
            raise Killed

    monkeypatch.setattr(Run, "end_step", end_and_die)
    with pytest.raises(Killed):
        adapt(damaged, tmp_path / "parts", *skip)
    monkeypatch.setattr(Run, "end_step", end_step)
    adapt(damaged, tmp_path / "parts", *skip, "--resume", "--num-workers", "2")
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    assert rows(tmp_path / "parts") == found and f"{len(found)} damaged samples" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_skip_what_one_skips(damaged, tmp_path):
    more = ("--on-bad-sample", "skip", "--log-every", "4", "--num-steps-stop", "6")
    run_torchrun(2, "train_adaptsegnet.py", flags(damaged, tmp_path / "two", *more))
    adapt(damaged, tmp_path / "one", *more[:4], "--batch-size", "2")
    assert rows(tmp_path / "two") and rows(tmp_path / "two") == rows(tmp_path / "one")
    states = [load_state(str(tmp_path / name / "state.pth"))[0] for name in ("one", "two")]
    assert states[0]["damaged"] == states[1]["damaged"]


def test_too_many_end_the_run(damaged, tmp_path, monkeypatch):
    check_damaged(["a"], 10, 20)
    check_damaged(["a"], 11, 1100)
    with pytest.raises(DamagedDataError, match=r"11 of 1099 samples could not be read, more than .* accepts \(1%\): a; b;"):
        check_damaged(["a", "b"], 11, 1099)
    monkeypatch.setattr(run_module, "MOST_DAMAGED", 1)
    with pytest.raises(DamagedDataError, match=r"[23] of \d+ samples could not be read.*\.png: cannot be read.*check_data.py"):
        adapt(damaged, tmp_path, "--on-bad-sample", "skip")


def test_all_stages_of_fada(damaged, tmp_path, capsys):
    chain(damaged, tmp_path / "run", "--on-bad-sample", "skip")
    assert len(list((tmp_path / "run/pseudo-labels").glob("*.png"))) == 4
    assert "not labelled: " in capsys.readouterr().out
    statistics = json.load(open(tmp_path / "run/class_statistics_19.json"))["file_to_label"]
    assert statistics["00004.png"] == [] and statistics["00002.png"]


def test_rounds_of_cbst(damaged, tmp_path, capsys):
    train_rounds(damaged, tmp_path / "run", "--num-rounds", "2", "--init-src-port", "1", "--on-bad-sample", "skip")
    assert len(list((tmp_path / "run/round0/pseudo_labels").glob("*.png"))) == 4
    assert rows(tmp_path / "run/round0") and "not labelled: " in capsys.readouterr().out
