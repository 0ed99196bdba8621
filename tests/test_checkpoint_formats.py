"""Files with the originals' own keys: recognised, loaded whole, giving the recorded outputs, and written back as they were."""

import json

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from fill import fill, noise
from torch.nn import functional as F

from model import WeightsError, build_model, load_model, load_weights, read_weights, to_fada, upsample
from scripts import convert_checkpoint
from utils.state import save_tensors


def keys(method, *path):
    content = json.loads((GOLDEN / method / "keys.json").read_text())
    for step in path:
        content = content[step]
    return {key: tuple(shape) for key, shape in content.items()}


def filled_file(shapes):
    return {key: torch.from_numpy(value) for key, value in fill(shapes, 0).items()}


def adaptsegnet(name, *outputs):
    def compare(network, golden):
        recorded = golden("adaptsegnet/models.npz")
        image = torch.from_numpy(noise(f"models/{name}/input", recorded[f"{name}/input_shape"], 0, 50))
        return zip(network(image), (recorded[f"{name}/eval/{output}"] for output in outputs), strict=True)

    return compare


def clan(network, golden):
    recorded = golden("clan/models.npz")
    image = torch.from_numpy(noise("models/Res_Deeplab/input", recorded["input_shape"], 0, 50))
    return zip(network(image), (recorded[f"eval/out{i}"] for i in (1, 2)), strict=True)


def maxsquare(network, golden):
    recorded = golden("maxsquare/models.npz")
    logits = network(torch.from_numpy(noise("maxsquare/models/0", (1, 3, 65, 97), 0, 50)))
    ours = [upsample(each, (65, 97))[:, :, ::5, ::5] for each in logits]
    return zip(ours, (recorded[f"plain/in0/eval/{output}/sub"] for output in ("x1", "x2")), strict=True)


def crst(network, golden):
    recorded = golden("crst/models.npz")
    return [(network(torch.from_numpy(noise("crst.models.input1", (2, 3, 57, 81), 0, 1.0)))[-1], recorded["logits1"])]


# Random weights do not tell CRST's network from AdaptSegNet's Oracle (trained ones do, see below), so it is named.
CASES = {
    "adaptsegnet multi": (
        lambda: keys("adaptsegnet", "DeeplabMulti", "state"),
        ("DeeplabMulti", "caffe", "multi"),
        adaptsegnet("DeeplabMulti", "out1", "out2"),
    ),
    "adaptsegnet single": (
        lambda: keys("adaptsegnet", "Res_Deeplab", "state"),
        ("Oracle", "caffe", "single"),
        adaptsegnet("Res_Deeplab", "out"),
    ),
    "adaptsegnet vgg": (
        lambda: keys("adaptsegnet", "DeeplabVGG", "state"),
        ("DeeplabVGG", "caffe", None),
        adaptsegnet("DeeplabVGG", "out"),
    ),
    "clan": (lambda: keys("clan", "Res_Deeplab", "state"), ("ResNet", "caffe", "twin"), clan),
    "maxsquare": (lambda: keys("maxsquare", "shapes"), ("DeeplabMulti", "caffe", "multi"), maxsquare),
    "crst": (lambda: keys("crst", "state_dict"), ("DeeplabRes", "imagenet", "single"), crst),
}


@pytest.mark.parametrize("case", CASES)
def test_there_and_back(case, tmp_path, golden):
    shapes, (name, convention, heads), outputs = CASES[case]
    state = filled_file(shapes())
    file = {"state_dict": {f"module.{key}": value for key, value in state.items()}} if case == "maxsquare" else state
    torch.save(file, tmp_path / "in.pth")
    model = load_model(tmp_path / "in.pth", "DeeplabRes" if case == "crst" else None)
    assert (model.settings["name"], model.normalize.convention, model.settings.get("heads")) == (name, convention, heads)
    with torch.inference_mode():
        for ours, expected in outputs(model, golden):
            np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    back = tmp_path / "out.pth"
    flags = ["--model", name] if case == "crst" else []
    to = "maxsquare" if case == "maxsquare" else "plain"
    convert_checkpoint.main(convert_checkpoint.get_arguments([str(tmp_path / "in.pth"), str(back), "--to", to, *flags]))
    written = torch.load(back, weights_only=True)
    assert ("state_dict" in written) == (case == "maxsquare")
    written = {key.removeprefix("module."): value for key, value in written.get("state_dict", written).items()}
    assert {key for key in written if not key.endswith("num_batches_tracked")} == {
        key for key in state if not key.endswith("num_batches_tracked")
    }
    assert all(torch.equal(written[key], value) for key, value in state.items() if not key.endswith("num_batches_tracked"))


def train_branches(state, branches, heads=("layer5", "layer6"), by=0.2):
    """What training does to filters: all taps of one move together. With `by` 0.2 the variance of the taps' sum is 1.3 times
    that of independent taps, as in the main classifiers of the demo."""
    for key, value in state.items():
        if key.startswith(heads) and any(f"conv2d_list.{branch}.weight" in key for branch in branches):
            state[key] = value + torch.from_numpy(noise(f"moved {key}", (*value.shape[:2], 1, 1), 0, by * float(value.std())))


@pytest.mark.parametrize("branches, heads, expected", [((0, 1, 2, 3), ("layer5", "layer6"), 4), ((0, 1, 2, 3), ("layer6",), 4),
                                                       ((0, 1), ("layer5", "layer6"), 2)])  # fmt: skip
def test_advent_is_told_from_adaptsegnet_by_its_trained_branches(branches, heads, expected, tmp_path):
    """The main classifier decides: the lower one learns less, or nothing."""
    state = filled_file(keys("adaptsegnet", "DeeplabMulti", "state"))
    train_branches(state, branches, heads)
    torch.save(state, tmp_path / "advent.pth")
    model = load_model(tmp_path / "advent.pth")
    assert model.settings["name"] == "DeeplabMulti" and model.normalize.convention == "caffe"
    image = torch.from_numpy(noise("image", (1, 3, 65, 97), 0, 50))
    with torch.inference_mode():
        _, high = model.features(image)
        parts = [
            F.conv2d(high, state[f"{name}.weight"], state[f"{name}.bias"], padding=rate, dilation=rate)
            for name, rate in zip((f"layer6.conv2d_list.{i}" for i in range(expected)), (6, 12, 18, 24), strict=False)
        ]
        torch.testing.assert_close(model(image)[-1], sum(parts))
    assert load_model(tmp_path / "advent.pth", "DeepLab").layer6.branches == expected  # another name of the same network
    assert load_model(tmp_path / "advent.pth", aspp_branches=2).layer6.branches == 2


@pytest.mark.parametrize(
    "branches, pixels, expected",
    [((0, 1, 2, 3), False, ("DeeplabRes", "imagenet", 4)), ((0, 1, 2, 3), True, ("Oracle", "caffe", 4)),
     ((0, 1), True, ("Oracle", "caffe", 2)), ((0, 1), False, ("Oracle", "caffe", 2))],
)  # fmt: skip
def test_crst_is_told_from_the_oracle(branches, pixels, expected, tmp_path):
    state = filled_file(keys("crst", "state_dict"))
    train_branches(state, branches)
    if pixels:  # the stem's outputs for pixels of 0..255 instead of normalised ones
        state["bn1.running_var"] *= 58**2
    state["bn1.running_var"][0] = state["conv1.weight"][0] = 0  # a dead filter
    torch.save(state, tmp_path / "single.pth")
    model = load_model(tmp_path / "single.pth")
    assert (model.settings["name"], model.normalize.convention, model.layer5.branches) == expected


def test_a_classifier_with_two_branches_only_is_refused_in_one_line(tmp_path):
    state = filled_file(keys("adaptsegnet", "Res_Deeplab", "state"))
    torch.save({key: value for key, value in state.items() if "list.2" not in key and "list.3" not in key}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="layer5.conv2d_list.2.weight is missing"):
        load_model(tmp_path / "x.pth")


# Class names and colours

CLASSES = {"names": [f"class {i}" for i in range(16)], "colors": [[i, 0, 255 - i] for i in range(16)]}


def named(name="MiniResNet18", **settings):
    network = build_model(name, 16, **settings)
    network.classes = CLASSES
    return network


def convert(source, target, to, *flags):
    convert_checkpoint.main(convert_checkpoint.get_arguments([str(source), str(target), "--to", to, *flags]))
    return target


@pytest.mark.parametrize("to", ("plain", "maxsquare", "fada"))
def test_class_names_travel_in_every_format_of_pytorch(to, tmp_path):
    network = named(heads="single", normalization="imagenet")
    save_tensors(network.state_dict(), tmp_path / "in.pth", for_originals=True)
    assert read_weights(tmp_path / "in.pth").classes == CLASSES
    written = convert(tmp_path / "in.pth", tmp_path / "out.pth", to)
    found = load_model(written)
    assert found.classes == CLASSES and found.settings == network.settings
    # Only MaxSquare's own files hold its best mIoU, by which they are told.
    assert found.checkpoint_format == {"maxsquare": "container"}.get(to, to)
    with open(written, "rb") as file:
        assert file.read(2) == b"\x80\x02"  # the format that old versions of PyTorch read


def test_the_originals_load_state_dicts_with_notes(tmp_path):
    """They hand what they find to `load_state_dict`, most of them strictly."""
    network = named(heads="single", normalization="imagenet")
    save_tensors(to_fada(network, 3), tmp_path / "fada.pth", for_originals=True)
    save_tensors(network.state_dict(), tmp_path / "plain.pth", for_originals=True)
    parts = torch.load(tmp_path / "fada.pth", weights_only=True)
    theirs = torch.nn.ModuleDict({"backbone": build_model("MiniResNet18", 16, heads="single")})
    del theirs["backbone"].layer5
    theirs.load_state_dict(parts["feature_extractor"])
    build_model("MiniResNet18", 16, heads="single").load_state_dict(torch.load(tmp_path / "plain.pth", weights_only=True))


def test_files_of_the_originals_name_no_classes(tmp_path):
    torch.save(filled_file(keys("adaptsegnet", "DeeplabVGG", "state")), tmp_path / "vgg.pth")
    assert load_model(tmp_path / "vgg.pth").classes is None


def test_class_names_of_a_file_that_cannot_hold_them_are_in_the_run_directory(tmp_path, capsys):
    torch.save(named("ResNet38").state_dict(), tmp_path / "in.pth")
    (tmp_path / "out").mkdir()
    written = convert(tmp_path / "in.pth", tmp_path / "out/x.params", "mxnet")
    assert "note: this format holds no class names" in capsys.readouterr().out
    assert load_model(written).classes is None
    (tmp_path / "out/args.json").write_text(json.dumps({"network": None, "classes": CLASSES}))
    assert load_model(written).classes == CLASSES


@pytest.mark.parametrize(
    "classes",
    [
        ["road"],
        {"names": "road", "colors": [[0, 0, 0]]},
        {"names": [1], "colors": [[0, 0, 0]]},
        {"names": ["road"]},
        {"names": ["road", "car"], "colors": [[0, 0, 0]]},
        {"names": ["road"], "colors": [[0, 0]]},
        {"names": ["road"], "colors": [[0, 0, 256]]},
        {"names": ["road"], "colors": [[0, 0, 0.5]]},
        {"names": ["road"], "colors": [[0, 0, 0]]},
    ],
)
def test_damaged_class_names_are_refused(classes, tmp_path):
    """The last one is for one class, the network for 16."""
    state = build_model("MiniResNet18", 16).state_dict()
    torch.save(dict(state), tmp_path / "x.pth")
    (tmp_path / "args.json").write_text(json.dumps({"classes": classes}))
    with pytest.raises(WeightsError, match="args.json: its note of the classes"):
        load_model(tmp_path / "x.pth")
    state._metadata["segadapt classes"] = classes
    torch.save(state, tmp_path / "noted.pth")
    with pytest.raises(WeightsError, match="noted.pth: its note of the classes"):
        read_weights(tmp_path / "noted.pth")


def test_other_class_names_are_reported_when_training_starts(tmp_path):
    torch.save(named().state_dict(), tmp_path / "x.pth")
    network = build_model("MiniResNet18", 16)
    assert "names" not in load_weights(network, read_weights(tmp_path / "x.pth"), "x.pth")  # it knows none
    network.classes = CLASSES
    assert "names" not in load_weights(network, read_weights(tmp_path / "x.pth"), "x.pth")
    network.classes = {**CLASSES, "names": [*CLASSES["names"][:14], "car", "bus"]}
    report = load_weights(network, read_weights(tmp_path / "x.pth"), "x.pth")
    assert "its classes have other names (class 14 is class 14 there, car here, and 1 more)" in report


@pytest.mark.parametrize("part", ("feature_extractor", "classifier"))
def test_a_fada_container_of_another_network_is_refused_in_one_line(part, tmp_path):
    content = to_fada(named(heads="single"), 0)
    torch.save({**content, part: {"x": torch.zeros(1)}}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="x.pth: not a segmentation network known here|does not fit"):
        load_model(tmp_path / "x.pth")


def test_a_container_in_a_container_is_no_state_dict(tmp_path):
    torch.save({"state_dict": {"state_dict": {"x": torch.zeros(1)}}}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="holds no state dict"):
        read_weights(tmp_path / "x.pth")
    torch.save({0: torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="holds no state dict .found 0"):
        read_weights(tmp_path / "x.pth")
