"""One step of every training script on a GPU that need not be there: no operation on two devices, no wait for the device,
and no more memory and kernels than recorded here. Sizes and networks are the published ones."""

import contextlib
import importlib
import json
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from model_steps import FAULTS

from utils.cost_model import drive
from utils.fake_cuda import environment, why_not

# Counting all cases takes most of a minute, so one process of pytest does it for all.
pytestmark = pytest.mark.xdist_group("cuda")

ADAPTSEGNET = "--lambda-seg 0.1 --lambda-adv-target1 0.0002 --lambda-adv-target2 0.001"
MAXSQUARE = "--target-mode IW_maxsquare --multi --input-size-target 1280,640 --num-steps 100"
CLAN = "--preheat-steps 0"
FADA = "--batch-size 2 --stage adversarial"
CBST = "--batch-size 1 --num-rounds 2"
CBST_2018 = "--batch-size 1 --num-rounds 1 --model ResNet38"
BF16, FP16 = "--amp bf16 --channels-last", "--amp fp16 --channels-last"
FAST = "--fast"
VIT = "--model timm:vit_small_patch14_reg4_dinov2 --optim AdamW --clip-grad 1"
RESNET50 = "--model torchvision:resnet50 --batch-norm frozen --checkpoint-activations --clip-grad 1"
# Script and flags; kernels, and megabytes that tensors take at most. A change may lower a bound; raising one needs a reason.
CASES: dict[str, tuple[str, str, int, float]] = {
    "source, frozen norms, bf16": ("train_source", f"--batch-norm frozen {BF16}", 1501, 2323),
    "AdaptSegNet, fp16": ("train_adaptsegnet", f"{ADAPTSEGNET} {FP16}", 2977, 4316),
    "AdaptSegNet, fast": ("train_adaptsegnet", f"{ADAPTSEGNET} {FAST}", 3189, 4316),
    "CLAN": ("train_clan", CLAN, 2388, 7595),
    "FADA": ("train_fada", FADA, 2298, 4290),
    "CBST": ("train_cbst", CBST, 1069, 2421),
    "LRENT, fp16": ("train_cbst", f"{CBST} --lr-weight-ent 0.25 {FP16}", 1342, 1557),
    "DACS, masked, bf16": ("train_dacs", f"--mask {BF16}", 5460, 2977),
    "AdaptSegNet, ViT-S, bf16": ("train_adaptsegnet", f"{ADAPTSEGNET} {VIT} {BF16}", 2715, 1767),
}
SLOW_CASES: dict[str, tuple[str, str, int, float]] = {
    "FADA distill, bf16": ("train_fada", f"--batch-size 1 --stage distill {BF16}", 1384, 2501),
    "MRKLD of 2018, bf16": ("train_cbst", f"{CBST_2018} --mr-weight-kld 0.1 {BF16}", 593, 2088),
    "MaxSquare, bf16": ("train_maxsquare", f"{MAXSQUARE} {BF16}", 3178, 4233),
    "source": ("train_source", "", 984, 7349),
    "source, fp16": ("train_source", FP16, 1251, 4017),
    "source, fast": ("train_source", FAST, 1350, 4017),
    "source, frozen norms": ("train_source", "--batch-norm frozen", 1071, 3961),
    "AdaptSegNet": ("train_adaptsegnet", ADAPTSEGNET, 2321, 7569),
    "AdaptSegNet, bf16": ("train_adaptsegnet", f"{ADAPTSEGNET} {BF16}", 3317, 4316),
    "AdaptSegNet, VGG, fp16": ("train_adaptsegnet", f"--model DeeplabVGG {FP16}", 712, 1506),
    "MaxSquare": ("train_maxsquare", MAXSQUARE, 2308, 7486),
    "MaxSquare, fp16": ("train_maxsquare", f"{MAXSQUARE} {FP16}", 2809, 4233),
    "MaxSquare, fast": ("train_maxsquare", f"{MAXSQUARE} {FAST}", 3050, 4233),
    "CLAN, fast": ("train_clan", f"{CLAN} {FAST}", 3194, 4367),
    "CLAN, bf16": ("train_clan", f"{CLAN} {BF16}", 3358, 4367),
    "CLAN, fp16": ("train_clan", f"{CLAN} {FP16}", 3003, 4367),
    "AdvEnt": ("train_adaptsegnet", "--protocol advent", 2421, 7576),
    "DACS": ("train_dacs", "", 2601, 4815),
    "DACS, masked, fast": ("train_dacs", f"--mask {FAST}", 5141, 2977),
    "FADA, fast": ("train_fada", f"{FADA} {FAST}", 1807, 2640),
    "FADA source": ("train_fada", "--batch-size 1 --stage source", 1049, 4003),
    "FADA, bf16": ("train_fada", f"{FADA} {BF16}", 3203, 2640),
    "FADA, fp16": ("train_fada", f"{FADA} {FP16}", 2819, 2640),
    "FADA, VGG, bf16": ("train_fada", f"{FADA} --model deeplab_vgg16 {BF16}", 646, 1716),
    "FADA, VGG, fast": ("train_fada", f"{FADA} --model deeplab_vgg16 {FAST}", 628, 1716),
    "CBST, fast": ("train_cbst", f"{CBST} {FAST}", 805, 1517),
    "CBST of 2018, fast": ("train_cbst", f"{CBST_2018} {FAST}", 449, 2088),
    "CBST, bf16": ("train_cbst", f"{CBST} {BF16}", 1503, 1517),
    "MRKLD": ("train_cbst", f"{CBST} --mr-weight-kld 0.1", 1097, 2421),
    "CBST of 2018": ("train_cbst", CBST_2018, 394, 2662),
    "CBST of 2018, fp16": ("train_cbst", f"{CBST_2018} {FP16}", 506, 2087),
    "CBST, ViT-S, fp16": ("train_cbst", f"{CBST} {VIT} {FP16}", 1245, 979),
    "CLAN, ConvNeXt-T, fast": ("train_clan", f"{CLAN} --model timm:convnext_tiny --optim AdamW {FAST}", 2511, 2229),
    "DACS, Swin-T, bf16": ("train_dacs", f"--mask --model torchvision:swin_t --optim AdamW --drop-path 0.1 {BF16}", 5698, 1710),
    "FADA, ResNet-50, checkpointed": ("train_fada", f"{FADA} {RESNET50}", 1506, 2004),
}


def on_fake_gpu(folder, *command, **options):
    """What a test's program prints as JSON, in a process with a fake device."""
    if torch.cuda.is_available() or why_not():
        pytest.skip(why_not() or "there is a real GPU")
    command = [sys.executable, *map(str, command)]
    result = subprocess.run(command, env=environment(str(folder)), capture_output=True, text=True, **options)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout)


def count(cases, folder):
    """What these cases of {name: (script, flags)} come to, counted in one process."""
    return on_fake_gpu(folder, ROOT / "tests/model_steps.py", input=json.dumps(cases))


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    cases = {name: case[:2] for name, case in CASES.items()} | {fault: [fault] for fault in FAULTS}
    return count(cases, tmp_path_factory.mktemp("libraries"))


@pytest.fixture(scope="module")
def counted_slowly(tmp_path_factory):
    return count({name: case[:2] for name, case in SLOW_CASES.items()}, tmp_path_factory.mktemp("libraries"))


def check(step, kernels, megabytes):
    assert "error" not in step, step["error"]
    assert step["waits"] == []
    assert 0.5 * kernels < step["kernels"] <= kernels
    assert 0.5 * megabytes < step["megabytes"] <= megabytes


@pytest.mark.parametrize("case", CASES)
def test_a_step_on_a_fake_gpu(case, counted):
    check(counted[case], *CASES[case][2:])


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW_CASES)
def test_other_modes_on_a_fake_gpu(case, counted_slowly):
    check(counted_slowly[case], *SLOW_CASES[case][2:])


@pytest.mark.slow
@pytest.mark.parametrize("batch_norm", ["frozen-affine", "frozen"])
def test_the_rule_for_compiled_networks_is_near_the_compiler(tmp_path, batch_norm):
    pytest.importorskip("triton")
    passes = on_fake_gpu(tmp_path, ROOT / "tests/inductor_kernels.py", "MiniResNet18", batch_norm)
    for kernels, moved, kernels_by_rule, moved_by_rule in passes.values():
        assert kernels_by_rule == pytest.approx(kernels, rel=0.15)
        assert moved_by_rule == pytest.approx(moved, rel=0.15)


LINE = (
    r"with (?:these flags|--fast), (\w+): about ([\d.]+) GB; images/s at most: H200 ([\d.e+]+), H100 .*, A100 .*, RTX 4090 .*"
)


def estimate(script, *flags):
    """[(run, GB, images/s on an H200)] of what --estimate prints: of the flags, then with --fast."""
    if torch.cuda.is_available() or why_not():
        pytest.skip(why_not() or "there is a real GPU")
    command = [sys.executable, script, "--estimate", *flags]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    *lines, caveat = result.stdout.splitlines()
    assert "docs/benchmarks.md" in caveat
    found = [re.fullmatch(LINE, line) for line in lines if line.startswith("with ")]
    return [(match[1], float(match[2]), float(match[3])) for match in found]


def test_estimate_needs_neither_data_nor_gpu(tmp_path):
    flags = ("--model", "MiniResNet18", "--input-size", "192,96", "--data-dir", str(tmp_path / "none"))
    plain, fast = estimate("train_source.py", *flags, "--snapshot-dir", str(tmp_path / "run"))
    assert plain[0] == fast[0] == "step" and plain[1] > 0 and plain[2] > 0
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "script, more, runs",
    [
        ("train_adaptsegnet.py", "", ["step"]),
        ("train_maxsquare.py", "--multi", ["step"]),
        ("train_clan.py", "--model MiniResNet18Twin", ["step"]),
        ("train_fada.py", "--stage all", ["source", "adversarial", "distill"]),
        ("train_cbst.py", "--lr-weight-ent 0.25", ["round0"]),
    ],
)
def test_every_script_estimates(script, more, runs):
    sizes = ("--model", "MiniResNet18", "--input-size", "192,96", "--input-size-target", "192,96")
    assert [run for run, *_ in estimate(script, *sizes, *more.split())] == 2 * runs


@pytest.mark.slow
def test_the_published_estimate_is_the_row_of_the_table():
    """| AdaptSegNet | TFLOP | kernels | GB fp32 / bf16 | ms on an H200 fp32 / bf16 / --fast | ..."""
    row = next(line for line in (ROOT / "docs/benchmarks.md").read_text().splitlines() if line.startswith("| AdaptSegNet | 6"))
    memory, milliseconds = ([float(value) for value in cell.split("/")] for cell in row.split("|")[4:6])
    plain, fast = estimate("train_adaptsegnet.py")
    assert [plain[1], fast[1]] == memory
    assert [2000 / plain[2], 2000 / fast[2]] == pytest.approx([milliseconds[0], milliseconds[2]], rel=0.01)


@pytest.mark.slow
def test_evaluation_is_modelled():
    """More processes that read never keep a card less busy."""
    if torch.cuda.is_available() or why_not():
        pytest.skip(why_not() or "there is a real GPU")
    command = [sys.executable, "scripts/benchmark.py", "--model-evaluation"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    shares = [list(map(int, re.findall(r"(\d+)% with", line))) for line in result.stdout.splitlines() if " busy " in line]
    assert len(shares) == 3 * 4
    assert all(len(of_card) == 3 and 0 < of_card[0] and of_card == sorted(of_card) for of_card in shares)


FOUND = {
    "reads a value": "reading a value",
    "decides by a value": "reading a value",
    "selects by a mask": "index at .* waits for the device",
    "looks for values": "nonzero at .* waits for the device",
    "copies to the host and waits": "blocking copy of 36 bytes",
    "copies from the host and waits": "blocking copy of 36 bytes",
    "copies memory that is not pinned": "copy of 36 bytes that are not pinned",
    "makes a tensor of numbers": "blocking copy of 36 bytes",
    "mixes devices": "two devices, cuda:0 and cpu",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found(fault, counted):
    step = counted[fault]
    if fault not in FOUND:
        assert step["waits"] == []
        return
    message = step.get("error") or step["waits"][0]
    assert re.search(FOUND[fault], message)
    assert "error" in step and "two devices" in message or "tests/model_steps.py:" in message


@contextlib.contextmanager
def no_waits(run):
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("case", CASES | SLOW_CASES)
def test_steps_on_a_gpu_do_not_wait_for_it(case):
    script, flags, *_ = (CASES | SLOW_CASES)[case]
    module = importlib.import_module(script)
    drive(module, module.get_arguments(["--device", "cuda", *flags.split()]), no_waits, torch.Tensor.pin_memory)
