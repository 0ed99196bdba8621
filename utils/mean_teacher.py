"""A mean teacher: a second network that follows the student as an exponential moving average (Tarvainen and Valpola, NeurIPS
2017, 1703.01780).

As one of a run's networks the teacher is saved and resumed with it. With several processes it needs no wrapper: the students
are alike after each update, so the teachers are.
"""

import torch
from torch import Tensor, nn

from model import build_model
from model.normalization import freezes_statistics
from model.segmenter import Segmenter

AVERAGES = ("parameters", "everything")


def make_teacher(student: Segmenter, averages: str = "parameters") -> Segmenter:
    """A network like the student, with its weights and without gradients, dropout and stochastic depth.

    Args:
        student: from `build_model`.
        averages: of AVERAGES. With "parameters" BatchNorm's running statistics are the teacher's own and start anew, so it has
            to normalise with its batch (train mode), and they are no use for evaluation; only statistics that the student
            keeps fixed are copied. With "everything" they follow the student's as the parameters do, whatever the teacher
            itself sees.
    """
    settings = {key: value for key, value in student.settings.items() if key != "drop_path"}
    teacher = build_model(**settings).requires_grad_(False)
    teacher.load_state_dict(student.state_dict())
    for module in teacher.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for norm in teacher.norms():
        if averages == "everything":
            norm.momentum = 0.0  # its own batches leave no trace in the statistics
        elif not freezes_statistics(student.batch_norm):
            norm.reset_running_stats()
    return teacher


def teacher_momentum(step: int, highest: float) -> float:
    """The teacher's share of the average at `step` (from 0): min(1 - 1 / (step + 1), highest), so 0 at first: a copy."""
    return min(1 - 1 / (step + 1), highest)


@torch.no_grad()
def update_teacher(teacher: Segmenter, student: Segmenter, momentum: float, averages: str = "parameters") -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, for the parameters or (see `make_teacher`) everything."""
    old: list[Tensor] = list(teacher.parameters())
    new: list[Tensor] = list(student.parameters())
    if averages == "everything":
        old += [buffer for buffer in teacher.buffers() if buffer.is_floating_point()]
        new += [buffer for buffer in student.buffers() if buffer.is_floating_point()]
    torch._foreach_mul_(old, momentum)
    torch._foreach_add_(old, new, alpha=1 - momentum)
