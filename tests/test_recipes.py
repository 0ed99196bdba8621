"""The recipes: commands that our parsers take, whole rows on the mini data, and the examples for clusters."""

import hashlib
import json
import os
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT
from test_flags import module_of

FOLDER = ROOT / "scripts/recipes"
EXAMPLES = [FOLDER / "slurm_seeds.sh", FOLDER / "two_nodes.sh"]
RECIPES = sorted(set(FOLDER.glob("*.sh")) - {*EXAMPLES, FOLDER / "recipe.sh"})
# Run whenever tests are; all rows of all recipes with the slow ones.
FAST_ROWS = {"clan_gta5": ["clan"]}


def start(recipe, *words, **variables):
    environment = {**os.environ, "PYTHON": sys.executable, **variables}
    return subprocess.run(["bash", str(recipe), *words], cwd=ROOT, env=environment, capture_output=True, text=True)


def commands(output):
    """(script, flags) of what a recipe prints before it runs it."""
    for line in output.splitlines():
        if line.startswith("+ "):
            words = shlex.split(line[2:])
            script = next(index for index, word in enumerate(words) if word.endswith(".py"))
            yield os.path.relpath(words[script], "."), words[script + 1 :]


def parsed(script, flags):
    return module_of(script).get_arguments(flags)


@pytest.mark.parametrize("script", sorted(FOLDER.glob("*.sh")), ids=lambda path: path.stem)
def test_bash_understands_it(script):
    result = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_command_of_a_dry_run_is_one_that_we_take(recipe, tmp_path, capsys):
    """Every row trains, and is scored with the weights that its training ends with."""
    assert "Begin with --fast" in recipe.read_text()
    result = start(recipe, "--dry-run", "--fast", RUNS=str(tmp_path), WEIGHTS="torchvision")
    assert result.returncode == 0, result.stderr
    assert not list(tmp_path.iterdir())
    rows = [line for line in result.stdout.splitlines() if line.startswith("== ") and "modelled" in line]
    found = list(commands(result.stdout))
    scores = [flags for script, flags in found if script == "evaluate_cityscapes.py"]
    assert rows and len(scores) == len(rows)
    ends = set()
    for script, flags in found:
        args = parsed(script, flags)
        if script.startswith("train_"):
            assert args.amp == "bf16" and args.resume == "auto"
            ends.add(args.snapshot_dir)
            stop = getattr(args, "num_steps_stop", None)
            if stop and script not in ("train_maxsquare.py", "train_fada.py"):
                ends.add(f"{args.snapshot_dir}/{args.source.upper()}_{stop}.pth")
    for flags in scores:
        weights = parsed("evaluate_cityscapes.py", flags).restore_from
        folder, name = os.path.split(weights)
        assert any(weights.startswith(end + "/") for end in ends)
        if name.split("_")[0].isupper() and "29750" not in name:
            assert weights in ends
    assert "has no effect" not in capsys.readouterr().out


def small(recipe, rows, mini_data, tmp_path):
    return start(recipe, *rows, RUNS=str(tmp_path / "runs"), MINI=str(mini_data), OMP_NUM_THREADS="1")


def check(result, rows, tmp_path):
    assert result.returncode == 0, result.stderr[-2000:]
    for row in rows:
        (figures,) = json.loads((tmp_path / f"runs/{row}.json").read_text()).values()
        assert 0 <= figures["miou"] <= 1
        assert result.stdout.count(f"== {row}: published ") == 2


def rows_of(recipe):
    return [line.split()[1] for line in recipe.read_text().splitlines() if line.startswith("row ")]


@pytest.mark.parametrize("name", FAST_ROWS)
def test_a_row_on_the_mini_data(name, mini_data, tmp_path):
    recipe, rows = FOLDER / f"{name}.sh", FAST_ROWS[name]
    result = small(recipe, rows, mini_data, tmp_path)
    check(result, rows, tmp_path)
    again = small(recipe, rows, mini_data, tmp_path)
    assert again.returncode == 0 and [script for script, _ in commands(again.stdout)] == ["evaluate_cityscapes.py"]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_row_on_the_mini_data(recipe, mini_data, tmp_path):
    check(small(recipe, [], mini_data, tmp_path), rows_of(recipe), tmp_path)


def test_an_unknown_row_or_flag_is_one_line(tmp_path):
    for word, message in (
        ("single2", "error: no row single2; it has multi single lsgan paddle"),
        ("--fats", "unknown flag --fats"),
    ):
        result = start(FOLDER / "adaptsegnet_gta5.sh", "multi", word, RUNS=str(tmp_path))
        assert result.returncode == 2 and message in result.stderr and result.stderr.count("\n") == 1 and not result.stdout


def test_a_copy_of_a_published_file_is_held_against_its_name(tmp_path):
    digest = hashlib.sha256(b"weights").hexdigest()
    for name, status in ((f"init-{digest[:8]}.pth", 0), ("mine.pth", 0), ("init-00000000.pth", 1)):
        (tmp_path / name).write_bytes(b"weights")
        result = start(FOLDER / "clan_gta5.sh", "--dry-run", WEIGHTS=str(tmp_path / name))
        assert result.returncode == status and f"{tmp_path / name}: 7 bytes, SHA-256 {digest}" in result.stdout
    assert "is damaged or another file: its SHA-256 does not begin with 00000000" in result.stderr


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_flags_of_an_example_are_ours(example, capsys):
    text = example.read_text().replace("\\\n", " ").replace("$SLURM_ARRAY_TASK_ID", "1")
    (line,) = [line for line in text.splitlines() if ".py" in line and not line.startswith("#")]
    words = shlex.split(line.split("||")[0])
    script = next(index for index, word in enumerate(words) if word.endswith(".py"))
    args = parsed(words[script], words[script + 1 :])
    assert args.resume == "auto" and args.amp == "bf16"
    assert "no effect" not in capsys.readouterr().out
