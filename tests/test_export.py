"""scripts/export.py: exported networks say what PyTorch says, for any size, and nothing is written that does not."""

import json
import sys

import numpy as np
import pytest
import torch

from model import build_model
from scripts import export
from utils.errors import RunError


def trained(path, name="MiniResNet18", num_classes=19):
    torch.manual_seed(0)
    torch.save(build_model(name, num_classes).state_dict(), path)
    return path


def run(*words):
    export.main(export.get_arguments([*map(str, words), "--input-size", "96,64"]))


def class_map(path, images):
    """What the network here says of images (N,3,H,W), step by step."""
    from model import load_model, upsample

    model = load_model(path)
    with torch.no_grad():
        logits = model(images)
        chosen = sum(logits) if model.default_heads == "sum" else logits[-1]
        return upsample(chosen, images.shape[-2:]).argmax(1).to(torch.uint8)


def test_a_program_takes_uint8_images_of_any_size(tmp_path, capsys):
    path = trained(tmp_path / "weights.pth", num_classes=16)
    run(path, "--pt2", tmp_path / "out/model.pt2", "--layout", "NHWC")
    assert capsys.readouterr().out.count("of the pixels differ from PyTorch") == 2
    extra = {"classes.json": ""}
    network = torch.export.load(tmp_path / "out/model.pt2", extra_files=extra).module()
    names = json.loads(extra["classes.json"])
    assert len(names) == 16 and names[0] == "road"
    for shape in ((1, 3, 50, 77), (3, 3, 96, 40)):
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        ids = network(images.permute(0, 2, 3, 1).contiguous())
        assert ids.dtype == torch.uint8 and (ids == class_map(path, images)).float().mean() > 0.999
    with pytest.raises(RunError, match="model.pt2: exists already; remove it or choose another name"):
        run(path, "--pt2", tmp_path / "out/model.pt2")


@pytest.mark.slow
@pytest.mark.parametrize("name, layout", [("MiniResNet18Twin", "NCHW"), ("MiniResNet18", "NHWC"), ("ResNet18", "NCHW")])
def test_onnx_in_another_program(tmp_path, name, layout):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = trained(tmp_path / "weights.pth", name)
    words = ("--model", name) if name == "ResNet18" else ()
    run(path, "--onnx", tmp_path / "model.onnx", "--layout", layout, *words)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    assert len(json.loads(session.get_modelmeta().custom_metadata_map["classes"])) == 19
    images = torch.randint(0, 256, (2, 3, 70, 130), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    given = images.permute(0, 2, 3, 1) if layout == "NHWC" else images
    (ids,) = session.run(None, {"images": np.ascontiguousarray(given.numpy())})
    if name != "ResNet18":
        assert ids.dtype == np.uint8 and (ids == class_map(path, images).numpy()).mean() > 0.999


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DeeplabVGG", "ResNet38", "deeplab_resnet101", "timm:test_vit", "timm:test_convnext"])
def test_the_other_networks_are_exported(tmp_path, name):
    run(trained(tmp_path / "weights.pth", name), "--pt2", tmp_path / "model.pt2", "--model", name)
    assert (tmp_path / "model.pt2").stat().st_size > 10**6


def test_a_model_that_says_something_else_is_not_written(tmp_path, monkeypatch):
    path = trained(tmp_path / "weights.pth")
    monkeypatch.setattr(export, "exported", lambda network, args: None)
    monkeypatch.setattr(export, "to_onnx", lambda program, names: b"")
    monkeypatch.setattr(export, "check_extra", lambda: None)
    monkeypatch.setattr(
        export, "run_onnx", lambda encoded: lambda images: torch.full(images.shape[:1] + images.shape[2:], 77).byte()
    )
    with pytest.raises(RunError, match="model.onnx: not written, 100.00 % of the pixels differ"):
        run(path, "--onnx", tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_what_is_missing_is_told(tmp_path, monkeypatch, capsys):
    path = trained(tmp_path / "weights.pth")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(RunError, match=r"--onnx needs the extra \[export\]: pip install onnx onnxscript onnxruntime"):
        run(path, "--onnx", tmp_path / "model.onnx")
    with pytest.raises(SystemExit):
        run(path)
    assert "Name a file with --pt2 or --onnx" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        export.get_arguments([str(path), "--pt2", "x", "--input-size", "16,16"])
