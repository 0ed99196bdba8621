"""scripts/predict.py, scripts/convert_checkpoint.py, and the example in the README."""

import re

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from model import WeightsError, build_model, load_model, load_weights, read_weights, to_fada
from model.mxnet import read_params
from scripts import convert_checkpoint, predict
from utils.pictures import colorize


@pytest.fixture
def network(tmp_path):
    path = tmp_path / "weights.pth"
    torch.manual_seed(0)
    torch.save(build_model("ResNet18", heads="multi").state_dict(), path)
    return path


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, shape in (("a.png", (60, 100)), ("b.jpg", (70, 50))):
        Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(folder / name)
    return folder


def run(*arguments):
    predict.main(predict.get_arguments([*map(str, arguments), "--device", "cpu", "--num-workers", "0"]))


def test_images_and_folders_become_overlays(network, photos, tmp_path):
    out = tmp_path / "out"
    run(photos, "--restore-from", network, "--out", out, "--input-size", "96,48", "--ids")
    for name, shape in (("a", (60, 100)), ("b", (70, 50))):
        ids = np.array(Image.open(out / f"{name}.png"))
        picture = np.array(Image.open(out / f"{name}_overlay.png")).astype(int)
        assert ids.shape == shape and picture.shape == (*shape, 3) and ids.max() < 19
    image = np.array(Image.open(photos / "a.png")).astype(int)
    ids = np.array(Image.open(out / "a.png"))
    overlay = np.array(Image.open(out / "a_overlay.png")).astype(int)
    assert np.abs(overlay - (image + colorize(ids)) / 2).max() <= 0.5
    run(photos / "a.png", "--restore-from", network, "--out", tmp_path / "one", "--keep-size", "--opacity", "1", "--flip")
    assert sorted(entry.name for entry in (tmp_path / "one").iterdir()) == ["a_overlay.png"]


def test_what_is_wrong_with_images_is_told(network, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty: no images"):
        run(tmp_path / "empty", "--restore-from", network)
    with pytest.raises(FileNotFoundError, match="absent.png: no such image or folder"):
        run(tmp_path / "absent.png", "--restore-from", network)
    with pytest.raises(ValueError, match="a: two images have this name"):
        run(photos, photos / "a.png", "--restore-from", network)
    (photos / "c.png").write_bytes(b"no image")
    with pytest.raises(OSError, match="c.png: cannot be read"):
        run(photos / "c.png", "--restore-from", network, "--out", tmp_path / "out")


def convert(source, target, kind, *more):
    convert_checkpoint.main(convert_checkpoint.get_arguments([str(source), str(target), "--to", kind, *more]))


@pytest.mark.parametrize(
    "name, settings, kind",
    [
        ("deeplab_vgg16", {}, "fada"),
        ("ResNet18", {"heads": "single", "style": "torchvision"}, "fada"),
        ("MiniResNet18", {}, "maxsquare"),
        ("MiniResNet18Twin", {}, "plain"),
    ],
)
def test_checkpoints_go_there_and_back(name, settings, kind, tmp_path):
    network = build_model(name, 16, **settings)
    torch.save(network.state_dict(), tmp_path / "in.pth")
    if settings:  # a network that its keys do not tell
        torch.save(to_fada(network, 0), tmp_path / "out.pth")
    else:
        convert(tmp_path / "in.pth", tmp_path / "out.pth", kind, "--model", name)
    back = load_model(tmp_path / "out.pth", name, **settings)
    for key, value in network.state_dict().items():
        assert torch.equal(back.state_dict()[key], value) or key.endswith("tracked"), key


def test_resnet38_goes_to_mxnet_and_back(tmp_path):
    network = build_model("ResNet38", 16)
    torch.save(network.state_dict(), tmp_path / "in.pth")
    convert(tmp_path / "in.pth", tmp_path / "out.params", "mxnet")
    assert "arg:linear16_weight" in read_params(tmp_path / "out.params")
    convert(tmp_path / "out.params", tmp_path / "back.pth", "plain")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert all(torch.equal(back[key], value) for key, value in network.state_dict().items() if not key.endswith("tracked"))


def test_what_a_format_cannot_hold_is_refused(network, tmp_path):
    with pytest.raises(WeightsError, match="has 2 classifiers; FADA's format holds one"):
        convert(network, tmp_path / "x.pth", "fada")
    with pytest.raises(WeightsError, match="CBST's format is for ResNet-38 only"):
        convert(network, tmp_path / "x.params", "mxnet")
    with pytest.raises(WeightsError, match="exists already"):
        convert(network, network, "plain")


def test_torchvision_weights_by_name(monkeypatch):
    """Nothing is downloaded here: the name is looked up and the hash check asked for."""
    from torchvision.models import ResNet18_Weights, resnet18

    asked = {}

    def get_state_dict(self, **options):
        asked.update(options)
        return resnet18().state_dict()

    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", get_state_dict)
    state = read_weights("torchvision:ResNet18_Weights.IMAGENET1K_V1")
    report = load_weights(build_model("ResNet18"), state, "torchvision", fresh_heads=True)
    assert asked["check_hash"] and "layer5, layer6 stay random" in report
    with pytest.raises(WeightsError, match="torchvision:Nonsense"):
        read_weights("torchvision:Nonsense")


def test_the_readme_example_runs(network):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    code = code.replace("snapshots/multi/GTA5_150000.pth", str(network))
    names = {"images": torch.zeros(1, 3, 64, 128, dtype=torch.uint8)}
    exec(code, names)
    assert names["logits"].shape == (1, 19, 8, 16)
