"""scripts/compare_runs.py: the permutation test against SciPy, groups of seeds, and what the tables say of runs."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from scripts import compare_runs
from utils.errors import RunError
from utils.run_records import enough_seeds, groups_of, permutation_test, read_runs, smallest_p


def difference(a, b, axis):
    return np.mean(a, axis=axis) - np.mean(b, axis=axis)


@pytest.mark.parametrize("sizes", [(3, 3), (4, 5), (2, 6)])
def test_permutation_test_against_scipy(sizes):
    rng = np.random.default_rng(0)
    for shift in (0.0, 0.5, 3.0):
        a, b = rng.normal(size=sizes[0]), rng.normal(shift, size=sizes[1])
        found = stats.permutation_test((a, b), difference, n_resamples=np.inf, alternative="two-sided", vectorized=True)
        # SciPy doubles the smaller tail; of groups of one size the tails are equal, and both definitions agree.
        if sizes[0] == sizes[1]:
            assert permutation_test(a, b) == pytest.approx(found.pvalue)
        distances = np.abs(found.null_distribution) >= abs(found.statistic) - 1e-12
        assert permutation_test(a, b) == pytest.approx(distances.mean())


def test_many_seeds_are_drawn_from():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=12), rng.normal(0.8, size=12)
    assert permutation_test(a, b) == pytest.approx(stats.ttest_ind(a, b).pvalue, abs=0.02)
    assert permutation_test(a, a + 100) == pytest.approx(1 / 20001, abs=1e-4) and permutation_test(a, a) == 1


def test_how_many_seeds_are_enough():
    for sizes in ((3, 3), (4, 4), (3, 5)):
        assert permutation_test(range(sizes[0]), range(100, 100 + sizes[1])) == pytest.approx(smallest_p(*sizes))
    assert smallest_p(3, 3) == pytest.approx(0.1) and smallest_p(4, 4) == pytest.approx(2 / math.comb(8, 4))
    assert enough_seeds() == 4


def make_run(folder, seed, miou=(0.3, 0.5, 0.4), rate=1e-3, **flags):
    """A run directory with 20 logged lines, and validations of these mIoUs."""
    folder.mkdir(parents=True)
    known = {
        "random_seed": seed,
        "learning_rate": rate,
        "num_steps_stop": 200,
        "snapshot_dir": str(folder),
        "num_workers": seed,
    }
    known |= {"restore_from": f"runs/seed{seed}/source.pth", "command": ["train_x.py"], "versions": {"git": str(seed)}, **flags}
    (folder / "args.json").write_text(json.dumps(known))
    lines = [{"step": i * 10 + 9, "loss_seg": 2 - i / 20, "images_per_second": 5 + seed, "data_wait": 0.1} for i in range(20)]
    lines += [{"step": 60 * i + 59, "val_miou": value, "val_iou": {"road": value}} for i, value in enumerate(miou)]
    text = "".join(json.dumps(line) + "\n" for line in sorted(lines, key=lambda line: line["step"]))
    (folder / "metrics.jsonl").write_text(text + '{"step": 20')  # the last line of a killed process
    return folder


def compare(*words):
    compare_runs.main(compare_runs.get_arguments([*map(str, words)]))


def test_runs_that_differ_in_the_seed_are_one_group(tmp_path):
    paths = [make_run(tmp_path / f"a/seed{seed}", seed) for seed in range(3)]
    paths += [make_run(tmp_path / "b", 0, rate=1e-2), make_run(tmp_path / "c", 1, rate=1e-3, restore_from="other.pth")]
    groups = groups_of(read_runs([str(path) for path in paths]))
    assert [len(group) for group in groups] == [3, 1, 1]


def test_what_is_told_of_runs(tmp_path, capsys):
    for seed in range(4):
        make_run(tmp_path / f"a/seed{seed}", seed, miou=(0.2, 0.5 + seed / 100, 0.4 + seed / 100))
        make_run(tmp_path / f"b/seed{seed}", seed, miou=(0.2, 0.3, 0.3 + seed / 100), rate=0.01, mirror=False, gan="LS")
    compare(tmp_path / "a", *(tmp_path / f"b/seed{seed}" for seed in range(4)))
    shown = capsys.readouterr().out
    (row,) = [line for line in shown.splitlines() if "a/seed1" in line]
    assert row.split() == ["A", str(tmp_path / "a/seed1"), "1", "200", "41.00", "51.00", "119", "6.00", "10", "%", "-"]
    words = " ".join(shown.split())
    assert "A 4 41.50 +- 1.29 [40.00, 43.00] 51.50 +- 1.29 [50.00, 53.00] 6.50 +- 1.29" in words
    assert "loss_seg" in shown and "1.1500" in shown  # the mean of the last five values, 1.25 to 1.05
    flags = shown[shown.index("Flags that differ") :]
    assert "learning_rate 0.001 0.01" in words and "gan - LS" in words
    assert "mirror" not in flags and "restore_from" not in flags and "snapshot_dir" not in flags
    assert f"A - B: +10.00 points; permutation test p = {2 / 70:.3f}: more than chance explains at 0.05" in shown


def test_too_few_seeds_are_told_in_words(tmp_path, capsys):
    for seed in range(3):
        make_run(tmp_path / f"a/seed{seed}", seed)
        make_run(tmp_path / f"b/seed{seed}", seed, rate=0.01)
    compare(tmp_path / "a", tmp_path / "b")
    assert "too few seeds for a test (3 and 3 seeds: p could not be below 0.10; 4 and 4 would do)" in capsys.readouterr().out
    compare(tmp_path / "a/seed0", tmp_path / "b/seed0")
    assert "one run of each says nothing about chance" in capsys.readouterr().out
    compare(tmp_path / "a/seed0")
    assert "Flags" not in capsys.readouterr().out


def test_runs_without_validation(tmp_path, capsys):
    compare(make_run(tmp_path / "a", 0, miou=()), make_run(tmp_path / "b", 0, miou=(), rate=1))
    assert "No run has val_miou: train with --val-every N" in capsys.readouterr().out
    with pytest.raises(RunError, match="--metric accuracy: is in none of the runs; they have data_wait, images_per_second"):
        compare(tmp_path / "a", "--metric", "accuracy")


def test_what_is_no_run_is_told(tmp_path):
    with pytest.raises(RunError, match="absent: no such run directory"):
        compare(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="empty: is no run directory, it holds no metrics.jsonl"):
        compare(tmp_path / "empty")
    (tmp_path / "empty/metrics.jsonl").write_text("")
    with pytest.raises(RunError, match="empty: an empty run, metrics.jsonl has no line yet"):
        compare(tmp_path / "empty")
    run = make_run(tmp_path / "run", 0)
    with pytest.raises(RunError, match="run: is named twice"):
        compare(run, run)
    (run / "args.json").write_text("[")
    with pytest.raises(RunError, match="args.json: cannot be read, it holds no JSON object"):
        compare(run)
    (run / "args.json").unlink()
    with pytest.raises(RunError, match="args.json: no such file"):
        compare(run)
