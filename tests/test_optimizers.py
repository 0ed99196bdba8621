"""The optimizers of PyTorch 1.0 and the poly schedule."""

import copy
from argparse import Namespace

import numpy as np
import pytest
import torch

from model import build_model
from utils.optimizers import (
    EarlyEpsilonAdam,
    RepeatedUpdateSGD,
    discriminator_optimizer,
    poly,
    segmentation_optimizer,
    set_learning_rate,
)


def sgd_flags(updates, rate, weight_decay):
    return Namespace(optim="SGD", updates=updates, learning_rate=rate, momentum=0.9, weight_decay=weight_decay)


def visit_by_visit(value, gradients, visits, lr, momentum, decay):
    """The rule of the docstring for one number, written as a loop."""
    buffer = 0.0
    for gradient in gradients:
        for _ in range(visits):
            gradient = gradient + decay * value
            buffer = momentum * buffer + gradient
            value = value - lr * buffer
    return value


@pytest.mark.parametrize("visits", (1, 3, 4))
def test_repeated_updates_follow_the_rule(visits):
    parameter = torch.nn.Parameter(torch.tensor([2.0, -1.0], dtype=torch.float64))
    optimizer = RepeatedUpdateSGD([{"params": [parameter], "visits": visits}], 0.1, 0.9, 0.05)
    gradients = [[0.3, 0.7], [-0.2, 0.1], [0.5, -0.4]]
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
    expected = [visit_by_visit(start, [g[i] for g in gradients], visits, 0.1, 0.9, 0.05) for i, start in enumerate((2, -1))]
    np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("lr", (0.0, 1e-12, 2.5e-4))
@pytest.mark.parametrize("momentum", (0.0, 0.9))
def test_all_visits_at_once_lose_nothing_in_float32(lr, momentum):
    """As close to the rule in float64 as the visits one by one, also at the ends of schedules and without momentum."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(1000, generator=generator)
    gradients = torch.randn(20, 1000, generator=generator)
    exact, at_once = (torch.nn.Parameter(start.to(dtype)) for dtype in (torch.float64, torch.float32))
    optimizers = [RepeatedUpdateSGD([{"params": [p], "visits": 3}], lr, momentum, 5e-4) for p in (exact, at_once)]
    value, buffer = start.clone(), torch.zeros(1000)
    for gradient in gradients:
        for parameter, optimizer in zip((exact, at_once), optimizers, strict=True):
            parameter.grad = gradient.to(parameter.dtype, copy=True)
            optimizer.step()
        for _ in range(3):
            gradient = gradient + 5e-4 * value
            buffer = momentum * buffer + gradient
            value = value - lr * buffer

    def error(actual, expected):
        return (actual.double() - expected).square().mean().sqrt()

    assert error(at_once.data, exact.data) <= 1.1 * error(value, exact.data)
    buffers = [optimizer.state[p]["momentum_buffer"] for optimizer, p in zip(optimizers, (exact, at_once), strict=True)]
    assert error(buffers[1], buffers[0]) <= 1.1 * error(buffer, buffers[0]) + 1e-7 * buffer.abs().max()


def test_weight_decay_alone_is_not_lost_in_rounding():
    """A step moves a weight by about as much as float32 can tell apart; a thousand of them must not go nowhere."""
    exact, rounded = (torch.nn.Parameter(torch.linspace(0.5, 1, 999, dtype=dtype)) for dtype in (torch.float64, torch.float32))
    for parameter in (exact, rounded):
        optimizer = RepeatedUpdateSGD([{"params": [parameter], "visits": 3}], 2.5e-4, 0.9, 5e-4)
        for _ in range(1000):
            parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
    start = torch.linspace(0.5, 1, 999, dtype=torch.float64)
    torch.testing.assert_close((rounded.double() - start).mean(), (exact - start).mean(), rtol=1e-2, atol=0)


def test_first_steps_with_a_constant_gradient():
    """5.61, 17.83, 34.87 times the learning rate for a parameter listed three times (1, 2.9, 5.61 for one listed once)."""
    for visits, expected in ((3, (5.61, 17.83, 34.87)), (1, (1, 2.9, 5.61))):
        parameter = torch.nn.Parameter(torch.zeros(1))
        optimizer = RepeatedUpdateSGD([{"params": [parameter], "visits": visits}], 1.0, 0.9, 0.0)
        moved = []
        for _ in range(3):
            parameter.grad = torch.ones(1)
            optimizer.step()
            moved.append(-parameter.item())
        np.testing.assert_allclose(moved, expected, atol=0.005)


def test_one_visit_is_plain_sgd():
    ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 5)) for _ in range(2))
    optimizers = (
        RepeatedUpdateSGD([{"params": [ours]}], 0.1, 0.9, 0.01),
        torch.optim.SGD([theirs], 0.1, 0.9, weight_decay=0.01),
    )
    for step in range(4):
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = torch.cos(parameter.detach() * (step + 1))
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_parameters_without_gradient_stay():
    parameter = torch.nn.Parameter(torch.ones(2))
    RepeatedUpdateSGD([{"params": [parameter], "visits": 3}], 0.1).step()
    assert torch.equal(parameter, torch.ones(2))


def test_no_warning_and_an_exact_restart():
    network = build_model("MiniResNet18").train()
    image = torch.randint(0, 256, (1, 3, 48, 48), dtype=torch.uint8)

    def steps(network, optimizer, count):
        for _ in range(count):
            optimizer.zero_grad()
            network(image)[-1].square().mean().backward()
            optimizer.step()

    def fresh():
        return segmentation_optimizer(network.parameter_groups(), sgd_flags("published", 1e-3, 5e-4))

    optimizer = fresh()
    steps(network, optimizer, 2)
    saved = copy.deepcopy((network.state_dict(), optimizer.state_dict()))
    steps(network, optimizer, 2)
    expected = {key: value.clone() for key, value in network.state_dict().items()}
    network.load_state_dict(saved[0])
    optimizer = fresh()
    optimizer.load_state_dict(saved[1])
    steps(network, optimizer, 2)
    assert all(torch.equal(expected[key], value) for key, value in network.state_dict().items())


def test_early_epsilon_adam_follows_the_formula_of_its_time():
    start, gradients, lr, beta1, beta2, eps = 1.0, [1e-8, -3e-8, 2e-8], 1e-3, 0.9, 0.99, 1e-8
    parameter = torch.nn.Parameter(torch.tensor([start], dtype=torch.float64))
    optimizer = EarlyEpsilonAdam([parameter], lr)
    value, m, v = start, 0.0, 0.0
    for step, gradient in enumerate(gradients, 1):
        parameter.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        m, v = beta1 * m + (1 - beta1) * gradient, beta2 * v + (1 - beta2) * gradient**2
        value -= lr * np.sqrt(1 - beta2**step) / (1 - beta1**step) * m / (np.sqrt(v) + eps)
    np.testing.assert_allclose(parameter.item() - start, value - start, rtol=1e-6)


def test_poly_schedule(golden):
    recorded = golden("adaptsegnet/schedule.npz")
    network = build_model("MiniResNet18")
    optimizer = segmentation_optimizer(network.parameter_groups(), sgd_flags("published", 1.0, 0.0))
    adam = discriminator_optimizer(network.layer1.parameters(), "published", 1.0)
    for i, step in enumerate(recorded["steps"]):
        set_learning_rate(optimizer, poly(recorded["base_lr_G"], step, recorded["num_steps"], recorded["power"]))
        set_learning_rate(adam, poly(recorded["base_lr_D"], step, recorded["num_steps"], recorded["power"]))
        rates = {group["lr_multiplier"]: group["lr"] for group in optimizer.param_groups}
        np.testing.assert_allclose(
            (rates[1], rates[10], adam.param_groups[0]["lr"]),
            [recorded[key][i] for key in ("lr_G_trunk", "lr_G_classifiers", "lr_D")],
            rtol=1e-12,
        )


def test_the_poly_schedule_ends():
    assert poly(1.0, 10, 10, 0.9) == 0
    with pytest.raises(ValueError, match="step 11 is beyond --num-steps 10"):
        poly(1.0, 11, 10, 0.9)


@pytest.mark.parametrize("visits", (1, 3))
@pytest.mark.parametrize("bad", (torch.inf, torch.nan))
def test_fp16_divides_by_the_scale_and_skips_what_is_not_finite(visits, bad):
    """What torch.amp.GradScaler does on a GPU too: the step is called in either case."""
    parameters = [torch.nn.Parameter(torch.linspace(-1, 1, 5)) for _ in range(2)]
    scaled, plain = (RepeatedUpdateSGD([{"params": [p], "visits": visits}], 0.1, 0.9, 0.01) for p in parameters)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for factor in (1.0, bad, 0.5):
        before = scaler.get_scale()
        scaler.scale((parameters[0] ** 2).sum() * factor).backward()
        scaler.step(scaled)
        scaler.update()
        if factor == bad or factor != factor:
            assert scaler.get_scale() == before / 2
        else:
            ((parameters[1] ** 2).sum() * factor).backward()
            plain.step()
        for parameter in parameters:
            parameter.grad = None
        torch.testing.assert_close(*parameters)
        assert torch.equal(
            *(o.state[p]["momentum_buffer"].isfinite() for o, p in zip((scaled, plain), parameters, strict=True))
        )


def test_early_epsilon_adam_goes_on_from_a_state_without_its_count():
    parameters = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    whole, resumed = (EarlyEpsilonAdam([p], 1e-3) for p in parameters)
    for step in range(4):
        if step == 2:
            state = copy.deepcopy(whole.state_dict())
            resumed.load_state_dict(
                {**state, "param_groups": [{k: v for k, v in g.items() if k != "steps"} for g in state["param_groups"]]}
            )
            parameters[1].data.copy_(parameters[0].data)
        for parameter, optimizer in zip(parameters, (whole, resumed), strict=True):
            parameter.grad = torch.full((3,), 1e-8 * (step + 1))
            optimizer.step()
    assert torch.equal(*parameters)
