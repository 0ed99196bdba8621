"""What torch.compile leaves of a network's kernels, by a rule that stands for its compiler (Inductor).

A compiled network runs in passes, forward and backward. In each of them

- convolutions and matrix products stay kernels of their own, which read and write memory;
- a pointwise operation becomes part of what uses it, in each place anew, if it reads at most MOST_READS tensors. What is left
  to write are the results of reductions, and what a convolution, another pass or code outside the network needs;
- results of one size with equally many convolutions and reductions before them come from one kernel, if they share something
  that they read, reductions and others apart. It moves the bytes that enter and leave it;
- a batch norm that takes statistics is a reduction and a pointwise operation, in the backward pass too; a layer norm is
  pointwise, with a reduction for the gradients of scale and shift. A reduction of SPLIT elements or more to each result is
  finished by a small kernel, backward through a norm by two.

docs/benchmarks.md and tests/test_cuda.py compare the rule with Inductor itself.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from .fake_cuda import next_node, running_node

MOST_READS = 4
SPLIT = 256
UNROLLED = 8  # a reduction of up to so many elements is a pointwise operation
REDUCTIONS = ("sum", "mean", "amax")


@dataclass(eq=False)
class Value:
    """What an operation makes.

    Attributes:
        moved: its bytes.
        made_in: the pass of its operation; None for what was there before.
        size: how many elements the operation goes through.
        inputs: what the operation takes.
        is_barrier: what uses it cannot be in the kernel that makes it.
        is_library: made by a kernel that is not the compiler's.
        small_kernels: that finish a reduction.
        in_memory: something that cannot be fused takes it.
        uses: by how many operations of its pass.
        depth: barriers before it in its pass.
        reads: what has to be read for it.
    """

    moved: float
    made_in: "Pass | None" = None
    size: int = 0
    inputs: Sequence["Value"] = ()
    is_barrier: bool = False
    is_library: bool = False
    small_kernels: int = 0
    in_memory: bool = False
    uses: int = 0
    depth: int = 0
    reads: set["Value"] = field(default_factory=set)

    @property
    def is_written(self) -> bool:
        used_often = self.uses > 1 and len(self.reads) > MOST_READS
        return self.made_in is None or self.is_barrier or self.in_memory or used_often


class Pass:
    """The values that one pass of a compiled network makes, in their order."""

    def __init__(self) -> None:
        self.values: list[Value] = []

    def add(self, value: Value) -> Value:
        for one in value.inputs:
            one.uses += 1
            one.in_memory |= one.made_in is not self or value.is_library
        self.values.append(value)
        return value

    def kernels(self) -> Iterator[float]:
        """The bytes that each kernel of the compiler moves, once all uses are known; libraries' kernels are not among them."""
        groups: list[tuple[tuple[int, int, bool], set[Value], set[Value]]] = []  # (depth, size, reduces), read, written
        for value in self.values:
            value.depth = max((one.depth + one.is_barrier for one in value.inputs if one.made_in is self), default=0)
            value.reads = set().union(*({one} if one.is_written else one.reads for one in value.inputs))
            if value.is_library or not value.is_written:
                continue
            kind, read, written = (value.depth, value.size, value.is_barrier), value.reads, {value}
            for group in [group for group in groups if group[0] == kind and not read.isdisjoint(group[1] | group[2])]:
                groups.remove(group)
                read, written = read | group[1], written | group[2]
            groups.append((kind, read, written))
        for _, read, written in groups:
            yield sum(value.moved for value in read | written)
            yield from (0.0 for value in written for _ in range(value.small_kernels))


class Fusion:
    """Follows the values of compiled networks through a step."""

    def __init__(self) -> None:
        self.start_step()
        self.forward: Pass | None = None

    def start_step(self) -> None:
        self.values: dict[int, Value] = {}  # by the memory that holds them
        self.passes: list[Pass] = []
        self.backward: list[tuple[range, Pass]] = []  # which operations of autograd's graph belong to a pass

    def compile(self, network: nn.Module) -> None:
        """Stands for `network.compile()`."""

        def call(*args: Any, **options: Any) -> Any:
            first, self.forward, backward = next_node(), Pass(), Pass()
            self.passes += [self.forward, backward]
            try:
                return network._call_impl(*args, **options)
            finally:
                self.forward = None
                self.backward.append((range(first, next_node()), backward))

        network._compiled_call_impl = call  # type: ignore[assignment]

    def running_pass(self) -> Pass | None:
        """The pass that runs now, None outside of compiled networks."""
        node = running_node()
        if node is None:
            return self.forward
        return next((backward for nodes, backward in self.backward if node in nodes), None)

    def add(
        self, running: Pass, name: str, args: Any, given: Iterable[Tensor], results: Sequence[Tensor], is_library: bool
    ) -> None:
        """Note an operation of a pass."""
        inputs, size = self._values_of(given), max(tensor.numel() for tensor in (*given, *results))
        first, *rest = results
        if norm_reduces(name, args):
            channels = first.shape[1] if "batch_norm" in name else rest[0].numel()
            finish = (1 + ("backward" in name)) * (size >= SPLIT * channels)
            small = sum(tensor.nbytes for tensor in rest)
            sums = running.add(Value(small, running, size, inputs, is_barrier=True, small_kernels=finish))
            self.values |= {memory(tensor): sums for tensor in rest}
            inputs, results = [*inputs, sums] if "batch_norm" in name else inputs, [first]
        reduces = name in REDUCTIONS and size > UNROLLED * first.numel()
        is_barrier = is_library or reduces or name.startswith("max_pool")
        finish = reduces and size >= SPLIT * first.numel()
        for key, tensor in {memory(tensor): tensor for tensor in results}.items():
            self.values[key] = running.add(Value(tensor.nbytes, running, size, inputs, is_barrier, is_library, finish))

    def use(self, tensors: Iterable[Tensor]) -> None:
        """Note that something outside of compiled networks takes these."""
        for value in self._values_of(tensors):
            value.in_memory = True

    def forget(self, key: int) -> None:
        """Note that memory is free; see `memory`."""
        self.values.pop(key, None)

    def kernels(self) -> Iterator[float]:
        """Of all passes of the step; see `Pass.kernels`."""
        for one in self.passes:
            yield from one.kernels()

    def _values_of(self, tensors: Iterable[Tensor]) -> list[Value]:
        return [self.values.setdefault(memory(tensor), Value(tensor.untyped_storage().nbytes())) for tensor in tensors]


def norm_reduces(name: str, args: Any) -> bool:
    """Whether a norm's operation sums over positions: for statistics of its input, or for gradients of scale and shift."""
    if "batch_norm" not in name:
        return "norm_backward" in name and any(args[-1][1:])
    if "backward" not in name:
        return bool(args[5])
    return name.startswith("cudnn") or bool(args[7]) or any(args[9][1:])


def memory(tensor: Tensor) -> int:
    """A number for a tensor's memory, until that is free."""
    return tensor.untyped_storage()._cdata
