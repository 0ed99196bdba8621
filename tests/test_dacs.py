"""train_dacs.py and its parts against recordings of the original (and of MIC's and DAFormer's code for the two options)."""

import json
import random
import zlib

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from fill import noise
from filled import filled, filled_state
from PIL import Image
from torch import nn

import evaluate_cityscapes
import train_dacs
from dataset.catalogue import CITYSCAPES, DATA_SETS, LABEL_IDS, label_table
from dataset.class_statistics import StatisticsError
from dataset.layouts import Record
from dataset.rare_classes import RareClassSampling, class_probabilities
from dataset.reading import read_image, read_label
from dataset.segmentation import build_dataset
from dataset.transforms import RandomCrop, Resize
from model import WeightsError, build_model, load_model, upsample
from model.normalization import Normalize
from scripts import convert_checkpoint
from utils import domains, mean_teacher, mixing, strong_augmentation
from utils.confusion import ConfusionMatrix
from utils.domains import endless
from utils.errors import RunError
from utils.evaluation import predict
from utils.iou import iou_scores
from utils.optimizers import poly

INPUTS = GOLDEN / "dacs/trajectory_inputs"
SIZE = (128, 96)
HEAD = 12.0
ROUNDING = 1e-6  # by which averages of equal values move


# Training


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The recorded crops in the official layouts, and the weights that the recordings start from."""
    root = tmp_path_factory.mktemp("dacs")
    raw_ids = np.zeros(256, np.uint8)
    raw_ids[: len(CITYSCAPES)] = [{name: raw for raw, name in LABEL_IDS.items()}[name] for name in CITYSCAPES.names]
    for i in range(4):
        files = {
            f"GTA5/images/0000{i}.png": Image.open(INPUTS / f"source_{i}.png").convert("RGB"),
            f"GTA5/labels/0000{i}.png": Image.fromarray(raw_ids[np.array(Image.open(INPUTS / f"label_{i}.png"))]),
            f"Cityscapes/leftImg8bit/train/city/city_00000{i}_000019_leftImg8bit.png": Image.open(
                INPUTS / f"target_{i}.png"
            ).convert("RGB"),
        }
        for name, image in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            image.save(root / name)
    torch.save(start(), root / "start.pth")
    return root


def start():
    state = filled_state(build_model("Res_Deeplab"), bn3=0.1)
    heads = [key for key in state if key.startswith("layer5") and key.endswith("weight")]
    return state | {key: state[key] * torch.tensor(HEAD) for key in heads}


def train(data, directory, *flags):
    train_dacs.main(
        train_dacs.get_arguments(
            [
                *("--data-dir", str(data / "GTA5"), "--data-dir-target", str(data / "Cityscapes")),
                *("--input-size", "128,96", "--input-size-target", "128,96", "--restore-from", str(data / "start.pth")),
                *("--snapshot-dir", str(directory), "--num-workers", "0", "--device", "cpu", "--log-every", "1"),
                *("--num-steps", "4", "--save-pred-every", "2", "--color-jitter", "False", "--blur", "False", *flags),
            ]
        )
    )
    return [json.loads(line) for line in open(directory / "metrics.jsonl")]


CASES = [
    ("trajectory", "published", "old", ""),
    ("trajectory", "clean", "unique", ""),
    ("trajectory_threshold", "published", "old", "--pixel-weight pixel"),
    ("trajectory_mic", "published", "old", "--mask --mask-block 16"),
    ("trajectory_mic", "clean", "unique", "--mask --mask-block 16"),
]


@pytest.mark.slow
@pytest.mark.parametrize("name, updates, variant, flags", CASES)
def test_four_steps_of_student_and_teacher_match_the_original(
    name, updates, variant, flags, data, tmp_path, golden, monkeypatch
):
    recorded = golden(f"dacs/{name}.npz")
    chosen = iter(recorded["chosen"])

    def draw_recorded(label, draws, with_ignored):
        drawn = torch.zeros(len(label), 256, dtype=torch.bool)
        for image, ids in enumerate(next(chosen)):
            drawn[image, ids[ids >= 0]] = True
        return drawn

    def uniform_recorded(images, *shape, device):
        if len(shape) == 1:
            return torch.zeros(images, *shape)
        step = uniform_recorded.steps
        uniform_recorded.steps += 1
        rng = np.random.default_rng([zlib.crc32(f"dacs/mic/draws/{step}".encode()), 0])
        return torch.from_numpy(rng.random((images, *shape), dtype=np.float32))

    uniform_recorded.steps = 0
    monkeypatch.setattr(train_dacs, "draw_classes", draw_recorded)
    monkeypatch.setattr(train_dacs, "uniform", uniform_recorded)

    def in_order(args, dataset, seed_offset=0):
        return endless(args, dataset, order=[0, 1, 2, 3] * 9)

    monkeypatch.setattr(domains, "endless", in_order)
    rows = train(data, tmp_path, "--updates", updates, *flags.split())

    masked = ["loss_masked"] if "--mask" in flags else []
    ours = np.array([[row[loss] for loss in ("loss_seg", "loss_mixed", *masked)] for row in rows])
    np.testing.assert_allclose(ours[0], recorded[f"{variant}/losses"][0], rtol=2e-5)
    np.testing.assert_allclose(ours, recorded[f"{variant}/losses"], rtol=1e-3 if masked else 3e-4)
    np.testing.assert_allclose([row["lr_G"] for row in rows], recorded["lr"][:, 0], rtol=1e-12)
    if "threshold" not in name:
        np.testing.assert_allclose([row["confidence"] for row in rows], recorded[f"{variant}/q"][:, 0], rtol=3e-3)
    compare(recorded, variant, tmp_path / "checkpoint-iter4.pth")
    if variant == "old":
        compare(recorded, "old/iter2", tmp_path / "checkpoint-iter2.pth")
    assert {path.name for path in tmp_path.glob("*.pth")} - {"state.pth", "state.previous.pth"} == {
        "checkpoint-iter2.pth",
        "checkpoint-iter4.pth",
    }


def compare(recorded, variant, snapshot):
    """Changes of student and teacher since the start; the teacher's statistics start at 0 and 1."""
    contents = torch.load(snapshot, weights_only=True)
    assert set(contents) == set(recorded["checkpoint_keys"].tolist()) - {"optimizer"}
    before = start()
    for network, part in (("student", "model"), ("teacher", "ema_model")):
        after = contents[part]
        if "iter2" not in variant:
            assert after["bn1.num_batches_tracked"] == recorded["num_batches_tracked"][int(network == "teacher")]
        expected, actual = recorded[f"{variant}/{network}/rms_change"], []
        for i, key in enumerate(recorded["keys"]):
            old = before[key]
            if network == "teacher" and "running" in key:
                old = torch.full_like(old, float(key.endswith("var")))
            change = after[key].double() - old.double()
            actual.append(change.square().mean().sqrt().item())
            if f"{variant}/{network}/first8_change" in recorded:
                first8 = recorded[f"{variant}/{network}/first8_change"][i]
                count = min(8, change.numel())
                scale = np.abs(first8[:count]).max()
                np.testing.assert_allclose(change.flatten()[:8].numpy(), first8[:count], rtol=0, atol=4e-2 * scale + ROUNDING)
        moving = expected > ROUNDING
        np.testing.assert_allclose(np.array(actual)[moving], expected[moving], rtol=3e-3, err_msg=network)
        assert (np.array(actual)[~moving] < ROUNDING).all()


# The parts


def recorded_input(recorded, name, shape, scale):
    return torch.from_numpy(noise(name, recorded[shape], 0, scale)).requires_grad_()


@pytest.mark.parametrize("case", ("uniform", "pixel"))
def test_loss_of_mixed_images_and_its_gradient(case, golden):
    recorded = golden("dacs/losses.npz")
    logits = recorded_input(recorded, "dacs/losses/logits", "shape", 3.0)
    label, weight = (torch.from_numpy(recorded[name]) for name in ("mixed", f"weight_{case}"))
    loss = train_dacs.weighted_cross_entropy(logits, label, weight)
    loss.backward()
    np.testing.assert_allclose(loss.item(), recorded[f"{case}/loss"], rtol=1e-6)
    expected = recorded[f"{case}/grad"]
    np.testing.assert_allclose(logits.grad.numpy(), expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_losses_of_source_and_masked_images(golden):
    recorded = golden("dacs/losses.npz")
    logits = recorded_input(recorded, "dacs/losses/logits", "shape", 3.0)
    labels, pseudo, mixed = (torch.from_numpy(recorded[name]) for name in ("labels", "pseudo", "mixed"))
    assert train_dacs.cross_entropy(logits, labels).item() == pytest.approx(recorded["source/loss"].item(), rel=1e-6)
    ones, void = torch.ones(1, 1, 1), torch.full_like(labels, 255)
    assert train_dacs.weighted_cross_entropy(logits, mixed, ones).item() == pytest.approx(
        recorded["ones/loss"].item(), rel=1e-6
    )
    assert train_dacs.weighted_cross_entropy(logits, void, ones).item() == recorded["all_ignored/uniform"]
    share = torch.tensor(float(recorded["q"])).view(1, 1, 1)
    loss = train_dacs.weighted_cross_entropy(logits, pseudo, share)
    loss.backward()
    np.testing.assert_allclose(loss.item(), recorded["mmseg/masked/loss"], rtol=1e-6)
    expected = recorded["mmseg/masked/grad"]
    np.testing.assert_allclose(logits.grad.numpy(), expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_mixed_pixels_can_be_averaged_over_the_labelled_ones():
    logits, label = torch.randn(1, 3, 4, 5), torch.zeros(1, 4, 5, dtype=torch.uint8)
    label[:, 2:] = 255
    halves = [train_dacs.weighted_cross_entropy(logits, label, torch.ones(1, 1, 1), over_all) for over_all in (True, False)]
    torch.testing.assert_close(2 * halves[0], halves[1])


def test_pseudo_labels_and_their_weights(golden):
    recorded = golden("dacs/pseudo.npz")
    logits = upsample(recorded_input(recorded, "dacs/pseudo/logits", "logits_shape", 9.0).detach(), recorded["hw"].tolist())
    label, weight = train_dacs.pseudo_label(logits, 0.968, "batch")
    np.testing.assert_array_equal(label, recorded["label"])
    assert label.dtype == torch.uint8 and weight.item() == pytest.approx(recorded["weight_uniform"].item(), abs=1e-7)
    np.testing.assert_array_equal(train_dacs.pseudo_label(logits, 0.968, "pixel")[1], recorded["weight_threshold"])
    each = train_dacs.pseudo_label(logits, 0.968, "image")[1]
    np.testing.assert_allclose(each.flatten(), recorded["weight_per_image_not_used"], atol=1e-7)
    assert (train_dacs.pseudo_label(logits, 0.968, "none")[1] == 1).all()


def ids(numbers):
    """(1,256) bool from class ids."""
    return torch.zeros(1, 256, dtype=torch.bool).index_fill_(1, torch.as_tensor(numbers), True)


def test_class_masks_and_mixing(golden):
    recorded = golden("dacs/classmix.npz")
    for case in range(recorded["cases"]):
        label = torch.from_numpy(recorded[f"{case}/label"])[None]
        mask = mixing.class_mask(label, ids(recorded[f"{case}/drawn_classes"]))
        np.testing.assert_array_equal(mask[0], recorded[f"{case}/mask"])
        drawn = mixing.draw_classes(label, torch.rand(1, 256))
        assert drawn.sum() == len(recorded[f"{case}/drawn_indices"])
        assert set(drawn.nonzero()[:, 1].tolist()) <= set(recorded[f"{case}/classes_sorted"].tolist())
    both = torch.from_numpy(recorded["mmseg/labels"])
    values = both.unique()
    chosen = torch.cat([ids(values[torch.from_numpy(drawn)].long()) for drawn in recorded["mmseg/drawn_indices"]])
    np.testing.assert_array_equal(mixing.class_mask(both, chosen), recorded["mmseg/masks"])
    mask = torch.from_numpy(recorded["0/mask"]).bool()
    source, target = torch.from_numpy(noise("dacs/classmix/images", (2, 3, *mask.shape), 0, 60))
    np.testing.assert_array_equal(torch.where(mask, source, target), recorded["mix/image"][0])
    label = torch.where(mask, torch.from_numpy(recorded["0/label"]), torch.from_numpy(recorded["mix/pseudo"]))
    np.testing.assert_array_equal(label, recorded["mix/label"][0])
    weight = torch.where(mask, 1.0, torch.tensor(recorded["mix/q"].item()))
    np.testing.assert_allclose(weight, recorded["mix/weight"][0])


def test_half_of_the_classes_are_drawn_each_as_often_as_the_others(golden):
    for present, drawn in golden("dacs/classmix.npz")["n_drawn_for_n_classes"]:
        label = torch.arange(present, dtype=torch.uint8).view(1, 1, -1)
        assert mixing.draw_classes(label, torch.rand(1, 256)).sum() == drawn
    label = torch.tensor([3, 5, 8, 255], dtype=torch.uint8).view(1, 1, -1).expand(3000, 1, 4)
    share = mixing.draw_classes(label, torch.rand(3000, 256, generator=torch.Generator().manual_seed(0))).float().mean(0)
    assert share.nonzero().flatten().tolist() == [3, 5, 8, 255]
    np.testing.assert_allclose(share[[3, 5, 8, 255]], 0.5, atol=0.04)
    drawn = mixing.draw_classes(label, torch.rand(3000, 256), with_ignored=False)
    assert (drawn.sum(1) == 2).all() and not drawn[:, 255].any()
    assert not mixing.draw_classes(label[:, :, 3:], torch.rand(3000, 256), with_ignored=False).any()


def test_blocks_are_hidden_as_in_mic(golden):
    recorded = golden("dacs/mic.npz")
    for case, (height, width, block, ratio) in enumerate(recorded["cases_h_w_block_ratio"]):
        draws, size = torch.from_numpy(recorded[f"{case}/uniform"]), (int(height), int(width))
        assert draws.shape[2:] == mixing.blocks(size, int(block))
        mask = mixing.block_mask(draws, size, ratio)
        np.testing.assert_array_equal(mask, recorded[f"{case}/mask"])
        masked = (torch.from_numpy(noise(f"dacs/mic/image/{case}", (2, 3, *size), 0, 50)) * mask).double()
        figures = masked.mean(), masked.std(correction=0), masked.abs().max()
        np.testing.assert_allclose(figures, recorded[f"{case}/masked_mean_std_absmax"], atol=1e-5)


def bgr(recorded):
    """The recorded images as the original has them: (2,3,H,W) BGR of 0..1, and the mean that it subtracts."""
    return torch.from_numpy(recorded["image_rgb"][..., ::-1].copy()).permute(0, 3, 1, 2) / 255, Normalize("caffe").mean[0]


def test_colours_and_blur(golden):
    recorded = golden("dacs/augment.npz")
    images, mean = bgr(recorded)
    factors = torch.from_numpy(recorded["jitter/params_brightness_contrast_saturation_hue"])
    order, sigma = torch.from_numpy(recorded["jitter/order"]), torch.from_numpy(recorded["blur/sigma"]).float()
    ours = 255 * strong_augmentation.jitter(images[[0, 1, 0, 1]], factors, order) - mean
    for row in range(4):
        np.testing.assert_allclose(ours[row], recorded[f"jitter/{row}/kornia058"], rtol=0, atol=0.01)
    ours = 255 * strong_augmentation.blur(images[[0, 0, 0]], sigma) - mean
    for row in range(3):
        np.testing.assert_allclose(ours[row], recorded[f"blur/{row}"], rtol=0, atol=1e-3)
    assert [(side, strong_augmentation.kernel_size(side)) for side in recorded["blur/kernel_size"][:, 0]] == [
        tuple(pair) for pair in recorded["blur/kernel_size"]
    ]
    # The whole chain was recorded with kornia 0.4.0, whose HSV is wrong where a channel is 1, and the blur spreads that.
    mixed = torch.where(torch.from_numpy(recorded["strong/mask"]).bool(), *images)[None]
    jittered = strong_augmentation.jitter(mixed, factors[:1], order[2:3])
    ours = 255 * strong_augmentation.blur(jittered, sigma[1:2]) - mean
    same = np.abs(ours[0].numpy() - recorded["strong/image"]).max(0) < 0.01
    assert same.mean() > 0.8


def test_strengths_and_decisions_of_augmentation(monkeypatch):
    torch.manual_seed(0)
    factors = strong_augmentation._jitter_factors(torch.rand(4000, 4))
    assert (factors[:, :3].amin() - 0.75).abs() < 1e-3 and (factors[:, :3].amax() - 1.25).abs() < 1e-3
    assert factors[:, 3].abs().amax() <= 0.25 and factors[:, 3].abs().amax() > 0.249
    images = torch.rand(4, 3, 12, 16)
    changed = {True: set(), False: set()}
    for alike in changed:
        for _ in range(30):
            same = (strong_augmentation.augment(images, blurs=False, alike=alike) == images).flatten(1).all(1)
            changed[alike].add(int(same.sum()))
    assert changed[True] == {0, 4} and changed[False] - {0, 4}
    assert torch.equal(strong_augmentation.augment(images, jitters=False, blurs=False), images)
    grey = torch.full((1, 3, 8, 8), 0.5)
    one = torch.tensor([[1.0, 1.0, 1.2, 0.1]])
    torch.testing.assert_close(strong_augmentation.jitter(grey, one, torch.arange(4)[None]), grey)


class Small(nn.Sequential):
    """conv and BatchNorm with the recorded weights of a student."""

    batch_norm = "frozen-affine"

    def __init__(self, number=0):
        super().__init__(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
        self.load_state_dict(filled_state(self, prefix=f"ema{number}."))
        self.settings = {"number": number}

    def norms(self):
        return [self[1]]


def test_the_teacher_follows_as_in_dacs_and_as_in_mic(golden, monkeypatch):
    recorded = golden("dacs/ema.npz")
    for case, highest in (("dacs_0.99", 0.99), ("mic_0.999", 0.999)):
        ours = [mean_teacher.teacher_momentum(int(i), highest) for i in recorded["iterations"]]
        np.testing.assert_allclose(ours, recorded[f"alpha/{case}"], rtol=1e-12)
    monkeypatch.setattr(mean_teacher, "build_model", Small)
    teacher = mean_teacher.make_teacher(Small(0))
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    for i in range(6):
        mean_teacher.update_teacher(teacher, Small(i + 1), mean_teacher.teacher_momentum(i, 0.99))
        for key in ("0.weight", "0.bias", "1.weight", "1.bias"):
            np.testing.assert_allclose(teacher.state_dict()[key], recorded[f"dacs/teacher_after/{key}"][i], atol=1e-6)
    assert torch.equal(teacher[1].running_mean, torch.zeros(3)) and torch.equal(teacher[1].running_var, torch.ones(3))
    teacher = mean_teacher.make_teacher(Small(9))
    for i in range(6):
        mean_teacher.update_teacher(teacher, Small(i), mean_teacher.teacher_momentum(i, 0.999))
        for key in ("0.weight", "1.bias"):
            expected = recorded[f"mic/teacher_used_in_iteration/{key}"][i]
            np.testing.assert_allclose(teacher.state_dict()[key], expected, atol=1e-6)


def test_a_teacher_of_everything_has_its_students_statistics():
    student = build_model("MiniResNet18", heads="single")
    teacher = mean_teacher.make_teacher(student, "everything").train()
    student.train()(torch.randint(0, 255, (2, 3, 33, 33), dtype=torch.uint8))
    teacher(torch.randint(0, 255, (2, 3, 33, 33), dtype=torch.uint8))
    assert (teacher.bn1.running_mean == 0).all()
    mean_teacher.update_teacher(teacher, student, 0.25, "everything")
    torch.testing.assert_close(teacher.bn1.running_mean, 0.75 * student.bn1.running_mean)
    fixed = build_model("MiniResNet18", heads="single", batch_norm="frozen")
    fixed.bn1.running_mean.fill_(3)
    assert (mean_teacher.make_teacher(fixed).bn1.running_mean == 3).all()


def test_outputs_gradients_and_statistics_of_the_network(golden):
    recorded = golden("dacs/models.npz")
    network = filled(build_model("Res_Deeplab"))
    image = torch.from_numpy(noise("dacs/models/input", recorded["input_shape"], 0, 50))
    with torch.no_grad():
        expected = recorded["eval/out"]
        np.testing.assert_allclose(network.eval()(image)[-1], expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    network = filled(network, bn3=0.1).train()
    teacher = mean_teacher.make_teacher(network)
    assert recorded["teacher_at_start/requires_grad_any"] == any(p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(*pair) for pair in zip(network.parameters(), teacher.parameters(), strict=True))
    means, variances = (
        torch.cat([getattr(norm, name) for norm in teacher.norms()]) for name in ("running_mean", "running_var")
    )
    at_start = (means.abs().max(), variances.min(), variances.max())
    np.testing.assert_array_equal(at_start, recorded["teacher_at_start/running_mean_absmax_var_minmax"])
    (output,) = network(image)
    loss = (output * torch.from_numpy(noise("dacs/models/probe", output.shape, 0))).mean()
    loss.backward()
    np.testing.assert_allclose(loss.item(), recorded["train_damped/loss"], rtol=1e-3)
    parameters = dict(network.named_parameters())
    norms = [parameters[key].grad.norm().item() for key in recorded["gradients/keys"]]
    np.testing.assert_allclose(norms, recorded["gradients/norm"], rtol=1e-3)
    for layer in ("bn1", "layer3.11.bn2", "layer4.2.bn3"):
        for name in ("running_mean", "running_var"):
            ours = network.state_dict()[f"{layer}.{name}"][:64]
            np.testing.assert_allclose(ours, recorded[f"train_damped/after/{layer}.{name}"], rtol=1e-3, atol=1e-4)
    branches = [parameters[f"layer5.conv2d_list.{i}.weight"].grad is None for i in range(4)]
    assert branches == recorded["unused_branches_have_no_gradient"].tolist()


def test_keys_and_visits_are_the_originals():
    keys = json.loads((GOLDEN / "dacs/keys.json").read_text())["Res_Deeplab"]
    network = build_model("Res_Deeplab")
    assert {key: list(value.shape) for key, value in network.state_dict().items()} == keys["state"]
    names = {id(parameter): key for key, parameter in network.named_parameters()}
    ours = {
        names[id(p)]: (group["lr_multiplier"], group["visits"]) for group in network.parameter_groups() for p in group["params"]
    }
    theirs = {key: (group["lr_multiplier"], times) for group in keys["groups"] for key, times in group["times_listed"].items()}
    assert ours == {key: value for key, value in theirs.items() if key in ours}
    assert {key for key in theirs if key not in ours} == {key for key in theirs if "list.2" in key or "list.3" in key}


def test_schedule(golden):
    recorded = golden("dacs/schedule.npz")
    args = train_dacs.get_arguments([])
    assert (args.learning_rate, args.num_steps, args.power) == tuple(recorded["base_num_power"])
    ours = [poly(args.learning_rate, int(step), args.num_steps, args.power) for step in recorded["steps"]]
    np.testing.assert_allclose(ours, recorded["lr_trunk_classifier"][:, 0], rtol=1e-12)
    assert (args.num_steps_stop, args.batch_size, args.crop, args.save_pred_every) == (250000, 2, (512, 512), 5000)


# Data


class Drawn(random.Random):
    """Gives recorded draws, rows first as `RandomCrop` asks for them."""

    def __init__(self, x1, y1):
        super().__init__()
        self.values = [int(y1), int(x1)]

    def randint(self, low, high):
        return self.values.pop(0)


@pytest.mark.parametrize("name", ("gta", "cityscapes"))
def test_crops_of_the_loaders(name, golden):
    recorded = golden("dacs/loaders.npz")
    root = GOLDEN / "dacs/loaders"
    if name == "gta":
        size, crop, mode, root = recorded["gta_resize_wh"], recorded["source_crop_hw"], "bicubic", root / "gta"
        dataset = build_dataset("gta5", str(root), "all")
    else:
        root = root / "CityScapes/leftImg8bit_trainvaltest"
        size, crop, mode = (80, 40), recorded["cityscapes_crop_hw"], "bilinear"
        dataset = build_dataset("cityscapes", str(root), "train", labels=False)
    for i in range(2):
        image = read_image(dataset.records[i].image)
        if name == "cityscapes":
            size = (image.shape[2] // 2, image.shape[1] // 2)
        label = dataset._read_label(dataset.records[i], image) if name == "gta" else None
        rng = Drawn(*recorded[f"{name}/{i}/x1_y1"])
        image, label = Resize(tuple(map(int, size)), mode=mode)(image, label, rng, rng)
        image, label = RandomCrop(tuple(map(int, crop[::-1])))(image, label, rng, rng)
        difference = Normalize("caffe")(image[None])[0] - torch.from_numpy(recorded[f"{name}/{i}/image"])
        assert difference.abs().max() <= 2.001  # grey levels: Pillow resized those
        if label is not None:
            np.testing.assert_array_equal(dataset.table[label.numpy()], recorded[f"{name}/{i}/label"])


def test_ids_of_gta5_and_synthia(golden):
    recorded = golden("dacs/loaders.npz")
    for name, original in (("gta5", "gta"), ("synthia", "synthia")):
        table = label_table(DATA_SETS[name].ids, CITYSCAPES)
        assert all(table[raw] == train_id for raw, train_id in recorded[f"{original}/id_to_trainid"])


def test_scores_of_its_evaluation(golden):
    recorded = golden("dacs/evaluate.npz")
    root, size = GOLDEN / "dacs/loaders/CityScapes", tuple(int(side) for side in recorded["input_hw"])
    network = filled(build_model("Res_Deeplab"), bn3=0.1)
    with torch.no_grad():
        for branch in network.layer5.conv2d_list:
            branch.weight.mul_(12)
    resize, confusion = Resize(size[::-1], mode="bilinear"), ConfusionMatrix(19, torch.device("cpu"))
    table = label_table(LABEL_IDS, CITYSCAPES)
    images = sorted(root.glob("leftImg8bit_trainvaltest/leftImg8bit/val/city/*.png"))
    labels = sorted(root.glob("gtFine_trainvaltest/gtFine/val/city/*_labelIds.png"))
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        image, label = resize(read_image(image), torch.from_numpy(read_label(label)), None, None)
        with torch.inference_mode():
            prediction = predict(network.eval(), image[None], size).argmax(1)
        different = (prediction[0].numpy() != recorded["both/prediction"][i]).mean()
        assert different < 0.01, different  # the image was resized by PyTorch, not by Pillow
        label = torch.from_numpy(table[label.numpy()])
        truth = recorded["both/ground_truth"][i]
        np.testing.assert_array_equal(label, np.where(truth == 250, 255, truth))
        confusion.add(label[None], torch.from_numpy(recorded["both/prediction"][i].astype(np.uint8))[None])
    np.testing.assert_array_equal(confusion.matrix, recorded["both/confusion"])
    scores = iou_scores(confusion.matrix.numpy())
    np.testing.assert_allclose(scores["miou"], recorded["both/miou"], rtol=1e-6)
    assert evaluate_cityscapes.PROTOCOLS["dacs"].resize_labels


# Rare class sampling


@pytest.mark.parametrize("temperature", (0.01, 0.1, 1.0))
def test_probabilities_of_rare_classes(temperature, golden):
    recorded = golden("dacs/rcs.npz")
    ours = class_probabilities(recorded["counts_files_by_class"].sum(0), temperature)
    order = recorded[f"T{temperature}/classes_by_ascending_frequency"]
    np.testing.assert_allclose(ours[order], recorded[f"T{temperature}/probability"], rtol=2e-5, atol=1e-9)
    assert ours.sum() == pytest.approx(1)


class Listed:
    """A data set whose images are their own numbers."""

    def __init__(self, count):
        self.records = [Record(f"{i}.png", f"{i}.png", f"{i}.png") for i in range(count)]

    def __len__(self):
        return len(self.records)

    def path(self, index):
        return str(index)

    def __getitem__(self, key):
        return {"image": torch.full((3, 60, 60), key[0]), "label": torch.full((60, 60), 255), "path": str(key[0])}


def test_images_and_crops_of_rare_classes(golden):
    recorded = golden("dacs/rcs.npz")
    counts = recorded["counts_files_by_class"]
    enough = recorded["files_with_more_than_3000_pixels"].astype(bool)
    pixels = {f"{i}.png": row.tolist() for i, row in enumerate(counts)}
    for row, cut in zip(
        recorded["crop_loop/pixels_in_successive_crops"],
        recorded["crop_loop/crops_cut_kept_pixels_source_target_index"],
        strict=True,
    ):
        found = iter(json.loads(str(row)))
        asked = []

        def crop(image, label, rng, batch_rng, found=found, asked=asked):
            asked.append(next(found))
            label = torch.full((60, 60), 255)
            label.view(-1)[: asked[-1]] = crop.chosen
            return image, label

        sampling = RareClassSampling(Listed(12), crop, pixels, 0.1)
        assert all(enough[image, c] for c, images in sampling.images.items() for image in images)
        assert all(len(images) == enough[:, c].sum() for c, images in sampling.images.items())
        index = sampling.order(7)[3]
        image, crop.chosen = divmod(index, 256)
        assert image in sampling.images[crop.chosen] and sampling.path(index) == str(image)
        sample = sampling[index, 7, 1]
        assert sample["path"] == str(image)
        kept = (sample["label"] == crop.chosen).sum().item()
        assert (len(asked), kept) == tuple(cut[:2])


def test_the_order_follows_the_probabilities_and_can_be_entered_anywhere():
    pixels = {f"{i}.png": [9000, 4000 * (i == 1), 0] for i in range(3)}
    sampling = RareClassSampling(Listed(3), None, pixels, 0.5)
    order = sampling.order(5)
    drawn = [order[k] for k in range(3000)]
    assert [sampling.order(5)[k] for k in (0, 1500, 2999)] == [drawn[k] for k in (0, 1500, 2999)]
    share = np.bincount([index % 256 for index in drawn], minlength=3) / len(drawn)
    np.testing.assert_allclose(share, class_probabilities([27000, 4000, 0], 0.5), atol=0.03)
    assert {index // 256 for index in drawn if index % 256 == 1} == {1}


def test_rare_classes_that_no_image_has_enough_of_are_left_out():
    pixels = {"0.png": [9000, 10], "1.png": [5000, 0]}
    sampling = RareClassSampling(Listed(2), None, pixels, 0.01)
    assert (sampling.classes, sampling.left_out, sampling.images) == ([0], [1], {0: [0, 1]})
    with pytest.raises(StatisticsError, match="no image has more than 10000 pixels of any class"):
        RareClassSampling(Listed(2), None, pixels, 0.01, 10000)
    with pytest.raises(StatisticsError, match="lack 1 of 3 images, first 2.png"):
        RareClassSampling(Listed(3), None, pixels, 0.01)


# Runs on the mini data


def mini(mini_data, directory, *more, steps=4, source="GTA5"):
    train_dacs.main(
        train_dacs.get_arguments(
            [
                *("--data-dir", f"{mini_data}/{source}", "--data-dir-target", f"{mini_data}/Cityscapes"),
                *("--input-size", "96,48", "--input-size-target", "96,48", "--crop", "64,48", "--model", "MiniResNet18"),
                *(
                    "--restore-from",
                    "none",
                    "--device",
                    "cpu",
                    "--num-workers",
                    "0",
                    "--log-every",
                    "1",
                    "--learning-rate",
                    "1e-3",
                ),
                *("--num-steps", str(steps), "--save-state-every", "2", "--snapshot-dir", str(directory), *more),
            ]
        )
    )


OPTIONS = ("--mask", "--rare-class-sampling", "0.1", "--rare-class-pixels", "50")


@pytest.mark.parametrize("more", ([], [*OPTIONS, "--teacher-averages", "everything", "--teacher-first", "--amp", "bf16"]))
def test_a_run_resumes_exactly_with_its_teacher(more, mini_data, tmp_path):
    mini(mini_data, tmp_path / "whole", *more, "--val-every", "2")
    mini(mini_data, tmp_path / "parts", *more, "--num-steps-stop", "2")
    mini(mini_data, tmp_path / "parts", *more, "--resume")
    whole, parts = (torch.load(tmp_path / name / "checkpoint-iter4.pth", weights_only=True) for name in ("whole", "parts"))
    for part in ("model", "ema_model"):
        assert all(torch.equal(whole[part][key], parts[part][key]) for key in whole[part])
    assert any(not torch.equal(whole["model"][key], value) for key, value in whole["ema_model"].items())
    rows = [[json.loads(line) for line in open(tmp_path / name / "metrics.jsonl")] for name in ("whole", "parts")]
    losses = [
        [{key: row[key] for key in row if key.startswith(("loss", "conf"))} for row in part if "lr_G" in row] for part in rows
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    assert {"best_model.pth", "full_size_best_model.pth"} <= {path.name for path in (tmp_path / "whole").iterdir()}
    assert {"val_miou", "full_size_val_miou"} <= {key for row in rows[0] for key in row}


def test_synthia_and_the_clean_choices(mini_data, tmp_path):
    clean = "--updates clean --aspp-branches 4 --paste-ignored False --divide-by-all False --augment-each --pixel-weight image"
    mini(mini_data, tmp_path, "--source", "synthia", "--num-classes", "16", *clean.split(), steps=2, source="SYNTHIA")
    model = load_model(tmp_path / "checkpoint-iter2.pth")
    assert model.settings["num_classes"] == 16 and model.checkpoint_format == "dacs" and len(model.classes["names"]) == 16


def test_its_files_are_read_evaluated_and_written(mini_data, tmp_path, capsys):
    keys = json.loads((GOLDEN / "dacs/keys.json").read_text())
    assert set(keys["checkpoint"]["keys"]) == {"iteration", "optimizer", "config", "model", "ema_model"}
    student, teacher = (filled_state(build_model("MiniResNet18", heads="single"), seed=seed) for seed in (0, 1))
    file = {"iteration": 5, "optimizer": {"state": {}}, "config": {"seed": 1}, "model": student, "ema_model": teacher}
    torch.save(file, tmp_path / "in.pth")
    model = load_model(tmp_path / "in.pth")
    assert "a checkpoint of DACS" in model.load_report and torch.equal(model.conv1.weight, student["conv1.weight"])
    words = (
        f"--restore-from {tmp_path}/in.pth --data-dir {mini_data}/Cityscapes --save none --device cpu --num-workers 0".split()
    )
    evaluate_cityscapes.main(evaluate_cityscapes.get_arguments([*words, "--input-size", "64,32"]))
    assert "protocol dacs: input (64, 32), flip False, labels resized to the input" in capsys.readouterr().out
    convert_checkpoint.main(convert_checkpoint.get_arguments([f"{tmp_path}/in.pth", f"{tmp_path}/out.pth", "--to", "dacs"]))
    written = torch.load(tmp_path / "out.pth", weights_only=True)
    assert written["config"]["dataset"] == "cityscapes" and written["config"]["ignore_label"] == 255
    assert all(torch.equal(written["model"][key], value) for key, value in student.items())
    with pytest.raises(WeightsError, match="is no ResNet with one classifier, which DACS' format holds"):
        torch.save(build_model("MiniResNet18").state_dict(), tmp_path / "two.pth")
        convert_checkpoint.main(convert_checkpoint.get_arguments([f"{tmp_path}/two.pth", f"{tmp_path}/no.pth", "--to", "dacs"]))


def test_crops_that_do_not_fit_are_refused():
    with pytest.raises(RunError, match="--crop 600,600 is larger than the resized images; at most 1024,512"):
        train_dacs.get_arguments(["--crop", "600,600"])
    assert train_dacs.get_arguments(["--input-size", "300,200"]).crop == (300, 200)
