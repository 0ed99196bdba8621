"""PaddlePaddle's files: those that Paddle wrote, its networks' outputs, round trips, and broken and hostile files."""

import json
import os
import pickle
import random
import struct

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from fill import fill, noise
from filled import filled

import evaluate_cityscapes
from dataset.catalogue import CITYSCAPES, ClassSet, class_set
from model import OutputDiscriminator, WeightsError, build_model, load_model, load_weights, read_discriminator, read_weights
from model.checkpoint_formats import from_paddle, to_paddle
from model.paddle import is_pdparams, read_pdparams, write_pdparams
from scripts import convert_checkpoint
from utils.evaluation import predict
from utils.iou import MIOU_13, iou_per_class, iou_scores, iou_table, miou_13, percent

FOLDER = GOLDEN / "paddle"
KEYS = {name: {key: tuple(shape) for key, shape in content["state"].items()} for name, content in
        json.loads((FOLDER / "keys.json").read_text()).items()}  # fmt: skip
NETWORKS = {"AdaptSegNet-Paddle G": ("DeeplabMulti", 2, "adaptsegnet"), "CLAN-Paddle G": ("ResNet", 4, "clan-paddle")}
WRITTEN_BY_PADDLE = ("tiny", "tiny_named", "tiny_protocol2")


def arrays(name, prefix=""):
    """The golden weights of a network under Paddle's names."""
    ours = {key: prefix + key.replace("_mean", "running_mean").replace("_variance", "running_var") for key in KEYS[name]}
    values = fill({ours[key]: shape for key, shape in KEYS[name].items()}, 0)
    return {key: values[ours[key]] for key in KEYS[name]}


def pickled(value, path, protocol=4):
    with open(path, "wb") as file:
        pickle.dump(value, file, protocol)
    return path


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name, golden, tmp_path):
    """From a file to the outputs, and with the converter to a file with the same keys and back."""
    recorded, (network, branches, protocol) = golden("paddle/models.npz"), NETWORKS[name]
    path = pickled(arrays(name), tmp_path / "GTA5_100000.pth")  # recognised by its contents, as CLAN's last snapshot is called
    model = load_model(path)
    assert (model.settings["name"], model.aspp_branches, model.checkpoint_format) == (network, branches, "paddle")
    assert model.normalize.convention == "caffe" and evaluate_cityscapes.own_protocol(model) == protocol
    image = torch.from_numpy(noise("paddle/models/input", recorded["input_shape"], 0, 50))
    with torch.inference_mode():
        outputs = model(image)
        for output, expected in zip(outputs, (recorded[f"{name}/out1"], recorded[f"{name}/out2"]), strict=True):
            np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        way, evaluation = evaluate_cityscapes.PROTOCOLS[protocol], f"{name[:-2]} evaluation"
        size = recorded[f"{evaluation}/size_hw"].tolist()
        scores = predict(model, image, size, heads=way.heads, interpolation=way.interpolation)
    np.testing.assert_array_equal(scores.argmax(1)[0], recorded[f"{evaluation}/argmax"])
    if protocol == "clan-paddle":
        expected = recorded[f"{evaluation}/scores_sub"]
        np.testing.assert_allclose(scores[..., ::7, ::7], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    written = tmp_path / "out.pdparams"
    convert_checkpoint.main(convert_checkpoint.get_arguments([str(path), str(written), "--to", "paddle"]))
    back = read_pdparams(written)
    assert [(key, value.shape) for key, value in back.items()] == list(KEYS[name].items())
    assert not any(value.any() for key, value in back.items() if key.endswith("downsample.0.bias"))
    again = load_model(written)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ("AdaptSegNet-Paddle D", "CLAN-Paddle D"))
def test_discriminators(name, golden, tmp_path):
    recorded, network = golden("paddle/models.npz"), OutputDiscriminator()
    path = pickled(arrays(name, "D."), tmp_path / "GTA5_5000_D1.pdparams")
    assert "10 tensors loaded" in load_weights(network, read_discriminator(path), path)
    with torch.no_grad():
        output = network(torch.from_numpy(noise("paddle/D/input", recorded["D_input_shape"], 0, 1)))
    np.testing.assert_allclose(output, recorded[f"{name}/out"], rtol=0, atol=1e-5 * np.abs(recorded[f"{name}/out"]).max())


def test_initial_weights(tmp_path):
    """AdaptSegNet's with `Scale.` before each key; ImageNet's, of which everything but `layer5` is taken."""
    values = arrays("AdaptSegNet-Paddle G")
    trunk = {key: value for key, value in values.items() if not key.startswith(("layer5", "layer6"))}
    heads = {key: value for key, value in arrays("CLAN-Paddle G").items() if key.startswith("layer5")}
    initial = pickled({f"Scale.{key}": value for key, value in (trunk | heads).items()}, tmp_path / "init.pdparams")
    imagenet = pickled(trunk | heads | {"fc.weight": np.zeros((2048, 1000), np.float32)}, tmp_path / "pretrained.pdparams")
    for path in (initial, imagenet):
        network = build_model("ResNet")
        before = network.layer5.conv2d_list[0].weight.clone()
        report = load_weights(network, read_weights(path), path, fresh_heads=True)
        assert "layer5, layer6 stay random" in report and torch.equal(before, network.layer5.conv2d_list[0].weight)
        assert torch.equal(network.bn1.running_var, torch.from_numpy(values["bn1._variance"]))


@pytest.mark.parametrize("settings", ({"heads": "twin"}, {"heads": "multi"}, {"heads": "single"}))
def test_any_network_goes_there_and_back(settings, tmp_path):
    network = build_model("MiniResNet18", 16, **settings)
    write_pdparams(tmp_path / "x.pdparams", to_paddle(network))
    found = load_model(tmp_path / "x.pdparams")
    assert found.settings["heads"] == settings["heads"] and found.settings["num_classes"] == 16
    assert all(torch.equal(value, found.state_dict()[key]) for key, value in network.state_dict().items())


def test_a_bias_without_its_norm_is_refused():
    given = {"layer1.0.downsample.0.bias": np.ones(3, np.float32), "layer1.0.downsample.1._mean": np.ones(3, np.float32)}
    assert from_paddle(given).tensors["layer1.0.downsample.1.running_mean"].tolist() == [0, 0, 0]
    with pytest.raises(WeightsError, match="x.pdparams: layer1.0.downsample.0.bias cannot be folded"):
        from_paddle({"layer1.0.downsample.0.bias": np.ones(3, np.float32)}, "x.pdparams")


# Evaluation


def evaluate(*arguments):
    common = ("--input-size", "96,48", "--num-workers", "0", "--device", "cpu", "--save", "none")
    return evaluate_cityscapes.main(evaluate_cityscapes.get_arguments([*common, *map(str, arguments)]))


def test_miou_13_is_what_the_reproduction_prints():
    """Six of the 19 IoUs set to 0, the sum of all divided by 13; an absent class counts 0 too."""
    assert MIOU_13 == "IoUs of wall, fence, pole, terrain, truck, train set to 0, sum / 13"
    matrix = np.random.default_rng(0).integers(0, 100, (19, 19))
    iou = iou_per_class(matrix)
    iou[[3, 4, 5, 9, 14, 16]] = 0
    result = iou_scores(matrix, with_miou_13=True)
    assert result["miou_13"] == pytest.approx(iou.sum() / 13) == pytest.approx(miou_13(matrix, CITYSCAPES))
    assert f"===> mIoU-13: {round(100 * iou.sum() / 13, 2)} ({MIOU_13})" in iou_table(result).splitlines()
    assert "miou_13" not in iou_scores(matrix) and "mIoU-13" not in iou_table(iou_scores(matrix))
    matrix[0], matrix[:, 0] = 0, 0
    iou = np.nan_to_num(iou_per_class(matrix))
    iou[[3, 4, 5, 9, 14, 16]] = 0
    assert miou_13(matrix, CITYSCAPES) == pytest.approx(iou.sum() / 13)
    assert miou_13(np.eye(13, dtype=int), class_set(13)) == 1
    assert miou_13(np.eye(2, dtype=int), ClassSet(("road", "field"), ((0, 0, 0), (1, 1, 1)))) is None


def test_clans_files_are_scored_as_its_reproduction_does(mini_data, tmp_path, capsys):
    network = build_model("MiniResNet18Twin")
    filled(network)
    write_pdparams(tmp_path / "SYS_2.pdparams", to_paddle(network))
    common = ("--restore-from", tmp_path / "SYS_2.pdparams", "--data-dir", mini_data / "Cityscapes")
    (figures,) = evaluate(*common, "--csv", tmp_path / "a.csv").values()
    printed = capsys.readouterr().out
    assert "protocol clan-paddle: input (96, 48)" in printed
    assert f"===> mIoU-13: {percent(figures['miou_13'])} ({MIOU_13})" in printed
    assert (tmp_path / "a.csv").read_text().startswith("checkpoint,mIoU,road") and "mIoU-13" in (tmp_path / "a.csv").read_text()
    (bilinear,) = evaluate(*common, "--protocol", "clan").values()
    assert "miou_13" not in bilinear and "mIoU-13" not in capsys.readouterr().out
    assert bilinear["iou"] != figures["iou"]


def test_the_reproductions_folders(mini_data, tmp_path):
    """What their training leaves: snapshots, discriminators, states of optimizers, and CLAN's last one called .pth."""
    arrays = to_paddle(build_model("MiniResNet18Twin"))
    for name in ("GTA5_2000.pdparams", "GTA5_4000.pdparams", "GTA5_latest.pdparams"):
        write_pdparams(tmp_path / name, arrays)
    (tmp_path / "GTA5_6000.pth").write_bytes((tmp_path / "GTA5_2000.pdparams").read_bytes())
    for name in ("GTA5_2000_D", "GTA5_2000_D1", "GTA5_latest_optimizer", "GTA5_latest_D2_optimizer"):
        (tmp_path / f"{name}.pdparams").write_bytes(b"no network")
    found = [os.path.basename(path) for path in evaluate_cityscapes.find_checkpoints(str(tmp_path))]
    assert found == ["GTA5_2000.pdparams", "GTA5_4000.pdparams", "GTA5_6000.pth", "GTA5_latest.pdparams"]
    results = evaluate("--restore-from", tmp_path, "--data-dir", mini_data / "Cityscapes")
    assert list(results) == [name.split(".")[0] for name in found]


# The files


@pytest.mark.parametrize("name", WRITTEN_BY_PADDLE)
def test_files_of_paddle_are_read(name, golden):
    expected, found = golden("paddle/tiny.npz"), read_pdparams(FOLDER / f"{name}.pdparams")
    assert is_pdparams(FOLDER / f"{name}.pdparams")
    assert {key.replace(".", "|") for key in found} == set(expected)
    for key, array in found.items():
        np.testing.assert_array_equal(array, expected[key.replace(".", "|")])
        assert array.dtype == np.float32
    assert set(read_weights(FOLDER / f"{name}.pdparams").tensors) >= {"bn1.running_mean", "bn1.running_var"}


@pytest.mark.parametrize("protocol", (2, 3, 4))
def test_arrays_of_all_kinds(protocol, tmp_path):
    """As NumPy pickles them, and as they are written here, which NumPy unpickles."""
    given = {code: np.arange(6).reshape(2, 3).astype(code) for code in ("f2", "f4", "f8", "i1", "i4", "i8", "u1")}
    given |= {"scalar": np.array(3, np.float32)}
    given |= {"empty": np.zeros((0, 3), np.float32)} if protocol > 2 else {}
    given |= {"transposed": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))}
    write_pdparams(tmp_path / "ours.pdparams", given)
    with open(tmp_path / "ours.pdparams", "rb") as file:
        unpickled = pickle.load(file)
    for found in (
        read_pdparams(pickled(given, tmp_path / "x.pdparams", protocol)), read_pdparams(tmp_path / "ours.pdparams"), unpickled
    ):  # fmt: skip
        assert set(found) == set(given)
        for key, array in given.items():
            np.testing.assert_array_equal(found[key], array)
            assert found[key].dtype == array.dtype and found[key].shape == array.shape
    with pytest.raises(WeightsError, match="no.pdparams: a .complex128. cannot be written"):
        write_pdparams(tmp_path / "no.pdparams", {"a": np.zeros(2, complex)})
    assert not (tmp_path / "no.pdparams").exists()


def test_what_is_written_is_what_paddle_has_loaded(golden, tmp_path):
    """`written_here.pdparams` was read by PaddlePaddle 3.3.1 to the values in `tiny.npz`, and taken by a layer of it."""
    values = golden("paddle/tiny.npz")
    write_pdparams(tmp_path / "x.pdparams", {key.replace("|", "."): values[key] for key in values})
    assert (tmp_path / "x.pdparams").read_bytes() == (FOLDER / "written_here.pdparams").read_bytes()


@pytest.mark.parametrize("name", WRITTEN_BY_PADDLE)
def test_every_cut_is_noticed(name, tmp_path):
    whole, path = (FOLDER / f"{name}.pdparams").read_bytes(), tmp_path / "cut.pdparams"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match="cut.pdparams"):
            read_weights(path)


@pytest.mark.parametrize("name", WRITTEN_BY_PADDLE)
def test_damaged_files_are_read_or_refused(name, tmp_path):
    """Whatever bytes are changed: a dict of arrays, or one line that names the file."""
    whole, path, draw = (FOLDER / f"{name}.pdparams").read_bytes(), tmp_path / "x.pdparams", random.Random(0)
    refused = 0
    for _ in range(1500):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(2, len(data))] = draw.randrange(256)
        path.write_bytes(data)
        try:
            assert all(isinstance(value, np.ndarray) for value in read_pdparams(path).values())
        except WeightsError as error:
            refused += 1
            assert str(error).startswith(str(path)) and "\n" not in str(error)
    assert refused > 100


class Calls:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", (2, 4))
@pytest.mark.parametrize(
    "value, message",
    [
        (Calls(os.system, "touch executed"), "system"),
        (Calls(eval, "1"), "eval"),
        (np.save, "refused"),
        (Calls(np.frombuffer, b"1234"), "frombuffer"),
        (np.array([{}], object), "refused|damaged"),
        (np.zeros(2, complex), "refused"),
        (np.zeros(2, "M8[s]"), "refused"),
        (torch.zeros(1), "refused"),
        ({1.5: 2}, "neither text nor number"),
    ],
)
def test_other_names_are_refused(value, message, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = pickled({"conv1.weight": np.zeros(3, np.float32), "evil": value}, tmp_path / "evil.pdparams", protocol)
    with pytest.raises(WeightsError, match=f"evil.pdparams: .*({message})"):
        read_weights(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "value, message",
    [
        (
            {"LR_Scheduler": {"last_epoch": 3, "last_lr": 0.1}, "x": np.zeros(2)},
            "state of an optimizer, not weights .*LR_Scheduler",
        ),
        ({"conv2d_0.w_0_moment1_0": np.zeros(2)}, "state of an optimizer.*moment1"),
        ({"conv2d_0.w_0_velocity_0": np.zeros(2)}, "state of an optimizer.*velocity"),
        ({}, "found nothing"),
        ({"epoch": 3}, "pickle of other things than weights .found 'epoch'"),
        ({"state": {"x": np.zeros(2)}}, "pickle of other things than weights .found 'state'"),
        ({3: np.zeros(2)}, "pickle of other things than weights .found 3"),
        ([np.zeros(2)], "pickle of a list"),
    ],
)
def test_other_pickles_are_refused_as_what_they_are(value, message, tmp_path):
    with pytest.raises(WeightsError, match=f"x.pdparams: .*{message}"):
        read_weights(pickled(value, tmp_path / "x.pdparams"))


def test_an_optimizer_of_paddle_is_refused_as_one():
    with pytest.raises(WeightsError, match="tiny_optimizer.pdparams: is the state of an optimizer, not weights"):
        read_weights(FOLDER / "tiny_optimizer.pdparams")


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85C\x01btR"
FLOATS = b"cnumpy\ndtype\nX\x02\0\0\0f4\x89\x88\x87R"


@pytest.mark.parametrize(
    "content",
    [
        b"\x8e" + struct.pack("<Q", 2**62),  # bytes that are not there
        b"\x8e" + struct.pack("<Q", 2**64 - 1),
        b"X\xff\xff\xff\xffab",
        b"Nr\xff\xff\xff\xff.",  # a memory of 2^32 places
        b"}" * 2_000_000,
        b"(" * 2_000_000,
        b")" + b"\x85" * 150_000 + b"}\x94h\0(h\0Nu.",  # tuples in tuples, as a key
        b"}(" + b")" + b"\x85" * 150_000 + b"Nu.",
        b"}X\x01\0\0\0a" + ARRAY + b"(K\x01J\xff\xff\xff\x7f\x85" + FLOATS + b"\x89C\x04abcdtbs.",
        b"}X\x01\0\0\0a" + ARRAY + b"(K\x01J\xff\xff\xff\xff\x85" + FLOATS + b"\x89C\x04abcdtbs.",
        b"}X\x01\0\0\0a" + ARRAY + b"(K\x01(K\0\x8a\x0a" + b"\xff" * 9 + b"\x7ft" + FLOATS + b"\x89C\0tbs.",
        b"}X\x01\0\0\0a" + ARRAY + b"(K\x01(" + b"K\x01" * 60 + b"t" + FLOATS + b"\x89C\x04abcdtbs.",
        b"}X\x01\0\0\0a" + ARRAY + b"s.",  # an array without contents
        b"}X\x01\0\0\0aNb.",
        b"NNR.",
        b"s.",
        b".",
        b"cos\nsystem\nX\x02\0\0\0ls\x85R.",
        b"(ios\nsystem\n.",
        b"Pevil\n.",
    ],
)  # fmt: skip
def test_hostile_files(content, tmp_path):
    (tmp_path / "evil.pdparams").write_bytes(b"\x80\x04" + content)
    with pytest.raises(WeightsError, match="evil.pdparams: "):
        read_weights(tmp_path / "evil.pdparams")


@pytest.mark.parametrize("protocol", (2, 4))
def test_few_bytes_do_not_become_many_arrays(protocol, tmp_path):
    """A thousand arrays of the same megabyte would be a file of little more than one."""
    many = np.zeros(2**18, np.float32)
    data = pickle.dumps({"a": many}, protocol)
    assert len(data) < 2**21
    # The array's contents are in the pickle's memory: built once more under each further name.
    once = b"\x80\x04}(X\x01\0\0\0a" + ARRAY + b"(K\x01J" + struct.pack("<i", 2**18) + b"\x85" + FLOATS + b"\x89\x8e"
    once += struct.pack("<Q", 2**20) + bytes(2**20) + b"\x94t\x94b"
    again = b"".join(b"X\x04\0\0\0" + f"{i:04}".encode() + ARRAY + b"h\x01b" for i in range(1000))
    (tmp_path / "bomb.pdparams").write_bytes(once + again + b"u.")
    with pytest.raises(WeightsError, match="bomb.pdparams: .*its arrays are larger than the file"):
        read_weights(tmp_path / "bomb.pdparams")


def test_files_of_pytorch_are_not_taken_for_paddles(tmp_path):
    state = {"conv1.weight": torch.zeros(3)}
    for zipped, protocol in ((True, 2), (False, 2), (False, 4)):
        torch.save(state, tmp_path / "x.pdparams", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
        assert not is_pdparams(tmp_path / "x.pdparams")
        if protocol == 2:  # PyTorch itself reads others only without its checks
            assert read_weights(tmp_path / "x.pdparams").format == "plain"
