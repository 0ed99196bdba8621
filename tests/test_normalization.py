"""Norms: the numbers, gradients and state of PyTorch's own, and what they keep in memory."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from model import build_model
from model.normalization import NO_EPS, BatchNorm


def pair(channels=7, eps=1e-5, learn=False):
    """PyTorch's norm and ours with the same random weights and statistics."""
    theirs, ours = nn.BatchNorm2d(channels, eps=eps), BatchNorm(channels, eps=eps)
    for value in theirs.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(channels) + 0.5)
    ours.load_state_dict(theirs.state_dict())
    return [norm.requires_grad_(learn) for norm in (theirs, ours)]


def output_and_gradients(norm, x, probe):
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = norm(x)
    (y * probe).sum().backward()
    return y.detach(), x.grad, norm.weight.grad, norm.bias.grad


@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("training, learn", [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("eps", (1e-5, NO_EPS))
def test_numbers_and_gradients_are_those_of_pytorch(layout, dtype, training, learn, eps):
    theirs, ours = (norm.train(training) for norm in pair(eps=eps, learn=learn))
    x = torch.randn(2, 7, 5, 6, dtype=dtype).contiguous(memory_format=layout)
    expected = output_and_gradients(theirs, x, probe := torch.randn(2, 7, 5, 6, dtype=dtype))
    actual = output_and_gradients(ours, x, probe)
    assert actual[0].is_contiguous(memory_format=layout) and actual[0].dtype == dtype
    for ours_now, theirs_now in zip(actual, expected, strict=True):
        assert (ours_now is None) == (theirs_now is None)
        if ours_now is not None:
            torch.testing.assert_close(ours_now, theirs_now, rtol=1e-6 if dtype == torch.float32 else 1e-2, atol=1e-6)
    assert torch.equal(ours.running_mean, theirs.running_mean) and torch.equal(ours.running_var, theirs.running_var)


def test_a_frozen_norm_has_right_second_gradients():
    norm = pair()[1].double().eval()
    x = torch.randn(1, 7, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, x) and torch.autograd.gradgradcheck(norm, x)


def kept_for_backward(network, images):
    """Bytes that the backward pass of a forward pass would use, parameters aside."""
    storages = {}

    def keep(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        network(images)
    return sum(size for pointer, size in storages.items() if pointer not in {p.data_ptr() for p in network.parameters()})


def test_frozen_norms_keep_no_activations():
    """Of a norm between two convolutions, PyTorch keeps the input for the backward pass; we need its output only."""
    network = build_model("MiniResNet18", batch_norm="frozen").train()
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    light = kept_for_backward(network, images)
    network.norms()[3].weight.requires_grad_(True)
    assert kept_for_backward(network, images) > light
    for norm in network.norms():
        norm.weight.requires_grad_(True)
    assert kept_for_backward(network, images) > 1.5 * light


def test_a_frozen_norm_in_mixed_precision_stays_in_it():
    norm = pair()[1].eval()
    convolution = nn.Conv2d(7, 7, 1)
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(convolution(torch.randn(1, 7, 4, 4)))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert convolution.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("mode, counted", [("train", 2), ("frozen-affine", 2), ("frozen-statistics", 0), ("frozen", 0)])
def test_batches_are_counted_as_pytorch_counts_them(mode, counted):
    network = build_model("MiniResNet18", batch_norm=mode).train()
    images = torch.randint(0, 256, (1, 3, 48, 48), dtype=torch.uint8)
    with torch.no_grad():
        network(images), network.eval()(images), network.train()(images)
    state = network.state_dict()
    counts = [value for key, value in state.items() if key.endswith("num_batches_tracked")]
    assert counts and all(value.dtype == torch.int64 and value.item() == counted for value in counts)
    assert not any(key.endswith("zeros") for key in state)
    again = build_model("MiniResNet18", batch_norm=mode)
    again.load_state_dict(copy.deepcopy(state))
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())


def test_without_momentum_the_statistics_are_averages():
    theirs, ours = (norm.train() for norm in pair())
    for norm in (theirs, ours):
        norm.reset_running_stats()
        norm.momentum = None
    for x in torch.randn(3, 4, 7, 5, 5):
        ours.num_batches_tracked += 1
        torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.running_var, theirs.running_var)
