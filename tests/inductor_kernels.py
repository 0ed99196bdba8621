"""Asks PyTorch's own compiler into how many kernels it would fuse a network, without a GPU. The arguments are the network's
name and its BatchNorm mode; images are 512x256, in bf16. Prints JSON: {pass: [kernels, bytes, utils/fusion.py's two numbers]}.

It takes the compiler's steps up to its scheduler, which decides what becomes one kernel. Started by tests/test_cuda.py, in a
process with a fake device.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch._inductor.lowering  # noqa: F401 - the decompositions below take it for granted
from functorch.compile import aot_function, min_cut_rematerialization_partition
from torch._inductor.compile_fx import _recursive_post_grad_passes, fake_tensor_prop, view_to_reshape
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V

from model import build_model
from utils.cost_model import Recorder
from utils.fake_cuda import fake_cuda, replaced

H200 = SimpleNamespace(
    major=9, minor=0, multi_processor_count=132, warp_size=32, max_threads_per_multi_processor=2048,
    regs_per_multiprocessor=65536, shared_memory_per_block=49152, total_memory=141 * 10**9, name="H200",
)  # fmt: skip


def kernels_of_the_compiler(graph, inputs, is_backward):
    """The bytes that each fused kernel of a traced pass moves."""
    view_to_reshape(graph)
    with torch.no_grad():
        fake_tensor_prop(graph, inputs)
    with V.set_fake_mode(torch._guards.detect_fake_mode(inputs)), torch.no_grad():
        _recursive_post_grad_passes(graph, is_inference=False)
        fake_tensor_prop(graph, inputs)
        lowering = GraphLowering(graph, example_inputs=inputs, is_inference=False, is_backward=is_backward)
        with V.set_graph_handler(lowering), V.set_debug_handler(DebugContext()), V.set_extern_kernel_nodes([]):
            lowering.run(*inputs)
            lowering._update_scheduler()
            nodes = lowering.scheduler.nodes
            return [node.get_read_write_buffers_sizes() for node in nodes if "Extern" not in type(node).__name__]


def build(name, batch_norm):
    network = build_model(name, batch_norm=batch_norm).to("cuda").train().to(memory_format=torch.channels_last)
    return network, torch.zeros(1, 3, 256, 512, dtype=torch.uint8, device="cuda")


def backward(logits):
    sum(logit.float().sum() for logit in logits).backward()


def by_the_compiler(name, batch_norm):
    network, images = build(name, batch_norm)
    tensors = dict(network.named_parameters()) | dict(network.named_buffers())
    found = []

    def compile(graph, inputs):
        found.append(kernels_of_the_compiler(graph, inputs, is_backward=bool(found)))
        return graph

    def call(values, images):
        return torch.func.functional_call(network, dict(zip(tensors, values, strict=True)), (images,))

    options = {"partition_fn": min_cut_rematerialization_partition, "decompositions": select_decomp_table()}
    with torch.autocast("cuda", torch.bfloat16):
        logits = aot_function(call, fw_compiler=compile, bw_compiler=compile, **options)(list(tensors.values()), images)
    backward(logits)
    return found


def by_the_rule(name, batch_norm, recorder):
    network, images = build(name, batch_norm)
    recorder.fusion.compile(network)
    with recorder.step():
        with torch.autocast("cuda", torch.bfloat16):
            logits = network(images)
        backward(logits)
        # What an optimizer does: it reads the gradients.
        torch._foreach_neg([parameter.grad for parameter in network.parameters() if parameter.grad is not None])
    return [list(one.kernels()) for one in recorder.fusion.passes]


if __name__ == "__main__":
    torch.cuda._get_device_properties = lambda _: H200  # a build without a driver lacks it
    # Random generators are saved and restored around what is traced.
    generator = torch.zeros(16, dtype=torch.uint8)
    with (
        fake_cuda(),
        replaced((torch.cuda, "get_rng_state", lambda *_: generator), (torch.cuda, "set_rng_state", lambda *_: None)),
    ):
        compiler = by_the_compiler(*sys.argv[1:])
    recorder = Recorder()
    with fake_cuda(), recorder:
        rule = by_the_rule(*sys.argv[1:], recorder)
    passes = zip(("forward", "backward"), compiler, rule, strict=True)
    print(json.dumps({name: [len(found), sum(found), len(ruled), sum(ruled)] for name, found, ruled in passes}))
