"""Averaging gradients over processes (tests/test_run.py trains every script in two)."""

import importlib

import pytest
import torch
from torch import nn
from torch.distributed import HashStore

from utils import distributed


@pytest.fixture
def average_calls(monkeypatch):
    """A process group of this process alone that passes for one of two, and a list that grows with every average."""
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    calls, average = [], distributed.allreduce_hook
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "allreduce_hook", lambda *args: calls.append(1) or average(*args))
    yield calls
    torch.distributed.destroy_process_group()
    distributed._cpu_group.cache_clear()


def test_one_average_for_all_passes_of_a_step(average_calls):
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3))
    parallel = distributed.wrap(plain)
    images = torch.randn(3, 2, 3, 8, 8)
    for image in images[:-1]:
        with distributed.averaging(False):
            parallel(image).square().mean().backward()
    assert not average_calls
    parallel(images[-1]).square().mean().backward()
    assert len(average_calls) == 1
    gradients = [parameter.grad.clone() for parameter in plain.parameters()]
    plain.zero_grad()
    sum(plain(image).square().mean() for image in images).backward()
    torch.testing.assert_close(gradients, [parameter.grad for parameter in plain.parameters()])


def test_an_error_in_a_pass_does_not_switch_averaging_off(average_calls):
    with pytest.raises(RuntimeError), distributed.averaging(False):
        raise RuntimeError
    parallel = distributed.wrap(nn.Conv2d(3, 4, 3))
    parallel(torch.randn(1, 3, 8, 8)).mean().backward()
    assert len(average_calls) == 1


@pytest.mark.parametrize(
    "script, more, averages",
    [
        ("train_source", "--iter-size 2", 1),
        ("train_adaptsegnet", "--iter-size 2", 3),
        ("train_maxsquare", "--target-mode IW_maxsquare", 1),
        ("train_clan", "--model MiniResNet18Twin --random-scale False", 2),
        ("train_fada", "--stage adversarial --batch-size 4 --class-balanced False", 2),
    ],
)
def test_a_step_averages_once_for_each_network(script, more, averages, average_calls, mini_data, tmp_path, monkeypatch):
    """tests/test_run.py sees that the weights are those of one process with the doubled batch."""
    steps, average = 2, distributed.allreduce_hook
    whole_networks = []  # gradients travel in several buckets

    def counted(group, bucket):
        whole_networks.extend([1] * bucket.is_last())
        return average(group, bucket)

    monkeypatch.setattr(distributed, "allreduce_hook", counted)
    monkeypatch.setattr("utils.run.any_process", lambda truth: truth)
    monkeypatch.setattr("utils.run.gather", lambda value: [value])
    module = importlib.import_module(script)
    target = ["--data-dir-target", f"{mini_data}/Cityscapes", "--input-size-target", "96,48"]
    common = ["--data-dir", f"{mini_data}/GTA5", "--input-size", "96,48", "--restore-from", "none", "--model", "MiniResNet18"]
    common += ["--device", "cpu", "--num-workers", "0", "--num-steps", str(steps), "--snapshot-dir", str(tmp_path)]
    module.main(module.get_arguments([*common, *(target if script != "train_source" else []), *more.split()]))
    assert len(whole_networks) == averages * steps
