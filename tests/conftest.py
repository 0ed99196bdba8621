"""Shared fixtures. Golden numbers lie in tests/golden/<method>; what each array is, the READMEs there say."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).resolve().parent / "golden"
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

# One thread: on busy cores several are slower, and results do not depend on how many there are.
torch.set_num_threads(1)


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
