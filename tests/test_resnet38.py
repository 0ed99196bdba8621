"""ResNet-38 against MXNet's outputs, and the reader of MXNet's files against good, broken and hostile ones."""

import json
import struct

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from fill import fill, noise

from model import WeightsError, build_model, load_model
from model.checkpoint_formats import from_mxnet, to_mxnet
from model.mxnet import ParamsError, is_params, read_params, write_params

FOLDER = GOLDEN / "cbst"
KEYS = json.load(open(FOLDER / "keys.json"))
LAYOUTS = ("tiny", "tiny_v1", "tiny_legacy", "tiny_v3")
ENDINGS = {"_moving_mean": "_running_mean", "_moving_var": "_running_var", "_gamma": "_weight", "_beta": "_bias"}


def arrays(classes):
    """The golden weights under MXNet's names."""

    def fill_key(name):
        plain = name.split(":")[1]
        ending = next((ending for ending in ENDINGS if plain.endswith(ending)), "")
        return plain.removesuffix(ending) + ENDINGS.get(ending, "")

    shapes = KEYS[f"params_{classes}"]
    values = fill({fill_key(name): tuple(shape) for name, shape in shapes.items()}, 0)
    return {name: values[fill_key(name)] for name in shapes}


@pytest.mark.parametrize("classes", (19, 16))
def test_outputs(classes, golden, tmp_path):
    """From a file as users have it to the scores, and back to the same file."""
    recorded, given = golden("cbst/models.npz"), arrays(classes)
    path = tmp_path / "gta_rna-a1_ep-0000.params"
    write_params(path, given)
    network = load_model(path)
    assert network.settings == {"name": "ResNet38", "num_classes": classes} and network.normalize.convention == "imagenet"
    stages = {}
    for name, module in (("conv1a", network.conv1a), *((f"sum{n}", block) for n, block in network.blocks.items())):
        module.register_forward_hook(lambda module, inputs, output, name=name: stages.update({name: output}))
    for name, module in (("relu7", network.conv6a), ("conv6a_relu", network.classifier)):
        module.register_forward_pre_hook(lambda module, inputs, name=name: stages.update({name: inputs[0]}))
    for i, shape in ((0, (1, 3, 200, 264)), (1, (2, 3, 64, 96))):
        with torch.no_grad():
            (score,) = network(torch.from_numpy(noise(f"cbst.models.input{i}", shape, 0, 1.0)))
        np.testing.assert_allclose(score, recorded[f"score{i}_c{classes}"], atol=1e-5)
        np.testing.assert_allclose(score.softmax(1), recorded[f"prob{i}_c{classes}"], atol=1e-6)
        assert set(stages) == set(recorded["stage_names"])
        for name, expected in zip(recorded["stage_names"], recorded[f"stage_summary{i}_c{classes}"], strict=True):
            value = stages[name].double()
            ours = [value.mean(), value.std(unbiased=False), value.abs().max(), *value.flatten()[:8]]
            np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4 * expected[2])
    back = to_mxnet(network.state_dict())
    assert {name: list(value.shape) for name, value in back.items()} == KEYS[f"params_{classes}"]
    assert all(np.array_equal(back[name], value) for name, value in given.items())


def test_training_leaves_the_statistics_and_drops_out():
    network = build_model("ResNet38").train()
    before = {key: value.clone() for key, value in network.state_dict().items() if "running" in key}
    image = torch.randn(1, 3, 32, 32)
    assert not torch.equal(network(image)[0], network(image)[0])
    network.eval()
    assert torch.equal(network(image)[0], network(image)[0])
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())
    groups = network.parameter_groups()
    assert [(group["lr_multiplier"], group.get("weight_decay")) for group in groups] == [(1, None), (2, 0.0)]
    assert sum(len(group["params"]) for group in groups) == len([name for name in KEYS["params_19"] if name.startswith("arg")])


def test_imagenet_weights_have_no_head():
    given = {name: value for name, value in arrays(19).items() if "conv6a" not in name and "linear" not in name}
    state = from_mxnet({**given, "arg:linear1000_weight": np.zeros((1000, 4096), np.float32)}).tensors
    assert "classifier.weight" not in state and "conv6a.weight" not in state and "bn7.weight" in state
    assert set(to_mxnet(state)) == set(given)


@pytest.mark.parametrize(
    "name",
    "arg:fc1_weight arg:linearfoo_weight arg:linear19_gamma arg:linear1000foo_x linear1000_weight arg:conv1a_gamma "
    "aux:conv1a_weight arg:bn7_moving_mean arg:res2a_branch2a_bias arg:2a_branch2a_weight arg:bn2a_branch1_gamma "
    "arg:res2b1_branch1_weight arg:res2a_branch2b2_weight".split(),
)
def test_foreign_names_are_refused(name):
    with pytest.raises(ValueError, match=f"'{name}' is no part of ResNet-38"):
        from_mxnet({name: np.zeros(3)})


def test_two_classifiers_and_foreign_keys_are_refused():
    with pytest.raises(ValueError, match="'arg:linear16_bias' is a second classifier"):
        from_mxnet({"arg:linear19_bias": np.zeros(19), "arg:linear16_bias": np.zeros(16)})
    with pytest.raises(ValueError, match="'layer1.weight' is no part"):
        to_mxnet({"layer1.weight": torch.zeros(3)})


# MXNet's files


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read(layout, golden):
    expected = golden("cbst/tiny.npz")
    found = read_params(FOLDER / f"{layout}.params")
    assert {name.replace(":", "__") for name in found} == set(expected)
    for name, array in found.items():
        assert array.dtype == expected[name.replace(":", "__")].dtype
        np.testing.assert_array_equal(array, expected[name.replace(":", "__")])


def test_what_is_written_is_what_mxnet_writes(tmp_path):
    write_params(tmp_path / "copy.params", read_params(FOLDER / "tiny.params"))
    assert (tmp_path / "copy.params").read_bytes() == (FOLDER / "tiny.params").read_bytes()
    assert is_params(tmp_path / "copy.params")
    with pytest.raises(ParamsError, match="complex128"):
        write_params(tmp_path / "no.params", {"a": np.zeros(2, complex)})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_cut_is_noticed(layout, tmp_path):
    whole, path = (FOLDER / f"{layout}.params").read_bytes(), tmp_path / "cut.params"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ParamsError, match="cut.params"):
            read_params(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(ParamsError, match="1 bytes too many"):
        read_params(path)


HEADER = struct.pack("<QQQ", 0x112, 0, 1)


@pytest.mark.parametrize(
    "content, message",
    [
        (struct.pack("<QQQ", 0x112, 0, 2**60), "arrays cannot fit"),
        (HEADER + struct.pack("<IiI", 0xF993FAC9, 0, 2**31), "dimensions"),
        (HEADER + struct.pack("<IiI2q3i", 0xF993FAC9, 0, 2, 2**40, 2**40, 1, 0, 0), "truncated or damaged"),
        (HEADER + struct.pack("<IiI1q3i", 0xF993FAC9, 0, 1, -4, 1, 0, 0), "damaged"),
        (HEADER + struct.pack("<IiI1q3i4s", 0xF993FAC9, 0, 1, 1, 1, 0, 77, b"1234"), "type 77"),
        (HEADER + struct.pack("<IiI3q3i", 0xF993FAC9, 0, 3, 0, 2**62, 2**62, 1, 0, 0), "damaged"),
        (HEADER + struct.pack("<Iii2q3i", 0xF993FACA, 0, 2, 0, 2**62, 1, 0, 0), "damaged"),
        (HEADER + struct.pack("<I5I3i", 5, 0, *[2**32 - 1] * 4, 1, 0, 0), "damaged"),
        (HEADER + struct.pack("<Iii", 0xF993FACA, 0, -7), "-7 dimensions"),
        (HEADER + struct.pack("<Ii", 0xF993FAC9, 1) + bytes(40), "sparse"),
        (HEADER + struct.pack("<IiI1q3i4sQQ", 0xF993FAC9, 0, 1, 1, 1, 0, 0, b"1234", 1, 2**62), "truncated or damaged"),
        (b"PK\x03\x04" + bytes(60), "not an MXNet"),
        (b"", "truncated or damaged"),
    ],
)
def test_hostile_files(content, message, tmp_path):
    path = tmp_path / "evil.params"
    path.write_bytes(content)
    with pytest.raises(ParamsError, match=f"evil.params.*{message}"):
        read_params(path)


@pytest.mark.parametrize(
    "dimensions, shape, values, expected", [(0, (), (2.5,), 2.5), (-1, None, (), []), (2, (0, 3), (), np.zeros((0, 3)))]
)
def test_scalars_and_empty_arrays(dimensions, shape, values, expected, tmp_path):
    """V3 has scalars (no dimensions), unknown arrays (-1, the record ends there) and sides of 0."""
    record = struct.pack("<Iii", 0xF993FACA, 0, dimensions)
    if shape is not None:
        record += struct.pack(f"<{len(shape)}q3i{len(values)}f", *shape, 1, 0, 0, *values)
    (tmp_path / "v3.params").write_bytes(HEADER + record + struct.pack("<QQ", 1, 1) + b"a")
    found = read_params(tmp_path / "v3.params")["a"]
    np.testing.assert_array_equal(found, expected)
    assert found.shape == np.shape(expected) and found.dtype == np.float32


def test_a_broken_file_is_a_weights_error(tmp_path):
    (tmp_path / "x.params").write_bytes((FOLDER / "tiny.params").read_bytes()[:300])
    with pytest.raises(WeightsError, match="x.params: truncated or damaged"):
        load_model(tmp_path / "x.params")
