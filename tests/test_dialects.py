"""Files with the originals' own keys: recognised, loaded whole, and written back with the same keys and values."""

import json

import pytest
import torch
from conftest import GOLDEN
from fill import fill

from model import load_model
from scripts import convert_checkpoint


def keys(method, *path):
    content = json.load(open(GOLDEN / method / "keys.json"))
    for step in path:
        content = content[step]
    return {key: tuple(shape) for key, shape in content.items()}


@pytest.mark.parametrize(
    "shapes, wrap, expected",
    [
        (lambda: keys("adaptsegnet", "DeeplabMulti", "state"), "plain", ("DeeplabMulti", "caffe", "multi")),
        (lambda: keys("adaptsegnet", "Res_Deeplab", "state"), "plain", ("Oracle", "caffe", "single")),
        (lambda: keys("adaptsegnet", "DeeplabVGG", "state"), "plain", ("DeeplabVGG", "caffe", None)),
        (lambda: keys("clan", "Res_Deeplab", "state"), "plain", ("ResNet", "caffe", "twin")),
        (lambda: keys("maxsquare", "shapes"), "maxsquare", ("DeeplabMulti", "caffe", "multi")),
        (lambda: keys("crst", "state_dict"), "crst", ("DeeplabRes", "imagenet", "single")),
    ],
    ids=("adaptsegnet multi", "adaptsegnet single", "adaptsegnet vgg", "clan", "maxsquare", "crst"),
)
def test_there_and_back(shapes, wrap, expected, tmp_path):
    shapes, (name, convention, heads) = shapes(), expected
    state = {key: torch.from_numpy(value) for key, value in fill(shapes, 0).items()}
    file = {"state_dict": {f"module.{key}": value for key, value in state.items()}} if wrap == "maxsquare" else state
    torch.save(file, tmp_path / "in.pth")
    model = load_model(tmp_path / "in.pth", "DeeplabRes" if wrap == "crst" else None)
    assert (model.settings["name"], model.normalize.convention, model.settings.get("heads")) == (name, convention, heads)
    back = tmp_path / "out.pth"
    flags = ["--model", name] if wrap == "crst" else []
    to = "maxsquare" if wrap == "maxsquare" else "plain"
    convert_checkpoint.main(convert_checkpoint.get_arguments([str(tmp_path / "in.pth"), str(back), "--to", to, *flags]))
    written = torch.load(back, weights_only=True)
    written = {key.removeprefix("module."): value for key, value in written.get("state_dict", written).items()}
    assert {key for key in written if not key.endswith("num_batches_tracked")} == {
        key for key in state if not key.endswith("num_batches_tracked")
    }
    assert all(torch.equal(written[key], value) for key, value in state.items() if not key.endswith("num_batches_tracked"))
