"""Runs in which one file operation goes wrong: a sample of what scripts/soak.py tries for hours."""

import random
import signal

import pytest

from tests.faults import runs
from tests.faults.injection import ROOT, Fault, Injector, Result, why_not
from tests.faults.trials import Trials, not_intact, points, wrong_end

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@pytest.fixture(scope="module")
def trials():
    with Trials() as found:
        yield found


def draw(trials, script, kinds, seed):
    """An operation of one of these kinds, in the part of the run that a seed says."""
    operations = trials.whole(script).operations
    return random.Random(f"{script} {seed}").choice([at for at in points(operations) if operations[at] in kinds])


@pytest.mark.parametrize("script", runs.MORE)
@pytest.mark.parametrize("action, kinds", [("kill", "osrul"), ("kill halfway", "w"), ("full", "wo")])
def test_a_fault_at_a_file_operation(script, action, kinds, trials):
    assert trials.problems(script, Fault(action, draw(trials, script, kinds, action))) == []


@pytest.mark.parametrize("script", ("train_adaptsegnet", "train_cbst"))
def test_a_sync_that_fails(script, trials):
    assert trials.problems(script, Fault("fail", draw(trials, script, "s", "fail"))) == []


@pytest.mark.parametrize("script, number", [("train_maxsquare", signal.SIGUSR1), ("train_fada", signal.SIGTERM)])
def test_a_signal_at_a_file_operation(script, number, trials):
    assert trials.problems(script, Fault("signal", draw(trials, script, "owr", "signal"), number)) == []


@pytest.mark.parametrize("name", runs.writers(ROOT, ROOT, ROOT))
def test_a_full_disk_where_nothing_is_trained(name, trials):
    operations = trials.whole_writer(name).operations
    at = random.Random(name).choice([at for at in points(operations) if operations[at] in "wo"])
    assert trials.writer_problems(name, Fault("full", at)) == []


# What tells right from wrong here has to do so.


def test_a_difference_is_found(trials, tmp_path):
    whole = trials.whole("train_source").left
    for name in ("./metrics.jsonl", "./TensorBoard", "./state.pth", "./GTA5_3.pth", "./args.json", "./GTA5_best.pth"):
        assert name in whole
        assert runs.differences({key: value for key, value in whole.items() if key != name}, whole) == [f"{name} is missing"]
        (line,) = runs.differences({**whole, name: "something else"}, whole)
        assert line.startswith(f"{name} differs")
    assert runs.differences({**whole, "./a.tmp": ""}, whole) == ["./a.tmp is left over"]
    directory = trials.root / "train_source-whole"
    (tmp_path / "state.pth").write_bytes((directory / "state.pth").read_bytes()[:-100])
    (tmp_path / "args.json").write_text("{")
    (tmp_path / "GTA5_3.pth").write_bytes((directory / "GTA5_3.pth").read_bytes()[:-100])
    assert len(list(not_intact(tmp_path))) == 3


def test_a_wrong_end_is_found(tmp_path):
    told = f"train_source.py: error: {tmp_path}/state.pth: No space left on device; it needs more than 5 bytes, 9 are free"

    def wrong(status, errors, action, timed_out=False):
        result = Result(status=status, output="", errors=errors, operations="owwwwsr", timed_out=timed_out, seconds=1.0)
        return list(wrong_end(result, tmp_path, Fault(action, 3), ()))

    assert not wrong(1, told, "full") and not wrong(-9, "", "kill") and not wrong(0, "", "fail")
    assert wrong(1, f"Traceback (most recent call last):\n{told}", "full") and wrong(0, told, "full")
    assert wrong(1, "No space left on device", "full") and wrong(1, told.partition(";")[0], "full")
    assert wrong(1, told, "kill") and wrong(-9, "", "kill", timed_out=True)
    assert wrong(1, "Traceback", "signal")


def test_points_leave_out_what_lies_between_writes():
    assert points("owwwwwwsr") == [0, 1, 4, 6, 7, 8]
    assert points("owwsrww") == [0, 1, 2, 3, 4, 5, 6]
    assert points("owwwwwwsr", every_write=True) == list(range(9))


def test_what_the_library_does(tmp_path):
    """Operations are counted below the folder only; half of a write is written; a full disk takes nothing more."""
    with Injector() as injector:
        data = tmp_path / "data"
        runs.make_data(data)
        command = ["scripts.class_statistics", "--source", "gta5", "--data-dir", f"{data}/GTA5", "--num-classes", "19"]
        command += ["--output", f"{tmp_path}/out/statistics.json", "--workers", "1"]
        whole = injector.run(command, tmp_path / "out")
        assert whole.status == 0 and whole.operations == "mowsr"
        assert injector.run(command, tmp_path / "elsewhere").operations == ""
        size = (tmp_path / "out/statistics.json").stat().st_size
        for action, status in (("kill halfway", -signal.SIGKILL), ("full", 1)):
            result = injector.run(command, tmp_path / "out", Fault(action, whole.operations.index("w")))
            assert result.status == status
            assert (tmp_path / "out/statistics.json").stat().st_size == size
            # The first is killed, and leaves what it has written; the second removes it.
            (left,) = tmp_path.glob("out/*.tmp")
            assert left.stat().st_size == size // 2
