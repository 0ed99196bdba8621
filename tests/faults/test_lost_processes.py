"""Runs of several processes that lose one. They start Python several times, so most are slow."""

import random

import pytest

from tests.faults import runs
from tests.faults.lost_processes import one_process, problems, two_nodes, two_ranks


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    runs.make_data(root)
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    "launch, fault",
    [(one_process, "kill"), (one_process, "stop"), (two_ranks, "kill"), (two_ranks, "stop"), (two_nodes, "node")],
)
def test_a_process_is_lost_and_the_run_resumed(launch, fault, data, tmp_path):
    assert problems(launch(data), tmp_path, fault, random.Random(0)) == []
