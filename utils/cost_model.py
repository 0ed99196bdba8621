"""What a training step asks of a GPU, counted on a fake one: kernels, memory, FLOPs, bytes, waits, and a time from these.

The time is that of a roofline: every kernel takes as long as its FLOPs at the card's matrix rate, its bytes at the card's
bandwidth, or its launch, whichever is longest. docs/benchmarks.md says what that leaves out.
"""

import math
import os
import tempfile
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .fake_cuda import fake_cuda, replaced
from .parser import Flags
from .run import Run

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Card(NamedTuple):
    """Peak rates as the maker states them (dense): FLOP/s of matrix products in bf16 and TF32, and bytes/s of memory."""

    half: float
    single: float
    bandwidth: float


CARDS = {
    "H200": Card(989e12, 494e12, 4.8e12),
    "H100": Card(989e12, 494e12, 3.35e12),
    "A100": Card(312e12, 156e12, 2.04e12),
    "RTX 4090": Card(165e12, 82.6e12, 1.01e12),
}
REACHED = 0.8  # of the matrix rates, by large convolutions
LAUNCH = 2e-6  # the shortest that a kernel takes, in seconds

# Operations that only describe memory anew, or only reserve it.
WITHOUT_KERNEL = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "detach_", "lift_fresh",
    "lift_fresh_copy", "_unsafe_view", "_reshape_alias", "alias", "resize_", "set_", "is_same_size", "device",
}  # fmt: skip
# What one launch of a foreach operation takes: so many tensors, by the number of lists, and so many blocks of elements.
FOREACH_TENSORS = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}
FOREACH_BLOCKS, FOREACH_BLOCK = 320, 65536


class DeviceError(RuntimeError):
    """A step does what it must not on a GPU; the message names the operation and the line."""


@dataclass
class StepCost:
    """What was counted in a step. Bytes of memory are those that tensors take, without the allocator's and cuDNN's own."""

    kernels: int = 0
    flops: float = 0.0
    moved: float = 0.0
    peak: int = 0
    waits: list[str] = field(default_factory=list)
    work: list[tuple[float, float, bool]] = field(default_factory=list)  # (FLOPs, bytes, in half precision) of every kernel

    def seconds(self, card: Card) -> float:
        """Of the GPU alone; if the host is slower in launching, the step is."""
        return sum(
            max(flops / (REACHED * (card.half if half else card.single)), moved / card.bandwidth, LAUNCH)
            for flops, moved, half in self.work
        )


class Recorder(TorchDispatchMode):
    """Sees every operation between `step()` and its end, of backward passes too; to be entered within `fake_cuda`."""

    def __init__(self) -> None:
        super().__init__()
        self.current = StepCost()
        self.sizes: dict[int, int] = {}
        self.allocated = 0
        self.in_step = False

    @contextmanager
    def step(self) -> Iterator[StepCost]:
        """The cost of what happens in the context."""
        self.current, self.in_step = StepCost(peak=self.allocated), True
        try:
            yield self.current
        finally:
            self.in_step = False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), options: Any = None) -> Any:
        options = options or {}
        name = function._schema.name.split("::")[1]
        given = [leaf for leaf in tree_leaves((args, options)) if isinstance(leaf, Tensor)]
        if name == "_local_scalar_dense":
            return self._scalar(given[0])
        try:
            made = function(*args, **options)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise DeviceError(f"{name} at {_line()} waits for the device: its result depends on values") from error
        results = [leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
        for tensor in results:
            self._remember(tensor)
        if name in ("_to_copy", "copy_"):
            self._look_at_copy(name, args, options, results)
        if self.in_step and any(map(_on_gpu, (*given, *results))):
            self._count(function, name, args, options, given, results, made)
        return made

    # Waits

    def _scalar(self, tensor: Tensor) -> float | int | bool:
        """A made-up value of one element."""
        if _on_gpu(tensor):
            self.wait("reading a value")
        return False if tensor.dtype == torch.bool else 1.0 if tensor.is_floating_point() else 1

    def wait(self, what: str) -> None:
        self.current.waits.append(f"{what} at {_line()}")

    def _look_at_copy(self, name: str, args: Any, options: Any, results: list[Tensor]) -> None:
        source, target = (args[1], args[0]) if name == "copy_" else (args[0], results[0])
        if _on_gpu(source) == _on_gpu(target):
            return
        if not (options.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])):
            self.wait(f"blocking copy of {source.nbytes} bytes")
        elif _on_gpu(target) and not getattr(source, "pinned", False):
            self.wait(f"copy of {source.nbytes} bytes that are not pinned")

    # Memory

    def _remember(self, tensor: Tensor) -> None:
        if not _on_gpu(tensor):
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.allocated += storage.nbytes()
            self.current.peak = max(self.current.peak, self.allocated)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.allocated -= self.sizes.pop(key)

    # Work

    def _count(
        self, function: Any, name: str, args: Any, options: Any, given: list[Tensor], results: list[Tensor], made: Any
    ) -> None:
        across = name in ("_to_copy", "copy_") and not all(map(_on_gpu, (*given, *results)))
        if name in WITHOUT_KERNEL or function.is_view or across:
            return
        packet = function._overloadpacket
        flops = flop_registry[packet](*args, **options, out_val=made) if packet in flop_registry else 0
        read = {id(tensor): min(tensor.nbytes, tensor.untyped_storage().nbytes()) for tensor in given if _on_gpu(tensor)}
        moved = sum(read.values()) + sum(tensor.nbytes for tensor in results if _on_gpu(tensor))
        kernels = 1
        if name == "convolution":
            kernels += args[2] is not None
        elif name == "convolution_backward":
            kernels = sum(map(bool, args[-1]))
        elif "batch_norm" in name:
            # Statistics take a pass over the input before the one that uses them; forward both are in one kernel.
            kernels = 1 + ("backward" in name)
            moved += ("backward" in name or "cudnn" in name) * given[0].nbytes
        elif name.startswith(("_foreach", "_fused")):
            kernels = _foreach_launches(name, args)
            moved += 0 if results else sum(tensor.nbytes for tensor in _written(name, args))
        step, half = self.current, bool(given) and given[0].dtype in (torch.bfloat16, torch.float16)
        step.kernels += kernels
        step.flops += flops
        step.moved += moved
        step.work += [(flops / kernels, moved / kernels, half)] * kernels


def _written(name: str, args: Any) -> list[Tensor]:
    """What an operation in place changes: its first list, and a fused optimizer's state, which follows the gradients."""
    lists = [args[0], *args[2:]] if name.startswith("_fused") else [args[0]]
    return [tensor for some in lists if isinstance(some, (list, tuple)) for tensor in some]


def _foreach_launches(name: str, args: Any) -> int:
    lists = [arg for arg in args if isinstance(arg, (list, tuple)) and arg and isinstance(arg[0], Tensor)]
    tensors = FOREACH_TENSORS[min(5, len(lists) + (not name.endswith("_")))]
    blocks = sum(math.ceil(tensor.numel() / FOREACH_BLOCK) for tensor in lists[0])
    return max(math.ceil(len(lists[0]) / tensors), math.ceil(blocks / FOREACH_BLOCKS))


def _on_gpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cuda"


def _line() -> str:
    """The line of ours that runs."""
    ours = [frame for frame in traceback.extract_stack() if frame.filename.startswith(ROOT + os.sep)]
    last = [frame for frame in ours if frame.filename != os.path.abspath(__file__) and "site-packages" not in frame.filename]
    return f"{os.path.relpath(last[-1].filename, ROOT)}:{last[-1].lineno}" if last else "an unknown line"


# A script's own loop


class _Batches:
    """Stands for an EndlessLoader: the same images again and again, without files."""

    world_size, dataset = 1, range(2975)

    def __init__(self, batch_size: int, size: tuple[int, int], labels: bool, pin: Callable[[Tensor], Tensor]) -> None:
        self.batch_size, self.size, self.labels, self.pin = batch_size, size, labels, pin

    def __next__(self) -> dict[str, Any]:
        width, height = self.size
        batch: dict[str, Any] = {"image": self.pin(torch.zeros(self.batch_size, 3, height, width, dtype=torch.uint8))}
        if self.labels:
            batch["label"] = self.pin(torch.zeros(self.batch_size, height, width, dtype=torch.uint8))
        return {**batch, "path": ["none"] * self.batch_size, "name": ["none"] * self.batch_size}

    def state_dict(self) -> dict:
        return {}

    def close(self) -> None:
        pass


def drive(
    script: ModuleType, args: Flags, step_context: Callable[[], AbstractContextManager], pin: Callable[[Tensor], Tensor]
) -> None:
    """Run a training script's `main`, each step within a `step_context()`; with random weights, without data and files.

    Args:
        script: train_source, train_adaptsegnet, ...
        pin: what puts a tensor into pinned memory.
    """
    steps = Run.steps

    def within_context(run: Run) -> Iterator[int]:
        for step in steps(run):
            with step_context():
                yield step

    def source(args: Flags, *_: Any, **__: Any) -> _Batches:
        return _Batches(args.batch_size, args.input_size, True, pin)

    def target(args: Flags, *_: Any, **__: Any) -> _Batches:
        return _Batches(args.batch_size, args.input_size_target, False, pin)

    def nothing(*_: Any, **__: Any) -> None:
        pass

    loaders = {"source_loader": source, "target_loader": target, "source_val_loader": nothing, "target_val_loader": nothing}
    with (
        tempfile.TemporaryDirectory() as folder,
        replaced(*((script, name, stand_in) for name, stand_in in loaders.items() if hasattr(script, name))),
        replaced((Run, "steps", within_context), (Run, "_save_networks", nothing), (Run, "_save_state", nothing)),
    ):
        changes = {"snapshot_dir": folder, "restore_from": "none", "num_steps_stop": 3, "val_every": 0}
        script.main(args.with_values(**changes))


def cost_of_step(script: ModuleType, args: Flags) -> StepCost:
    """The cost of a later step of a training script with these flags, on a card whatever the flags say. A compiled network is
    counted as it is before its compilation.

    The process must have been started with `fake_cuda.environment`.

    Raises:
        DeviceError: the step needs a value from the device to go on.
    """
    costs: list[StepCost] = []
    recorder = Recorder()

    @contextmanager
    def counted() -> Iterator[None]:
        with recorder.step() as cost:
            costs.append(cost)
            yield

    with fake_cuda(), recorder:
        drive(script, args.with_values(device="cuda", gpu=None, compile=False), counted, pinned)
    return costs[-1]


def pinned(tensor: Tensor) -> Tensor:
    """A fake tensor that passes for one in pinned memory."""
    tensor.pinned = True  # type: ignore[attr-defined]
    return tensor
