"""Optimizers and the learning-rate schedule of the originals."""

import math
from argparse import Namespace
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from .errors import RunError

Groups = list[dict[str, Any]]


class RepeatedUpdateSGD(Optimizer):
    """SGD that updates a parameter several times a step: what the published results were really trained with.

    The originals list most backbone tensors three or four times in the optimizer (once per enclosing module), and the
    PyTorch of their time (up to 1.4) visited every entry of the list. One visit does, in this order,

        gradient <- gradient + weight_decay * value        (kept: decay piles up over the visits)
        buffer   <- momentum * buffer + gradient
        value    <- value - learning_rate * buffer

    so a tensor listed three times moves about three times as far as the learning rate says. Each parameter stands here
    once, in a group whose `visits` says how often it was listed; `visits` 1 is plain SGD. Today's `torch.optim.SGD` warns
    about repeated parameters and computes something else with them. Pass `visits` from `Segmenter.parameter_groups`.

    All visits of a step together are one linear map of (value, buffer, gradient), which is applied in one go. `step` uses up
    the gradients. With --amp fp16 it divides them by the scale of the loss, and changes nothing if any of them is infinite or
    NaN; nothing waits for the device to know.
    """

    # So torch.amp.GradScaler sets `grad_scale` and `found_inf` for a step, tensors on the device, and asks for no value.
    _step_supports_amp_scaling = True

    def __init__(self, groups: Groups, lr: float, momentum: float = 0.9, weight_decay: float = 5e-4) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "visits": 1})

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> None:  # type: ignore[override]  # no closure, so no loss to return
        if closure is not None:
            raise ValueError("RepeatedUpdateSGD takes no closure: its repeated updates share one gradient")
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            gradients = [parameter.grad for parameter in parameters]
            for parameter in parameters:
                if "momentum_buffer" not in self.state[parameter]:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
            grad_scale: Tensor | None = getattr(self, "grad_scale", None)  # None too if --clip-grad has divided by it
            if grad_scale is not None:
                torch._foreach_mul_(gradients, 1 / grad_scale)
            if group["visits"] == 1:
                torch._foreach_add_(gradients, parameters, alpha=group["weight_decay"])
                self._multiply(buffers, group["momentum"])
                self._add(buffers, gradients, 1)
                self._add(parameters, buffers, -group["lr"])
                continue
            x, b, c, d, e, f = _all_visits(group["visits"], group["lr"], group["momentum"], group["weight_decay"])
            torch._foreach_add_(gradients, parameters, alpha=x)
            self._add(parameters, buffers, b)
            self._add(parameters, gradients, c)
            self._multiply(buffers, d)
            self._add(buffers, gradients, e)
            self._add(buffers, parameters, f)

    def _multiply(self, tensors: list[Tensor], factor: float) -> None:
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        torch._foreach_mul_(tensors, factor if found_inf is None else torch.where(found_inf > 0, 1.0, factor))

    def _add(self, tensors: list[Tensor], others: list[Tensor], factor: float) -> None:
        """Add `factor * others`, unless something infinite was found."""
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        if found_inf is None:
            torch._foreach_add_(tensors, others, alpha=factor)
            return
        # Plain SGD's kernel adds in the same way, and is the one that can be told on the device not to.
        torch._fused_sgd_(
            tensors,
            others,
            [],
            lr=-factor,
            momentum=0.0,
            weight_decay=0.0,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=False,
            found_inf=found_inf,
        )


def _all_visits(visits: int, lr: float, momentum: float, weight_decay: float) -> tuple[float, ...]:
    """The coefficients (x, b, c, d, e, f) of RepeatedUpdateSGD's visits of one step, to be applied in this order:

        gradient <- gradient + x * value
        value    <- value + b * buffer + c * gradient
        buffer   <- d * buffer + e * gradient + f * value

    The value is only ever added to: its factor is so close to 1 that in float32 weight decay would be lost in rounding it.
    """
    # Each as a combination of the value, buffer and gradient before the step; the value by how far it has moved, over -lr.
    moved, buffer, gradient = np.zeros(3), np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0])
    for _ in range(visits):
        gradient = gradient + weight_decay * (np.array([1.0, 0.0, 0.0]) - lr * moved)
        buffer = momentum * buffer + gradient
        moved = moved + buffer
    x = moved[0] / moved[2]
    b, c = -lr * moved[1], -lr * moved[2]
    # What is left of the old value in the buffer, put in terms of the new one.
    f = buffer[0] - buffer[2] * x
    return tuple(map(float, (x, b, c, buffer[1] - f * b, buffer[2] - f * c, f)))


class EarlyEpsilonAdam(Adam):
    """Adam as in PyTorch up to 1.2: eps is added to the root of the second moment before its bias correction.

    That is today's Adam with eps divided by sqrt(1 - beta2^step), a difference of 0.1 to 0.2 % in the first steps. The steps
    are counted here, for those in the state may be on a GPU; they include those that --amp fp16 skipped there.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        fused: bool | None = None,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, fused=fused)
        self.published_eps = eps

    def step(self, closure: Callable | None = None) -> Any:
        for group in self.param_groups:
            steps = group["steps"] if "steps" in group else self._steps_in_state(group)
            group["steps"] = steps + 1
            group["eps"] = self.published_eps / math.sqrt(1 - group["betas"][1] ** (steps + 1))
        return super().step(closure)

    def _steps_in_state(self, group: dict[str, Any]) -> int:
        """Of a state that was saved without `steps`."""
        return max((int(self.state[p]["step"]) for p in group["params"] if p in self.state), default=0)


def segmentation_optimizer(groups: Groups, args: Namespace, updates: str | None = None) -> Optimizer:
    """The optimizer of --optim for a segmentation network's `parameter_groups()`, each group at its own multiple of the rate.

    Args:
        updates: in place of --updates; for SGD "published" (the repeated updates of the original training) or "clean" (each
            parameter once, today's SGD).
    """
    optimizer, fused = _OPTIMIZERS[args.optim](groups, args, updates or args.updates), _on_gpu(groups)
    if not isinstance(optimizer, RepeatedUpdateSGD):
        _fused_as_here(optimizer, fused)
    set_learning_rate(optimizer, args.learning_rate)
    return optimizer


def _sgd(groups: Groups, args: Namespace, updates: str) -> Optimizer:
    if updates == "published":
        return RepeatedUpdateSGD(groups, args.learning_rate, args.momentum, args.weight_decay)
    fused = _on_gpu(groups)
    optimizer = SGD(groups, args.learning_rate, args.momentum, weight_decay=args.weight_decay, fused=fused)
    if fused and args.momentum:
        # Otherwise the first step makes them without values, and leaves them so if --amp fp16 skips it.
        for parameter in (parameter for group in groups for parameter in group["params"]):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _adam(groups: Groups, args: Namespace, updates: str) -> Optimizer:
    """MaxSquare's --optim Adam."""
    return Adam(groups, args.learning_rate, (0.9, 0.99), weight_decay=args.weight_decay, fused=_on_gpu(groups))


def _adamw(groups: Groups, args: Namespace, updates: str) -> Optimizer:
    return AdamW(groups, args.learning_rate, (0.9, 0.999), weight_decay=args.weight_decay, fused=_on_gpu(groups))


_OPTIMIZERS = {"SGD": _sgd, "Adam": _adam, "AdamW": _adamw}


def discriminator_optimizer(parameters: Iterable[nn.Parameter], updates: str, lr: float) -> Optimizer:
    """Adam with betas (0.9, 0.99): of PyTorch 1.0 for `updates` "published", today's for "clean"."""
    groups: Groups = [{"params": list(parameters)}]
    fused = _on_gpu(groups)
    if updates == "published":
        return _fused_as_here(EarlyEpsilonAdam(groups, lr, fused=fused), fused)
    return _fused_as_here(Adam(groups, lr, betas=(0.9, 0.99), fused=fused), fused)


def _on_gpu(groups: Groups) -> bool:
    return all(parameter.is_cuda for group in groups for parameter in group["params"])


def _fused_as_here(optimizer: Optimizer, fused: bool) -> Optimizer:
    """An optimizer that stays fused or not, by the device it was made for, when it loads a state of another device."""

    def keep(_: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "param_groups": [{**group, "fused": fused} for group in state["param_groups"]]}

    optimizer.register_load_state_dict_pre_hook(keep)
    return optimizer


def poly(base: float, step: int, num_steps: int, power: float, end: float = 0.0) -> float:
    """The poly schedule: end + (base - end) * (1 - step / num_steps) ^ power. Only PaddlePaddle's does not end at 0.

    Raises:
        RunError: the step is beyond the schedule.
    """
    if step > num_steps:
        raise RunError(
            f"step {step} is beyond --num-steps {num_steps}, where the rate reached 0; --num-steps-stop is too large"
        )
    return end + (base - end) * (1 - step / num_steps) ** power


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Set every group to `lr` times its `lr_multiplier`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_multiplier", 1)
