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

ADAPTSEGNET = "--lambda-seg 0.1 --lambda-adv-target1 0.0002 --lambda-adv-target2 0.001"
MAXSQUARE = "--target-mode IW_maxsquare --multi --input-size-target 1280,640 --num-steps 100"
CLAN = "--preheat-steps 0"
FADA = "--batch-size 2 --stage adversarial"
CBST = "--batch-size 1 --num-rounds 2"
CBST_2018 = "--batch-size 1 --num-rounds 1 --model ResNet38"
BF16, FP16 = "--amp bf16 --channels-last", "--amp fp16 --channels-last"
# Script and flags; kernels, and megabytes that tensors take at most. A change may lower a bound; raising one needs a reason.
CASES: dict[str, tuple[str, str, int, float]] = {
    "source, frozen norms, bf16": ("train_source", f"--batch-norm frozen {BF16}", 1085, 2323),
    "AdaptSegNet, fp16": ("train_adaptsegnet", f"{ADAPTSEGNET} {FP16}", 2911, 4316),
    "MaxSquare, bf16": ("train_maxsquare", f"{MAXSQUARE} {BF16}", 2762, 4233),
    "CLAN": ("train_clan", CLAN, 2393, 7671),
    "FADA": ("train_fada", FADA, 9999, 9999),
    "FADA distill, bf16": ("train_fada", f"--batch-size 1 --stage distill {BF16}", 9999, 9999),
    "CBST": ("train_cbst", CBST, 9999, 9999),
    "LRENT, fp16": ("train_cbst", f"{CBST} --lr-weight-ent 0.25 {FP16}", 9999, 9999),
    "MRKLD of 2018, bf16": ("train_cbst", f"{CBST_2018} --mr-weight-kld 0.1 {BF16}", 9999, 9999),
}
SLOW_CASES: dict[str, tuple[str, str, int, float]] = {
    "source": ("train_source", "", 984, 7349),
    "source, fp16": ("train_source", FP16, 1300, 7349),
    "source, frozen norms": ("train_source", "--batch-norm frozen", 863, 3961),
    "AdaptSegNet": ("train_adaptsegnet", ADAPTSEGNET, 2331, 7569),
    "AdaptSegNet, bf16": ("train_adaptsegnet", f"{ADAPTSEGNET} {BF16}", 2911, 4316),
    "AdaptSegNet, VGG, fp16": ("train_adaptsegnet", f"--model DeeplabVGG {FP16}", 9999, 9999),
    "MaxSquare": ("train_maxsquare", MAXSQUARE, 2308, 7486),
    "MaxSquare, fp16": ("train_maxsquare", f"{MAXSQUARE} {FP16}", 2800, 7486),
    "CLAN, bf16": ("train_clan", f"{CLAN} {BF16}", 2947, 4443),
    "CLAN, fp16": ("train_clan", f"{CLAN} {FP16}", 3100, 4443),
    "FADA source": ("train_fada", "--batch-size 1 --stage source", 9999, 9999),
    "FADA, bf16": ("train_fada", f"{FADA} {BF16}", 9999, 9999),
    "FADA, fp16": ("train_fada", f"{FADA} {FP16}", 9999, 9999),
    "FADA, VGG, bf16": ("train_fada", f"{FADA} --model deeplab_vgg16 {BF16}", 9999, 9999),
    "CBST, bf16": ("train_cbst", f"{CBST} {BF16}", 9999, 9999),
    "MRKLD": ("train_cbst", f"{CBST} --mr-weight-kld 0.1", 9999, 9999),
    "CBST of 2018": ("train_cbst", CBST_2018, 9999, 9999),
    "CBST of 2018, fp16": ("train_cbst", f"{CBST_2018} {FP16}", 9999, 9999),
}


def count(cases, folder):
    """What these cases of {name: (script, flags)} come to, counted in one process."""
    if torch.cuda.is_available() or why_not():
        pytest.skip(why_not() or "there is a real GPU")
    result = subprocess.run(
        [sys.executable, ROOT / "tests/model_steps.py"],
        input=json.dumps(cases),
        env=environment(str(folder)),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout)


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
