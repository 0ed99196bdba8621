"""The demo: its table, going on where it stopped, and the sweep, on a few images and steps."""

import json

import pytest

from scripts import demo, mini_benchmark, mini_tables
from scripts.mini_benchmark import ALL, BLOCKS, GAPS, HEADLINE, ROWS, Profile

TINY = Profile(seeds=(0,), source_steps=10, adaptation_steps=1, control_steps=2, images=(4, 2, 4, 2))


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(mini_benchmark, "QUICK", TINY)
    monkeypatch.setattr(demo, "HEADLINE", ("source-only", "AdaBN", "control"))


def run(*arguments):
    demo.main(demo.get_arguments([*map(str, arguments), "--processes", "1"]))


def test_a_table_from_nothing_and_again(tiny, tmp_path, capsys):
    run("--quick", "--out", tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["rows"]) == ["source-only", "AdaBN", "control"]
    for name, row in results["rows"].items():
        assert len(row["miou"]) == 1 and set(row["iou"][0]) == set(results["classes"]), name
        assert (row["seconds"][0] is None) == (row["steps"] is None) == (name == "AdaBN")
        assert len(list((tmp_path / row["predictions"][0]).glob("*_color.png"))) == TINY.images[3]
    assert results["rows"]["AdaBN"]["statistics"] == "target's" and results["rows"]["AdaBN"]["runs"] == [None]
    assert results["rows"]["source-only"]["statistics"] == "source's"
    assert results["rows"]["source-only"]["peak_memory_gb"][0] > 0
    assert results["rows"]["source-only"]["seconds"][0] > 0 and results["rows"]["source-only"]["steps"] == 10
    assert len(list((tmp_path / results["validation"]["labels"]).rglob("*_labelIds.png"))) == TINY.images[3]

    page = (tmp_path / "report.html").read_text()
    assert all(f"{row['miou'][0]:.1f}" in page for row in results["rows"].values())

    commands = (tmp_path / "commands.txt").read_text()
    printed = capsys.readouterr().out
    run("--quick", "--out", tmp_path)
    assert (tmp_path / "commands.txt").read_text() == commands  # nothing is done twice
    table = mini_tables.text_table(results)
    assert table in printed and table in capsys.readouterr().out


@pytest.mark.slow
def test_an_interrupted_step_is_continued(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "HEADLINE", ("source-only",))
    run("--quick", "--out", tmp_path)
    (tmp_path / "seed0/source-only/GTA5_10.pth").unlink()
    (tmp_path / "seed0/source-only/figures.json").unlink()
    run("--quick", "--out", tmp_path)
    last = (tmp_path / "commands.txt").read_text().splitlines()[-2:]
    assert last[0].startswith("python train_source.py") and " --resume" in last[0]
    assert last[1].startswith("python evaluate_cityscapes.py")


def test_a_failing_command_ends_the_demo_with_its_message(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(
        demo, "FROM_SCRATCH", {"source-only": mini_benchmark.Row("train_source.py", "--restore-from nowhere.pth")}
    )
    with pytest.raises(RuntimeError, match=r"(?s)^source-only, seed 0 failed .*nowhere.pth: no such file.*log.txt"):
        run("--quick", "--out", tmp_path)


@pytest.mark.slow
def test_a_sweep_trains_once_what_does_not_see_the_target(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "GAPS", {name: GAPS[name] for name in ("strength 0.25", "light alone")})
    run("--quick", "--sweep", "--out", tmp_path)
    commands = (tmp_path / "commands.txt").read_text()
    assert commands.count("train_source.py") == 2 and commands.count("--formats gta5") == 1
    tables = json.loads((tmp_path / "sweep.json").read_text())
    assert list(tables) == ["strength 0.25", "light alone"]
    assert tables["light alone"]["rows"]["control"]["runs"] == ["../seed0/control"]
    assert (tmp_path / "light-alone" / tables["light alone"]["rows"]["control"]["predictions"][0]).is_dir()
    assert (tmp_path / "sweep.png").stat().st_size > 10000
    assert mini_tables.sweep_table(tables) in capsys.readouterr().out


def test_gaps_of_one_part_leave_the_others_alone():
    assert GAPS["light alone"].split() == (
        "--strength 1 --part tone=0 --part texture=0 --part light=1 --part sensor=0 --part layout=0".split()
    )


def test_every_row_is_compared_with_rows_that_are_there():
    for rows in (HEADLINE, ALL):
        for name in rows:
            baselines = BLOCKS[ROWS[name].block].baselines if name in ROWS else ()
            assert set(baselines) <= set(rows), name


def test_a_row_is_compared_with_its_own_kind():
    starts = {"source-only": None, "AdaBN": "source-only", "control": "source-only", "CBST": "source-only"}
    starts |= {"source-only, twin": None, "AdaBN, twin": "source-only, twin", "CLAN": "source-only, twin"}
    rows = {name: {"baseline": start} for name, start in starts.items()}
    over_adabn = {name: mini_tables.variant("AdaBN", name, rows) for name in rows}
    assert over_adabn == {
        **dict.fromkeys(("source-only", "source-only, twin", "AdaBN", "AdaBN, twin")),
        **{"control": "AdaBN", "CBST": "AdaBN", "CLAN": "AdaBN, twin"},
    }
    assert mini_tables.variant("control", "CLAN", rows) == "control"


def test_gains_are_seed_by_seed():
    assert mini_tables.gains({"miou": [50.0, 47.0]}, {"miou": [45.0, 46.0]}) == [5.0, 1.0]
    assert mini_tables.spread([5.0, 1.0], "+.1f") == "+3.0 [+1.0, +5.0]" and mini_tables.spread([5.0], ".1f") == "5.0"


@pytest.mark.slow
def test_every_row_runs(tiny, tmp_path, monkeypatch):
    run("--quick", "--all", "--out", tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert tuple(results["rows"]) == ALL
    assert all(0 <= row["miou"][0] <= 100 for row in results["rows"].values())
