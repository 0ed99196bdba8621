"""train_clan.py against the original's losses, schedule, networks and recorded training steps across the warm-up."""

import json

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from fill import noise
from filled import filled, filled_state
from PIL import Image
from torch.nn import functional as F

import train_clan
from dataset.catalogue import CITYSCAPES, DATA_SETS, label_table
from dataset.reading import read_synthia_label
from model import OutputDiscriminator, build_model, load_model, upsample
from train_clan import adversarial_loss, disagreement, focal_loss, rate_at, weight_discrepancy
from utils.evaluation import predict

INPUTS = GOLDEN / "clan/trajectory_inputs"


@pytest.fixture
def losses(golden):
    return golden("clan/losses.npz")


def close(actual, expected, tolerance=1e-5):
    expected = np.asarray(expected)
    np.testing.assert_allclose(np.asarray(actual.detach()), expected, rtol=0, atol=tolerance * np.abs(expected).max() + 1e-12)


def uint8_labels(array):
    return torch.from_numpy(np.where(array < 0, 255, array).astype(np.uint8))


@pytest.mark.parametrize("case", ("focal", "focal_extreme"))
def test_focal_loss(case, losses):
    logits = torch.from_numpy(losses[f"{case}/logits"]).requires_grad_()
    loss = focal_loss(logits, uint8_labels(losses[f"{case}/labels"]))
    loss.backward()
    close(loss, losses[f"{case}/loss"])
    close(logits.grad, losses[f"{case}/grad"])


def test_focal_loss_of_a_batch_is_the_mean_over_its_pixels(losses):
    """The original mixes up the pixels of two images (its value is recorded); here they are what they are."""
    logits, label = torch.from_numpy(losses["focal_batch2/logits"]), uint8_labels(losses["focal_batch2/labels"])
    counts = [(image != 255).sum() for image in label]
    each = [focal_loss(logits[i : i + 1], label[i : i + 1]) * counts[i] for i in range(2)]
    close(focal_loss(logits, label), (sum(each) / sum(counts)).numpy())
    assert abs(focal_loss(logits, label).item() - losses["focal_batch2/loss"]) > 1e-3


def test_focal_loss_without_labelled_pixels(losses):
    logits = torch.from_numpy(losses["focal_all_ignored/logits"]).requires_grad_()
    loss = focal_loss(logits, uint8_labels(losses["focal_all_ignored/labels"]))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


@pytest.mark.parametrize("domain", (0, 1))
def test_weighted_adversarial_loss(domain, losses):
    logits, weight = (torch.from_numpy(losses[f"wbce/{name}"]).requires_grad_() for name in ("input", "weight"))
    epsilon, lambda_local = losses["wbce/alpha_beta"].tolist()
    loss = adversarial_loss(logits, domain, weight, epsilon, lambda_local)
    loss.backward()
    case = f"wbce_label{domain}"
    close(loss, losses[f"{case}/loss"])
    close(logits.grad, losses[f"{case}/grad_input"])
    close(weight.grad, losses[f"{case}/grad_weight"])
    close(adversarial_loss(logits, domain), losses[f"{case}/loss_no_weight"])


def test_discrepancy_map(losses):
    first, second = (torch.from_numpy(losses[f"weightmap/pred{i}"]).requires_grad_() for i in (1, 2))
    result = disagreement(first, second)
    (result * torch.from_numpy(losses["weightmap/probe"])).sum().backward()
    close(result, losses["weightmap/map"], 2e-5)
    close(first.grad, losses["weightmap/grad1"], 1e-4)
    close(second.grad, losses["weightmap/grad2"], 1e-4)
    pair = torch.cat([first, first + 1]), torch.cat([second, second * 2])
    close(disagreement(*pair)[:1], losses["weightmap/map"], 2e-5)  # any batch size


def test_weight_discrepancy(losses):
    G = filled(build_model("ResNet"))
    with torch.no_grad():
        for ours, other in zip(G.layer6.parameters(), G.layer5.parameters(), strict=True):
            ours += losses["discrepancy/layer6_plus_times_layer5"].item() * other
    loss = weight_discrepancy(*G.heads())
    close(loss, losses["discrepancy/cosine_plus_1"])
    loss = 2 * losses["discrepancy/lambda_weight"].item() * losses["discrepancy/damping"].item() * loss
    close(loss, losses["discrepancy/loss"])
    loss.backward()
    parameters = dict(G.named_parameters())
    # All four branches of both classifiers count.
    assert sum(p.numel() for p in G.layer5.parameters()) == losses["discrepancy/vector_length"]
    norms = [parameters[key].grad.norm().item() for key in losses["discrepancy/grad_keys"]]
    np.testing.assert_allclose(norms, losses["discrepancy/grad_norm"], rtol=1e-4)


@pytest.mark.parametrize("case", ("plain", "weighted"))
def test_the_whole_chain_to_the_predictions(case, losses):
    first, second = (
        torch.from_numpy(noise(f"losses/chain/pred{i}", losses["chain/pred_shape"], 0, 2)).requires_grad_() for i in (1, 2)
    )
    lambda_adv, epsilon, lambda_local, damping = losses["chain/lambda_adv_epsilon_lambda_local_damping"].tolist()
    D = filled(OutputDiscriminator())
    domain_logits = upsample(D(F.softmax(first + second, dim=1)), first.shape[2:])
    close(domain_logits[:, :, ::4, ::4], losses["chain/d_out_upsampled_sub"], 1e-4)
    weight = disagreement(first, second) if case == "weighted" else None
    loss = lambda_adv * damping * adversarial_loss(domain_logits, 0, weight, epsilon, lambda_local)
    loss.backward()
    close(loss, losses[f"chain_{case}/loss"], 1e-4)
    for i, pred in ((1, first), (2, second)):
        close(pred.grad[:, :, ::4, ::4], losses[f"chain_{case}/grad{i}_sub"], 1e-4)


def test_networks(golden):
    recorded = golden("clan/models.npz")
    keys = json.loads((GOLDEN / "clan/keys.json").read_text())["Res_Deeplab"]["state"]
    network = filled(build_model("ResNet"))
    assert {key: list(value.shape) for key, value in network.state_dict().items()} == keys
    image = torch.from_numpy(noise("models/Res_Deeplab/input", recorded["input_shape"], 0, 50))
    for mode in ("eval", "train"):
        with torch.no_grad():
            outputs = network.train(mode == "train")(image)
        for i, output in enumerate(outputs, 1):
            expected = recorded[f"{mode}/out{i}"]
            tolerance = max(1e-4 * np.abs(expected).max(), recorded.get(f"{mode}/out{i}_err64", np.float32(0)))
            np.testing.assert_allclose(output.numpy(), expected, rtol=0, atol=tolerance)


def test_predictions_sum_the_classifiers(golden, tmp_path):
    recorded = golden("clan/evaluate.npz")
    torch.save(filled_state(build_model("ResNet")), tmp_path / "GTA5_2000.pth")
    network = load_model(tmp_path / "GTA5_2000.pth")
    assert network.settings["name"] == "ResNet" and network.default_heads == "sum"
    name = "city_000000_000019_leftImg8bit"
    image = Image.open(GOLDEN / f"clan/evaluate/Cityscapes/leftImg8bit/val/city/{name}.png").convert("RGB")
    image = torch.from_numpy(np.array(image.resize((256, 128), Image.BICUBIC))).permute(2, 0, 1)[None]
    with torch.inference_mode():
        result = predict(network, image, (256, 512))[0]
    close(result[:, ::16, ::16], recorded["0/scores_sub"], 1e-4)
    expected = np.array(Image.open(GOLDEN / f"clan/evaluate/result/{name}.png"))
    assert (result.argmax(0).numpy() != expected).sum() <= int(recorded["0/pixels_with_margin_below_1e-3_of_absmax"])


def test_schedule(golden):
    recorded = golden("clan/schedule.npz")
    args = train_clan.get_arguments([])
    assert args.preheat_steps == recorded["preheat_steps"]
    for i, step in enumerate(recorded["steps"].tolist()):
        np.testing.assert_allclose(rate_at(args.learning_rate, step, args), recorded["lr_G_trunk"][i], rtol=1e-12)
        np.testing.assert_allclose(rate_at(args.learning_rate_D, step, args), recorded["lr_D"][i], rtol=1e-12)
        assert 1 - step / args.num_steps == pytest.approx(recorded["damping"][i])
        assert (step > args.preheat_steps) == bool(recorded["weighted_loss_used"][i])


def test_hyper_parameters_belong_to_the_source():
    assert train_clan.get_arguments([]).lambda_local == 40
    args = train_clan.get_arguments(["--source", "SYNTHIA"])
    assert (args.lambda_local, args.input_size, args.data_dir) == (10, (1280, 760), "./data/SYNTHIA")
    assert (args.lambda_weight, args.lambda_adv, args.epsilon, args.num_steps_stop, args.save_pred_every) == (
        0.01,
        0.001,
        0.4,
        100000,
        2000,
    )


class Recorded:
    """Stands in for a loader: the recorded pair, scaled and mirrored by the recorded draws with Pillow, as in the original."""

    def __init__(self, image, label, size, draws):
        self.image, self.label, self.size, self.draws = Image.open(INPUTS / image).convert("RGB"), label, size, draws
        self.step = 0
        self.dataset, self.batch_size, self.world_size = [image], 1, 1

    def __next__(self):
        scale, mirror = self.draws[self.step]
        self.step += 1
        factor = 1.1 if scale > 0.7 else 0.8 if scale < 0.3 else 1
        size = tuple(int(side * factor) for side in self.size)
        sample = {"image": np.array(self.image.resize(size, Image.BICUBIC))}
        if self.label is not None:
            sample["label"] = np.array(Image.fromarray(self.label).resize(self.size, Image.NEAREST))
        if mirror < 0.5:
            sample = {key: value[:, ::-1] for key, value in sample.items()}
        batch = {
            "image": torch.from_numpy(sample["image"].copy()).permute(2, 0, 1)[None],
            "path": ["recorded"],
            "name": ["recorded"],
        }
        if "label" in sample:
            batch["label"] = torch.from_numpy(sample["label"].copy())[None]
        return batch

    def state_dict(self):
        return {"position": self.step}

    def close(self):
        pass


@pytest.mark.parametrize("updates, variant", [("published", "old"), ("clean", "unique")])
@pytest.mark.parametrize("source", ("gta5", "synthia"))
def test_four_steps_across_the_warm_up_match_the_original(source, updates, variant, tmp_path, golden, monkeypatch):
    recorded = golden(f"clan/trajectory_{source}.npz")
    if source == "gta5":
        raw = np.array(Image.open(INPUTS / "label_gta5.png"))
    else:
        raw = read_synthia_label(INPUTS / "label_synthia.png")
    draws = recorded["random_draws"].tolist()
    loader = Recorded(
        "source.png", label_table(DATA_SETS[source].ids, CITYSCAPES)[raw], (120, 72), [draw[:2] for draw in draws]
    )
    monkeypatch.setattr(train_clan, "source_loader", lambda *_: loader)
    target = Recorded("target.png", None, (96, 48), [draw[2:] for draw in draws])
    monkeypatch.setattr(train_clan, "target_loader", lambda *_: target)
    start = {"G": filled_state(build_model("ResNet"), bn3=0.1), "D": filled_state(OutputDiscriminator(), prefix="D.")}
    for name, state in start.items():
        torch.save(state, tmp_path / f"{name}.pth")
    flags = "--input-size-source 120,72 --input-size-target 96,48 --num-steps 40 --num-steps-stop 4 --preheat-steps 2".split()
    flags += ["--save-pred-every", "2", "--source", source]
    flags += ["--restore-from", f"{tmp_path}/G.pth", "--restore-discriminator", f"{tmp_path}/D.pth"]
    flags += ["--snapshot-dir", f"{tmp_path}/run", "--log-every", "1", "--device", "cpu", "--updates", updates]
    train_clan.main(train_clan.get_arguments(flags))

    rows = [json.loads(line) for line in open(tmp_path / "run/metrics.jsonl")]
    # The recordings have G's losses with their weights, which are logged apart.
    weights = [(row["damping"] * 0.001, row["damping"] * 2 * 0.01) for row in rows]
    columns = {
        "loss_adv": [row["loss_adv"] * w for row, (w, _) in zip(rows, weights, strict=True)],
        "loss_weight": [row["loss_weight"] * w for row, (_, w) in zip(rows, weights, strict=True)],
        "loss_seg": [row["loss_seg"] for row in rows],
        "loss_D_s": [row["loss_D_source"] for row in rows],
        "loss_D_t": [row["loss_D_target"] for row in rows],
    }
    ours = np.array([columns[name] for name in recorded["loss_columns"]]).T
    np.testing.assert_allclose(ours, recorded[f"{variant}/losses"], rtol=1e-4)
    rates = [[row["lr_G"], row["lr_D"], row["damping"]] for row in rows]
    np.testing.assert_allclose(rates, recorded["lr_and_damping"][:, [0, 2, 3]], rtol=1e-12)
    prefix = source.upper()
    for name, suffix in (("G", ""), ("D", "_D")):
        for snapshot, case in ((4, variant), *(((2, "old/snapshot2"),) if updates == "published" else ())):
            end = torch.load(tmp_path / f"run/{prefix}_{snapshot}{suffix}.pth", weights_only=True)
            for key, expected in zip(recorded[f"{name}_keys"], recorded[f"{case}/{name}/rms_change"], strict=True):
                change = (end[key].double() - start[name][key].double()).square().mean().sqrt().item()
                assert change == pytest.approx(expected, rel=1e-3, abs=1e-12), (case, key)


@pytest.mark.parametrize("model", ("MiniResNet18", "DeeplabVGG"))
def test_any_network_and_batch_trains_and_resumes(model, mini_data, tmp_path):
    def train(directory, stop, *more):
        arguments = [
            *("--data-dir", f"{mini_data}/SYNTHIA", "--source", "synthia", "--data-dir-target", f"{mini_data}/Cityscapes"),
            *("--input-size", "64,32", "--input-size-target", "64,32", "--model", model, "--restore-from", "none"),
            *("--device", "cpu", "--num-workers", "0", "--batch-size", "2", "--num-steps", "4", "--preheat-steps", "1"),
            *("--snapshot-dir", str(tmp_path / directory), "--num-steps-stop", str(stop), "--num-classes", "16", *more),
        ]
        train_clan.main(train_clan.get_arguments(arguments))

    train("whole", 4)
    train("parts", 2)
    train("parts", 4, "--resume")
    whole, parts = (torch.load(tmp_path / name / "SYNTHIA_4.pth", weights_only=True) for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    network = load_model(tmp_path / "whole/SYNTHIA_4.pth")
    assert network.settings["num_classes"] == 16 and network.default_heads == "sum"


def test_a_snapshot_with_its_discriminator_is_a_start(mini_data, tmp_path):
    common = [
        *("--data-dir", f"{mini_data}/GTA5", "--data-dir-target", f"{mini_data}/Cityscapes", "--model", "MiniResNet18"),
        *(
            "--input-size",
            "64,32",
            "--input-size-target",
            "64,32",
            "--device",
            "cpu",
            "--num-workers",
            "0",
            "--num-steps-stop",
            "1",
        ),
    ]
    train_clan.main(train_clan.get_arguments([*common, "--restore-from", "none", "--snapshot-dir", f"{tmp_path}/a"]))
    again = ["--restore-from", f"{tmp_path}/a/GTA5_1.pth", "--restore-discriminator", f"{tmp_path}/a/GTA5_1_D.pth"]
    train_clan.main(train_clan.get_arguments([*common, *again, "--snapshot-dir", f"{tmp_path}/b"]))
    with pytest.raises(ValueError, match="names 2 files for 1 discriminators"):
        train_clan.main(
            train_clan.get_arguments([*common, *again[:2], "--restore-discriminator", "x,y", "--snapshot-dir", f"{tmp_path}/c"])
        )
