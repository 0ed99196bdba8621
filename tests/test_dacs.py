"""train_dacs.py and its parts against recordings of the original (and of MIC's and DAFormer's code for the two options)."""

import json
import random
import zlib

import numpy as np
import pytest
import torch
from conftest import GOLDEN, ROOT
from fill import noise
from filled import filled_state
from PIL import Image
from torch import nn

import train_dacs
from dataset.catalogue import CITYSCAPES, DATA_SETS, LABEL_IDS
from model import build_model
from utils import mean_teacher, mixing, strong_augmentation
from utils.domains import endless

INPUTS = GOLDEN / "dacs/trajectory_inputs"
SIZE = (128, 96)
HEAD = 12.0


# Training


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The recorded crops in the official layouts, and the weights that the recordings start from."""
    root = tmp_path_factory.mktemp("dacs")
    raw_ids = np.zeros(256, np.uint8)
    raw_ids[: len(CITYSCAPES)] = [{name: raw for raw, name in LABEL_IDS.items()}[name] for name in CITYSCAPES.names]
    for i in range(4):
        files = {
            f"GTA5/images/0000{i}.png": Image.open(INPUTS / f"source_{i}.png").convert("RGB"),
            f"GTA5/labels/0000{i}.png": Image.fromarray(raw_ids[np.array(Image.open(INPUTS / f"label_{i}.png"))]),
            f"Cityscapes/leftImg8bit/train/city/city_00000{i}_000019_leftImg8bit.png": Image.open(
                INPUTS / f"target_{i}.png"
            ).convert("RGB"),
        }
        for name, image in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            image.save(root / name)
    torch.save(start(), root / "start.pth")
    return root


def start():
    state = filled_state(build_model("Res_Deeplab"), bn3=0.1)
    heads = [key for key in state if key.startswith("layer5") and key.endswith("weight")]
    return state | {key: state[key] * torch.tensor(HEAD) for key in heads}


def train(data, directory, *flags):
    train_dacs.main(
        train_dacs.get_arguments(
            [
                *("--data-dir", str(data / "GTA5"), "--data-dir-target", str(data / "Cityscapes")),
                *("--input-size", "128,96", "--input-size-target", "128,96", "--restore-from", str(data / "start.pth")),
                *("--snapshot-dir", str(directory), "--num-workers", "0", "--device", "cpu", "--log-every", "1"),
                *("--num-steps", "4", "--save-pred-every", "2", "--color-jitter", "False", "--blur", "False", *flags),
            ]
        )
    )
    return [json.loads(line) for line in open(directory / "metrics.jsonl")]


CASES = [
    ("trajectory", "published", "old", ""),
    ("trajectory", "clean", "unique", ""),
    ("trajectory_threshold", "published", "old", "--pixel-weight pixel"),
    ("trajectory_mic", "published", "old", "--mask --mask-block 16"),
    ("trajectory_mic", "clean", "unique", "--mask --mask-block 16"),
]


@pytest.mark.slow
@pytest.mark.parametrize("name, updates, variant, flags", CASES)
def test_four_steps_of_student_and_teacher_match_the_original(name, updates, variant, flags, data, tmp_path, golden, monkeypatch):
    recorded = golden(f"dacs/{name}.npz")
    chosen = iter(recorded["chosen"])

    def draw_recorded(label, draws, with_ignored):
        drawn = torch.zeros(len(label), 256, dtype=torch.bool)
        for image, ids in enumerate(next(chosen)):
            drawn[image, ids[ids >= 0]] = True
        return drawn

    def uniform_recorded(images, *shape, device):
        if len(shape) == 1:
            return torch.zeros(images, *shape)
        step = uniform_recorded.steps
        uniform_recorded.steps += 1
        rng = np.random.default_rng([zlib.crc32(f"dacs/mic/draws/{step}".encode()), 0])
        return torch.from_numpy(rng.random((images, *shape), dtype=np.float32))

    uniform_recorded.steps = 0
    monkeypatch.setattr(train_dacs, "draw_classes", draw_recorded)
    monkeypatch.setattr(train_dacs, "uniform", uniform_recorded)
    monkeypatch.setattr(train_dacs, "endless", lambda args, dataset, seed_offset=0: endless(args, dataset, order=[0, 1, 2, 3] * 9))
    rows = train(data, tmp_path, "--updates", updates, *flags.split())

    masked = ["loss_masked"] if "--mask" in flags else []
    ours = np.array([[row[loss] for loss in ("loss_seg", "loss_mixed", *masked)] for row in rows])
    np.testing.assert_allclose(ours[0], recorded[f"{variant}/losses"][0], rtol=2e-5)
    np.testing.assert_allclose(ours, recorded[f"{variant}/losses"], rtol=1e-3 if masked else 3e-4)
    np.testing.assert_allclose([row["lr_G"] for row in rows], recorded["lr"][:, 0], rtol=1e-12)
    if "threshold" not in name:
        np.testing.assert_allclose([row["confidence"] for row in rows], recorded[f"{variant}/q"][:, 0], rtol=3e-3)
    compare(recorded, variant, tmp_path / "checkpoint-iter4.pth")
    if variant == "old":
        compare(recorded, "old/iter2", tmp_path / "checkpoint-iter2.pth")
    assert {path.name for path in tmp_path.glob("*.pth")} - {"state.pth", "state.previous.pth"} == {
        "checkpoint-iter2.pth",
        "checkpoint-iter4.pth",
    }


def compare(recorded, variant, snapshot):
    """Changes of student and teacher since the start; the teacher's statistics start at 0 and 1."""
    contents = torch.load(snapshot, weights_only=True)
    assert set(contents) == set(recorded["checkpoint_keys"].tolist()) - {"optimizer"}
    before = start()
    for network, part in (("student", "model"), ("teacher", "ema_model")):
        after = contents[part]
        if "iter2" not in variant:
            assert after["bn1.num_batches_tracked"] == recorded["num_batches_tracked"][int(network == "teacher")]
        expected, actual = recorded[f"{variant}/{network}/rms_change"], []
        for i, key in enumerate(recorded["keys"]):
            old = before[key]
            if network == "teacher" and "running" in key:
                old = torch.full_like(old, float(key.endswith("var")))
            change = after[key].double() - old.double()
            actual.append(change.square().mean().sqrt().item())
            if f"{variant}/{network}/first8_change" in recorded:
                first8 = recorded[f"{variant}/{network}/first8_change"][i]
                count = min(8, change.numel())
                scale = np.abs(first8[:count]).max()
                np.testing.assert_allclose(change.flatten()[:8].numpy(), first8[:count], rtol=0, atol=4e-2 * scale + 1e-12)
        moving = expected > 1e-12
        np.testing.assert_allclose(np.array(actual)[moving], expected[moving], rtol=3e-3, err_msg=network)
        assert (np.array(actual)[~moving] < 1e-12).all()
