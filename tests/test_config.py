"""--config: a finished run again, exactly; and what a run notes of its code and machine."""

import json
import subprocess
from functools import partial

import pytest
import torch

import train_adaptsegnet
import train_cbst
import train_clan
import train_dacs
import train_fada
import train_maxsquare
import train_source
from utils import provenance
from utils.provenance import write_args

MODULES = {
    "source": train_source,
    "adaptsegnet": train_adaptsegnet,
    "clan": train_clan,
    "maxsquare": train_maxsquare,
    "fada": train_fada,
    "cbst": train_cbst,
    "dacs": train_dacs,
}
# Flags of each script whose values have every type, and some that are other flags in the end.
FLAGS = {
    "source": "--freeze-bn --lr 1e-3 --multi True --source synthia --num-classes 16",
    "adaptsegnet": "--protocol paddle --iter-size 2 --input-size 96,48 --gpu 0",
    "clan": "--protocol paddle --random-scale False --resume auto",
    "maxsquare": "--city-name Rome --source cityscapes --num-classes 13 --restore-id old --checkpoint_dir log",
    "fada": "--stage all --color-jitter 0.5,0.5,0.5,0.2 --scale-range 0.5,1.5 --model deeplab_vgg16 --class-balanced False",
    "cbst": "--model ResNet38 --source-split train --is-training --scale-rate-range 0.7,1.3 --fast",
    "dacs": "--source synthia --num-classes 16 --random-seed 5",
}
DECIDED = {"resume", "freeze_bn", "is_training", "restore_id", "checkpoint_dir", "continue_training"}


def noted(path, args, **notes):
    """The args.json of a run with these flags."""
    write_args(str(path), args, torch.device("cpu"), False, network={"name": "x"}, classes=[], **notes)
    return path


def flags_of(args):
    return {key: value for key, value in vars(args).items() if key not in DECIDED}


@pytest.mark.parametrize("method", MODULES)
def test_the_flags_of_a_run_come_back(method, tmp_path, capsys):
    get_arguments = MODULES[method].get_arguments
    args = get_arguments(FLAGS[method].split())
    path = noted(tmp_path / "args.json", args)
    again = get_arguments(["--config", str(path)])
    assert flags_of(again) == flags_of(args) and again.resume is False
    assert "given beside" not in capsys.readouterr().out


@pytest.mark.parametrize("method", MODULES)
def test_flags_given_besides_win_and_are_listed(method, tmp_path, capsys):
    get_arguments = MODULES[method].get_arguments
    args = get_arguments(FLAGS[method].split())
    path = noted(tmp_path / "args.json", args)
    words = f"--snapshot_dir new --batch-size 6 --config={path} --seed 7 --input-size-target 1280,640 --amp fp16".split()
    if method == "source":
        words[words.index("--input-size-target")] = "--input-size"
    again = get_arguments(words)
    assert (again.snapshot_dir, again.batch_size, again.random_seed, again.amp) == ("new", 6, 7, "fp16")
    kept = flags_of(args).keys() - {"snapshot_dir", "batch_size", "random_seed", "amp", "input_size", "input_size_target"}
    assert {key: getattr(again, key) for key in kept} == {key: getattr(args, key) for key in kept}
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "given beside" in line]
    for part in (f"--batch-size 6 (was {args.batch_size})", f"--random-seed 7 (was {args.random_seed})", "1280,640 (was"):
        assert part in line
    assert "--learning-rate" not in line


def test_a_gpu_given_besides_wins_over_a_noted_device(tmp_path):
    path = noted(tmp_path / "args.json", train_clan.get_arguments(["--device", "cpu"]))
    again = train_clan.get_arguments(["--config", str(path), "--gpu", "1"])
    assert (again.device, again.gpu) == ("auto", 1)


def refused(path, capsys, *words):
    with pytest.raises(SystemExit):
        train_clan.get_arguments(["--config", str(path), *words])
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    return errors


def test_foreign_and_outdated_keys_are_named_in_one_line(tmp_path, capsys):
    foreign = refused(noted(tmp_path / "args.json", train_source.get_arguments([])), capsys)
    assert "no flags of this script: iter_size, multi, lambda_seg, freeze_bn, gaussian_blur; " in foreign
    content = json.loads(noted(tmp_path / "args.json", train_clan.get_arguments([])).read_text())
    (tmp_path / "args.json").write_text(json.dumps({**content, "gone": 3}))
    assert "no flags of this script: gone; the file is" in refused(tmp_path / "args.json", capsys)


def test_a_flag_that_is_newer_than_the_run_is_named(tmp_path, capsys):
    content = json.loads(noted(tmp_path / "args.json", train_clan.get_arguments([])).read_text())
    del content["timeout"]
    (tmp_path / "args.json").write_text(json.dumps(content))
    train_clan.get_arguments(["--config", str(tmp_path / "args.json")])
    assert "says nothing of --timeout: as usual today" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "No such file or directory; name the args.json of a run"),
        ("{broken", "is no args.json of a run"),
        ("[1]", "is no args.json of a run"),
        ("[" * 100000, "is no args.json of a run"),
        ('{"lr": 1}', "it has no snapshot_dir"),
        ('{"snapshot_dir": "x", "batch_size": 0}', "args.json: argument --batch-size: 0 is not at least 1"),
        ('{"snapshot_dir": "x", "batch_size": {"a": 1}}', "batch_size is {'a': 1}, which no flag can be"),
        ('{"snapshot_dir": "x", "amp": "fp8"}', "args.json: argument --amp: invalid choice"),
    ],
)
def test_files_that_are_no_run(content, message, tmp_path, capsys):
    if content is not None:
        (tmp_path / "args.json").write_text(content)
    assert message in refused(tmp_path / "args.json", capsys)


def test_one_part_of_a_run_names_the_whole(tmp_path, capsys):
    whole, part = tmp_path / "args_source.json", tmp_path / "source/args.json"
    part.parent.mkdir()
    args = train_fada.get_arguments(["--stage", "source"])
    noted(whole, args, parts=["source"])
    noted(part, args)
    with pytest.raises(SystemExit):
        train_fada.get_arguments(["--config", str(part)])
    assert f"is one part of a run; name {whole}" in capsys.readouterr().err
    assert train_fada.get_arguments(["--config", str(whole)]).stage == "source"


def test_another_number_of_processes_is_told(tmp_path, capsys, monkeypatch):
    path = noted(tmp_path / "args.json", train_clan.get_arguments([]))
    monkeypatch.setenv("WORLD_SIZE", "4")
    train_clan.get_arguments(["--config", str(path)])
    assert "had 1 process(es), this one has 4" in capsys.readouterr().out


def test_the_originals_own_configuration_is_passed_over(capsys):
    args = train_dacs.get_arguments("--config ./configs/configUDA.json --name UDA".split())
    assert vars(args) == vars(train_dacs.get_arguments([]))
    assert "configUDA.json has no effect here" in capsys.readouterr().out


def command(method, mini_data, directory):
    """A short run on the mini data, as words."""
    words = f"--data-dir {mini_data}/GTA5 --source-split train --restore-from none --device cpu --num-workers 0 --log-every 1"
    words += f" --model MiniResNet18{'Twin' if method == 'clan' else ''} --input-size 64,32 --snapshot-dir {directory}"
    if method != "source":
        words += f" --data-dir-target {mini_data}/Cityscapes --input-size-target 64,32"
    words += {
        "fada": " --stage all --batch-size 2 --input-size-test 64,32 --num-steps 2",
        "cbst": " --num-rounds 2 --epochs-per-round 1 --mr-weight-kld 0.1",
        "maxsquare": " --target-mode IW_maxsquare --epoch-num 1",
    }.get(method, " --num-steps 3")
    return words.split()


def tensors_of(content, key=""):
    """{dotted key: tensor} of what a snapshot holds."""
    if isinstance(content, torch.Tensor):
        return {key: content}
    rows = content.items() if isinstance(content, dict) else ()
    return {name: tensor for part, value in rows for name, tensor in tensors_of(value, f"{key}.{part}").items()}


def run(method, words):
    MODULES[method].main(MODULES[method].get_arguments(words))


SLOW = [pytest.param(method, marks=pytest.mark.slow) for method in MODULES if method != "adaptsegnet"]


@pytest.mark.parametrize("method", ["adaptsegnet", *SLOW])
def test_a_run_again_is_the_same(method, mini_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(method, command(method, mini_data, "first"))
    run(method, ["--config", "first/args.json", "--snapshot-dir", "second"])
    names = sorted(path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*.pth"))
    weights = [name for name in names if name.name != "state.pth"]
    assert weights and all(tensors_of(torch.load(tmp_path / "first" / name, weights_only=True)) for name in weights)
    for name in weights:
        first, second = (tensors_of(torch.load(tmp_path / folder / name, weights_only=True)) for folder in ("first", "second"))
        assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    assert list((tmp_path / "second").rglob("metrics.jsonl"))


# What a run was made with


def repository(path, **files):
    """A git repository with these files committed."""
    git(path, "init", "--quiet")
    for name, content in files.items():
        (path / name).write_text(content)
    git(path, "add", "--all")
    git(path, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "one")
    return path


def git(path, *words):
    return subprocess.run(["git", *words], cwd=path, check=True, capture_output=True, text=True).stdout


def note(path, resumed=False):
    write_args(str(path / "args.json"), train_clan.get_arguments([]), torch.device("cpu"), resumed)
    return json.loads((path / "args.json").read_text())


def test_a_run_keeps_commit_changes_and_versions(tmp_path, monkeypatch):
    code, directory = tmp_path / "code", tmp_path / "run"
    code.mkdir()
    directory.mkdir()
    monkeypatch.setattr(provenance, "commit", partial(provenance.commit, str(code)))
    monkeypatch.setattr(provenance, "uncommitted_changes", partial(provenance.uncommitted_changes, str(code)))
    repository(code, model="a\n")
    first = note(directory)["versions"]
    assert first["git"] == git(code, "rev-parse", "HEAD").strip() and first["changes"] is None
    assert first["torch"] == torch.__version__ and {"python", "torchvision", "card"} <= first.keys()
    (code / "model").write_text("b\n")
    second = note(directory, resumed=True)
    assert second["earlier"] == [first]
    assert "+b" in (directory / second["versions"]["changes"]).read_text()
    assert note(directory, resumed=True)["earlier"] == [first]
    monkeypatch.setattr(provenance, "MOST_BYTES", 20)
    cut = note(directory)["versions"]["changes"]
    assert (directory / cut).read_text().splitlines()[-1].startswith("# cut here: ")


def test_without_git_nothing_is_noted(tmp_path, monkeypatch):
    assert provenance.commit(str(tmp_path)) is None
    code = repository(tmp_path, model="a\n")
    assert provenance.commit(str(code)) is not None
    (code / "installed").mkdir()
    assert provenance.commit(str(code / "installed")) is None  # inside of another project
    monkeypatch.setenv("PATH", "")
    assert provenance.commit(str(code)) is None and provenance.uncommitted_changes(str(code)) == b""
