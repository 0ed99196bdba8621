"""Shared fixtures. Golden numbers lie in tests/golden/<method>; what each array is, the READMEs there say."""

import json
import os
import sys
from pathlib import Path

# One thread, here and in the scripts that tests start: on busy cores several are slower. It is set before PyTorch is imported,
# for `torch.set_num_threads` makes MKL round in another way, and runs of both kinds are compared bit by bit.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).resolve().parent / "golden"
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


@pytest.fixture
def golden():
    """Load tests/golden/<name>."""
    return lambda name: np.load(GOLDEN / name)


@pytest.fixture(scope="session")
def mini_data(tmp_path_factory):
    """A very small mini data set: 6 source and 5 target training images of 96x48, and 3 of each to validate."""
    from scripts import make_mini_data

    root = tmp_path_factory.mktemp("mini")
    counts = "--source-train 6 --source-val 3 --target-train 5 --target-val 3".split()
    arguments = [str(root), "--formats", "gta5,synthia,cityscapes,crosscity", "--size", "96,48", "--workers", "1", *counts]
    make_mini_data.main(make_mini_data.get_arguments(arguments))
    return root


@pytest.fixture(scope="session")
def plain_folders(tmp_path_factory):
    """Two plain folders with sub-folders, `field` with labels of three classes of its own, `meadow` with nothing but images."""
    root, rng = tmp_path_factory.mktemp("plain"), np.random.default_rng(0)

    def picture(path, values):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.astype(np.uint8)).save(path)

    for name in ("a/1", "a/2", "b/1", "b/2"):
        ids = rng.choice((0, 3, 7), (8, 12)).repeat(6, 0).repeat(6, 1)
        picture(root / f"field/labels/train/{name}.png", ids)
        picture(root / f"field/images/train/{name}.png", (ids[..., None] * 30 + rng.integers(0, 20, (48, 72, 3))) % 256)
        picture(root / f"meadow/images/{name}.jpg", rng.integers(0, 255, (40, 64, 3)))
    classes = [{"name": "soil", "ids": [0]}, {"name": "plant", "ids": [3], "color": [0, 200, 0]}, {"name": "stone", "ids": [7]}]
    (root / "field/classes.json").write_text(json.dumps(classes))
    return root
