"""Weights to start from: adaptation never loses a trained classifier unnoticed, and no NaN is taken in."""

import pytest
import torch
from filled import filled_state

import train_adaptsegnet
import train_clan
import train_maxsquare
import train_source
from model import WeightsError, build_model, load_model

SOURCE = {"resnet": {}, "twin": {"heads": "twin"}, "single": {"heads": "single"}, "16": {"num_classes": 16}}


def weights(kind, path):
    """A file as the scripts here and the originals' have them."""
    if kind == "initialisation":
        state = filled_state(build_model("MiniResNet18", num_classes=21, heads="single"))
        state = {f"Scale.{key}": value for key, value in state.items()}
    elif kind == "imagenet":
        state = filled_state(build_model("ResNet18"))
        state = {key: value for key, value in state.items() if not key.startswith(("layer5", "layer6"))} | {
            "fc.weight": torch.zeros(2, 2)
        }
    else:
        state = filled_state(build_model("MiniResNet18", **SOURCE[kind]))
    torch.save(state, path)
    return str(path)


def train(script, mini_data, tmp_path, *more, model="MiniResNet18"):
    words = ["--data-dir", f"{mini_data}/GTA5", "--input-size", "64,32", "--model", model, "--device", "cpu"]
    words += ["--num-workers", "0", "--num-steps", "1", "--snapshot-dir", str(tmp_path / "run"), *more]
    if script is not train_source:
        words += ["--data-dir-target", f"{mini_data}/Cityscapes", "--input-size-target", "64,32"]
    script.main(script.get_arguments(words))


@pytest.mark.parametrize(
    "script, kind, lost",
    [
        (train_adaptsegnet, "16", "layer5, layer6"),
        (train_adaptsegnet, "single", "layer5, layer6"),
        (train_adaptsegnet, "twin", "layer5"),
        (train_maxsquare, "16", "layer5, layer6"),
        (train_clan, "resnet", "layer5"),
        (train_clan, "single", "layer6"),
    ],
)
def test_adaptation_refuses_to_lose_a_classifier(script, kind, lost, mini_data, tmp_path):
    path = weights(kind, tmp_path / "weights.pth")
    message = rf"{path}: its classifiers do not fit: {lost} would start from random values .* --fresh-classifier"
    with pytest.raises(WeightsError, match=message):
        train(script, mini_data, tmp_path, "--restore-from", path)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("script", (train_adaptsegnet, train_maxsquare, train_clan))
def test_a_flag_allows_it(script, mini_data, tmp_path, capsys):
    path = weights("16", tmp_path / "weights.pth")
    train(script, mini_data, tmp_path, "--restore-from", path, "--fresh-classifier", "--val-every", "0")
    assert "layer5, layer6 stay random" in capsys.readouterr().out


@pytest.mark.parametrize("script", (train_adaptsegnet, train_clan))
@pytest.mark.parametrize("kind", ("initialisation", "imagenet"))
def test_files_without_a_classifier_start_a_method(script, kind, mini_data, tmp_path, capsys):
    model = "ResNet18" if kind == "imagenet" else "MiniResNet18"  # as torchvision has it
    train(script, mini_data, tmp_path, "--restore-from", weights(kind, tmp_path / "weights.pth"), model=model)
    assert "layer5, layer6 stay random" in capsys.readouterr().out


def test_source_training_makes_fresh_classifiers(mini_data, tmp_path, capsys):
    train(train_source, mini_data, tmp_path, "--restore-from", weights("16", tmp_path / "weights.pth"))
    assert "layer5, layer6 stay random" in capsys.readouterr().out


@pytest.mark.parametrize("value", (float("nan"), float("inf")))
def test_weights_that_are_no_numbers_are_refused(value, tmp_path):
    state = filled_state(build_model("MiniResNet18"))
    state["layer2.0.conv1.weight"][0, 0, 0, 0] = value
    state["bn1.bias"][0] = value
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=r"weights.pth: holds values that are NaN or infinite, in bn1.bias \(2 tensors\)"):
        load_model(tmp_path / "weights.pth")
