"""What a training step asks of a GPU, counted on a fake one: kernels, memory, FLOPs, bytes, waits, and a time from these.

The time is that of a roofline: every kernel takes as long as its FLOPs at the card's matrix rate, its bytes at the card's
bandwidth, or its launch, whichever is longest. docs/benchmarks.md says what that leaves out.
"""

import itertools
import math
import os
import sys
import tempfile
import traceback
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Sized
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .fake_cuda import fake_cuda, replaced
from .fusion import Fusion, memory, norm_reduces
from .parser import Flags
from .run import Run

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Card(NamedTuple):
    """Peak rates as the maker states them (dense): FLOP/s of matrix products in bf16 and TF32, and bytes/s and GB of memory."""

    half: float
    single: float
    bandwidth: float
    memory: float


# From NVIDIA's data sheets (H200, H100 SXM, A100 80 GB SXM) and its white paper on the Ada architecture (RTX 4090).
CARDS = {
    "H200": Card(989e12, 494e12, 4.8e12, 141),
    "H100": Card(989e12, 494e12, 3.35e12, 80),
    "A100": Card(312e12, 156e12, 2.04e12, 80),
    "RTX 4090": Card(165e12, 82.6e12, 1.01e12, 24),
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


class Work(NamedTuple):
    """Of one kernel: FLOPs, bytes, and whether it computes in half precision."""

    operation: str
    flops: float
    moved: float
    half: bool


@dataclass
class StepCost:
    """What was counted in a step. Bytes of memory are those that tensors take, without the allocator's and cuDNN's own."""

    kernels: int = 0
    flops: float = 0.0
    moved: float = 0.0
    peak: int = 0
    images: int = 0
    waits: list[str] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)

    def add(self, kernel: Work) -> None:
        self.kernels += 1
        self.flops += kernel.flops
        self.moved += kernel.moved
        self.work.append(kernel)

    def seconds(self, card: Card) -> float:
        """Of the GPU alone; if the host is slower in launching, the step is."""
        return sum(self.profile(card).values())

    def profile(self, card: Card) -> dict[str, float]:
        """The seconds of each kind of operation, the longest first."""
        seconds: dict[str, float] = defaultdict(float)
        for work in self.work:
            rate = REACHED * (card.half if work.half else card.single)
            seconds[work.operation] += max(work.flops / rate, work.moved / card.bandwidth, LAUNCH)
        return dict(sorted(seconds.items(), key=lambda item: -item[1]))


class Recorder(TorchDispatchMode):
    """Sees every operation between `step()` and its end, of backward passes too; to be entered within `fake_cuda`."""

    def __init__(self) -> None:
        super().__init__()
        self.current = StepCost()
        self.sizes: dict[int, int] = {}
        self.allocated = 0
        self.in_step = False
        self.fusion = Fusion()

    @contextmanager
    def step(self) -> Iterator[StepCost]:
        """The cost of what happens in the context."""
        self.current, self.in_step = StepCost(peak=self.allocated), True
        self.fusion.start_step()
        try:
            yield self.current
        finally:
            self.in_step = False
        for moved in self.fusion.kernels():
            self.current.add(Work("fused", 0.0, moved, True))

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
        if self.in_step:
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
        key, storage = memory(tensor), tensor.untyped_storage()
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.allocated += storage.nbytes()
            self.current.peak = max(self.current.peak, self.allocated)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.allocated -= self.sizes.pop(key)
        self.fusion.forget(key)

    # Work

    def _count(
        self, function: Any, name: str, args: Any, options: Any, given: list[Tensor], results: list[Tensor], made: Any
    ) -> None:
        across = name in ("_to_copy", "copy_") and not all(map(_on_gpu, (*given, *results)))
        if name in WITHOUT_KERNEL or function.is_view or across:
            return
        packet = function._overloadpacket
        on_gpu = [tensor for tensor in given if _on_gpu(tensor)]
        running = None if name.startswith("_foreach") else self.fusion.running_pass()
        if running is None:
            self.fusion.use(on_gpu)
        else:
            self.fusion.add(running, name, args, on_gpu, list(filter(_on_gpu, results)), packet in flop_registry)
            if packet not in flop_registry:
                return
        flops = flop_registry[packet](*args, **options, out_val=made) if packet in flop_registry else 0
        read = {id(tensor): min(tensor.nbytes, tensor.untyped_storage().nbytes()) for tensor in on_gpu}
        moved = sum(read.values()) + sum(tensor.nbytes for tensor in results if _on_gpu(tensor))
        kernels, small_kernels = 1, 0
        if name == "convolution":
            kernels += args[2] is not None
        elif name == "convolution_backward":
            kernels = sum(map(bool, args[-1]))
        elif "batch_norm" in name:
            # What is reduced takes a pass over the input before the one that uses it; forward, cuDNN has both in one kernel.
            reduces = norm_reduces(name, args)
            moved += reduces * given[0].nbytes
            kernels += reduces and name != "cudnn_batch_norm"
            small_kernels = (2 - reduces) * (name == "native_batch_norm")
        elif name.startswith(("_foreach", "_fused")):
            kernels = _foreach_launches(name, args)
            moved += 0 if results else sum(tensor.nbytes for tensor in _written(name, args))
        half = bool(given) and given[0].dtype in (torch.bfloat16, torch.float16)
        for _ in range(kernels):
            self.current.add(Work(name, flops / kernels, moved / kernels, half))
        for _ in range(small_kernels):
            self.current.add(Work(name, 0.0, 0.0, half))


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


@contextmanager
def counting() -> Iterator[Recorder]:
    """A device that is not there, and what counts on it, for networks that are compiled too. The process must have been started
    with `fake_cuda.environment`."""
    recorder = Recorder()

    def compile(network: nn.Module, **_: Any) -> None:
        recorder.fusion.compile(network)

    with fake_cuda(), recorder, replaced((nn.Module, "compile", compile)):
        yield recorder


# A script's own loop

STEPS = 2  # the first one makes what optimizers keep, the second is like all that follow


class _BlankImages:
    """Stands for a data set of one domain: images of one size (W,H), all alike.

    Args:
        label_stride: of the labels to the images; 0 for none.
        num_classes: of soft labels, 0 for none.
        marked: whether samples say which domain they are of.
    """

    records = ()

    def __init__(self, size: tuple[int, int], label_stride: int = 1, num_classes: int = 0, marked: bool = False) -> None:
        self.size, self.label_stride, self.num_classes, self.marked = size, label_stride, num_classes, marked

    def __len__(self) -> int:
        return 2975

    def batch(self, n: int) -> dict[str, Tensor]:
        width, height = self.size
        batch = {"image": torch.zeros(n, 3, height, width, dtype=torch.uint8)}
        if self.label_stride:
            batch["label"] = torch.zeros(n, height // self.label_stride, width // self.label_stride, dtype=torch.uint8)
        if self.num_classes:
            batch["soft"] = torch.zeros(n, self.num_classes, height, width)
        if self.marked:
            batch["target"] = torch.zeros(n, dtype=torch.float64)
        return batch


class _Batches:
    """Stands for an EndlessLoader: the same images again and again, without files."""

    world_size, position = 1, 0

    def __init__(self, batch_size: int, dataset: _BlankImages, pin: Callable[[Tensor], Tensor]) -> None:
        self.batch_size, self.dataset, self.pin = batch_size, dataset, pin

    def __next__(self) -> dict[str, Any]:
        batch = {key: self.pin(value) for key, value in self.dataset.batch(self.batch_size).items()}
        return {**batch, "path": ["none"] * self.batch_size, "name": ["none"] * self.batch_size}

    def next_files(self) -> list[str]:
        return []

    def state_dict(self) -> dict:
        return {}

    def close(self) -> None:
        pass


def _stand_ins(pin: Callable[[Tensor], Tensor]) -> dict[str, Callable[..., Any]]:
    """For whatever in a script reads data or weights, or writes labels, by its name there."""

    def batches(args: Flags, images: _BlankImages, *_: Any, **__: Any) -> _Batches:
        return _Batches(args.batch_size, images, pin)

    def source(args: Flags, *_: Any, **__: Any) -> _Batches:
        return batches(args, _BlankImages(getattr(args, "crop", args.input_size)))

    def target(args: Flags, *_: Any, **__: Any) -> _Batches:
        return batches(args, _BlankImages(getattr(args, "crop", args.input_size_target), label_stride=0))

    def domain(*_: Any, **__: Any) -> SimpleNamespace:
        return SimpleNamespace(dataset=lambda *_, **__: _BlankImages((1, 1)))

    def labelled_target(args: Flags, *_: Any, **__: Any) -> _BlankImages:
        return _BlankImages(args.input_size_target)

    def report(*_: Any, **__: Any) -> SimpleNamespace:
        return SimpleNamespace(rare=[], priority=[], thresholds=[])

    def both(args: Flags, protocol: Any, classes: Sized, report: Any, *_: Any, **__: Any) -> _BlankImages:
        stride, soft = protocol.crops(args, report)[0].label_stride, len(classes) if args.lr_weight_ent else 0
        return _BlankImages(args.input_size, stride, soft, marked=True)

    def nothing(*_: Any, **__: Any) -> None:
        pass

    def no_file(*_: Any, **__: Any) -> str:
        return "none"

    return {
        **dict.fromkeys(("source_loader", "class_balanced_loader", "rare_class_loader"), source),
        "target_loader": target,
        "endless": batches,
        **dict.fromkeys(("source_domain", "target_domain"), domain),
        "pseudo_labelled_dataset": labelled_target,
        "label_target": report,
        "training_set": both,
        **dict.fromkeys(("restore", "restore_discriminators", "read_prior", "write_pseudo_labels"), nothing),
        "weights_before": no_file,
    }


def drive(
    script: ModuleType, args: Flags, step_context: Callable[[Run], AbstractContextManager], pin: Callable[[Tensor], Tensor]
) -> None:
    """Run a training script's `main` for a few steps of each of its runs, with random weights, without data and snapshots.

    Args:
        script: train_source, train_adaptsegnet, ...
        step_context: from a run to what each of its steps is made in.
        pin: what puts a tensor into pinned memory.
    """
    steps = Run.steps
    stand_ins = [(script, name, stand_in) for name, stand_in in _stand_ins(pin).items() if hasattr(script, name)]

    def nothing(*_: Any, **__: Any) -> None:
        pass

    with tempfile.TemporaryDirectory() as folder:

        def within_context(run: Run) -> Iterator[int]:
            for step in itertools.islice(steps(run), STEPS):
                with step_context(run):
                    yield step
            run._close()

        unsaved = [(Run, "steps", within_context), (Run, "_save_networks", nothing), (Run, "_save_state", nothing)]
        with replaced(*stand_ins, *unsaved):
            quick = {"num_rounds": min(2, args.num_rounds)} if hasattr(args, "num_rounds") else {}  # they are all alike
            quiet = {"snapshot_dir": f"{folder}/step", "resume": False, "val_every": 0, "log_every": sys.maxsize}
            script.main(args.with_values(**quiet, **quick))


def cost_of_steps(script: ModuleType, args: Flags) -> dict[str, StepCost]:
    """The cost of a later step of each run of a training script with these flags, by the name of its directory ("step" if there
    is but one run), on a card whatever the flags say. With --compile the kernels are those of a rule (`utils.fusion`), memory
    is as without it.

    Raises:
        DeviceError: the step needs a value from the device to go on.
    """
    costs: dict[str, StepCost] = {}
    with counting() as recorder:

        @contextmanager
        def counted(run: Run) -> Iterator[None]:
            before = run.images
            with recorder.step() as cost:
                yield
            cost.images = run.images - before
            costs[os.path.basename(run.directory)] = cost

        drive(script, args.with_values(device="cuda", gpu=None), counted, pinned)
    return costs


def pinned(tensor: Tensor) -> Tensor:
    """A fake tensor that passes for one in pinned memory."""
    tensor.pinned = True  # type: ignore[attr-defined]
    return tensor
