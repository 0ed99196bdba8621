"""Errors that a user can fix, told in one line; everything else keeps its traceback."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator

from dataset.errors import DataError

from .files import reason

# EX_TEMPFAIL of sysexits.h: not an error, the same command goes on later.
STOPPED = 75
# As timeout(1) has it: there was no progress for --timeout seconds.
TIMED_OUT = 124


class RunError(ValueError):
    """Flags, files and folders of a run that do not go together; the message names them and the way out."""


class Stopped(RunError):
    """A signal asked the run to stop, and what it has done is saved.

    Args:
        together: with several processes, all have stopped at the same step.
    """

    def __init__(self, message: str, together: bool = True) -> None:
        super().__init__(message)
        self.together = together


@contextlib.contextmanager
def exit_with_message() -> Iterator[None]:
    """Print our own errors, the operating system's about a named path, and PyTorch's about a process that is gone, as one line
    and exit with status 1, or `STOPPED`.

    The process group is left only where all processes come to leave it, which after an error they may never do.
    """
    # Only here, so that who needs `RunError` alone starts without PyTorch.
    from model.errors import ModelError

    from . import distributed

    try:
        yield
    except Stopped as stop:
        if stop.together:
            distributed.finish()
        print(f"{os.path.basename(sys.argv[0])}: {stop}", file=sys.stderr)
        sys.exit(STOPPED)
    except (DataError, ModelError, RunError) as error:
        _exit(str(error))
    except OSError as error:
        if error.filename is None:
            raise
        _exit(f"{error.filename}: {reason(error, error.filename)}")
    except RuntimeError as error:
        told = _lost_process(error)
        if told is None:
            raise
        _exit(told)
    distributed.finish()


def _lost_process(error: RuntimeError) -> str | None:
    """What to say of PyTorch's errors about a process that this one works with; most are known by their text alone."""
    from torch.distributed import DistError

    from . import watchdog

    reason = str(error).splitlines()[0] if str(error) else ""
    if re.match(r"DataLoader worker .* (killed by signal|exited unexpectedly)", reason):
        return f"{watchdog.now()}: {reason}; often for want of memory: --resume auto with fewer --num-workers"
    if isinstance(error, DistError) or "/gloo/" in reason or "NCCL" in reason:
        # A torchrun that starts its processes again lets them find the addresses of those before, unless it is told not to.
        restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
        way_out = "start torchrun with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" if restarted else "--resume auto continues"
        return f"{watchdog.now()}: another process has ended, or does not answer ({reason}); {way_out}"
    return None


def _exit(message: str) -> None:
    if message.startswith("Caught ") and "worker process" in message:
        # A loader worker's error comes with its traceback, whose last line is the error's class and message.
        message = message.strip().splitlines()[-1].partition(": ")[2]
    sys.exit(f"{os.path.basename(sys.argv[0])}: error: {message}")
