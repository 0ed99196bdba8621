"""train_adaptsegnet.py, run as a user runs it, against four recorded training steps of the original."""

import json

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from filled import filled_state
from PIL import Image

import train_adaptsegnet
from model import OutputDiscriminator, build_model

INPUTS = GOLDEN / "adaptsegnet/trajectory_inputs"
FLAGS = {
    "multi_vanilla": "--lambda-seg 0.1 --lambda-adv-target1 0.0002 --lambda-adv-target2 0.001 --gan Vanilla",
    "single_ls": "--lambda-seg 0.0 --lambda-adv-target1 0.0 --lambda-adv-target2 0.01 --gan LS",
    "iter_size": "--lambda-seg 0.1 --lambda-adv-target1 0.0002 --lambda-adv-target2 0.001 --gan Vanilla --iter-size 2",
}
# Float32 rounding over four steps, from the README of the recordings (old against old_f64), doubled.
TOLERANCE = {"multi_vanilla": 2e-4, "single_ls": 2e-3, "iter_size": 4e-4}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The recorded pair in the official layouts, resized as the original does (Pillow), so that pixels are the same."""
    root = tmp_path_factory.mktemp("data")
    files = {
        "GTA5/images/00001.png": Image.open(INPUTS / "source.png").convert("RGB").resize((128, 72), Image.BICUBIC),
        "GTA5/labels/00001.png": Image.open(INPUTS / "label.png").resize((128, 72), Image.NEAREST),
        "Cityscapes/leftImg8bit/train/city/city_000000_000019_leftImg8bit.png": Image.open(INPUTS / "target.png")
        .convert("RGB")
        .resize((96, 48), Image.BICUBIC),
    }
    for name, image in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(root / name)
    torch.save(filled_state(build_model("DeeplabMulti"), bn3=0.1), root / "G.pth")
    for level in (1, 2):
        torch.save(filled_state(OutputDiscriminator(), prefix=f"D{level}."), root / f"D{level}.pth")
    return root


def train(data, directory, *flags):
    train_adaptsegnet.main(
        train_adaptsegnet.get_arguments(
            [
                *("--data-dir", str(data / "GTA5"), "--data-dir-target", str(data / "Cityscapes")),
                *("--restore-from", str(data / "G.pth")),
                *("--restore-discriminator", f"{data}/D1.pth,{data}/D2.pth"),
                *("--snapshot-dir", str(directory), "--num-workers", "0", "--device", "cpu", "--log-every", "1"),
                *("--input-size", "128,72", "--input-size-target", "96,48"),
                *("--num-steps", "10", "--num-steps-stop", "4", "--save-pred-every", "2"),
                *flags,
            ]
        )
    )
    return [json.loads(line) for line in open(directory / "metrics.jsonl")]


def changes(data, snapshot, network):
    """Root mean square and first eight of each tensor's change since the start, as recorded."""
    start = torch.load(data / f"{network}.pth", weights_only=True)
    end = torch.load(snapshot, weights_only=True)
    difference = {key: (end[key].double() - start[key].double()) for key in start}
    return {key: (value.square().mean().sqrt().item(), value.flatten()[:8].numpy()) for key, value in difference.items()}


def compare(data, recorded, variant, network, snapshot, tolerance):
    ours = changes(data, snapshot, network)
    keys = recorded[f"{network}_keys"]
    expected = recorded[f"{variant}/{network}/rms_change"]
    actual = np.array([ours[key][0] for key in keys])
    moving = expected > 1e-12
    np.testing.assert_allclose(actual[moving], expected[moving], rtol=tolerance, err_msg=f"{network} rms_change")
    assert (actual[~moving] < 1e-12).all()
    if "snapshot2" in variant:
        return
    for key, first8 in zip(keys, recorded[f"{variant}/{network}/first8_change"], strict=True):
        count = len(ours[key][1])
        scale = np.abs(first8[:count]).max()
        np.testing.assert_allclose(ours[key][1], first8[:count], rtol=0, atol=2e-2 * scale + 1e-12, err_msg=key)


@pytest.mark.parametrize("updates, variant", [("published", "old"), ("clean", "unique")])
@pytest.mark.parametrize("case", FLAGS)
def test_four_steps_match_the_original(case, updates, variant, data, tmp_path, golden):
    recorded = golden(f"adaptsegnet/trajectory_{case}.npz")
    rows = train(data, tmp_path, *FLAGS[case].split(), "--updates", updates)
    for row in rows:  # the recordings have the discriminators' losses as D minimises them, half of both domains'
        row |= {f"loss_D{low}": (row[f"loss_D_source{low}"] + row[f"loss_D_target{low}"]) / 2 for low in ("_low", "")}
    ours = [[row[f"loss_{name}{low}"] for name in ("seg", "adv", "D") for low in ("_low", "")] for row in rows]
    np.testing.assert_allclose(ours, recorded[f"{variant}/losses"], rtol=1e-4)
    np.testing.assert_allclose([[row["lr_G"], row["lr_D"]] for row in rows], recorded["lr"][:, [0, 2]], rtol=1e-12)
    for network, suffix in (("G", ""), ("D1", "_D1"), ("D2", "_D2")):
        compare(data, recorded, variant, network, tmp_path / f"GTA5_4{suffix}.pth", TOLERANCE[case])
        if updates == "published":
            # The original's snapshot called 2 follows the update of step 2, the third.
            compare(data, recorded, "old/snapshot2", network, tmp_path / f"GTA5_2{suffix}.pth", TOLERANCE[case])
    assert {path.name for path in tmp_path.glob("GTA5_*")} == set(recorded["snapshot_files"].tolist())
