"""Errors that a user can fix, told in one line; everything else keeps its traceback."""

import contextlib
import os
import sys
from collections.abc import Iterator

from dataset.errors import DataError

# EX_TEMPFAIL of sysexits.h: not an error, the same command goes on later.
STOPPED = 75


class RunError(ValueError):
    """Flags, files and folders of a run that do not go together; the message names them and the way out."""


class Stopped(RunError):
    """A signal asked the run to stop, and it has saved its state; with several processes all have stopped at the same step."""


@contextlib.contextmanager
def exit_with_message() -> Iterator[None]:
    """Print our own errors, and the operating system's about a named path, as one line and exit with status 1, or `STOPPED`.

    The process group is left only where all processes come to leave it, which after an error they may never do.
    """
    # Only here, so that who needs `RunError` alone starts without PyTorch.
    from model.errors import ModelError

    from . import distributed

    try:
        yield
    except Stopped as stop:
        distributed.finish()
        print(f"{os.path.basename(sys.argv[0])}: {stop}", file=sys.stderr)
        sys.exit(STOPPED)
    except (DataError, ModelError, RunError) as error:
        _exit(str(error))
    except OSError as error:
        if error.filename is None:
            raise
        _exit(f"{error.filename}: {error.strerror}")
    distributed.finish()


def _exit(message: str) -> None:
    if message.startswith("Caught ") and "worker process" in message:
        # A loader worker's error comes with its traceback, whose last line is the error's class and message.
        message = message.strip().splitlines()[-1].partition(": ")[2]
    sys.exit(f"{os.path.basename(sys.argv[0])}: error: {message}")
