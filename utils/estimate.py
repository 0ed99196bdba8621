"""--estimate: what a run with these flags asks of a GPU, told before one is booked. No GPU and no data set is needed."""

import contextlib
import os
import sys
from types import ModuleType

from .cost_model import CARDS, StepCost, cost_of_steps
from .errors import RunError
from .fake_cuda import FOLDER, start_again
from .parser import Flags

FAST = {"amp": "bf16", "channels_last": True, "compile": True}
CAVEAT = (
    "GB are of tensors alone: leave 1 to 2 more. Speeds are a model's, as is what --compile fuses: expect half to two thirds "
    "(docs/benchmarks.md)."
)


def tell(args: Flags) -> None:
    """Print memory and images a second for each card, for the flags as they are and with --fast, and exit.

    Raises:
        RunError: it cannot be counted here, several processes ask, or there is no training.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise RunError("--estimate is of one process with its own GPU: leave torchrun away")
    if FOLDER not in os.environ:
        start_again("--estimate")
    for title, values in (("with these flags", {}), ("with --fast", FAST)):
        flags = args.with_values(estimate=False, **values)
        if values and vars(flags) == vars(args.with_values(estimate=False)):
            continue
        costs = _silently_counted(sys.modules["__main__"], flags)
        if not costs:
            raise RunError("--estimate: with these flags nothing is trained")
        for run, cost in costs.items():
            print(f"{title}, {run}: {_line(cost)}", flush=True)
    print(CAVEAT)
    sys.exit()


def _silently_counted(script: ModuleType, args: Flags) -> dict[str, StepCost]:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        return cost_of_steps(script, args)


def _line(cost: StepCost) -> str:
    memory = cost.peak / 1e9
    speeds = [
        f"{name} {cost.images / cost.seconds(card):.3g}" if memory < card.memory else f"{name} has too little memory"
        for name, card in CARDS.items()
    ]
    return f"about {memory:.2f} GB; images/s at most: {', '.join(speeds)}"
