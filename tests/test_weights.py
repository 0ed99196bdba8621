"""Weight files: what is read, recognised and loaded, and what is refused with which words."""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from conftest import GOLDEN, ROOT
from torchvision.models import VGG16_Weights

from model import (
    Checkpoint,
    ModelError,
    WeightsError,
    build_model,
    load_model,
    load_weights,
    read_weights,
    settings_from_weights,
)
from model.checkpoint_formats import PYTORCH, read_contents
from utils.state import save_tensors

INITIALISATION = json.loads((GOLDEN / "adaptsegnet/keys.json").read_text())["pretrained_init_file"]


@pytest.fixture
def save(tmp_path):
    def save(value, name="weights.pth"):
        # As the originals' files: without the note that networks here put into the metadata.
        torch.save(dict(value) if isinstance(value, dict) else value, tmp_path / name)
        return str(tmp_path / name)

    return save


def mini(**settings):
    return build_model("MiniResNet18", **settings)


def recognised(state):
    return read_contents(state, PYTORCH, "file")


def test_snapshot_comes_back(save):
    network = mini()
    again = mini()
    report = load_weights(again, read_weights(save(network.state_dict())), "weights.pth")
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), again.state_dict().values(), strict=True))
    assert f"{len(network.state_dict())} tensors loaded" in report


def test_containers_and_prefixes_are_taken_off(save):
    state = mini().state_dict()
    wrapped = {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}
    assert read_weights(save(wrapped)).tensors.keys() == state.keys()


def test_maxsquare_checkpoints_hold_a_numpy_number(save):
    state = mini().state_dict()
    wrapped = {
        "epoch": 3,
        "iteration": 9,
        "best_MIou": np.float64(0.4),
        "state_dict": {f"module.{k}": v for k, v in state.items()},
    }
    assert read_weights(save(wrapped)).tensors.keys() == state.keys()
    # as the NumPy of 2019 named the module
    path = save(wrapped)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(f"{path}.old.pth", "w") as target:
        for name in source.namelist():
            data = source.read(name)
            target.writestr(
                name, data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray") if name.endswith("data.pkl") else data
            )
    assert read_weights(f"{path}.old.pth").tensors.keys() == state.keys()


def test_the_initialisation_file_gives_the_trunk_and_leaves_the_classifiers(save):
    network = build_model("DeeplabMulti")
    own = network.state_dict()
    keys = INITIALISATION["trunk_keys"] + INITIALISATION["skipped_when_num_classes_is_19"]
    file = {
        key: torch.full_like(own[key.removeprefix("Scale.")], 7) if "layer5" not in key else torch.zeros(21) for key in keys
    }
    before = own["layer5.conv2d_list.0.weight"].clone()
    report = load_weights(network, read_weights(save(file)), "init.pth", fresh_heads=True)
    assert "layer5, layer6 stay random" in report
    loaded = network.state_dict()
    assert all((loaded[key.removeprefix("Scale.")] == 7).all() for key in INITIALISATION["trunk_keys"])
    assert torch.equal(loaded["layer5.conv2d_list.0.weight"], before)


def test_another_number_of_classes_makes_fresh_classifiers_only_when_training_starts():
    state = mini(num_classes=16).state_dict()
    network = mini()
    assert "layer5, layer6 stay random" in load_weights(network, Checkpoint(state), "file", fresh_heads=True)
    with pytest.raises(WeightsError, match=r"file: does not fit MiniResNet18: layer5.* has shape \(16, .*expected \(19,"):
        load_weights(network, Checkpoint(state), "file")


def test_a_missing_backbone_tensor_is_an_error_even_when_training_starts():
    state = mini().state_dict()
    del state["layer2.0.conv1.weight"]
    with pytest.raises(WeightsError, match="layer2.0.conv1.weight is missing"):
        load_weights(mini(), Checkpoint(state), "file", fresh_heads=True)


def test_weights_of_clan_and_adaptsegnet_are_told_apart():
    state = mini(heads="twin").state_dict()
    with pytest.raises(WeightsError, match="AdaptSegNet and MaxSquare have layer5 on layer 3, CLAN on layer 4"):
        load_weights(mini(heads="multi"), Checkpoint(state), "file")
    assert "layer5 stay random" in load_weights(mini(heads="multi"), Checkpoint(state), "file", fresh_heads=True)


def test_foreign_keys_are_reported():
    state = {**mini().state_dict(), "stranger": torch.zeros(1)}
    assert "1 ignored, which it has no place for (stranger)" in load_weights(mini(), Checkpoint(state), "file")


def test_torchvision_weights(save):
    from torchvision.models import resnet18, vgg16

    network = build_model("ResNet18")
    original = resnet18()
    report = load_weights(network, recognised(original.state_dict()), "resnet18.pth", fresh_heads=True)
    assert "2 ignored, which it has no place for (fc.weight, fc.bias)" in report
    assert torch.equal(network.layer4[1].conv2.weight, original.layer4[1].conv2.weight)
    with pytest.raises(WeightsError, match="use --model ResNet101"):
        load_weights(build_model("Oracle"), recognised({"fc.weight": torch.zeros(1)}), "resnet101.pth", fresh_heads=True)

    with torch.device("meta"):
        state = {key: tuple(value.shape) for key, value in vgg16().state_dict().items() if key.startswith("features")}
    state = {key: torch.full(shape, float(key.split(".")[1])) for key, shape in state.items()}
    vgg = build_model("DeeplabVGG")
    report = load_weights(vgg, recognised({**state, "classifier.6.weight": torch.zeros(1)}), "vgg16.pth", fresh_heads=True)
    assert (vgg.features[21].weight == 21).all() and (vgg.features[27].weight == 28).all()
    assert "taken as weights for the caffe input convention" in report


def test_vgg16_of_torchvision_is_not_taken_for_caffes(save, monkeypatch):
    """Their keys are the same; the file's hash tells."""
    path = save({f"features.{i}.weight": torch.zeros(1) for i in (0, 28)}, "renamed.pth")
    assert read_weights(path).convention is None
    prefix = hashlib.sha256(open(path, "rb").read()).hexdigest()[:8]
    monkeypatch.setattr(type(VGG16_Weights.IMAGENET1K_V1), "url", f"https://x.org/vgg16-{prefix}.pth")
    state = read_weights(path)
    assert state.convention == "imagenet"
    with pytest.raises(WeightsError, match="do not fit DeeplabVGG, which has the caffe input convention; use --model VGG16"):
        load_weights(build_model("DeeplabVGG"), state, path, fresh_heads=True)
    assert build_model("VGG16").normalize.convention == "imagenet"
    monkeypatch.setattr(type(VGG16_Weights.IMAGENET1K_V1), "get_state_dict", lambda self, **options: dict(state.tensors))
    assert read_weights("torchvision:VGG16_Weights.IMAGENET1K_V1").convention == "imagenet"
    with pytest.raises(WeightsError, match="another input convention .*; use VGG16_Weights.IMAGENET1K_V1"):
        read_weights("torchvision:VGG16_Weights.IMAGENET1K_FEATURES")


@pytest.mark.parametrize(
    "name, settings",
    [("DeeplabVGG", {}), ("MiniResNet18", {"heads": "twin"}), ("MiniResNet18", {"heads": "single"}), ("ResNet18", {})],
)
def test_the_network_is_recognised_from_its_weights(name, settings, save):
    network = build_model(name, num_classes=16, **settings).eval()
    path = save(network.state_dict())
    found = load_model(path)
    image = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    with torch.inference_mode():
        for expected, actual in zip(network(image), found(image), strict=True):
            torch.testing.assert_close(actual, expected)


def test_published_layouts_are_recognised_from_their_keys():
    for name, expected in (
        ("DeeplabMulti", "DeeplabMulti"),
        ("Oracle", "Oracle"),
        ("ResNet", "ResNet"),
        ("ResNet50", "ResNet50"),
    ):
        assert settings_from_weights(build_model(name).state_dict())["name"] == expected


def test_what_keys_cannot_tell_comes_from_the_run_directory(save, tmp_path):
    network = mini(aspp_branches=2, normalization="imagenet", aspp_rates=(1, 2, 3, 4))
    path = save(network.state_dict())
    (tmp_path / "args.json").write_text(json.dumps({"network": network.settings}))
    found = load_model(path)
    assert found.settings == network.settings
    assert load_model(path, aspp_branches=4).layer5.branches == 4


class RunsCode:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_files_that_are_no_weights(save, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = save(mini().state_dict(), "good.pth")
    (tmp_path / "cut.pth").write_bytes(open(good, "rb").read()[:5000])
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><html>Sign in</html>")
    (tmp_path / "text.pth").write_text("hello\n")
    (tmp_path / "empty.pth").write_text("")
    (tmp_path / "noise.pth").write_bytes(bytes(range(256)) * 8)
    with open(tmp_path / "code.pth", "wb") as file:
        pickle.dump({"conv1.weight": RunsCode()}, file)
    save([1, 2], "list.pth")
    save({"optimizer": {"lr": 1}}, "numbers.pth")
    shutil.copy(GOLDEN / "paddle/tiny_optimizer.pdparams", tmp_path / "clan.pdparams")
    for name, message in (
        ("missing.pth", "no such file"),
        ("clan.pdparams", "state of an optimizer"),
        ("cut.pth", "truncated"),
        ("page.pth", "web page"),
        ("text.pth", "text file"),
        ("empty.pth", "is empty"),
        ("noise.pth", "not a PyTorch file"),
        ("code.pth", "could run code"),
        ("list.pth", "holds a list"),
        ("numbers.pth", "holds no state dict"),
    ):
        with pytest.raises(WeightsError, match=f"{name}.*{message}"):
            read_weights(name)
    assert not (tmp_path / "executed").exists()


def test_unknown_networks_are_refused(save):
    with pytest.raises(WeightsError, match="not a segmentation network known here"):
        load_model(save({"encoder.weight": torch.zeros(1)}))


def test_a_network_with_one_classifier_takes_the_main_one():
    two, one = mini(heads="multi"), mini(heads="single")
    report = load_weights(one, Checkpoint(two.state_dict()), "file")
    assert torch.equal(one.layer5.conv2d_list[0].weight, two.layer6.conv2d_list[0].weight)
    assert "of its two classifiers the one on layer 4" in report


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves tmp_path/web; PyTorch Hub's folder is tmp_path/hub."""
    (tmp_path / "web").mkdir()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    handler = partial(QuietHandler, directory=str(tmp_path / "web"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", tmp_path / "web"
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def test_a_url_is_read_like_a_file(server):
    address, web = server
    for i, folder in enumerate(("a", "b")):  # snapshots of two runs with one name
        (web / folder).mkdir()
        torch.save({"weight": torch.full((2,), float(i)), "epoch": torch.tensor(0)}, web / folder / "GTA5_5000.pth")
    assert [read_weights(f"{address}/{folder}/GTA5_5000.pth").tensors["weight"][0] for folder in ("a", "b")] == [0, 1]
    torch.save({"best_MIou": np.float64(0.4), "state_dict": {"module.weight": torch.ones(1)}}, web / "best.pth")
    assert list(read_weights(f"{address}/best.pth").tensors) == ["weight"]
    shutil.copy(GOLDEN / "cbst/tiny.params", web / "tiny.params")
    with pytest.raises(WeightsError, match="arg:half_weight"):  # read, and no ResNet-38
        read_weights(f"{address}/tiny.params")
    (web / "page.pth").write_text("<html>Sign in</html>")
    for _ in range(2):
        with pytest.raises(WeightsError, match="page.pth: is a web page"):
            read_weights(f"{address}/page.pth")
    torch.save({"weight": torch.ones(1)}, web / "page.pth")  # what was refused is not kept
    assert list(read_weights(f"{address}/page.pth").tensors) == ["weight"]
    with pytest.raises(WeightsError, match="none.pth: cannot be fetched .*404"):
        read_weights(f"{address}/none.pth")
    torch.save({"weight": torch.ones(1)}, web / "net-12345678.pth")
    with pytest.raises(WeightsError, match="net-12345678.pth: cannot be fetched .*hash"):
        read_weights(f"{address}/net-12345678.pth")


def test_args_json_of_other_things(save, tmp_path, monkeypatch):
    path = save(mini().state_dict())
    (tmp_path / "args.json").write_text("{broken")
    with pytest.raises(WeightsError, match="args.json: is no args.json of a run"):
        load_model(path)
    (tmp_path / "args.json").write_text(json.dumps({"network": {"name": "NoSuch", "num_classes": 19}}))
    with pytest.raises(ModelError, match="unknown network 'NoSuch'"):
        load_model(path, "MiniResNet18")
    with pytest.raises(WeightsError, match="args.json: unknown network 'NoSuch'"):
        load_model(path)
    (tmp_path / "args.json").write_text(json.dumps({"network": {"name": "MiniResNet18", "num_classes": "19"}}))
    with pytest.raises(WeightsError, match="args.json: network MiniResNet18: setting num_classes must be of type int"):
        load_model(path)
    (tmp_path / "args.json").write_text("[1]")
    with pytest.raises(WeightsError, match="args.json: is no args.json of a run .holds a list"):
        load_model(path)
    assert read_weights(path)  # which asks for no network


def test_what_a_name_leaves_open_the_file_tells(save):
    path = save(build_model("DeeplabVGG", heads="twin").state_dict())
    found = load_model(path, "VGG16")
    assert len(found.head_names) == 2 and found.classifier.branches == 4 and found.normalize.convention == "imagenet"


def test_a_file_of_ours_names_its_network_wherever_it_lies(tmp_path):
    network = mini(aspp_branches=2, normalization="imagenet", aspp_rates=(1, 2, 3, 4), heads="twin").eval()
    save_tensors(network.state_dict(), tmp_path / "moved.pth", for_originals=True)
    with open(tmp_path / "moved.pth", "rb") as file:
        assert file.read(2) == b"\x80\x02"  # the format that old versions of PyTorch read
    found = load_model(tmp_path / "moved.pth")
    assert found.settings == network.settings
    network.load_state_dict(torch.load(tmp_path / "moved.pth", weights_only=True))  # as another code base does
    image = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(found(image), network(image))


def test_importing_model_does_not_import_torchvision():
    """It takes over a second and some 400 MB."""
    code = "import sys, model; sys.exit('torchvision' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
