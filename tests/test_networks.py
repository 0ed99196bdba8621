"""Networks against the recorded keys, outputs, gradients and running statistics of the originals."""

import json

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from fill import noise
from filled import filled

from model import BATCH_NORM_MODES, ModelError, OutputDiscriminator, build_model, describe, upsample
from model.resnet import DeepLabResNet

KEYS = json.loads((GOLDEN / "adaptsegnet/keys.json").read_text())
NETWORKS = ("DeeplabMulti", "Res_Deeplab", "DeeplabVGG", "FCDiscriminator")


def build(name):
    return OutputDiscriminator() if name == "FCDiscriminator" else build_model(name)


def golden_input(name, shape):
    return torch.from_numpy(noise(f"models/{name}/input", shape, 0, 1 if name == "FCDiscriminator" else 50))


@pytest.mark.parametrize("name", NETWORKS)
def test_state_dict_has_the_originals_keys_in_order(name):
    state = {key: list(value.shape) for key, value in build(name).state_dict().items()}
    assert list(state.items()) == list(KEYS[name]["state"].items())


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_are_grouped_and_counted_as_the_originals_list_them(name):
    network = build(name)
    if name == "FCDiscriminator":
        assert all(p.requires_grad for p in network.parameters())
        return
    names = {id(parameter): key for key, parameter in network.named_parameters()}
    ours = {
        names[id(p)]: (group["lr_multiplier"], group["visits"]) for group in network.parameter_groups() for p in group["params"]
    }
    theirs = {
        key: (group["lr_multiplier"], times) for group in KEYS[name]["groups"] for key, times in group["times_listed"].items()
    }
    # The branches that take no part never get a gradient there; here they are frozen and not listed.
    unused = [key for key in theirs if ".conv2d_list.2." in key or ".conv2d_list.3." in key]
    assert ours == {key: value for key, value in theirs.items() if key not in unused}
    assert len(unused) == 4 * len(network.head_names)


@pytest.mark.parametrize("mode", ("eval", "train"))
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs(name, mode, golden):
    recorded = golden("adaptsegnet/models.npz")
    network = filled(build(name)).train(mode == "train")
    with torch.no_grad():
        outputs = network(golden_input(name, recorded[f"{name}/input_shape"]))
    outputs = outputs if isinstance(outputs, list) else [outputs]
    for key, output in zip(("out1", "out2") if len(outputs) == 2 else ("out",), outputs, strict=True):
        expected = recorded[f"{name}/{mode}/{key}"]
        # In train mode a ResNet's float32 outputs differ from float64 by 2e-3 (recorded as _err64): rounding, not error.
        tolerance = max(1e-4 * np.abs(expected).max(), recorded.get(f"{name}/{mode}/{key}_err64", np.float32(0)))
        np.testing.assert_allclose(output.numpy(), expected, rtol=0, atol=tolerance)
    if mode == "train" and name != "DeeplabVGG" and name != "FCDiscriminator":
        state = network.state_dict()
        for key in (key for key in recorded if key.startswith(f"{name}/train/after/")):
            actual = state[key.split("/")[-1]].numpy()
            np.testing.assert_allclose(actual[:64] if actual.ndim else actual, recorded[key], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ("DeeplabVGG", "FCDiscriminator"))
def test_gradient_of_the_input(name, golden):
    recorded = golden("adaptsegnet/models.npz")
    network = filled(build(name))
    image = golden_input(name, recorded[f"{name}/input_shape"]).requires_grad_()
    output = network(image)
    output = output[0] if isinstance(output, list) else output
    (output * torch.from_numpy(noise(f"models/{name}/probe", output.shape, 0, 1))).sum().backward()
    expected = recorded[f"{name}/probe_grad_sub"]
    np.testing.assert_allclose(image.grad[:, :, ::4, ::4].numpy(), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_trunk_gradients(golden):
    recorded = golden("adaptsegnet/models.npz")
    prefix = next(key for key in recorded if key.endswith("gradients/loss"))[: -len("loss")]
    network = filled(build_model("DeeplabMulti"), bn3=0.1).train()
    image = golden_input("DeeplabMulti", recorded["DeeplabMulti/input_shape"]).requires_grad_()
    outputs = network(image)
    loss = sum(
        (output * torch.from_numpy(noise(f"models/DeeplabMulti/probe{i}", output.shape, 0, 1))).mean()
        for i, output in enumerate(outputs, 1)
    )
    loss.backward()
    np.testing.assert_allclose(loss.item(), recorded[prefix + "loss"], rtol=1e-4)
    parameters = dict(network.named_parameters())
    norms = [parameters[key].grad.norm().item() for key in recorded[prefix + "keys"]]
    np.testing.assert_allclose(norms, recorded[prefix + "norm_f64"], rtol=1e-3)
    assert all(parameters[key].grad is None for key in recorded[prefix + "none"])


def test_upsampling_aligns_corners(golden):
    recorded = golden("adaptsegnet/losses.npz")
    result = upsample(torch.from_numpy(recorded["upsample/input"]), recorded["upsample/align_corners_true"].shape[2:])
    np.testing.assert_allclose(result.numpy(), recorded["upsample/align_corners_true"], rtol=1e-5, atol=1e-6)


def test_uint8_images_are_normalised_by_the_networks_own_convention():
    image = torch.randint(0, 256, (1, 3, 40, 48), dtype=torch.uint8)
    caffe = image.flip(1).float() - torch.tensor([104.00698793, 116.66876762, 122.67891434]).view(1, 3, 1, 1)
    imagenet = (image / 255 - torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(
        1, 3, 1, 1
    )
    for convention, expected in (("caffe", caffe), ("imagenet", imagenet)):
        network = build_model("MiniResNet18", normalization=convention).eval()
        torch.testing.assert_close(network(image)[-1], network(expected)[-1])


@pytest.mark.parametrize("mode", BATCH_NORM_MODES)
def test_batch_norm_modes(mode):
    network = build_model("MiniResNet18", batch_norm=mode).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    sum(logits.square().mean() for logits in network(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))).backward()
    statistics_moved = not torch.equal(before["bn1.running_mean"], network.bn1.running_mean)
    assert statistics_moved == (mode in ("train", "frozen-affine"))
    assert (network.layer1[0].bn1.weight.grad is not None) == (mode in ("train", "frozen-statistics"))
    assert network.eval().train().bn1.training == (mode in ("train", "frozen-affine"))


@pytest.mark.parametrize(
    "name, settings",
    [
        ("ResNet18", {}),
        ("ResNet50", {"heads": "twin"}),
        ("ResNet", {}),
        ("DeeplabRes", {}),
        ("MiniResNet18", {"heads": "single"}),
    ],
)
def test_small_and_other_networks_return_one_map_per_head(name, settings):
    network = build_model(name, num_classes=16, **settings).eval()
    with torch.no_grad():
        outputs = network(torch.zeros((1, 3, 65, 97), dtype=torch.uint8))
    assert [tuple(output.shape[:2]) for output in outputs] == [(1, 16)] * len(network.head_names)
    again = build_model(**network.settings)
    assert [value.shape for value in again.state_dict().values()] == [v.shape for v in network.state_dict().values()]


def test_all_four_branches_count_when_asked_for():
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    two, four = build_model("MiniResNet18", aspp_branches=2).eval(), build_model("MiniResNet18", aspp_branches=4).eval()
    four.load_state_dict(two.state_dict())
    features = two.features(two.normalize(image))[1]
    difference = four(image)[-1] - two(image)[-1]
    torch.testing.assert_close(difference, sum(branch(features) for branch in two.layer6.conv2d_list[2:]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("Deeplab3",), "unknown network"),
        (("DeeplabVGG", 19, "multi"), "no classifier on a lower layer"),
        (("ResNet18", 19, "triple"), "heads must be one of"),
        (("ResNet18", 19, None, 3), "aspp_branches must be"),
    ],
)
def test_wrong_settings_are_refused(arguments, message):
    name, classes, heads, branches = (*arguments, *(19, None, None)[len(arguments) - 1 :])
    with pytest.raises(ModelError, match=message):
        build_model(name, classes, heads=heads, aspp_branches=branches)


@pytest.mark.parametrize(
    "name, settings, message",
    [
        (
            "ResNet38",
            {"heads": "single"},
            "network ResNet38 has no setting heads; it has num_classes, normalization, batch_norm",
        ),
        ("ResNet18", {"width": "wide"}, "ResNet18: setting width must be of type int, not 'wide'"),
        ("ResNet18", {"aspp_rates": 6}, "setting aspp_rates must be of type tuple, not 6"),
        ("ResNet18", {"num_classes": 0}, "num_classes must be at least 1, not 0"),
        ("ResNet18", {"normalization": "vgg"}, "unknown input convention 'vgg'; known: caffe, imagenet"),
        ("ResNet18", {"batch_norm": "off"}, "unknown BatchNorm mode 'off'; known: train"),
        ("ResNet18", {"style": "jax"}, "style must be one of caffe, torchvision"),
        ("ResNet18", {"depth": 19}, "depth must be one of 18, 50, 101"),
    ],
)
def test_settings_are_held_against_what_the_network_takes(name, settings, message):
    with pytest.raises(ModelError, match=message):
        build_model(name, **settings)


def test_an_error_in_the_program_stays_one(monkeypatch):
    def broken(self, mode):
        raise TypeError("a slip")

    monkeypatch.setattr(DeepLabResNet, "set_batch_norm", broken)
    with pytest.raises(TypeError, match="a slip"):
        build_model("MiniResNet18")


def test_a_network_is_described_in_one_line():
    assert describe(build_model("MiniResNet18", 16)) == "MiniResNet18, 16 classes, 4 ASPP branches, caffe input convention"
    assert describe(build_model("ResNet38")) == "ResNet38, 19 classes, imagenet input convention"
