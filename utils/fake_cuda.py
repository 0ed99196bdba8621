"""A CUDA device that is not there: scripts run on it as on a card, with tensors that have a shape, a type and a device, but no
values. Nothing is computed, so networks of published size take seconds and no memory.

It is PyTorch's FakeTensorMode with what this lacks: `torch.cuda` says that there is a device, and backward passes do not ask
for one. Autograd asks in C++, so a process has to start with `environment()`, which takes a C compiler. Python-level names of
PyTorch that begin with an underscore are used here and nowhere else; tests/test_cuda.py shows at once when one has changed.
"""

import contextlib
import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any, NoReturn

import torch
from torch import library
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from .errors import RunError

FOLDER = "SEGADAPT_FAKE_CUDA"  # the environment variable that says where the stand-in libraries are

# How many devices c10 counts; `_seen_by_autograd` sets it.
DEVICES = "int fake_devices = 0; signed char _ZN3c104cuda12device_countEv(void) { return fake_devices; }"
# The driver, which knows one answer: no device is in use yet.
NO_CONTEXT = "int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { *flags = 0; *active = 0; return 0; }"
NO_DEVICE = 100  # the driver's error code for everything else


def why_not() -> str | None:
    """What is missing for a fake device here, None if nothing is."""
    if torch.version.cuda is None:
        return "this PyTorch is built without CUDA"
    if not os.path.exists(_driver_stub()):
        return "this PyTorch has no libcaffe2_nvrtc.so"
    return None if shutil.which("cc") else "it takes a C compiler (cc)"


def _driver_stub() -> str:
    return os.path.join(os.path.dirname(torch.__file__), "lib", "libcaffe2_nvrtc.so")


def environment(folder: str) -> dict[str, str]:
    """The environment variables of a process with a fake device; two small libraries for it are built in `folder`."""
    with open(_driver_stub(), "rb") as file:
        names = {name.decode() for name in re.findall(rb"\0(cu[A-Z]\w+)(?=\0)", file.read())} - {"cuDevicePrimaryCtxGetState"}
    driver = "\n".join([NO_CONTEXT, *(f"int {name}(void) {{ return {NO_DEVICE}; }}" for name in sorted(names))])
    _build(folder, "libfake_devices.so", DEVICES)
    _build(folder, "libcuda.so.1", driver)
    paths = [folder, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    preload = os.path.join(folder, "libfake_devices.so")
    return {**os.environ, FOLDER: folder, "LD_LIBRARY_PATH": ":".join(paths), "LD_PRELOAD": preload}


def start_again(flag: str) -> NoReturn:
    """Run this program anew in a process with a fake device, and exit as that does.

    Raises:
        RunError: `flag` cannot be served here.
    """
    reason = why_not()
    if reason:
        raise RunError(f"{flag} cannot be counted here: {reason}")
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(subprocess.run([sys.executable, *sys.argv], env=environment(folder)).returncode)


def _build(folder: str, name: str, text: str) -> None:
    command = ["cc", "-w", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-x", "c", "-", "-o", os.path.join(folder, name)]
    subprocess.run(command, input=text, text=True, check=True)


# PyTorch's kernel of fused SGD works in place and lacks a version for tensors without values.
library.impl("aten::_fused_sgd_", "meta", lambda *_, **__: None)


class _Mode(FakeTensorMode):
    """Never touches the device; the class it comes from would, as `torch.cuda.is_available` says that there is one."""

    avoid_device_init = property(lambda self: True)


class Event:
    """Stands for `torch.cuda.Event`."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def record(self, *_: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass


def _there_is_one_device() -> dict[str, Any]:
    """What `torch.cuda` says of it, by name."""
    answers = {
        "is_available": True, "is_initialized": True, "is_bf16_supported": True, "device_count": 1, "current_device": 0,
        "get_device_name": "fake", "get_device_capability": (9, 0), "max_memory_allocated": 0, "memory_allocated": 0,
        "is_current_stream_capturing": False, "_is_in_bad_fork": False, "get_rng_state_all": [],
    }  # fmt: skip
    nothing = ("_lazy_init", "set_device", "manual_seed_all", "set_rng_state_all", "reset_peak_memory_stats", "current_stream")
    functions = {name: lambda *_, answer=answer, **__: answer for name, answer in answers.items()}
    return {**functions, **{name: lambda *_, **__: None for name in nothing}, "Event": Event}


def _made_up(tensor: torch.Tensor) -> Any:
    """Values for `tolist`, as finite as those of a good run."""

    def values(shape: tuple[int, ...]) -> Any:
        return [values(shape[1:]) for _ in range(shape[0])] if shape else 1.0 if tensor.is_floating_point() else 1

    return values(tuple(tensor.shape))


def _seen_by_autograd(run_backward: Any) -> Any:
    """Autograd finds devices while it runs; forward passes would ask them for their properties, so they find none."""
    devices = ctypes.CDLL(os.path.join(os.environ[FOLDER], "libfake_devices.so"))
    count = ctypes.c_int.in_dll(devices, "fake_devices")

    def run(*args: Any, **options: Any) -> Any:
        count.value = 127  # as many as FakeTensorMode pretends there are
        try:
            return run_backward(*args, **options)
        finally:
            count.value = 0

    return run


def _select_convolution(select: Any) -> Any:
    cudnn = torch._C._ConvBackend.Cudnn  # type: ignore[attr-defined]  # PyTorch's stubs lack it

    def selected(*args: Any, **options: Any) -> Any:
        image = options["input"] if "input" in options else args[0]
        return cudnn if image.device.type == "cuda" else select(*args, **options)

    return selected


def _attention(attend: Any) -> Any:
    """`scaled_dot_product_attention` by the fused kernels that a GPU would choose: FlashAttention for half precision without a
    mask, else the memory-efficient one. Without a device PyTorch would choose plain matrix products."""
    aten = torch.ops.aten

    def attended(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: Any = None,
        dropout_p: float = 0.0,
        **options: Any,
    ) -> torch.Tensor:
        if query.device.type != "cuda" or options.pop("enable_gqa", False):
            return attend(query, key, value, attn_mask, dropout_p, **options)
        causal, scale = options.get("is_causal", False), options.get("scale")
        if torch.is_autocast_enabled("cuda"):
            query, key, value = (each.to(torch.get_autocast_dtype("cuda")) for each in (query, key, value))
        if attn_mask is None and query.dtype != torch.float32:
            return aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, causal, False, scale=scale)[0]
        bias = None if attn_mask is None else attn_mask.to(query.dtype).expand(*query.shape[:-1], key.shape[-2])
        return aten._scaled_dot_product_efficient_attention(
            query, key, value, bias, query.requires_grad, dropout_p, causal, scale=scale
        )[0]

    return attended


def _move(module: torch.nn.Module, convert: Any, recurse: bool = True) -> torch.nn.Module:
    """`Module._apply` with new parameters in the place of the old ones: fake tensors do not change their device in place."""
    for child in module.children():
        _move(child, convert)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            module._parameters[name] = torch.nn.Parameter(convert(parameter.detach()), parameter.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = convert(buffer)
    return module


def next_node() -> int:
    """The number that autograd gives the next operation that it records."""
    return torch._C._autograd._get_sequence_nr()


def running_node() -> int | None:
    """The number of the operation whose backward runs, None outside of backward passes."""
    node = torch._C._current_autograd_node()
    return None if node is None else node._sequence_nr()


@contextlib.contextmanager
def replaced(*replacements: tuple[Any, str, Any]) -> Iterator[None]:
    """Within the context, attributes have other values: (object, name, value) each."""
    with contextlib.ExitStack() as stack:
        for owner, name, value in replacements:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        yield


@contextlib.contextmanager
def fake_cuda() -> Iterator[None]:
    """Within the context every new tensor is fake, and there is a device "cuda"."""
    from torch.optim import adam, optimizer, sgd

    def foreach(parameters: Any, differentiable: bool, use_fused: bool = False) -> tuple[bool, bool]:
        return use_fused, not use_fused and all(parameter.device.type == "cuda" for parameter in parameters)

    with (
        replaced(*((torch.cuda, name, value) for name, value in _there_is_one_device().items())),
        replaced(*((module, "_default_to_fused_or_foreach", foreach) for module in (optimizer, adam, sgd))),
        replaced(
            (torch.autograd, "_engine_run_backward", _seen_by_autograd(torch.autograd._engine_run_backward)),
            (torch._C, "_select_conv_backend", _select_convolution(torch._C._select_conv_backend)),
            (torch.nn.functional, "scaled_dot_product_attention", _attention(torch.nn.functional.scaled_dot_product_attention)),
            (FakeTensor, "tolist", _made_up),
            (torch.nn.Module, "_apply", _move),
        ),
        torch.autograd.set_multithreading_enabled(False),
        _Mode(allow_non_fake_inputs=True),
    ):
        yield
