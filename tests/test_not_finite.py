"""NaN and infinity end a run in every script, and the message about the last good state is true."""

import pytest
import torch
from test_cbst import train
from test_fada import chain
from test_run import adapt

import train_adaptsegnet
import train_cbst
import train_fada
from utils.run import NotFiniteError, Run
from utils.state import load_state

STARTS = {train_adaptsegnet: adapt, train_fada: chain, train_cbst: train}


@pytest.mark.parametrize("script", STARTS, ids=lambda script: script.__name__)
def test_a_loss_that_is_nan_in_the_first_step(script, mini_data, tmp_path, monkeypatch):
    original = script.cross_entropy
    monkeypatch.setattr(script, "cross_entropy", lambda *rest: original(*rest) * float("nan"))
    with pytest.raises(
        NotFiniteError, match=r"step 0: .*loss_seg is nan.*\.png.*There is no state in \S+ yet; a lower learning"
    ):
        STARTS[script](mini_data, tmp_path)
    assert not list(tmp_path.rglob("state.pth"))


def nan_weights_after(monkeypatch, step):
    """As an infinite gradient leaves them, whose loss was finite."""
    update, steps = Run.update, []

    def update_and_spoil(self, *optimizers):
        update(self, *optimizers)
        steps.append(1)
        if len(steps) == step + 1:
            with torch.no_grad():
                next(self.network.parameters()).fill_(torch.nan)

    monkeypatch.setattr(Run, "update", update_and_spoil)


def test_weights_that_are_nan_are_not_saved(mini_data, tmp_path, monkeypatch):
    nan_weights_after(monkeypatch, 3)
    with pytest.raises(
        NotFiniteError, match=r"step 3: the losses are finite, but the weights are no longer\. The last good state"
    ):
        adapt(mini_data, tmp_path, "--val-every", "2")
    state, _ = load_state(str(tmp_path / "state.pth"))
    assert state["next_step"] == 2 and all(value.isfinite().all() for value in state["networks"][""].values())
    assert state["last"][""]["step"] == 1 and (tmp_path / "metrics.jsonl").read_text().count("val_miou") == 1


@pytest.mark.parametrize("start", (chain, train))
def test_neither_by_stages_and_rounds(start, mini_data, tmp_path, monkeypatch):
    nan_weights_after(monkeypatch, 0)
    with pytest.raises(
        NotFiniteError, match=r"step \d: (loss_seg is nan|the losses are finite, but the weights are no longer)"
    ):
        start(mini_data, tmp_path, "--save-state-every", "1")
    assert not list(tmp_path.rglob("state.pth")) and not list(tmp_path.rglob("*step*.pth"))
