"""What the rule for compiled networks makes of a pass."""

import pytest

from utils.fusion import Pass, Value


def outside(moved):
    return Value(moved)


def test_a_chain_of_pointwise_operations_is_one_kernel():
    x, bias, run = outside(100), outside(1), Pass()
    scaled = run.add(Value(100, run, 100, [x, bias]))
    shifted = run.add(Value(100, run, 100, [scaled, bias]))
    shifted.in_memory = True
    assert list(run.kernels()) == [100 + 1 + 100]


def test_what_nothing_uses_is_no_kernel():
    run = Pass()
    run.add(Value(100, run, 100, [outside(100)]))
    assert list(run.kernels()) == []


def test_a_convolution_takes_and_gives_memory():
    x, run = outside(100), Pass()
    half = run.add(Value(50, run, 100, [x]))
    convolved = run.add(Value(80, run, 100, [half], is_barrier=True, is_library=True))
    active = run.add(Value(80, run, 80, [convolved]))
    active.in_memory = True
    assert list(run.kernels()) == [100 + 50, 80 + 80]


def test_a_norm_reads_its_input_for_statistics_and_again_to_use_them():
    x, shortcut, run = outside(100), outside(100), Pass()
    statistics = run.add(Value(2, run, 100, [x], is_barrier=True, small_kernels=1))
    normalised = run.add(Value(100, run, 100, [x, statistics]))
    added = run.add(Value(100, run, 100, [normalised, shortcut]))
    active = run.add(Value(100, run, 100, [added]))
    active.in_memory = True
    assert list(run.kernels()) == [100 + 2, 0, 100 + 2 + 100 + 100]


def test_results_of_one_size_that_share_what_they_read_come_from_one_kernel():
    x, y, run = outside(100), outside(100), Pass()
    values = [run.add(Value(100, run, size, [read])) for size, read in ((100, x), (100, x), (50, x), (100, y))]
    for value in values:
        value.in_memory = True
    assert sorted(run.kernels()) == [200, 200, 300]


@pytest.mark.parametrize("reads, kernels", [(4, [40 + 1, 40 + 1 + 10]), (5, [50 + 10, 10 + 1, 10 + 1 + 10])])
def test_what_reads_little_is_computed_again_and_what_reads_much_is_written(reads, kernels):
    run = Pass()
    gradient = run.add(Value(10, run, 10, [outside(10) for _ in range(reads)]))
    sums = run.add(Value(1, run, 10, [gradient], is_barrier=True))
    run.add(Value(10, run, 10, [gradient, sums])).in_memory = True
    assert list(run.kernels()) == kernels


def test_what_another_pass_takes_is_written():
    forward, backward = Pass(), Pass()
    kept = forward.add(Value(10, forward, 10, [outside(10)]))
    backward.add(Value(10, backward, 10, [kept])).in_memory = True
    assert list(forward.kernels()) == [20] and list(backward.kernels()) == [20]
