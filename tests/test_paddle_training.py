"""--protocol paddle of train_adaptsegnet.py and train_clan.py: losses, schedules, optimizers and trained tensors of the two
reproductions in PaddlePaddle, and four steps of each that resume exactly."""

import json
import random
from argparse import Namespace

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from fill import noise

import train_adaptsegnet
import train_clan
from model import OutputDiscriminator, build_model
from model.checkpoint_formats import to_paddle
from model.paddle import write_pdparams
from utils.losses import cross_entropy
from utils.optimizers import discriminator_optimizer, poly, segmentation_optimizer, set_learning_rate

SCRIPTS = {"adaptsegnet": train_adaptsegnet, "clan": train_clan}


def close(actual, expected, tolerance=1e-5):
    expected = np.asarray(expected)
    np.testing.assert_allclose(np.asarray(actual.detach()), expected, rtol=0, atol=tolerance * np.abs(expected).max())


# The recordings


@pytest.mark.parametrize("method", SCRIPTS)
def test_segmentation_loss(method, golden):
    recorded = golden("paddle/losses.npz")
    loss_of = train_clan.PROTOCOLS["paddle"].segmentation_loss if method == "clan" else cross_entropy
    logits = torch.from_numpy(noise("paddle/losses/logits", recorded["logits_shape"], 0, 3)).requires_grad_()
    loss = loss_of(logits, torch.from_numpy(recorded["label"]))
    loss.backward()
    close(loss, recorded[f"{method}/ce/loss"])
    close(logits.grad, recorded[f"{method}/ce/grad"])


@pytest.mark.parametrize("domain", (0, 1))
def test_weighted_adversarial_loss(domain, golden):
    recorded = golden("paddle/losses.npz")
    shape = (1, 1, *recorded["logits_shape"][2:])
    logits = torch.from_numpy(noise("paddle/losses/D", shape, 0, 2)).requires_grad_()
    weight = torch.from_numpy(noise("paddle/losses/weight", shape, 0, 0.3)).abs()
    loss = train_clan.adversarial_loss(logits, domain, weight, epsilon=0.4, lambda_local=10)
    loss.backward()
    close(loss, recorded[f"clan/weighted_bce/{domain}/loss"])
    close(logits.grad, recorded[f"clan/weighted_bce/{domain}/grad"])


def test_schedule_of_adaptsegnet(golden):
    """It ends above 0, which leaves the discriminators' rate where it is."""
    recorded, last_rate = golden("paddle/schedule.npz"), train_adaptsegnet.PROTOCOLS["paddle"].last_rate
    args = train_adaptsegnet.get_arguments(["--protocol", "paddle"])
    for name, base in (("G", args.learning_rate), ("D", args.learning_rate_D)):
        steps = recorded["adaptsegnet/iterations"].tolist()
        rates = [poly(base, step, args.num_steps, args.power, last_rate) for step in steps]
        np.testing.assert_allclose(rates, recorded[f"adaptsegnet/{name}"], rtol=1e-6)


def test_schedule_of_clan(golden):
    recorded = golden("paddle/schedule.npz")
    args = train_clan.get_arguments(["--protocol", "paddle"])
    for name, base in (("G_all_parameters", args.learning_rate), ("D", args.learning_rate_D)):
        rates = [train_clan.rate_at(base, step, args) for step in recorded["clan/iterations"].tolist()]
        np.testing.assert_allclose(rates, recorded[f"clan/{name}"], rtol=1e-6)


@pytest.mark.parametrize("name", ("momentum", "adam"))
def test_optimizers(name, golden):
    parameter = torch.nn.Parameter(torch.from_numpy(noise("paddle/optimizer/start", (6,), 0)))
    if name == "momentum":
        args = Namespace(optim="SGD", updates="clean", learning_rate=0.1, momentum=0.9, weight_decay=5e-4)
        optimizer = segmentation_optimizer([{"params": [parameter], "lr_multiplier": 1, "visits": 3}], args)
    else:
        optimizer = discriminator_optimizer([parameter], "clean", 0.01)
    for i, expected in enumerate(golden("paddle/schedule.npz")[f"optimizer/{name}"]):
        parameter.grad = torch.from_numpy(noise(f"paddle/optimizer/gradient{i}", (6,), 0))
        optimizer.step()
        close(parameter, expected, 1e-6)


@pytest.mark.parametrize("method, name", [("adaptsegnet", "DeeplabMulti"), ("clan", "ResNet")])
def test_trained_tensors_and_their_rates(method, name):
    """The reproductions also list tensors without a gradient: AdaptSegNet's unused branches; CLAN's statistics, and biases that
    are folded into the norms here."""
    protocol = SCRIPTS[method].PROTOCOLS["paddle"]
    args = SCRIPTS[method].get_arguments(["--protocol", "paddle"])
    network = build_model(name, batch_norm=args.batch_norm)
    if method == "clan":
        assert protocol.stem_norm_fixed
        network.freeze_stem_norm()
    theirs = json.loads((GOLDEN / "paddle/keys.json").read_text())[f"{'CLAN' if method == 'clan' else 'AdaptSegNet'}-Paddle G"]
    without_gradient = ("_mean", "_variance", "downsample.0.bias")
    without_gradient += tuple(f"conv2d_list.{i}.{kind}" for i in (2, 3) for kind in ("weight", "bias")) * (method != "clan")
    expected = {key for key in theirs["trainable"] if not key.endswith(without_gradient)}
    assert {key for key, parameter in network.named_parameters() if parameter.requires_grad} == expected
    groups = network.parameter_groups(protocol.head_multiplier)
    assert sum(len(group["params"]) for group in groups) == len(expected)
    optimizer = segmentation_optimizer(groups, args)
    set_learning_rate(optimizer, 0.5)
    assert type(optimizer) is torch.optim.SGD and {group["lr"] for group in optimizer.param_groups} == {0.5}


# The settings


def test_values_of_the_protocols():
    original, paddle = (train_clan.get_arguments(["--protocol", name]) for name in ("original", "paddle"))
    assert vars(original) == vars(train_clan.get_arguments([]))
    assert {key: (getattr(original, key), value) for key, value in vars(paddle).items() if value != getattr(original, key)} == {
        "protocol": ("original", "paddle"),
        "source": ("gta5", "synthia"),
        "data_dir": ("./data/GTA5", "./data/SYNTHIA"),
        "input_size": ((1280, 720), (1024, 512)),
        "learning_rate": (2.5e-4, 2.5e-3),
        "learning_rate_D": (1e-4, 1e-3),
        "updates": ("published", "clean"),
        "batch_norm": ("frozen-affine", "train"),
        "lambda_local": (40.0, 10.0),
    }
    original, paddle = (train_adaptsegnet.get_arguments(["--protocol", name]) for name in ("original", "paddle"))
    assert vars(original) == vars(train_adaptsegnet.get_arguments([]))
    assert paddle == original.with_values(protocol="paddle", updates="clean")


def test_flags_win_over_the_protocol():
    """Before and after --protocol, and also with the other protocol's value."""
    given = "--learning-rate 2.5e-4 --learning-rate-D 0 --updates published --batch-norm frozen-affine --lambda-local 3"
    args = train_clan.get_arguments(f"--source GTA5 --protocol paddle {given} --preheat-steps 0".split())
    assert (args.source, args.data_dir, args.input_size) == ("gta5", "./data/GTA5", (1280, 720))
    assert (args.learning_rate, args.learning_rate_D, args.updates) == (2.5e-4, 0.0, "published")
    assert (args.batch_norm, args.lambda_local, args.preheat_steps) == ("frozen-affine", 3.0, 0)
    args = train_clan.get_arguments("--input-size 1280,760 --protocol paddle".split())
    assert (args.source, args.input_size) == ("synthia", (1280, 760))
    assert train_adaptsegnet.get_arguments("--protocol paddle --updates published".split()).updates == "published"


@pytest.mark.parametrize(
    "protocol, flags, sizes",
    [
        ("paddle", [], {(96, 48)}),
        ("paddle", ["--random-scale", "False"], {(64, 32)}),
        ("original", [], {(51, 25), (64, 32), (70, 35)}),
    ],
)
def test_scale(protocol, flags, sizes):
    """The image's size alone; it is mirrored with its label."""
    args = train_clan.get_arguments(["--protocol", protocol, *flags])
    transform, image = train_clan.augmentation(args, (64, 32)), torch.randint(0, 256, (3, 40, 80), dtype=torch.uint8)
    label = torch.zeros(40, 80, dtype=torch.uint8)
    found = set()
    for seed in range(30):
        scaled, resized = transform(image, label, random.Random(seed), random.Random(seed))
        assert resized.shape == (32, 64)
        found.add(tuple(scaled.shape[:0:-1]))
    assert found == sizes


# Runs


def train(script, mini_data, directory, *flags):
    """From files of Paddle's, in the folder above the run's."""
    source = "SYNTHIA" if script is train_clan else "GTA5"
    script.main(
        script.get_arguments(
            [
                *(
                    "--protocol",
                    "paddle",
                    "--data-dir",
                    f"{mini_data}/{source}",
                    "--data-dir-target",
                    f"{mini_data}/Cityscapes",
                ),
                *("--input-size", "64,32", "--input-size-target", "64,32", "--model", "MiniResNet18"),
                *("--restore-from", f"{directory.parent}/G.pdparams"),
                *(
                    "--device",
                    "cpu",
                    "--num-workers",
                    "0",
                    "--num-steps",
                    "8",
                    "--log-every",
                    "1",
                    "--snapshot-dir",
                    str(directory),
                ),
                *flags,
            ]
        )
    )
    return [json.loads(line) for line in open(directory / "metrics.jsonl")]


@pytest.mark.parametrize("method", SCRIPTS)
def test_four_steps_run_and_resume_exactly(method, mini_data, tmp_path):
    script, name = SCRIPTS[method], {"adaptsegnet": "GTA5", "clan": "SYNTHIA"}[method]
    more = ["--preheat-steps", "1"] if method == "clan" else []
    write_pdparams(tmp_path / "G.pdparams", to_paddle(build_model("MiniResNet18", heads="twin" if more else "multi")))
    names = ["D.pdparams"] if method == "clan" else ["D1.pdparams", "D2.pdparams"]
    for each in names:
        state = OutputDiscriminator().state_dict()
        write_pdparams(tmp_path / each, {key: value.numpy() for key, value in state.items()})
    more += ["--restore-discriminator", ",".join(str(tmp_path / each) for each in names)]
    rows = train(script, mini_data, tmp_path / "whole", "--num-steps-stop", "4", *more)
    train(script, mini_data, tmp_path / "parts", "--num-steps-stop", "2", *more)
    train(script, mini_data, tmp_path / "parts", "--num-steps-stop", "4", "--resume", *more)
    with pytest.raises(ValueError, match="--protocol paddle .now original."):
        other = ["--protocol", "original", "--source", name]
        train(script, mini_data, tmp_path / "parts", "--num-steps-stop", "4", "--resume", *other, *more)
    files = sorted(path.name for path in (tmp_path / "whole").glob(f"{name}_4*.pth"))
    assert files == sorted(f"{name}_4{suffix}.pth" for suffix in ({"clan": ("", "_D")}.get(method, ("", "_D1", "_D2"))))
    for file in files:
        whole, parts = (torch.load(tmp_path / part / file, weights_only=True) for part in ("whole", "parts"))
        assert all(torch.equal(value, parts[key]) for key, value in whole.items())

    state = torch.load(tmp_path / "whole" / f"{name}_4.pth", weights_only=True)
    assert state["bn1.weight"].eq(1).all() and state["bn1.running_mean"].any()
    assert state["layer1.0.bn1.weight"].eq(1).all() == (method == "adaptsegnet")
    if method == "adaptsegnet":
        assert [row["lr_G"] for row in rows] == pytest.approx([1e-4 + 1.5e-4 * (1 - i / 8) ** 0.9 for i in range(4)])
        assert [row["lr_D"] for row in rows] == [1e-4] * 4
    else:
        assert [row["lr_G"] for row in rows] == pytest.approx([0] + [2.5e-3 * (1 - i / 8) ** 0.9 for i in range(1, 4)])
        assert [row["lr_D"] for row in rows] == pytest.approx([0] + [1e-3 * (1 - i / 8) ** 0.9 for i in range(1, 4)])
    optimizers = torch.load(tmp_path / "whole/state.pth", weights_only=True)["optimizers"]
    assert {group["lr"] for group in optimizers["G"]["param_groups"]} == {rows[-1]["lr_G"]}


@pytest.mark.parametrize("method, name", [("adaptsegnet", "DeepLab_resnet_pretrained_init-f81d91e8"), ("clan", "pretrained")])
def test_training_starts_from_the_reproductions_file(method, name, mini_data, tmp_path, monkeypatch):
    """It is looked for in ./model, and named if it is not there."""
    monkeypatch.chdir(tmp_path)
    script, source = SCRIPTS[method], {"adaptsegnet": "GTA5", "clan": "SYNTHIA"}[method]
    args = script.get_arguments(
        [
            *("--protocol", "paddle", "--data-dir", f"{mini_data}/{source}", "--data-dir-target", f"{mini_data}/Cityscapes"),
            *("--model", "MiniResNet18", "--device", "cpu", "--num-workers", "0"),
        ]
    )
    with pytest.raises(ValueError, match=f"no weights to start from: {name}.pdparams is neither in ./model"):
        script.main(args)
