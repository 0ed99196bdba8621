"""The command `segadapt`, in a checkout and installed from a wheel."""

import os
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT

from scripts.segadapt import __version__, command

# What must not lie beside other people's modules.
OURS = {"segadapt"}


def segadapt(*words, cwd=ROOT):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    return subprocess.run([sys.executable, "-m", "segadapt", *words], cwd=cwd, env=environment, capture_output=True, text=True)


def test_every_script_is_a_command():
    found = command.commands()
    assert {"train-clan", "train-fada", "evaluate", "iou", "predict", "demo", "benchmark", "make-mini-data"} <= found.keys()
    scripts = [*ROOT.glob("train_*.py"), *ROOT.glob("scripts/*.py")]
    assert len(found) == len(scripts) + 2
    overview = command.overview()
    assert all(f"    {name} " in overview for name in found) and "CLAN: Taking a Closer Look" in overview


def test_it_starts_a_script_as_python_does(tmp_path):
    """From any folder, with the script's own errors and exit status."""
    result = segadapt("iou", "nowhere", "nowhere", cwd=tmp_path)
    assert result.returncode == 1 and result.stderr.startswith("compute_iou.py: error: ")
    assert "usage: compute_iou.py" in segadapt("iou", "--help", cwd=tmp_path).stdout


def test_version_and_path():
    assert segadapt("--version").stdout == f"segadapt {__version__}\n"
    assert segadapt("--path", "train_clan").stdout == f"{ROOT / 'train_clan.py'}\n"
    assert segadapt("--path").stdout == f"{ROOT}\n"


@pytest.mark.parametrize("words", [("trian-clan",), ("--path", "nothing"), ("--completion", "fish")])
def test_what_it_does_not_know_is_one_line(words):
    result = segadapt(*words)
    assert result.returncode == 1 and result.stderr.startswith("segadapt: error: ") and result.stderr.count("\n") == 1


def completed(*words):
    """What bash offers for the last word."""
    script = f"{command.completion()}\nCOMP_WORDS=({' '.join(map(repr, words))}) COMP_CWORD={len(words) - 1}\n_segadapt\n"
    result = subprocess.run(["bash", "-c", script + 'echo "${COMPREPLY[@]}"'], capture_output=True, text=True)
    assert not result.stderr
    return result.stdout.split()


def test_bash_completes_commands_and_flags():
    assert completed("segadapt", "train-c") == ["train-cbst", "train-clan"]
    assert completed("segadapt", "train-clan", "--lambda-") == ["--lambda-adv", "--lambda-local", "--lambda-weight"]
    assert "--snapshot-dir" in completed("segadapt", "train-clan", "--s")
    assert completed("segadapt", "iou", "da") == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that a checkout stays as it is."""
    folder = tmp_path_factory.mktemp("wheel")
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True).stdout
    for name in names.splitlines():
        if not name.startswith("tests/") and (ROOT / name).is_file():
            (folder / "code" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "code" / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", str(folder), "."]
    subprocess.run(build, cwd=folder / "code", check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def test_what_the_wheel_holds(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == OURS
    for path in [
        *ROOT.glob("*.py"),
        *ROOT.glob("scripts/*"),
        *ROOT.glob("scripts/recipes/*"),
        *(ROOT / "dataset").rglob("*.py"),
        *(ROOT / "utils").rglob("*.py"),
    ]:
        if path.suffix in (".py", ".sh") and path.name != "setup.py":
            assert f"segadapt/tree/{path.relative_to(ROOT).as_posix()}" in names
    assert not any("tests" in name or name.endswith("setup.py") for name in names)


@pytest.mark.slow
def test_the_installed_command_trains_and_scores(wheel, tmp_path):
    """From an empty folder, with the wheel alone on the path."""
    target = tmp_path / "site"
    install = ["-m", "pip", "install", "--no-deps", "--quiet", "--target", str(target), str(wheel)]
    subprocess.run([sys.executable, *install], check=True, capture_output=True)
    (work := tmp_path / "work").mkdir()

    def call(*words):
        result = subprocess.run(
            [sys.executable, str(target / "bin/segadapt"), *words],
            cwd=work,
            env={**os.environ, "PYTHONPATH": str(target)},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    assert call("--version") == f"segadapt {__version__}\n"
    assert call("--path").strip() == str(target / "segadapt/tree")
    counts = "--source-train 4 --source-val 1 --target-train 3 --target-val 2".split()
    call("make-mini-data", "data", "--size", "96,48", "--workers", "1", *counts)
    small = "--device cpu --num-workers 0 --input-size 64,32".split()
    run = "--data-dir data/GTA5 --model MiniResNet18 --restore-from none --num-steps 2 --snapshot-dir run".split()
    call("train-source", *small, *run)
    call("evaluate", *small, "--restore-from", "run/GTA5_2.pth", "--data-dir", "data/Cityscapes", "--save", "result")
    assert "mIoU" in call("iou", "data/Cityscapes/gtFine/val", "result")
    assert '"git": null' in (work / "run/args.json").read_text()
    assert sorted(path.name for path in work.iterdir()) == ["data", "result", "run"]
