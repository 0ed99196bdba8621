"""The commands in the originals' READMEs, with only the script's name changed, on the mini data: training to the first step,
statistics, evaluation and IoU to their figures. (CLAN's two bulk scripts have no flags; here they want a folder.)"""

import json
import os
import shlex
import shutil

import pytest
import torch
from conftest import ROOT

import compute_iou
import evaluate_cityscapes
import train_adaptsegnet
import train_cbst
import train_clan
import train_dacs
import train_fada
import train_maxsquare
import train_source
from model import build_model
from model.checkpoint_formats import to_paddle
from model.paddle import write_pdparams
from scripts import class_statistics, spatial_prior

MODULES = {
    "train_adaptsegnet.py": train_adaptsegnet,
    "train_source.py": train_source,
    "train_maxsquare.py": train_maxsquare,
    "train_clan.py": train_clan,
    "train_cbst.py": train_cbst,
    "train_fada.py": train_fada,
    "train_dacs.py": train_dacs,
}
ROOTS = {"gta5": "GTA5", "synthia": "SYNTHIA", "cityscapes": "Cityscapes", "crosscity": "NTHU_Datasets"}
COMMANDS = [line.partition(" ")[::2] for line in (ROOT / "tests/published_commands.txt").read_text().splitlines()]


@pytest.mark.parametrize("script, command", [pair for pair in COMMANDS if pair[0] in MODULES])
def test_it_trains(script, command, mini_data, tmp_path):
    """Data, sizes, network, weights, batch size and the length of the run are replaced; all else is as published."""
    args = MODULES[script].get_arguments(shlex.split(command))
    small = {
        "data_dir": str(mini_data / ROOTS[args.source]), "input_size": (64, 32), "restore_from": "none", "device": "cpu",
        "gpu": None, "num_workers": 0, "snapshot_dir": str(tmp_path), "num_steps": 4, "num_steps_stop": 1, "log_every": 1,
        "val_every": 0, "batch_size": 2, "restore_discriminator": None, "crop": (48, 32),
    }  # fmt: skip
    if hasattr(args, "target"):
        small |= {"data_dir_target": str(mini_data / ROOTS[args.target]), "input_size_target": (64, 32)}
    small |= {"data_list": None, "data_list_target": None}
    if script == "train_cbst.py":
        prior = str(tmp_path / "prior.mat")
        count = f"--source {args.source} -d {small['data_dir']} --size 96,48 --num-classes {args.num_classes} --workers 1"
        spatial_prior.main(spatial_prior.get_arguments([*count.split(), "--output", prior]))
        small |= {"num_rounds": 1, "epochs_per_round": 1, "prior": prior, "input_size": (60, 60), "test_scales": 90}
    else:
        twin = script == "train_clan.py"
        small |= {"model": "MiniResNet18Twin" if twin else "MiniResNet18"}
    if script == "train_fada.py":
        small |= {"input_size_test": (64, 32), "class_statistics": str(tmp_path / "statistics.json")}
        count = f"--source gta5 -d {small['data_dir']} -o {small['class_statistics']} --workers 1"
        class_statistics.main(class_statistics.get_arguments(count.split()))
    MODULES[script].main(args.with_values(**{key: value for key, value in small.items() if hasattr(args, key)}))
    folder = tmp_path / {"train_cbst.py": "round0", "train_fada.py": "distill"}.get(script, "")
    rows = [json.loads(line) for line in open(folder / "metrics.jsonl")]
    losses = {name: value for name, value in rows[0].items() if name.startswith("loss")}
    assert losses and all(torch.isfinite(torch.tensor(value)) for value in losses.values())


@pytest.mark.parametrize("script, command", [pair for pair in COMMANDS if pair[0] == "scripts/class_statistics.py"])
def test_it_counts(script, command, mini_data, tmp_path, monkeypatch):
    """As published, with the data where those commands have it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "datasets").mkdir()
    for name in ("gta5", "synthia"):
        shutil.copytree(mini_data / ROOTS[name], tmp_path / "datasets" / name)
    class_statistics.main(class_statistics.get_arguments(shlex.split(command)))
    synthia = "synthia" in command
    content = json.loads((tmp_path / ("datasets/synthia/class_statistics_16.json" if synthia else
                                      "datasets/gta5/class_statistics_19.json")).read_text())  # fmt: skip
    assert len(content["file_to_label"]) == 9


EVALUATORS = ("evaluate_cityscapes.py", "compute_iou.py")


def on_mini_data(words, weights, mini_data, tmp_path):
    """The flags of an evaluation with weights, data and device replaced."""
    args = evaluate_cityscapes.get_arguments(words)
    return args.with_values(
        restore_from=str(weights),
        data_dir=str(mini_data / "Cityscapes"),
        input_size=(64, 32),
        save=str(tmp_path / "result"),
        device="cpu",
        gpu=None,
        num_workers=0,
    )


def iou_of_predictions(command, mini_data, tmp_path):
    """What a published IoU command says of the predictions in `tmp_path`."""
    args = compute_iou.get_arguments(shlex.split(command))
    folders = {"gt_dir": str(mini_data / "Cityscapes/gtFine/val"), "pred_dir": [str(tmp_path / "result")]}
    (result,) = compute_iou.main(type(args)(**{**vars(args), **folders})).values()
    return result


# Both READMEs of the reproductions in PaddlePaddle; AdaptSegNet's has the original's commands, for files of its own.
PADDLE_NETWORKS = {"GTA2Cityscapes": "MiniResNet18", "result/cityscapes": "MiniResNet18", "SYS2": "MiniResNet18Twin"}
OF_PADDLE = [
    (network, script, command)
    for script, command in COMMANDS
    for part, network in PADDLE_NETWORKS.items()
    if script in EVALUATORS and part in command
]


@pytest.mark.parametrize("network, script, command", OF_PADDLE)
def test_it_evaluates_files_of_paddle(network, script, command, mini_data, tmp_path, capsys):
    words = shlex.split(command) if script == "evaluate_cityscapes.py" else ["--restore-from", "SYS_100000.pdparams"]
    args = evaluate_cityscapes.get_arguments(words)
    weights = tmp_path / os.path.basename(args.restore_from)
    write_pdparams(weights, to_paddle(build_model(args.model or network)))
    (figures,) = evaluate_cityscapes.main(on_mini_data(words, weights, mini_data, tmp_path)).values()
    printed = capsys.readouterr().out
    twin = network == "MiniResNet18Twin"
    assert "PaddlePaddle's parameters" in printed and ("mIoU-13" in printed) == ("miou_13" in figures) == twin
    assert f"protocol {'clan-paddle' if twin else 'adaptsegnet'}: input (64, 32)" in printed
    if script == "compute_iou.py":
        figures.pop("miou_13", None)
        assert iou_of_predictions(command, mini_data, tmp_path) == figures


@pytest.mark.parametrize("script, command", [pair for pair in COMMANDS if pair[0] in EVALUATORS])
def test_it_evaluates(script, command, mini_data, tmp_path, capsys):
    """The published evaluation commands on files of their kind, and predictions through the published IoU commands."""
    words = shlex.split(command if script == "evaluate_cityscapes.py" else "--restore-from x")
    args = evaluate_cityscapes.get_arguments(words)
    state, protocol = build_model(args.model or "MiniResNet18").state_dict(), "adaptsegnet"
    if "--pretrained_ckpt_file" in words:
        state = {"state_dict": {f"module.{key}": value for key, value in state.items()}, "best_MIou": 0.4}
        protocol = "maxsquare"
    elif "--model-path" in words:
        state, protocol = {"model": state, "ema_model": state, "config": {}}, "dacs"
    elif "-cfg" in words:
        assert (args.input_size, args.save) == ((2048, 1024), "none")
        protocol = "fada"
    torch.save(state, tmp_path / "weights.pth")
    results = evaluate_cityscapes.main(on_mini_data(words, tmp_path / "weights.pth", mini_data, tmp_path))
    assert f"protocol {protocol}: input (64, 32), flip {'--flip' in words}" in capsys.readouterr().out
    assert len(list((tmp_path / "result").glob("*_color.png"))) == 3
    if script == "compute_iou.py":
        assert iou_of_predictions(command, mini_data, tmp_path) == results["weights"]
