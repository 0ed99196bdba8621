"""AdvEnt and MinEnt, options of train_adaptsegnet.py, against recordings of the original."""

import json

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from fill import fill, noise
from filled import filled, filled_state
from PIL import Image

import train_adaptsegnet
from dataset.reading import read_image
from dataset.transforms import Resize
from model import OutputDiscriminator, build_model, load_model, load_weights, read_discriminator, upsample
from scripts import convert_checkpoint
from train_adaptsegnet import adversarial_loss, entropy, self_information
from utils import domains
from utils.domains import endless
from utils.evaluation import predict
from utils.losses import cross_entropy
from utils.optimizers import poly

KEYS = json.loads((GOLDEN / "advent/keys.json").read_text())
INPUTS = GOLDEN / "advent/trajectory_inputs"


def discriminator(name):
    """The recorded weights under ADVENT's keys."""
    filled_keys = fill({f"{name}.{key}": shape for key, shape in KEYS["discriminator"].items()}, 0)
    return {key.removeprefix(f"{name}."): torch.from_numpy(value) for key, value in filled_keys.items()}


# Losses


def test_self_information_and_its_gradient(golden):
    recorded = golden("advent/losses.npz")
    logits = torch.from_numpy(noise("advent/losses/logits", recorded["shape"], 0, recorded["logits_scale"])).requires_grad_()
    maps = self_information(logits)
    np.testing.assert_allclose(maps[:, :, ::4, ::4].detach(), recorded["entropy_map/sub"], rtol=0, atol=1e-6)
    summed = maps.sum(1)
    np.testing.assert_allclose(
        (summed.min().item(), summed.max().item()), recorded["entropy_map/channel_sum_minmax"], rtol=0, atol=1e-5
    )
    (maps * torch.from_numpy(noise("advent/losses/probe", recorded["shape"], 0))).sum().backward()
    expected = recorded["entropy_map/grad_sub"]
    np.testing.assert_allclose(logits.grad[:, :, ::4, ::4], expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_self_information_of_sure_and_unsure_pixels(golden):
    recorded = golden("advent/losses.npz")
    probabilities = torch.zeros(3, 19)
    probabilities[0, 0], probabilities[1], probabilities[2, :2] = 1, 1 / 19, 0.5
    ours = self_information(probabilities.clamp(min=1e-38).log()[:, :, None, None])[:, :, 0, 0]
    np.testing.assert_allclose(ours, recorded["entropy_map/onehot_uniform_half"], rtol=0, atol=1e-6)
    logits = torch.zeros(1, 19, 1, 1)
    logits[:, 0] = 200
    logits.requires_grad_()
    maps = self_information(logits)
    maps.sum().backward()
    value, gradient = recorded["entropy_map/saturated_value_grad"]
    np.testing.assert_allclose(maps[0, :, 0, 0].detach(), value, atol=1e-7)
    np.testing.assert_allclose(logits.grad[0, :, 0, 0], gradient, atol=1e-7)


def test_entropy_and_segmentation_losses(golden):
    recorded = golden("advent/losses.npz")
    logits = torch.from_numpy(noise("advent/losses/logits", recorded["shape"], 0, recorded["logits_scale"])).requires_grad_()
    for name, loss in (("minent", entropy(logits)), ("seg", cross_entropy(logits, torch.from_numpy(recorded["labels"])))):
        (gradient,) = torch.autograd.grad(loss, logits)
        np.testing.assert_allclose(loss.item(), recorded[f"{name}/loss"], rtol=1e-6)
        expected = recorded[f"{name}/grad_sub"]
        np.testing.assert_allclose(gradient[:, :, ::4, ::4], expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("domain", (0, 1))
def test_discriminators_loss(domain, golden):
    recorded = golden("advent/losses.npz")
    output = torch.from_numpy(recorded["bce/input"]).requires_grad_()
    loss = adversarial_loss(output, domain, "Vanilla")
    loss.backward()
    np.testing.assert_allclose(loss.item(), recorded[f"bce_label{domain}/loss"], rtol=1e-6)
    np.testing.assert_allclose(output.grad, recorded[f"bce_label{domain}/grad"], rtol=1e-5, atol=1e-8)


def test_the_chain_through_the_discriminator(golden):
    recorded = golden("advent/losses.npz")
    logits = torch.from_numpy(noise("advent/losses/chain/pred", recorded["chain/pred_shape"], 0, 2)).requires_grad_()
    D = OutputDiscriminator()
    state = discriminator("D_main")
    D.load_state_dict(dict(zip(D.state_dict(), state.values(), strict=True)))
    output = D(self_information(upsample(logits, recorded["chain/size_hw"].tolist())))
    np.testing.assert_allclose(output.detach(), recorded["chain/d_out"], rtol=1e-4, atol=1e-6)
    loss = recorded["chain/lambda"].item() * adversarial_loss(output, 0, "Vanilla")
    (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
    np.testing.assert_allclose(loss.item(), recorded["chain/generator/loss"], rtol=1e-5)
    expected = recorded["chain/generator/grad"]
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    for domain, name in enumerate(("d_source", "d_target")):
        D.zero_grad()
        loss = adversarial_loss(output, domain, "Vanilla") / 2
        loss.backward(retain_graph=True)
        np.testing.assert_allclose(loss.item(), recorded[f"chain/{name}/loss"], rtol=1e-5)
        norms = [parameter.grad.norm().item() for parameter in D.parameters()]
        np.testing.assert_allclose(norms, recorded[f"chain/{name}/D_grad_norm"], rtol=1e-4)


# Networks, files, settings


@pytest.mark.parametrize("levels", ("multi_level", "single_level"))
def test_files_there_and_back(levels, tmp_path):
    """ADVENT's own keys; of a single-level network `layer6` is the only classifier."""
    shapes = KEYS["multi_level"]["state"] if levels == "multi_level" else KEYS["single_level"]["state"]
    if not isinstance(shapes, dict):
        shapes = {key: shape for key, shape in KEYS["multi_level"]["state"].items() if not key.startswith("layer5")}
    state = {key: torch.from_numpy(value) for key, value in fill(shapes, 0).items()}
    torch.save(state, tmp_path / "model_2000.pth")
    model = load_model(tmp_path / "model_2000.pth")
    single = levels == "single_level"
    assert model.head_names == (("layer5",) if single else ("layer5", "layer6"))
    if single:
        assert model.aspp_branches == 4 and "a single-level network of ADVENT" in model.load_report
        assert torch.equal(model.layer5.conv2d_list[3].weight, state["layer6.conv2d_list.3.weight"])
    words = [f"{tmp_path}/model_2000.pth", f"{tmp_path}/out.pth", "--to", "advent" if single else "plain"]
    convert_checkpoint.main(convert_checkpoint.get_arguments(words))
    written = torch.load(tmp_path / "out.pth", weights_only=True)
    assert written.keys() == state.keys()
    assert all(torch.equal(written[key], state[key]) for key in state)


def test_outputs_of_networks_with_four_branches(golden):
    recorded = golden("advent/models.npz")
    network = filled(build_model("DeeplabMulti", aspp_branches=4)).eval()
    image = torch.from_numpy(noise("advent/models/input", recorded["input_shape"], 0, 50))
    with torch.no_grad():
        outputs = {"eval": network(image), "train_damped": filled(network, bn3=0.1).train()(image)}
    for mode, pair in outputs.items():
        for ours, name in zip(pair, ("out_aux", "out_main"), strict=True):
            expected = recorded[f"{mode}/{name}"]
            np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-3 * np.abs(expected).max())


def test_its_discriminators_are_read(golden, tmp_path):
    recorded = golden("advent/models.npz")
    state = {key: torch.from_numpy(value) for key, value in fill(KEYS["discriminator"], 0).items()}
    torch.save(state, tmp_path / "model_2000_D_main.pth")
    D = OutputDiscriminator()
    report = load_weights(D, read_discriminator(tmp_path / "model_2000_D_main.pth"), "D")
    assert "a discriminator of ADVENT" in report
    height, width = recorded["input_shape"][2:]
    with torch.no_grad():
        output = D(torch.from_numpy(noise("advent/models/D/input", (1, 19, height, width), 0, 1)))
    np.testing.assert_allclose(output, recorded["D/out"], rtol=1e-4, atol=1e-5)


def test_published_settings(golden):
    recorded = golden("advent/schedule.npz")
    args = train_adaptsegnet.get_arguments(["--protocol", "advent"])
    assert (args.target_loss, args.aspp_branches, args.num_steps_stop) == ("adversarial-entropy", 4, 120001)
    assert (args.save_pred_every, args.lambda_adv_target1, args.lambda_adv_target2) == (2000, 0.0002, 0.001)
    assert (args.num_steps, args.power) == tuple(recorded["max_iters_power"])
    rates = [(args.learning_rate, 1), (args.learning_rate, 10), (args.learning_rate_D, 1)]
    ours = [
        [factor * poly(rate, int(step), args.num_steps, args.power) for rate, factor in rates] for step in recorded["steps"]
    ]
    np.testing.assert_allclose(ours, recorded["lr_trunk_classifiers_D"], rtol=1e-12)
    args = train_adaptsegnet.get_arguments(["--protocol", "minent", "--save-pred-every", "7"])
    assert (args.target_loss, args.num_steps_stop, args.save_pred_every) == ("entropy", 120000, 7)
    args = train_adaptsegnet.get_arguments([])
    assert (args.target_loss, args.aspp_branches, args.save_pred_every) == ("adversarial", None, 5000)


def test_evaluation(golden):
    """Predictions of one network, and of two whose upsampled logits are averaged."""
    recorded = golden("advent/evaluate.npz")
    network = build_model("DeeplabMulti", aspp_branches=4)
    height, width = (int(side) for side in recorded["output_wh"][::-1])
    scores = []
    for seed in (0, 100):
        network = filled(network, bn3=0.1, seed=seed).eval()
        image = read_image(str(GOLDEN / "advent/evaluate/leftImg8bit/val/0_leftImg8bit.png"))
        image, _ = Resize(tuple(int(side) for side in recorded["network_input_wh"]))(image, None, None, None)
        with torch.inference_mode():
            scores.append(predict(network, image[None], (height, width)))
    for case, score in (("single", scores[0]), ("two_models", sum(scores) / 2)):
        different = (score.argmax(1)[0].numpy() != recorded[f"{case}/prediction"][0]).mean()
        assert different < 0.01, (case, different)  # the image was resized by PyTorch, not by Pillow


# Training


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The recorded images in the official layouts, resized as the original does, and the weights to start from."""
    root = tmp_path_factory.mktemp("advent")
    args = json.loads(str(np.load(GOLDEN / "advent/trajectory_multi.npz")["args"]))
    source, target = tuple(args["size_source"]), tuple(args["size_target"])
    for i in range(2):
        files = {
            f"GTA5/images/0000{i}.png": Image.open(INPUTS / f"images/{i}.png").convert("RGB").resize(source, Image.BICUBIC),
            f"GTA5/labels/0000{i}.png": Image.open(INPUTS / f"labels/{i}.png").resize(source, Image.NEAREST),
            f"Cityscapes/leftImg8bit/train/city/city_00000{i}_000019_leftImg8bit.png": Image.open(
                INPUTS / f"leftImg8bit/train/{i}_leftImg8bit.png"
            )
            .convert("RGB")
            .resize(target, Image.BICUBIC),
        }
        for name, image in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            image.save(root / name)
    state = filled_state(build_model("DeeplabMulti"), bn3=0.1)
    torch.save(state, root / "multi.pth")
    torch.save({key: value for key, value in state.items() if not key.startswith("layer5")}, root / "single.pth")
    for name in ("D_aux", "D_main"):
        torch.save(discriminator(name), root / f"{name}.pth")
    return root


CASES = [
    ("multi", "published", "old"),
    ("multi", "clean", "unique"),
    ("single", "published", "old"),
    ("minent", "published", "old"),
]


@pytest.mark.slow
@pytest.mark.parametrize("case, updates, variant", CASES)
def test_four_steps_match_the_original(case, updates, variant, data, tmp_path, golden, monkeypatch):
    recorded = golden(f"advent/trajectory_{case}.npz")

    def ordered(args, dataset, seed_offset=0):
        return endless(args, dataset, order=[0, 1] * 9)

    monkeypatch.setattr(domains, "endless", ordered)
    D = {"multi": f"{data}/D_aux.pth,{data}/D_main.pth", "single": f"{data}/D_main.pth"}.get(case)
    words = [
        *("--protocol", "minent" if case == "minent" else "advent", "--levels", "1" if case == "single" else "2"),
        *("--data-dir", str(data / "GTA5"), "--data-dir-target", str(data / "Cityscapes")),
        *("--restore-from", str(data / ("single.pth" if case == "single" else "multi.pth")), "--updates", updates),
        *(["--restore-discriminator", D] if D else []),
        *("--input-size", "128,72", "--input-size-target", "96,48", "--num-steps-stop", "4", "--save-pred-every", "3"),
        *("--snapshot-dir", str(tmp_path), "--num-workers", "0", "--device", "cpu", "--log-every", "1"),
    ]
    train_adaptsegnet.main(train_adaptsegnet.get_arguments(words))
    rows = [json.loads(line) for line in open(tmp_path / "metrics.jsonl")]
    # The original prints the discriminators' loss on the target, halved.
    names = {"seg_src": ("loss_seg", 1), "adv_trg": ("loss_adv", 1), "ent": ("loss_target", 1), "d": ("loss_D_target", 0.5)}
    for column, name in enumerate(recorded["loss_columns"]):
        part, level = name.removeprefix("loss_").rsplit("_", 1)
        key, factor = names[part]
        ours = [factor * row.get(key + ("_low" if level == "aux" else ""), 0.0) for row in rows]
        np.testing.assert_allclose(ours, recorded[f"{variant}/losses"][:, column], rtol=1e-4, err_msg=str(name))
    columns = [[row["lr_G"], 10 * row["lr_G"], *([row["lr_D"]] if D else [])] for row in rows]
    np.testing.assert_allclose(columns, recorded["lr"], rtol=1e-12)
    compare(
        recorded, variant, "G", torch.load(data / "multi.pth", weights_only=True), tmp_path / "GTA5_4.pth", case == "single"
    )
    for name, suffix in (("D_aux", "_D1"), ("D_main", "_D2")):
        if (tmp_path / f"GTA5_4{suffix}.pth").exists():
            compare(recorded, variant, name, discriminator(name), tmp_path / f"GTA5_4{suffix}.pth", False)


def compare(recorded, variant, network, before, snapshot, single):
    """Changes since the start, under ADVENT's keys."""
    after = torch.load(snapshot, weights_only=True)
    if single:
        after = {key.replace("layer5.", "layer6."): value for key, value in after.items()}
    if network != "G":
        after = dict(zip(before, after.values(), strict=True))
    keys = recorded["G_keys" if network == "G" else "D_keys"]
    changes = {key: after[key].double() - before[key].double() for key in keys}
    ours = np.array([changes[key].square().mean().sqrt().item() for key in keys])
    expected = recorded[f"{variant}/{network}/rms_change"]
    moving = expected > 1e-12
    np.testing.assert_allclose(ours[moving], expected[moving], rtol=1e-3, err_msg=network)
    assert (ours[~moving] < 1e-12).all()
    for key, first8 in zip(keys, recorded[f"{variant}/{network}/first8_change"], strict=True):
        first8 = first8[: changes[key].numel()]
        actual = changes[key].flatten()[:8].numpy()
        np.testing.assert_allclose(actual, first8, rtol=0, atol=2e-2 * np.abs(first8).max() + 1e-12, err_msg=key)


def mini(mini_data, directory, *more):
    words = [
        *("--data-dir", f"{mini_data}/GTA5", "--data-dir-target", f"{mini_data}/Cityscapes", "--model", "MiniResNet18"),
        *("--input-size", "96,48", "--input-size-target", "96,48", "--restore-from", "none", "--device", "cpu"),
        *("--num-workers", "0", "--num-steps", "2", "--log-every", "1", "--snapshot-dir", str(directory), *more),
    ]
    train_adaptsegnet.main(train_adaptsegnet.get_arguments(words))
    return [json.loads(line) for line in open(directory / "metrics.jsonl")], {path.name for path in directory.glob("GTA5_*")}


def test_each_protocol_has_its_losses_and_files(mini_data, tmp_path):
    rows, files = mini(mini_data, tmp_path / "advent", "--protocol", "advent")
    assert {"loss_adv", "loss_adv_low", "loss_D_source", "lr_D"} <= rows[-1].keys() and "loss_target" not in rows[-1]
    assert files == {"GTA5_2.pth", "GTA5_2_D1.pth", "GTA5_2_D2.pth"}
    rows, files = mini(mini_data, tmp_path / "single", "--protocol", "advent", "--levels", "1")
    assert "loss_adv_low" not in rows[-1] and files == {"GTA5_2.pth", "GTA5_2_D2.pth"}
    rows, files = mini(mini_data, tmp_path / "minent", "--protocol", "minent")
    assert {"loss_target", "loss_target_low"} <= rows[-1].keys() and not {"loss_adv", "lr_D"} & rows[-1].keys()
    assert files == {"GTA5_2.pth"} and 0 < rows[-1]["loss_target"] < 1
