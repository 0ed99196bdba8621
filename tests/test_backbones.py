"""Encoders of torchvision and timm under every method: outputs, training, exact resume, evaluation, weights, settings."""

import hashlib
import importlib
import sys
import types
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import evaluate_cityscapes
import train_source
from model import ModelError, WeightsError, build_model, encoders, load_model, load_weights, read_weights
from scripts import adabn, convert_checkpoint, export, predict
from utils.errors import RunError
from utils.mean_teacher import make_teacher
from utils.optimizers import segmentation_optimizer
from utils.run import Run
from utils.starting_weights import restore

timm = pytest.importorskip("timm", reason="needs the package timm")

FAMILIES = (
    "timm:test_vit",
    "timm:test_convnext",
    "timm:test_resnet",
    "timm:swin_tiny_patch4_window7_224",
    "torchvision:resnet18",
    "torchvision:convnext_tiny",
    "torchvision:swin_t",
    "torchvision:vit_b_16",
    "torchvision:fcn_resnet50",
)
METHODS = {
    "train_source.py": "--updates clean",
    "train_adaptsegnet.py": "--lambda-adv-target1 0.01",
    "train_maxsquare.py": "--multi --val-every 0 --num-steps-stop 2",
    "train_clan.py": "--preheat-steps 1 --lambda-adv 0.1",
    "train_fada.py": "--stage all --lambda-adv 0.1 --input-size-test 96,48 --scale-range 1,1",
    "train_cbst.py": "--num-rounds 2 --epochs-per-round 1 --init-src-port 0.5 --batch-size 3 --eval-scale 1",
    "train_dacs.py": "--mask --mask-block 16 --blur False",
}
# Each method once with one of them, and (slow) with each.
MODELS = ("timm:test_vit", "timm:test_convnext", "timm:test_resnet", "torchvision:resnet18")
PAIRS = [
    pytest.param(method, model, marks=[] if (i + j) % len(MODELS) == 0 else [pytest.mark.slow], id=f"{method}-{model}")
    for i, method in enumerate(METHODS)
    for j, model in enumerate(MODELS)
]


def images(height=64, width=96):
    return torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def small(name, classes=5, **settings):
    torch.manual_seed(0)
    return build_model(name, classes, **settings)


# The networks


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_two_levels_and_trains_all_of_itself(name):
    network = small(name, heads="multi").train()
    low, high = network(images(70, 100))
    height, width = network.fitted((70, 100))
    assert low.shape == (2, 5, height // network.encoder.strides[-2], width // network.encoder.strides[-2])
    assert high.shape == (2, 5, height // network.encoder.strides[0], width // network.encoder.strides[0])
    (low.square().mean() + high.square().mean()).backward()
    assert [name for name, value in network.named_parameters() if value.requires_grad and value.grad is None] == []


def test_maps_are_those_of_timm():
    for name in ("test_vit", "test_vit3", "test_convnext", "test_resnet", "test_efficientnet"):
        network = small(f"timm:{name}").eval()
        whole = timm.create_model(name, pretrained=False).eval()
        whole.load_state_dict({key.removeprefix("model."): value for key, value in network.encoder.state_dict().items()}, False)
        x = torch.randn(1, 3, 160, 160)
        maps = network.encoder(x)
        options = {"norm": True} if "vit" in name else {}
        expected = whole.forward_intermediates(x, intermediates_only=True, **options)
        assert torch.equal(maps[-1], expected[-1])
        assert any(torch.equal(maps[0], each) for each in expected)
        if "vit" in name:  # what its own classifier would see
            assert torch.allclose(whole.forward_features(x)[:, whole.num_prefix_tokens :].mT.unflatten(2, (10, 10)), maps[-1])


def test_maps_are_those_of_torchvision():
    from torchvision.models.feature_extraction import create_feature_extractor

    cases = {
        "resnet18": ({"layer2": 0, "layer3": 1, "layer4": 2}, False),
        "convnext_tiny": ({"features.3": 0, "features.5": 1, "features.7": 2}, False),
        "swin_t": ({"features.3": 0, "features.5": 1, "features.7": 2}, True),
    }
    x = torch.randn(1, 3, 64, 96)
    for name, (nodes, channels_last) in cases.items():
        network = small(f"torchvision:{name}").eval()
        expected = create_feature_extractor(network.encoder.model, {node: str(place) for node, place in nodes.items()})(x)
        for place, found in enumerate(network.encoder(x)):
            value = expected[str(place)]
            assert torch.equal(found, value.permute(0, 3, 1, 2) if channels_last else value)


def test_a_vit_of_torchvision_is_its_own_at_its_own_size_and_resizes_positions_elsewhere():
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    model = VisionTransformer(image_size=64, patch_size=16, num_layers=3, num_heads=2, hidden_dim=32, mlp_dim=64).eval()
    nn.init.normal_(model.encoder.pos_embedding)
    x, seen = torch.randn(1, 3, 64, 64), []
    model.encoder.ln.register_forward_hook(lambda _, __, output: seen.append(output))
    model(x)
    maps = encoders._vit_maps(model, x, lambda blocks, tokens: nn.Sequential(*blocks)(tokens))
    assert torch.allclose(maps[-1], seen[0][:, 1:].mT.unflatten(2, (4, 4)), atol=1e-6)
    positions = encoders._resized_positions(model.encoder.pos_embedding, (2, 6))
    assert positions.shape == (1, 13, 32) and torch.equal(positions[:, 0], model.encoder.pos_embedding[:, 0])


def test_a_segmentation_model_of_torchvision_brings_its_decoder():
    from torchvision.models.segmentation import deeplabv3_resnet50

    whole = deeplabv3_resnet50(weights=None, weights_backbone=None, aux_loss=True).eval()
    network = small("torchvision:deeplabv3_resnet50", 21, heads="multi")
    report = load_weights(network, read_weights_of(whole.state_dict()), "coco.pth", fresh_heads=True)
    assert "classifier" in report
    x = torch.randn(1, 3, 64, 96)
    maps = network.eval().encoder(x)
    expected = whole(x)
    for features, head, name in zip(maps, (whole.aux_classifier, whole.classifier), ("aux", "out"), strict=True):
        logits = F.interpolate(head[-1](features), (64, 96), mode="bilinear", align_corners=False)
        assert torch.allclose(logits, expected[name], atol=1e-5)


def read_weights_of(state):
    from model.checkpoint_formats import Checkpoint

    return Checkpoint(dict(state))


def test_images_of_other_sizes_are_resized_to_whole_patches(mini_data, tmp_path, capsys):
    network = small("timm:test_vit", heads="single").eval()
    odd = images(70, 100)
    assert network.fitted((70, 100)) == (64, 96)
    resized = F.interpolate(network.normalize(odd), (64, 96), mode="bilinear", align_corners=True)
    assert torch.equal(network(odd)[0], network(resized)[0])
    train(mini_data, tmp_path, "train_source.py", "timm:test_vit", "--input-size 100,50")
    assert "images of 100x50 are resized to 96x48" in capsys.readouterr().out


def test_the_input_convention_is_the_models_own():
    half = small("timm:test_vit").normalize
    assert torch.allclose(half(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)), torch.ones(1, 3, 2, 2))
    assert "0.5" in half.convention and small("torchvision:resnet18").normalize.convention == "imagenet"


@pytest.mark.parametrize(
    "name, settings, message",
    [
        ("timm:no_such_network", {}, "no network of timm"),
        ("timm:test_vit.no_such_tag", {}, "no_such_tag"),
        ("timm:hf-hub:timm/test_vit", {}, "no network of timm"),
        ("timm:test_vit", {"encoder": "elsewhere:network"}, "timm:NAME"),
        ("torchvision:no_such_network", {}, "no network of torchvision"),
        ("torchvision:alexnet", {}, "ConvNeXt, ResNet, Swin, ViT"),
        ("timm:test_maxvit", {}, "certain sizes only"),
        ("timm:test_vit", {"aspp_branches": 4}, "no setting aspp_branches"),
        ("timm:test_vit", {"heads": "three"}, "heads must be"),
        ("timm:test_vit", {"drop_path": 1.0}, "drop_path must be"),
        ("timm:test_vit", {"layer_decay": 0.0}, "layer_decay must be"),
        ("torchvision:resnet18", {"drop_path": 0.1}, "no stochastic depth"),
        ("timm:test_resnet", {"checkpoint_activations": True, "batch_norm": "train"}, "--batch-norm frozen"),
        ("DeepLab", {"freeze_encoder": True}, "no setting freeze_encoder"),
    ],
)
def test_what_cannot_be_built_says_why(name, settings, message):
    with pytest.raises(ModelError, match=message):
        build_model(name, **settings)


def test_without_timm_its_networks_say_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.delitem(sys.modules, "model.timm_encoder", raising=False)
    with pytest.raises(ModelError, match=r"pip install \.\[timm\]"):
        build_model("timm:test_vit")


class Pooling(encoders.Encoder):
    """The sixth family: average pooling and a convolution, written for this test."""

    channels, strides = (4, 6), (4, 8)

    def __init__(self, architecture, drop_path, checkpoint_activations):
        super().__init__()
        self.model = nn.ModuleList([nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1)])

    def forward(self, x):
        low = self.model[0](F.avg_pool2d(x, 4))
        return [low, self.model[1](F.avg_pool2d(low, 2))]


def test_another_library_needs_one_entry(mini_data, tmp_path, monkeypatch):
    monkeypatch.setitem(encoders.LIBRARIES, "mine", Pooling)
    for script in ("train_adaptsegnet.py", "train_clan.py"):
        train(mini_data, tmp_path / script, script, "mine:pooling", METHODS[script])
    assert load_model(tmp_path / "train_clan.py" / "GTA5_2.pth").settings["name"] == "mine:pooling"
    with pytest.raises(ModelError, match="--layer-decay: Pooling"):
        build_model("mine:pooling", layer_decay=0.5).parameter_groups()


# Under the methods


def arguments_of(mini_data, directory, script, model, more):
    counts = "" if script == "train_cbst.py" else "--num-steps 2"
    return [
        *("--data-dir", f"{mini_data}/GTA5", "--data-dir-target", f"{mini_data}/Cityscapes")[: 2 if "source" in script else 4],
        *(
            "--model",
            model,
            "--restore-from",
            "none",
            "--snapshot-dir",
            str(directory),
            "--device",
            "cpu",
            "--num-workers",
            "0",
        ),
        *("--save-state-every", "1", "--log-every", "1", "--learning-rate", "1e-3", "--input-size", "96,48"),
        *([] if "source" in script else ["--input-size-target", "96,48"]),
        *f"{counts} {more}".split(),
    ]


def train(mini_data, directory, script, model, more="", resume=False):
    module = importlib.import_module(script.removesuffix(".py"))
    arguments = arguments_of(mini_data, directory, script, model, more)
    module.main(module.get_arguments([*arguments, *(["--resume"] if resume else [])]))


def weights_under(directory):
    files = sorted(path.relative_to(directory) for path in Path(directory).rglob("*.pth") if not path.name.startswith("state"))
    return {file: torch.load(directory / file, weights_only=True) for file in files}


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


class Killed(Exception):
    pass


@pytest.mark.parametrize("script, model", PAIRS)
def test_every_method_trains_and_resumes_exactly(script, model, mini_data, tmp_path, monkeypatch):
    if script == "train_cbst.py":  # the first round is labelled by weights that have to be there
        train(mini_data, tmp_path / "source", "train_source.py", model)
    start = f" --restore-from {tmp_path}/source/GTA5_2.pth" if script == "train_cbst.py" else ""
    more = f"{METHODS[script]} --optim AdamW --warmup 2 --clip-grad 1{start}"
    train(mini_data, tmp_path / "whole", script, model, more)
    end_step = Run.end_step

    def end_and_die(self, step, *rest, **shown):
        end_step(self, step, *rest, **shown)
        raise Killed

    monkeypatch.setattr(Run, "end_step", end_and_die)
    with pytest.raises(Killed):
        train(mini_data, tmp_path / "again", script, model, more)
    monkeypatch.setattr(Run, "end_step", end_step)
    train(mini_data, tmp_path / "again", script, model, more, resume=True)
    whole, again = weights_under(tmp_path / "whole"), weights_under(tmp_path / "again")
    assert whole and whole.keys() == again.keys()
    assert all(same(whole[file], again[file]) for file in whole)
    last = sorted(tmp_path.glob("whole/**/*.pth"), key=lambda path: path.stat().st_mtime_ns)
    found = load_model(next(path for path in reversed(last) if not path.name.startswith(("state", "GTA5_2_D"))))
    assert found.settings["name"] == model and len(found.classes["names"]) == 19


def test_snapshots_are_evaluated_predicted_and_converted(mini_data, tmp_path, capsys):
    train(mini_data, tmp_path / "run", "train_source.py", "timm:test_vit", "--optim AdamW --drop-path 0.1 --layer-decay 0.9")
    snapshot = tmp_path / "run/GTA5_2.pth"
    data = ["--data-dir", f"{mini_data}/Cityscapes", "--device", "cpu", "--num-workers", "0"]
    evaluate_cityscapes.main(
        evaluate_cityscapes.get_arguments(["--restore-from", str(snapshot), *data, "--save", str(tmp_path / "predictions")])
    )
    assert "timm:test_vit, 19 classes" in capsys.readouterr().out and list((tmp_path / "predictions").rglob("*.png"))
    Image.fromarray(np.zeros((40, 70, 3), np.uint8)).save(tmp_path / "photo.png")
    arguments = [
        str(tmp_path / "photo.png"),
        "--restore-from",
        str(snapshot),
        "--out",
        str(tmp_path / "out"),
        "--device",
        "cpu",
    ]
    predict.main(predict.get_arguments(arguments))
    assert list((tmp_path / "out").rglob("*.png"))
    x, first = images(48, 96), load_model(snapshot)
    for kind in ("fada", "plain", "maxsquare"):
        source = snapshot
        if kind == "fada":
            train(mini_data, tmp_path / "single", "train_dacs.py", "timm:test_vit", METHODS["train_dacs.py"])
            source = tmp_path / "single/checkpoint-iter2.pth"
        convert_checkpoint.main(convert_checkpoint.get_arguments([str(source), str(tmp_path / f"{kind}.pth"), "--to", kind]))
        first = load_model(source)
        assert all(torch.equal(a, b) for a, b in zip(load_model(tmp_path / f"{kind}.pth")(x), first(x), strict=True))
    with pytest.raises(WeightsError, match="no DeepLab"):
        convert_checkpoint.main(
            convert_checkpoint.get_arguments([str(snapshot), str(tmp_path / "p.pdparams"), "--to", "paddle"])
        )
    assert not (tmp_path / "p.pdparams").exists()


def test_swin_is_not_exported_for_any_size(tmp_path):
    torch.save(small("torchvision:swin_t", 19, heads="single").state_dict(), tmp_path / "swin.pth")
    with pytest.raises(RunError, match="cannot be exported"):
        export.main(export.get_arguments([str(tmp_path / "swin.pth"), "--onnx", str(tmp_path / "swin.onnx")]))


def test_adabn_is_void_without_batchnorm(mini_data, tmp_path, capsys):
    train(mini_data, tmp_path / "vit", "train_source.py", "timm:test_vit")
    assert "no BatchNorm: --batch-norm changes nothing" in capsys.readouterr().out
    train(mini_data, tmp_path / "resnet", "train_source.py", "timm:test_resnet")
    data = [
        "--data-dir-target",
        f"{mini_data}/Cityscapes",
        "--input-size-target",
        "96,48",
        "--device",
        "cpu",
        "--num-workers",
        "0",
    ]

    def run(name):
        adabn.main(
            adabn.get_arguments(
                [
                    "--restore-from",
                    f"{tmp_path}/{name}/GTA5_2.pth",
                    "--save",
                    f"{tmp_path}/{name}.pth",
                    "--num-images",
                    "4",
                    *data,
                ]
            )
        )

    run("resnet")
    assert not torch.equal(
        load_model(tmp_path / "resnet.pth").norms()[0].running_mean,
        load_model(tmp_path / "resnet/GTA5_2.pth").norms()[0].running_mean,
    )
    with pytest.raises(RunError, match="no BatchNorm.*void"):
        run("vit")


# Weights


def test_weights_of_a_library_start_a_run(tmp_path):
    for name, whole in (("test_vit", timm.create_model("test_vit")), ("test_resnet", timm.create_model("test_resnet"))):
        torch.save(whole.state_dict(), tmp_path / f"{name}.pth")
        network = small(f"timm:{name}", heads="multi")
        restore(network, str(tmp_path / f"{name}.pth"), fresh_classifier=False)
        own = network.encoder.model.state_dict()
        assert own and all(torch.equal(value, whole.state_dict()[key]) for key, value in own.items())


def test_positions_of_another_image_size_are_resized(tmp_path):
    whole = timm.create_model("test_vit", img_size=320)
    torch.save(whole.state_dict(), tmp_path / "large.pth")
    network = small("timm:test_vit")
    load_weights(network, read_weights(tmp_path / "large.pth"), "large.pth", fresh_heads=True)
    assert network.encoder.model.pos_embed.shape[1] < whole.pos_embed.shape[1]


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(WeightsError, match="does not fit timm:test_vit"):
        restore(small("timm:test_vit"), str(tmp_path / "resnet.pth"))
    with pytest.raises(WeightsError, match="timm:NAME"):
        restore(small("timm:test_vit"), None)


def test_safetensors_are_read_and_damage_is_told(tmp_path):
    from safetensors.torch import save_file

    whole = timm.create_model("test_vit")
    path = tmp_path / "weights.safetensors"
    save_file(whole.state_dict(), path)
    network = small("timm:test_vit")
    load_weights(network, read_weights(path), path, fresh_heads=True)
    assert torch.equal(network.encoder.model.pos_embed, whole.pos_embed)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="truncated or damaged"):
        read_weights(path)


def test_weights_from_the_hub_are_checked_by_their_hash(tmp_path, monkeypatch):
    from safetensors.torch import save_file

    whole, file, asked = timm.create_model("test_vit"), tmp_path / "file", []
    save_file(whole.state_dict(), file)
    blob = tmp_path / hashlib.sha256(file.read_bytes()).hexdigest()
    file.rename(blob)

    def download(repository, name):
        asked.append((repository, name))
        return str(blob)

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(hf_hub_download=download))
    network = small("timm:test_vit")
    restore(network, "timm:test_vit.r160_in1k")
    assert asked == [("timm/test_vit.r160_in1k", "model.safetensors")]
    assert torch.equal(network.encoder.model.pos_embed, whole.pos_embed)
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelError, match="does not fit its hash"):
        read_weights("timm:test_vit.r160_in1k")
    with pytest.raises(ModelError, match="no pretrained weights"):
        read_weights("timm:no_such_network")


# Settings


def test_parameter_groups_decay_by_depth_and_leave_vectors_alone():
    network = small("timm:test_vit", heads="single", layer_decay=0.5)
    groups = network.parameter_groups()
    rate = {id(value): group["lr_multiplier"] for group in groups for value in group["params"]}
    model = network.encoder.model
    depth = len(model.blocks)
    assert rate[id(network.classifier.weight)] == 10
    for index, block in enumerate(model.blocks):
        assert rate[id(block.attn.qkv.weight)] == 0.5 ** (depth - 1 - index) * rate[id(model.blocks[-1].attn.qkv.weight)]
    assert rate[id(model.patch_embed.proj.weight)] < rate[id(model.blocks[0].attn.qkv.weight)]
    undecayed = {id(value) for group in groups if group.get("weight_decay") == 0 for value in group["params"]}
    assert {id(model.pos_embed), id(model.blocks[0].attn.qkv.bias), id(network.classifier.bias)} <= undecayed
    assert id(network.classifier.weight) not in undecayed
    args = Namespace(optim="AdamW", updates="clean", learning_rate=1e-3, momentum=0.9, weight_decay=0.01)
    optimizer = segmentation_optimizer(groups, args)
    assert type(optimizer) is torch.optim.AdamW and {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.01}
    for name in ("torchvision:resnet18", "torchvision:convnext_tiny", "torchvision:swin_t", "torchvision:fcn_resnet50"):
        depths = small(name).encoder.depths()
        assert depths.keys() == {key for key, _ in small(name).encoder.named_parameters()} and len(set(depths.values())) > 5


@pytest.mark.parametrize("name", ("timm:test_vit", "timm:test_convnext", "timm:test_resnet", "torchvision:convnext_tiny"))
def test_checkpointed_activations_change_memory_and_nothing_else(name):
    gradients, kept = [], []
    for again in (False, True):
        network = small(name, heads="single", batch_norm="frozen", checkpoint_activations=again).train()
        sizes: list[int] = []

        def note(x, sizes=sizes):
            sizes.append(x.nbytes)
            return x

        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            loss = network(images())[0].square().mean()
        loss.backward()
        gradients.append(torch.cat([value.grad.flatten() for value in network.parameters() if value.grad is not None]))
        kept.append(sum(sizes))
    assert torch.equal(*gradients) and kept[1] < 0.8 * kept[0]
    network.eval()
    assert network(images())[0].requires_grad  # and nothing is computed twice


def test_a_linear_probe_trains_the_classifier_alone(mini_data, tmp_path):
    train(
        mini_data,
        tmp_path,
        "train_source.py",
        "timm:test_vit",
        "--freeze-encoder --optim AdamW --save-pred-every 1 --num-steps 3",
    )
    first, second = (torch.load(tmp_path / f"GTA5_{step}.pth", weights_only=True) for step in (1, 3))
    changed = {key for key in first if not torch.equal(first[key], second[key])}
    assert changed == {"classifier.weight", "classifier.bias"}
    with pytest.raises(RunError, match="--freeze-encoder"):
        train(mini_data, tmp_path / "fada", "train_fada.py", "timm:test_vit", f"{METHODS['train_fada.py']} --freeze-encoder")


def test_stochastic_depth_is_the_students_alone():
    for name in ("timm:test_vit", "torchvision:convnext_tiny"):
        student = small(name, heads="single", drop_path=0.5).train()
        torch.manual_seed(0)
        first, second = student(images())[0], student(images())[0]
        assert not torch.equal(first, second)
        teacher = make_teacher(student).train()
        assert torch.equal(teacher(images())[0], teacher(images())[0])


def test_warmup_and_clipping(mini_data, tmp_path):
    import json

    train(mini_data, tmp_path, "train_source.py", "timm:test_vit", "--warmup 4 --clip-grad 1e-3 --optim SGD --momentum 0")
    rows = [json.loads(line) for line in open(tmp_path / "metrics.jsonl")]
    assert [row["lr_G"] for row in rows if "lr_G" in row] == pytest.approx([0.25e-3, 0.5 * 1e-3 * 0.5**0.9])
    args = train_source.get_arguments(arguments_of(mini_data, tmp_path, "train_source.py", "timm:test_vit", "--clip-grad 0.5"))
    network = small("timm:test_vit")
    optimizer = segmentation_optimizer(network.parameter_groups(), args.with_values(updates="clean", momentum=0.0))
    run = types.SimpleNamespace(
        args=args, updated={}, network=network, optimizers={"G": optimizer}, scaler=torch.amp.GradScaler("cpu", enabled=False)
    )
    network(images())[-1].square().sum().backward()
    Run.update(run, optimizer)
    norm = torch.cat([value.grad.flatten() for value in network.parameters() if value.grad is not None]).norm()
    assert norm.item() == pytest.approx(0.5, rel=1e-4)
