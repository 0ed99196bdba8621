"""Runs of scripts in which one file operation, chosen by its number, goes wrong.

A process that has imported everything waits for commands and forks for each, so that a run of a few steps takes a second. It
starts with `file_operations.c` before libc, which counts what the run does to files below one folder.
"""

import ctypes
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
LIBRARY = "SEGADAPT_FILE_OPERATIONS"  # the environment variable that says where the compiled library is

# What the library knows to do at an operation, in its own numbers.
ACTIONS = ("nothing", "kill", "kill halfway", "full", "fail", "signal")
SCRIPTS = (
    *("train_source", "train_adaptsegnet", "train_clan", "train_maxsquare", "train_fada", "train_cbst", "evaluate_cityscapes"),
    *("compute_iou", "scripts.predict", "scripts.adabn", "scripts.convert_checkpoint", "scripts.class_statistics"),
    *("scripts.spatial_prior", "scripts.check_data"),
)


def why_not() -> str | None:
    """What is missing for these tests here, None if nothing is."""
    if not sys.platform.startswith("linux"):
        return "file operations are intercepted on Linux only"
    return None if shutil.which("cc") else "it takes a C compiler (cc)"


@dataclass(frozen=True)
class Fault:
    """What happens at operation number `at` (from 0) below the folder.

    kill: SIGKILL before it; kill halfway: after half of a write, or after any other operation; full: half of a write fits, and
    from then on the disk takes nothing more; fail: the operation alone fails with the error `number`; signal: the signal
    `number` comes in before it.
    """

    action: str
    at: int
    number: int = errno.ENOSPC


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        status: the exit status, negative for a signal.
        output, errors: what it printed.
        operations: a letter for each file operation: o open for writing, w write, s sync, r rename, u unlink, l link,
            m mkdir, t truncate.
        timed_out: it had to be killed.
        seconds: it took.
    """

    status: int
    output: str
    errors: str
    operations: str
    timed_out: bool
    seconds: float


class Injector:
    """The waiting process. Use it as a context."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="faults-")
        library = os.path.join(self.folder, "libfile_operations.so")
        source = str(Path(__file__).with_name("file_operations.c"))
        subprocess.run(["cc", "-w", "-O1", "-shared", "-fPIC", source, "-o", library, "-ldl"], check=True)
        environment = {
            **os.environ,
            "LD_PRELOAD": library,
            LIBRARY: library,
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__))],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        command: Sequence[str],
        folder: str | os.PathLike[str],
        fault: Fault | None = None,
        signals: Sequence[tuple[float, int]] = (),
        limit: float = 900,
    ) -> Result:
        """Run a command (a script's module name and its arguments) and count what it does below `folder`.

        Args:
            signals: (seconds after the start, number) of signals to send to it.
            limit: seconds until it is killed as hanging.
        """
        wish = {"command": list(command), "folder": str(folder), "fault": asdict(fault) if fault else None}
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({**wish, "signals": list(signals), "limit": limit}) + "\n")
        self.process.stdin.flush()
        return Result(**json.loads(self.process.stdout.readline()))

    def __enter__(self) -> "Injector":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        shutil.rmtree(self.folder)


# The other side


def serve() -> None:
    """Read wishes, a line each, and answer each with a `Result`."""
    import importlib

    sys.path[:0] = [str(ROOT)]
    modules = {name: importlib.import_module(name) for name in SCRIPTS}
    _warm_up()
    library = ctypes.CDLL(os.environ.pop(LIBRARY))
    library.kinds_of_operations.restype = ctypes.c_char_p
    del os.environ["LD_PRELOAD"]  # programs that a run starts are not of interest
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        answers.write(json.dumps(asdict(_answer(json.loads(line), modules, library))) + "\n")
        answers.flush()


def _warm_up() -> None:
    """Import what PyTorch imports late."""
    import torch
    import torch.utils.tensorboard  # noqa: F401

    from dataset.reading import torchcodec_decoder

    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    torchcodec_decoder()
    shrink_networks()


def shrink_networks() -> None:
    """Give the small networks few channels in this process: states of 30 MB would take the most time."""
    from model import discriminator, networks

    for name in ("MiniResNet18", "MiniResNet18Twin"):
        networks.MODELS[name][1]["width"] = 4
    for network, width in ((discriminator.OutputDiscriminator, 4), (discriminator.FeatureDiscriminator, 8)):
        network.__init__.__defaults__ = (19, width)  # type: ignore[attr-defined]


def _answer(wish: dict[str, Any], modules: dict[str, Any], library: ctypes.CDLL) -> Result:
    place = tempfile.mkdtemp()  # not a `TemporaryDirectory`, which the child would remove at its end
    paths = {name: os.path.join(place, name) for name in ("output", "errors", "operations")}
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        _become(wish, modules, library, paths)
    status, timed_out = _wait(child, wish)
    seconds = time.monotonic() - began
    texts = {name: open(path, errors="replace").read() if os.path.exists(path) else "" for name, path in paths.items()}
    shutil.rmtree(place)
    return Result(status=status, timed_out=timed_out, seconds=seconds, **texts)


def _wait(child: int, wish: dict[str, Any]) -> tuple[int, bool]:
    began, signals, timed_out = time.monotonic(), sorted(wish["signals"]), False
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status), timed_out
        elapsed = time.monotonic() - began
        if signals and elapsed >= signals[0][0]:
            os.kill(child, signals.pop(0)[1])
        elif elapsed > wish["limit"] and not timed_out:
            timed_out = True
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)


def _become(wish: dict[str, Any], modules: dict[str, Any], library: ctypes.CDLL, paths: dict[str, str]) -> None:
    """Be the process of the script, from its first line to its exit status."""
    status = 1
    try:
        status = _main(wish, modules, library, paths)
    except BaseException:
        with open(paths["errors"], "a") as errors:
            traceback.print_exc(file=errors)
    finally:
        os._exit(status)


def _main(wish: dict[str, Any], modules: dict[str, Any], library: ctypes.CDLL, paths: dict[str, str]) -> int:
    import atexit
    import threading

    from utils.errors import exit_with_message

    status, fault = 1, wish["fault"]
    name, *arguments = wish["command"]
    with open(paths["output"], "w") as output, open(paths["errors"], "w", buffering=1) as errors:
        os.dup2(output.fileno(), 1)
        os.dup2(errors.fileno(), 2)
        with redirect_stdout(output), redirect_stderr(errors):
            sys.argv = [f"{name.rpartition('.')[2]}.py", *arguments]
            library.watch(wish["folder"].encode())
            if fault:
                library.arm(ACTIONS.index(fault["action"]), fault["at"], fault["number"])
            try:
                with exit_with_message():
                    modules[name].main(modules[name].get_arguments(arguments))
                status = 0
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else 1
                if isinstance(end.code, str):
                    print(end.code, file=sys.stderr)
            except BaseException:
                traceback.print_exc()
            # What the interpreter does at its end.
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
        with open(paths["operations"], "wb") as file:
            file.write(library.kinds_of_operations())
    return status


if __name__ == "__main__":
    serve()
