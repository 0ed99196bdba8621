"""--wandb, with a stand-in for its package: what is sent and when, and that without the flag nothing is even loaded."""

import subprocess
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT

import train_clan
from utils.run_log import RunLog


class FakeRun(SimpleNamespace):
    def define_metric(self, name, step_metric):
        self.axis = (name, step_metric)

    def log(self, values):
        self.sent.append(values)

    def finish(self):
        self.finished = True


@pytest.fixture
def runs(monkeypatch):
    """The runs that the stand-in was asked for."""
    found = []

    def init(**settings):
        found.append(FakeRun(settings=settings, id=settings["id"] or f"run{len(found)}", sent=[], finished=False))
        return found[-1]

    fake = ModuleType("wandb")
    fake.init, fake.Image = init, lambda picture: ("picture", picture.shape)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return found


def log_some(directory, args, resumed=False):
    log = RunLog(str(directory), 5 if resumed else 0, True, args)
    log.line(0, {"loss": {"loss_seg": 1.5}, "learning rate": {"lr_G": 0.1}})
    log.validation(0, "", 0.4, {"road": 0.9, "train": float("nan")})
    log.picture(0, "source", np.zeros((4, 6, 3), np.uint8))
    log.close()


def test_the_log_goes_to_the_project_too(runs, tmp_path):
    args = train_clan.get_arguments(["--wandb", "streets", "--snapshot-dir", str(tmp_path)])
    log_some(tmp_path, args)
    (run,) = runs
    assert run.settings["project"] == "streets" and run.settings["config"]["learning_rate"] == args.learning_rate
    assert run.sent == [
        {"loss/loss_seg": 1.5, "step": 0},
        {"learning rate/lr_G": 0.1, "step": 0},
        {"validation/mIoU": 0.4, "step": 0},
        {"validation IoU/road": 0.9, "step": 0},
        {"source": ("picture", (4, 6, 3)), "step": 0},
    ]
    assert run.axis == ("*", "step") and run.finished
    assert (tmp_path / "metrics.jsonl").exists() and list(tmp_path.glob("events.*"))


def test_a_resumed_run_goes_on_there(runs, tmp_path):
    args = train_clan.get_arguments(["--wandb", "streets"])
    log_some(tmp_path, args)
    log_some(tmp_path, args, resumed=True)
    log_some(tmp_path, args)
    assert [run.settings["id"] for run in runs] == [None, "run0", None]


def test_nothing_is_sent_without_the_flag(runs, tmp_path):
    log_some(tmp_path, train_clan.get_arguments([]))
    assert runs == [] and not (tmp_path / "wandb.json").exists()
    code = "import sys, train_clan, utils.run_log; sys.exit('wandb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_config_never_sends_by_itself(runs, tmp_path):
    (tmp_path / "args.json").write_text('{"snapshot_dir": "x", "wandb": "streets"}')
    assert train_clan.get_arguments(["--config", str(tmp_path / "args.json")]).wandb is None


def test_without_the_package_the_flag_is_one_line(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        train_clan.get_arguments(["--wandb", "streets"])
    errors = capsys.readouterr().err
    assert "argument --wandb: the package wandb is missing: pip install wandb" in errors and errors.count("\n") == 1
