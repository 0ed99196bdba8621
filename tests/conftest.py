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
