"""--fast: what it stands for, how far its numbers are from the published precision, and that it compiles without breaks."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from torch._dynamo.testing import CompileCounterWithBackend

import train_adaptsegnet
from model import BATCH_NORM_MODES, OutputDiscriminator, build_model
from utils.flags import add_speed_flags
from utils.parser import Parser

HAS_COMPILER = shutil.which("g++") or shutil.which("clang++")


@pytest.mark.parametrize(
    "words, expected",
    [
        ("", ("off", False, False)),
        ("--fast", ("bf16", True, True)),
        ("--fast True", ("bf16", True, True)),
        ("--fast False", ("off", False, False)),
        ("--fast --amp off", ("off", True, True)),
        ("--fast --compile False", ("bf16", True, False)),
        ("--compile --amp fp16", ("fp16", False, True)),
    ],
)
def test_fast_stands_for_three_flags(words, expected):
    parser = Parser(None)
    add_speed_flags(parser)
    args = parser.parse_args(words.split())
    assert (args.amp, args.channels_last, args.compile) == expected
    assert not hasattr(args, "fast")


@pytest.mark.parametrize("batch_norm", BATCH_NORM_MODES)
def test_networks_compile_whole_once_for_each_size(batch_norm):
    network = build_model("MiniResNet18", batch_norm=batch_norm).train()
    backend = CompileCounterWithBackend("eager")
    network.compile(backend=backend, fullgraph=True, dynamic=False)
    for _ in range(2):
        for width in (64, 96):
            network(torch.randint(0, 256, (1, 3, 48, width), dtype=torch.uint8))
    assert backend.frame_count == 2


def test_discriminators_compile_whole_once_for_each_role():
    network = OutputDiscriminator(4).train()
    backend = CompileCounterWithBackend("eager")
    network.compile(backend=backend, fullgraph=True, dynamic=False)
    for _ in range(2):
        for learns in (False, True):
            network.requires_grad_(learns)
            network(torch.rand(1, 4, 64, 96))
    assert backend.frame_count == 2


def train(mini_data, directory, steps, *more):
    arguments = [
        *("--data-dir", f"{mini_data}/GTA5", "--data-dir-target", f"{mini_data}/Cityscapes", "--input-size", "96,48"),
        *("--input-size-target", "96,48", "--model", "MiniResNet18", "--restore-from", "none", "--device", "cpu"),
        *("--num-workers", "0", "--log-every", "1", "--learning-rate", "1e-4", "--num-steps", "250"),
        *("--num-steps-stop", str(steps), "--snapshot-dir", str(directory), *more),
    ]
    train_adaptsegnet.main(train_adaptsegnet.get_arguments(arguments))
    rows = [json.loads(line) for line in open(directory / "metrics.jsonl")]
    weights = torch.load(directory / f"GTA5_{steps}.pth", weights_only=True)
    return [row["loss_seg"] for row in rows], torch.cat([weights[key].flatten() for key in weights if "conv" in key])


def test_training_with_bf16_goes_the_way_of_fp32(mini_data, tmp_path):
    """The losses of every step, and where the weights have gone from where they started."""
    _, start = train(mini_data, tmp_path / "start", 1, "--learning-rate", "0")
    losses, weights = train(mini_data, tmp_path / "fp32", 5)
    fast_losses, fast_weights = train(mini_data, tmp_path / "bf16", 5, "--amp", "bf16", "--channels-last")
    assert fast_losses == pytest.approx(losses, rel=0.05)
    moved, moved_fast = weights - start, fast_weights - start
    assert torch.nn.functional.cosine_similarity(moved, moved_fast, dim=0) > 0.7
    assert moved_fast.norm().item() == pytest.approx(moved.norm().item(), rel=0.1)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_COMPILER, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_training_has_the_losses_of_uncompiled(mini_data, tmp_path):
    losses, _ = train(mini_data, tmp_path / "eager", 3, "--fast", "--compile", "False")
    fast_losses, _ = train(mini_data, tmp_path / "compiled", 3, "--fast")
    assert fast_losses == pytest.approx(losses, rel=0.02)


# A program with a compiled network, and how often it found what it needs compiled already.
COMPILED = """
import sys, torch
from argparse import Namespace
from utils.device import prepare, set_up
args = Namespace(device="cpu", gpu=None, random_seed=1, compile=True, channels_last=False, snapshot_dir=sys.argv[1])
device = set_up(args)
network = prepare(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh()), args, device)
network(torch.rand(3, 4)).sum().backward()
from torch._dynamo.utils import counters
found = counters["aot_autograd"]["autograd_cache_hit"] + counters["inductor"]["fxgraph_cache_hit"]
print("found" if found else "compiled")
"""


@pytest.mark.slow
@pytest.mark.skipif(not HAS_COMPILER, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_resumed_run_does_not_compile_again(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    for expected in ("compiled", "found"):
        command = [sys.executable, "-c", COMPILED, str(tmp_path)]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert result.stdout.split() == [expected], result.stderr[-2000:]
    assert (tmp_path / "compiled").is_dir()
