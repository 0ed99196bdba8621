"""train_cbst.py against both originals (MXNet's CBST, the authors' PyTorch CRST): maps, thresholds, labels, crops, steps."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from fill import fill, noise
from filled import filled
from PIL import Image
from torch.nn import functional as F

import train_cbst
from dataset.catalogue import CITYSCAPES, LABEL_IDS, class_set, label_table, to_label_ids
from dataset.errors import DataError, MissingDataError
from dataset.layouts import Record
from dataset.segmentation import SegmentationDataset
from dataset.spatial_prior import PriorError, load_prior, save_prior
from model import WeightsError, build_model, load_model, upsample
from model.checkpoint_formats import from_mxnet, to_mxnet
from scripts import spatial_prior
from train_cbst import confidence_regulariser, get_arguments, schedule, soft_cross_entropy
from utils import run as run_module
from utils.coarse_prediction import CoarseProbabilities, FitLongerSide
from utils.decision import highest
from utils.errors import RunError
from utils.evaluation import evaluate
from utils.losses import cross_entropy
from utils.self_training import label_folders
from utils.self_training import prior as prior_module
from utils.self_training.crops import CanvasCrop, ScaledCrop, ScaleImage
from utils.self_training.label_folders import LabelFolder, left_over
from utils.self_training.labelling import report_classes, select, soft_labels
from utils.self_training.protocols import CRST, MXNET
from utils.self_training.score_maps import FullSizeLogits, ScoreMaps, check_disk, load_maps, save_maps
from utils.self_training.thresholds import ConfidenceHistograms, class_thresholds, global_threshold, most_likely
from utils.self_training.training_set import one_hot, source_subset
from utils.state import StateError

MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def normalized(image):
    return (image.float() / 255 - MEAN) / STD


def close(actual, expected, tolerance=1e-5):
    expected = np.asarray(expected)
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=tolerance * np.abs(expected).max() + 1e-12)


class Stub:
    """A network that returns recorded outputs, one after the other."""

    def __init__(self, outputs):
        self.outputs, self.inputs = list(outputs), []

    def normalize(self, images):
        return (images.float() / 255 - MEAN) / STD

    def __call__(self, images):
        self.inputs.append(images)
        return [self.outputs.pop(0)[None]]


# Score maps


@pytest.fixture
def crst_scores(golden):
    """The scores of the three images, through the disk as in a run."""

    def make(folder):
        recorded = golden("crst/thresholds.npz")
        scores = []
        for i in range(3):
            predictor = FullSizeLogits()
            maps = predictor.maps(Stub(torch.from_numpy(recorded["logits"][i])), torch.zeros(1, 3, 29, 58, dtype=torch.uint8))
            save_maps(folder / f"{i}.npz", maps, (29, 58))
            scores.append(predictor.scores(load_maps(folder / f"{i}.npz")[0], (32, 64)))
        return torch.stack(scores), recorded

    return make


def test_crst_probabilities(crst_scores, tmp_path):
    scores, recorded = crst_scores(tmp_path)
    assert np.abs(scores.permute(0, 2, 3, 1).numpy() - recorded["prob"]).max() < 1e-4
    assert (scores.argmax(1).numpy() == recorded["pred"]).mean() > 0.9999


def cbst_scores(recorded, net, exact=None):
    """MXNet's score maps; `net` (image, pass, C, h, w) are the softmax maps that the stub returned."""
    scores = []
    for i in range(3):
        stub = Stub(torch.from_numpy(np.log(net[i])))
        image = torch.from_numpy(recorded["image"][i]).permute(2, 0, 1)
        resized, _ = FitLongerSide(58)(image, None, None, None)
        predictor = CoarseProbabilities()
        maps = predictor.maps(stub, resized[None])
        if exact is not None:
            exact.append(stub.inputs)
        scores.append(predictor.scores(maps, (32, 64), (29, 58)))
    return torch.stack(scores)


def test_cbst_score_maps(golden):
    recorded, inputs = golden("cbst/thresholds.npz"), []
    scores = cbst_scores(recorded, recorded["net19"], inputs)
    close(torch.cat(inputs[0]), recorded["net_input_image0"], 1e-6)
    close(scores, recorded["probmap"])
    recorded16 = golden("cbst/thresholds_synthia16.npz")
    close(cbst_scores(recorded, recorded16["net16"]), recorded16["probmap"])


def test_maps_on_disk(tmp_path):
    """Within 1e-4 for every probability, at most 3 MB for an image of 2048x1024 in either protocol."""
    generator = torch.Generator().manual_seed(0)
    for shape, sizes in (((2, 19, 116, 231), (922, 1843)), ((1, 19, 116, 232), (925, 1850))):
        smooth = F.interpolate(torch.randn(shape[0], 19, 8, 16, generator=generator) * 8, size=shape[2:], mode="bicubic")
        maps = smooth + 0.3 * torch.randn(shape, generator=generator)
        maps -= maps.amax(1, keepdim=True)
        save_maps(tmp_path / "maps.npz", maps, sizes)
        back, read_sizes = load_maps(tmp_path / "maps.npz")
        assert read_sizes == sizes and (tmp_path / "maps.npz").stat().st_size < 3e6
        assert ((back - maps).abs() <= maps.abs() * 2.0**-16).all()
        assert (F.softmax(back, 1) - F.softmax(maps, 1)).abs().max() < 1e-4
    (tmp_path / "cut.npz").write_bytes((tmp_path / "maps.npz").read_bytes()[:1000])
    with pytest.raises(RunError, match="cut.npz: a damaged map"):
        load_maps(tmp_path / "cut.npz")
    with pytest.raises(RunError, match="too little space for the score maps .10 images, at most .* MB each"):
        check_disk(tmp_path, 10, 10**15)


# Thresholds and labels


@pytest.mark.parametrize("run", ("conf", "conf_b", "conf_tiny"))
def test_crst_thresholds_and_labels(run, crst_scores, golden, tmp_path):
    scores, recorded = crst_scores(tmp_path)
    portion, _, every, mine_port, _ = recorded[f"{run}_params"]
    histograms = ConfidenceHistograms(19, int(every))
    for image in torch.from_numpy(recorded["prob"]).permute(0, 3, 1, 2):
        histograms.add(*most_likely([image]))
    np.testing.assert_array_equal(histograms.sizes(), recorded[f"{run}_conf_len"])
    np.testing.assert_array_equal(histograms.pixels, recorded[f"{run}_pred_cls_num"])
    thresholds = class_thresholds(histograms, portion)
    np.testing.assert_allclose(thresholds, recorded[f"{run}_cls_thresh"], rtol=2.0**-14)
    exact = torch.from_numpy(recorded[f"{run}_cls_thresh"])
    for image, pseudo in zip(torch.from_numpy(recorded["prob"]).permute(0, 3, 1, 2), recorded[f"{run}_pseudo"], strict=True):
        np.testing.assert_array_equal(to_label_ids(select(image, exact)), pseudo)
    # The whole way, with maps from the disk: thresholds within 1e-4, labels but for pixels on the threshold.
    histograms = ConfidenceHistograms(19, int(every))
    for image in scores:
        histograms.add(*most_likely([image]))
    thresholds = class_thresholds(histograms, portion)
    np.testing.assert_allclose(thresholds, recorded[f"{run}_cls_thresh"], atol=1e-4)
    ours = np.stack([to_label_ids(select(image, thresholds)) for image in scores])
    assert (ours != recorded[f"{run}_pseudo"]).mean() < 1e-2
    # Rare classes, by share of the predicted pixels.
    args = SimpleNamespace(kc_policy="cb", mine_thresh=mine_port, mine_id_number=3)
    report = report_classes(args, CRST, portion, histograms)
    pixels = recorded[f"{run}_pred_cls_num"]
    assert sorted(report.rare) == sorted(recorded[f"{run}_mine_id"].tolist()) and report.priority == []
    assert (np.diff(pixels[report.rare]) >= 0).all()


def test_lrent_labels(golden):
    recorded, lrent = golden("crst/thresholds.npz"), golden("crst/thresholds_lrent.npz")
    thresholds = torch.from_numpy(lrent["cls_thresh"])
    for i, image in enumerate(torch.from_numpy(recorded["prob"]).permute(0, 3, 1, 2)):
        assert (to_label_ids(select(image, thresholds, 0.25)) == lrent["pseudo"][i]).mean() > 0.999
        soft = soft_labels(image, thresholds, 0.25).permute(1, 2, 0)
        close(soft if i < 2 else soft[::3, ::3], lrent["soft"][i] if i < 2 else lrent["soft_image2_sub"], 1e-4)


@pytest.mark.parametrize(
    "file, run",
    [
        ("thresholds", "cb"),
        ("thresholds", "global"),
        ("thresholds", "cb_tiny"),
        ("thresholds_prior", "cb_prior"),
        ("thresholds_prior", "global_prior"),
        ("thresholds_synthia16", "cb"),
    ],
)
def test_cbst_thresholds_and_labels(file, run, golden):
    recorded = golden(f"cbst/{file}.npz")
    maps = recorded["probmap"] if "probmap" in recorded else golden("cbst/thresholds.npz")["probmap"]
    if "prior_array" in recorded:
        maps = recorded["prior_array"] * maps
    classes = maps.shape[1]
    histograms = ConfidenceHistograms(classes)
    for image in torch.from_numpy(maps):
        histograms.add(*most_likely([image]))
    policy = run.split("_")[0]
    args = SimpleNamespace(kc_policy=policy, mine_thresh=float(recorded[f"{run}_mine_thresh"]), mine_id_number=3)
    report = report_classes(args, MXNET, float(recorded[f"{run}_port"]), histograms)
    thresholds = torch.tensor(report.thresholds)
    expected = recorded[f"{run}_cls_thresh"]
    np.testing.assert_allclose(thresholds, np.where(expected == 0, 1, expected), rtol=1e-6)
    if policy == "cb":
        sizes = recorded[f"{run}_cls_size"]
        np.testing.assert_array_equal(histograms.sizes() + (histograms.sizes() > 0), sizes)
        assert report.priority == recorded[f"{run}_mine_id_priority"].tolist()
        assert sorted(sizes[report.rare]) == sorted(sizes[recorded[f"{run}_mine_id"]])
    for image, pseudo in zip(torch.from_numpy(maps), recorded[f"{run}_pseudo"], strict=True):
        np.testing.assert_array_equal(to_label_ids(select(image, thresholds), class_set(classes)), pseudo)


@pytest.mark.parametrize("size", ((29, 61), (100, 40)))
def test_bands_are_the_scores_of_the_whole_image(size):
    """Against interpolating everything at once, also with mixed precision on around it."""
    maps = torch.randn(2, 5, 8, 13, generator=torch.Generator().manual_seed(0))
    both = [F.softmax(upsample(each[None], size), dim=1)[0] for each in maps]
    close(FullSizeLogits().scores(maps, size), (both[0] + both[1].flip(-1)) / 2, 1e-6)
    close(FullSizeLogits(flip=False).scores(maps[:1], size), both[0], 1e-6)
    probabilities, shape = maps[:1].softmax(1), (61, 100)
    planes = [np.asarray(Image.fromarray(p).resize((104, 64), Image.BICUBIC))[:61, :100] for p in probabilities[0].numpy()]
    kind = Image.LANCZOS if size == (29, 61) else Image.BILINEAR
    expected = np.stack([Image.fromarray(plane).resize(size[::-1], kind) for plane in planes])
    with torch.autocast("cpu", torch.bfloat16):
        close(CoarseProbabilities().scores(probabilities, size, shape), expected, 1e-5)
    rows = [band.shape[1] for band in CoarseProbabilities().bands(probabilities, size, shape)]
    assert sum(rows) == size[0] and max(rows) <= 16


def test_the_highest_score_is_found_as_argmax_finds_it():
    """Of equal scores the first; batches too."""
    scores = torch.randint(0, 4, (2, 19, 6, 7), generator=torch.Generator().manual_seed(0)).float()
    best, classes = highest(scores)
    assert torch.equal(best, scores.amax(1)) and classes.dtype == torch.uint8
    assert torch.equal(classes.long(), scores.argmax(1))


@pytest.mark.parametrize("every", (1, 3))
def test_histograms_take_every_so_manyth_pixel_of_a_class(every):
    generator = torch.Generator().manual_seed(0)
    predicted = torch.randint(0, 3, (20, 30), generator=generator).to(torch.uint8)
    confidence = torch.rand(20, 30, generator=generator)
    histograms = ConfidenceHistograms(4, every)
    histograms.add(confidence, predicted)
    assert histograms.pixels.tolist() == [int((predicted == c).sum()) for c in range(4)]
    for c in range(3):
        taken = confidence[predicted == c][::every].sort(descending=True).values
        assert histograms.sizes()[c] == len(taken)
        assert [histograms.kth_largest(k, c) for k in (1, len(taken))] == [taken[0], taken[-1]]
    assert histograms.sizes()[3] == 0


def test_thresholds_of_many_samples_are_within_1e_4():
    """Against sorting, for a hundred times more samples than bins could tell apart; memory does not depend on their number."""
    generator = torch.Generator().manual_seed(1)
    histograms, samples = ConfidenceHistograms(3, every=1), [[], [], []]
    memory = histograms.counts.numel()
    for _ in range(20):
        scores = F.softmax(torch.randn(3, 300, 400, generator=generator) * 3, dim=0)
        histograms.add(*most_likely([scores]))
        confidence, predicted = scores.max(0)
        for c in range(3):
            samples[c].append(confidence[predicted == c])
    assert histograms.counts.numel() == memory
    everything = [torch.cat(values).sort(descending=True).values for values in samples]
    for portion in (0.03, 0.2, 0.5, 0.9):
        thresholds = class_thresholds(histograms, portion)
        for c, values in enumerate(everything):
            assert abs(thresholds[c] - values[int(len(values) * portion) - 1]) <= 1e-4
        together = torch.cat(everything).sort(descending=True).values
        assert abs(global_threshold(histograms, portion)[0] - together[int(len(together) * portion) - 1]) <= 1e-4


# Losses


@pytest.mark.parametrize("case", ("cbst", "mrkld", "mrkld_src", "mrkld_last_ignored", "soft", "soft_mrkld"))
def test_losses(case, golden):
    recorded = golden("crst/losses.npz")
    logits = torch.from_numpy(noise("crst.losses.pred", (2, 19, 10, 14), 0, 2.0)).requires_grad_()
    weights, k = torch.from_numpy(recorded[f"{case}_reg_weights"]).float(), float(recorded[f"{case}_mr_weight_kld"])
    if case.startswith("soft"):
        soft = torch.from_numpy(recorded["soft"])
        labelled, loss = soft.sum(1) != 0, soft_cross_entropy(logits, soft)
    else:
        label = torch.from_numpy(recorded["label_last_ignored" if case == "mrkld_last_ignored" else "label"])
        labelled, loss = label != 255, cross_entropy(logits, label)
    loss = loss + k * confidence_regulariser(logits, labelled, weights)
    loss.backward()
    close(loss.detach(), recorded[f"{case}_loss"])
    close(logits.grad, recorded[f"{case}_grad"])


def test_a_batch_without_labels_is_harmless():
    """The originals divide 0 by 0 there and destroy the network."""
    logits = torch.randn(1, 19, 4, 4, requires_grad=True)
    label = torch.full((1, 4, 4), 255)
    (cross_entropy(logits, label) + confidence_regulariser(logits, label != 255, torch.tensor([0.1]))).backward()
    assert not logits.grad.any()
    soft_cross_entropy(logits, torch.zeros(1, 19, 4, 4)).backward()
    assert not logits.grad.any()


# Crops


class Script:
    """Recorded draws, whatever is asked for."""

    def __init__(self, draws):
        self.values = [int(value) if name in ("randint", "choice") else value for name, _, value in draws]

    def random(self):
        return self.values.pop(0)

    def uniform(self, low, high):
        return self.values.pop(0)

    def randint(self, low, high):
        value = self.values.pop(0)
        assert low <= value <= high
        return value


def levels(image, recorded):
    """Differences in grey levels between our uint8 image and a recorded normalised one."""
    return (image.float() - (torch.from_numpy(recorded) * STD + MEAN) * 255).abs().numpy()


def crst_records(kind):
    records = json.load(open(GOLDEN / "crst/loaders.json"))["records"]
    return [record for record in records if record["set"] == kind]


@pytest.mark.parametrize("kind", ("src", "mine"))
def test_crst_crops(kind, golden):
    recorded = golden("crst/loaders.npz")
    table = label_table(LABEL_IDS, CITYSCAPES)
    records = crst_records(kind)
    crop = ScaledCrop((56, 40), (0.5, 1.5), True, (16, 12, 18) if kind == "mine" else (), 0.8)
    assert len(records) in (6, 12)
    for i, record in enumerate(records):
        name = "src" if kind == "src" else "tgt"
        image = torch.from_numpy(recorded[f"{name}_image{record['image']}"]).permute(2, 0, 1)
        label = torch.from_numpy(table[recorded[f"{name}_label{record['image']}"]])
        rng = Script(record["draws"])
        cut, cut_label = crop(image, label, rng, None)
        assert not rng.values
        np.testing.assert_array_equal(cut_label, recorded[f"{kind}_label"][i])
        if i < len(recorded[f"{kind}_image"]):
            difference = levels(cut, recorded[f"{kind}_image"][i])
            assert difference.max() <= 1.5 and (difference > 0.6).mean() < 0.01


@pytest.mark.parametrize("kind", ("softsrc", "softmine"))
def test_crst_soft_crops(kind, golden):
    recorded, images = golden("crst/loaders_soft.npz"), golden("crst/loaders.npz")
    table = label_table(LABEL_IDS, CITYSCAPES)
    name = "src" if kind == "softsrc" else "tgt"
    records = crst_records(kind)
    assert len(records) == len(recorded[f"{kind}_label"])
    for i, record in enumerate(records):
        label = torch.from_numpy(table[images[f"{name}_label{record['image']}"]])
        crop = ScaledCrop((56, 40), (0.5, 1.5), True, (16, 12, 18) if kind == "softmine" else (), 0.8)
        window, cut_label = crop.choose(label, Script(record["draws"]))
        if kind == "softsrc":
            soft = one_hot(cut_label, 19)
        else:
            quarter = recorded[f"tgt_soft{record['image']}_quarter"]
            whole = torch.from_numpy(quarter.repeat(4, 0).repeat(4, 1)[:64, :128]).permute(2, 0, 1).contiguous()
            soft = crop.cut_soft(whole, cut_label, window)
        close(soft, recorded[f"{kind}_label"][i], 1e-4)


def test_crst_images_to_label(golden):
    recorded, images = golden("crst/loaders_test.npz"), golden("crst/loaders.npz")
    for key in recorded:
        if "_image" in key:
            scale, index = key.removeprefix("scale").split("_image")
            image = torch.from_numpy(images[f"tgt_image{index}"]).permute(2, 0, 1)
            scaled, _ = ScaleImage(float(scale))(image, None, None, None)
            difference = levels(scaled, recorded[key])
            assert difference.max() <= 1.5 and (difference > 0.6).mean() < 0.01


def test_cbst_crops(golden):
    settings = json.load(open(GOLDEN / "cbst/sampling.json"))
    recorded, more = golden("cbst/sampling.npz"), golden("cbst/sampling_more.npz")
    data = np.concatenate([recorded["data"], more["data"]])
    table = label_table(LABEL_IDS, CITYSCAPES)
    for i, (_, draws) in enumerate(settings["draws"]):
        kind = "tgt" if recorded["rec_is_target"][i] else "src"
        image = torch.from_numpy(recorded[f"{kind}_image{recorded['rec_image'][i]}"]).permute(2, 0, 1)
        label = torch.from_numpy(table[recorded[f"{kind}_label{recorded['rec_image'][i]}"]])
        crop = CanvasCrop(
            settings["network_crop"], settings["scale_rate_range"], settings[f"origin_size_{kind}"],
            max(settings[f"max_shape_{kind}"]), settings["mine_id_priority"], settings["mine_id"], settings["mine_port"],
        )  # fmt: skip
        rng = Script([(name, None, value[0]) for name, _, value in draws])
        cut, cut_label = crop(image, label, rng, None)
        assert not rng.values
        np.testing.assert_array_equal(cut_label.flatten(), recorded["label"][i])
        assert levels(cut, data[i]).max() < 0.01, i


def test_source_subsets(golden):
    crst, cbst = golden("crst/source_subset.npz"), golden("cbst/source_subset.npz")
    for seed, total, portion, expected in (
        (4, 19984, 0.03, crst["round0_seed4_sel"]),
        (5, 19984, 0.0325, crst["round1_seed5_sel"]),
        (0, 24966, 0.03, cbst["sel_seed0_n748"]),
        (0, 24966, 0.0325, cbst["sel_seed0_n811"]),
    ):
        np.testing.assert_array_equal(source_subset(total, portion, seed), expected)


def test_crst_schedule():
    expected = json.load(open(GOLDEN / "crst/schedule.json"))
    for ours, theirs in zip(schedule(get_arguments([]), CRST), expected, strict=True):
        assert (ours.seed, ours.learning_rate) == (theirs["seed"], 5e-5)
        assert ours.target == pytest.approx(theirs["tgt_portion"]) and ours.source == pytest.approx(theirs["src_portion"])
        assert int(19984 * ours.source) == theirs["src_num_sel"]


@pytest.mark.parametrize("case, flags", [("gta_readme", ""), ("synthia_readme", "--init-tgt-port 0.2 --init-src-port 0.02")])
def test_cbst_schedule(case, flags):
    expected = json.load(open(GOLDEN / "cbst/schedule.json"))[case]
    ours = schedule(get_arguments(["--model", "ResNet38", "--num-round", "6", *flags.split()]), MXNET)
    for mine, theirs in zip(ours, expected, strict=True):
        assert (mine.target, mine.source, mine.seed) == (theirs["tgt_port"], theirs["src_port"], theirs["seed"])
        assert mine.learning_rate == pytest.approx(theirs["lr"], rel=1e-10)


# Networks and steps


def test_crst_network(golden):
    recorded = golden("crst/models.npz")
    network = filled(build_model("DeeplabRes", batch_norm="frozen")).eval()
    keys = json.load(open(GOLDEN / "crst/keys.json"))["state_dict"]
    assert {k: list(v.shape) for k, v in network.state_dict().items() if not k.endswith("tracked")} == keys
    for i, shape in enumerate(((1, 3, 256, 320), (2, 3, 57, 81))):
        with torch.no_grad():
            logits = network(torch.from_numpy(noise(f"crst.models.input{i}", shape, 0, 1.0)))[-1]
        close(logits, recorded[f"logits{i}"], 1e-4)


class RecordedBatches:
    """Stands in for a loader: the recorded batches, one an epoch's step."""

    def __init__(self, batches):
        self.batches, self.dataset = iter(batches), range(8)  # four batches of two
        self.batch_size, self.world_size = 2, 1

    def __next__(self):
        return {"path": ["recorded"] * 2, "name": ["recorded"] * 2, **next(self.batches)}

    def state_dict(self):
        return {}

    def close(self):
        pass


def retrain_recorded(monkeypatch, directory, flags, protocol, learning_rate, network, batches, check):
    """Drive `retrain` with recorded batches: after each step `check(step, losses)`; no weights are written."""

    class Checked(run_module.Run):
        def end_step(self, step, losses, **more):
            super().end_step(step, losses, **more)
            assert self.rates == {"lr_G": learning_rate}
            check(step, {name: loss.item() for name, loss in losses.items()})
            steps.append(step)

        def _save_networks(self, tag):
            pass

        def _save_state(self, next_step):
            pass

    steps = []
    monkeypatch.setattr(train_cbst, "Run", Checked)
    args = get_arguments([*flags.split(), "--epochs-per-round", "1", "--save-num-images", "0", "--device", "cpu"])
    settings = args.with_values(snapshot_dir=str(directory / "round0"), learning_rate=learning_rate)
    plan = train_cbst.plan_round(settings, protocol, CITYSCAPES, images=8)
    last = train_cbst.retrain(settings, plan, network, RecordedBatches(batches), None, torch.device("cpu"), [1.0] * 19)
    assert steps == [0, 1, 2, 3] and last == str(directory / "round0/gta52cityscapes_round0_epoch1.pth")


def check_movement(name, initial, expected_after, moved, smallest):
    """Compare how the first eight values of a parameter moved with the recording ([mean, std, first eight values])."""
    expected = (expected_after - initial)[2:][: len(moved)]
    tolerance = 2e-2 * np.abs(expected).max() + smallest
    np.testing.assert_allclose(moved, expected, rtol=2e-2, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("updates, suffix", [("published", ""), ("clean", "_each_parameter_once")])
@pytest.mark.parametrize("case", ("cbst", "mrkld", "lrent"))
def test_four_steps_match_crst(case, updates, suffix, golden, tmp_path, monkeypatch):
    recorded = golden(f"crst/trajectory_{case}.npz")
    network = filled(build_model("DeeplabRes", batch_norm="frozen")).train()
    k, alpha = float(recorded["mr_weight_kld"]), float(recorded["lr_weight_ent"])
    assert recorded["reg_weights"].tolist() == [0, k]  # the first image is from the source, the second from the target
    start = {name: value.clone() for name, value in network.state_dict().items()}

    def batches():
        for step in range(4):
            image = torch.from_numpy(noise(f"crst.trajectory.input{step}", (2, 3, 64, 96), 0, 1.0))
            np.testing.assert_allclose(image[:, :, 0, :4], recorded["input_check"][step], rtol=1e-6)
            label = torch.from_numpy(recorded["label_eighth"][step]).repeat_interleave(8, 1).repeat_interleave(8, 2)
            batch = {"image": image, "label": label, "target": torch.tensor([0.0, 1.0])}
            if alpha:
                soft = torch.from_numpy(recorded["soft_eighth"][step]).repeat_interleave(8, 2).repeat_interleave(8, 3)
                batch["soft"] = soft
            yield batch

    def check(step, losses):
        assert set(losses) == ({"loss_seg", "loss_reg"} if k else {"loss_seg"})
        loss = losses["loss_seg"] + k * losses.get("loss_reg", 0)
        assert loss == pytest.approx(recorded[f"loss{suffix}"][step], rel=1e-4), step
        end, after = network.state_dict(), recorded[f"param_after{suffix}"][step]
        for name, initial, value in zip(recorded["param_names"], recorded["param_init"], after, strict=True):
            moved = (end[name] - start[name]).flatten()[:8].double().numpy()
            check_movement(name, initial, value, moved, 1e-7)

    flags = f"--updates {updates} --mr-weight-kld {k} --lr-weight-ent {alpha}"
    retrain_recorded(monkeypatch, tmp_path, flags, CRST, float(recorded["lr"]), network, batches(), check)


def test_four_steps_match_mxnet(golden, tmp_path, monkeypatch):
    recorded = golden("cbst/trajectory_sgd.npz")
    network = build_model("ResNet38", batch_norm="frozen-statistics")
    fill_keys = json.load(open(GOLDEN / "cbst/keys.json"))
    values = fill({fill_key(name, fill_keys): tuple(shape) for name, shape in fill_keys["params_19"].items()}, 0)
    arrays = {name: values[fill_key(name, fill_keys)] for name in fill_keys["params_19"]}
    network.load_state_dict(from_mxnet(arrays).tensors, strict=False)
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0

    def batches():
        for step in range(4):
            image = torch.from_numpy(noise(f"cbst.trajectory.input{step}", (2, 3, 64, 64), 0, 1.0))
            yield {"image": image, "label": torch.from_numpy(recorded["label"][step]), "target": torch.zeros(2)}

    def check(step, losses):
        assert losses == {"loss_seg": pytest.approx(recorded["loss_mean"][step], rel=2e-4)}
        end = {name.split(":")[1]: value for name, value in to_mxnet(network.state_dict()).items()}
        after = recorded["param_after"][step]
        for name, initial, value in zip(recorded["param_names"], recorded["param_init"], after, strict=True):
            moved = end[name.split(":")[-1]].ravel().astype(np.float64)[:8]
            check_movement(name, initial, value, moved - initial[2 : 2 + len(moved)], 1e-6)

    retrain_recorded(monkeypatch, tmp_path, "--model ResNet38", MXNET, 0.01, network, batches(), check)


def fill_key(name, keys):
    plain = name.split(":")[1]
    return keys["fill_key_19"].get(plain, plain)


def test_crst_evaluation(golden):
    """Single scale and the statistics of the confusion matrix; the three-scale protocol belongs to the evaluator."""
    recorded = golden("crst/thresholds.npz")
    loader = [
        {
            "image": torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
            "label": torch.from_numpy(label_table(LABEL_IDS, CITYSCAPES)[gt])[None],
            "path": [""],
        }
        for gt in recorded["gt_labelid"]
    ]

    class Fixed(torch.nn.Module):
        default_heads = "last"

        def __init__(self):
            super().__init__()
            self.predictions = list(recorded["pred"])

        def forward(self, images):
            return [F.one_hot(torch.from_numpy(self.predictions.pop(0)).long(), 19).permute(2, 0, 1)[None].float()]

    matrix = evaluate(Fixed(), loader, 19, torch.device("cpu")).matrix
    np.testing.assert_array_equal(matrix, recorded["score_hist"])


# Whole runs


def train(mini_data, directory, *more, model="MiniResNet18"):
    flags = ["--data-dir", f"{mini_data}/GTA5", "--data-dir-target", f"{mini_data}/Cityscapes", "--model", model]
    flags += [
        "--restore-from",
        "none",
        "--device",
        "cpu",
        "--num-workers",
        "0",
        "--input-size",
        "64,32",
        "--init-src-port",
        "0.5",
    ]
    flags += ["--num-rounds", "3", "--epochs-per-round", "1", "--snapshot-dir", str(directory), *more]
    train_cbst.main(get_arguments(flags))


@pytest.mark.parametrize("more", [(), ("--lr-weight-ent", "0.25", "--mr-weight-kld", "0.1"), ("--kc-policy", "global")])
def test_rounds_continue_after_an_interruption(more, mini_data, tmp_path, monkeypatch):
    train(mini_data, tmp_path / "whole", *more)
    # Broken off while the second round's labels are written, then inside its training.
    real_save, saved = label_folders.save_colours, []

    def broken_save(*arguments):
        saved.append(arguments[0])
        if len(saved) == 8:
            raise KeyboardInterrupt
        real_save(*arguments)

    monkeypatch.setattr(label_folders, "save_colours", broken_save)
    with pytest.raises(KeyboardInterrupt):
        train(mini_data, tmp_path / "parts", *more)
    update, steps = train_cbst.Run.update, []

    def broken_update(self, *optimizers):
        steps.append(1)
        if len(steps) == 2:
            raise KeyboardInterrupt
        update(self, *optimizers)

    monkeypatch.setattr(train_cbst.Run, "update", broken_update)
    with pytest.raises(KeyboardInterrupt):
        train(mini_data, tmp_path / "parts", "--resume", "--save-state-every", "1", *more)
    train(mini_data, tmp_path / "parts", "--resume", "--save-state-every", "1", *more)
    assert len(saved) == 8 + 3  # the missing three only
    for r in range(2):
        name = f"round{r}/gta52cityscapes_round{r}_epoch1.pth"
        whole, parts = (torch.load(tmp_path / folder / name, weights_only=True) for folder in ("whole", "parts"))
        assert all(torch.equal(whole[key], parts[key]) for key in whole)
        labels = sorted((tmp_path / "whole" / f"round{r}" / "pseudo_labels").glob("*.png"))
        assert len(labels) == 5
        for path in labels:
            with Image.open(path) as ours, Image.open(tmp_path / "parts" / f"round{r}" / "pseudo_labels" / path.name) as other:
                assert np.array_equal(np.array(ours), np.array(other)) and set(np.unique(ours)) <= {*range(19), 255}
        assert not (tmp_path / "whole" / f"round{r}" / "maps").exists()
    assert load_model(tmp_path / "whole/round1/gta52cityscapes_round1_epoch1.pth").settings["name"] == "MiniResNet18"
    with pytest.raises(StateError, match="holds files already"):
        train(mini_data, tmp_path / "whole", *more)


def test_chance_does_not_label_and_runs_do_not_mix(mini_data, tmp_path):
    torch.save(build_model("MiniResNet18", 16).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match="layer5.conv2d_list.0.weight has shape .16"):
        train(mini_data, tmp_path / "a", "--restore-from", str(tmp_path / "weights.pth"))
    train(mini_data, tmp_path / "a", "--num-rounds", "2")  # what failed at once has claimed nothing
    with pytest.raises(StateError, match="made with other settings: eval_scale 0.9 .now 1.0."):
        train(mini_data, tmp_path / "a", "--num-rounds", "2", "--eval-scale", "1", "--resume")
    with pytest.raises(StateError, match="made with other settings: batch_size 2 .now 1."):
        train(mini_data, tmp_path / "a", "--num-rounds", "2", "--batch-size", "1", "--resume")
    with pytest.raises(PriorError, match="no such file; scripts/spatial_prior.py makes one"):
        train(mini_data, tmp_path / "c", "--with-prior")
    assert not (tmp_path / "c").exists()


def test_a_damaged_map_is_made_anew(mini_data, tmp_path, monkeypatch):
    """Removed, as the error says, it is written again, also when the thresholds stand."""

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(label_folders, "save_colours", stop)
    with pytest.raises(KeyboardInterrupt):
        train(mini_data, tmp_path, "--num-rounds", "2")
    monkeypatch.undo()
    (damaged, *_) = sorted((tmp_path / "round0/maps").glob("*.npz"))
    damaged.write_bytes(b"PK")
    with pytest.raises(RunError, match=f"{damaged.name}: a damaged map"):
        train(mini_data, tmp_path, "--num-rounds", "2", "--resume")
    damaged.unlink()
    train(mini_data, tmp_path, "--num-rounds", "2", "--resume")
    assert len(list((tmp_path / "round0/pseudo_labels").glob("*.png"))) == 5


def test_the_portion_of_labels_is_as_asked(mini_data, tmp_path):
    train(mini_data, tmp_path, "--num-rounds", "2", "--init-tgt-port", "0.3")
    report = json.load(open(tmp_path / "round0/thresholds.json"))
    kept = np.zeros(19)
    for path in (tmp_path / "round0/pseudo_labels").glob("*.png"):
        kept += np.bincount(np.array(Image.open(path)).ravel(), minlength=256)[:19]
    predicted = np.array(report["pixels_predicted"])
    common = predicted > 2000
    assert common.any()
    # Each class keeps its portion of the pixels predicted as it; others may join where p_c / t_c is the largest.
    assert (kept[common] / predicted[common] > 0.2).all() and kept.sum() / predicted.sum() < 0.75


def test_files_are_listed_and_the_prior_is_read_once(mini_data, tmp_path, monkeypatch):
    flags = f"--source gta5 -d {mini_data}/GTA5 --size 48,24 --num-classes 19 --workers 1 --output {tmp_path}/prior.mat"
    spatial_prior.main(spatial_prior.get_arguments(flags.split()))
    listed, read = [], []

    def list_target(*arguments):
        listed.append(arguments)
        return target_domain(*arguments)

    def read_prior(*arguments):
        read.append(arguments)
        return load_prior(*arguments)

    target_domain, load_prior = train_cbst.target_domain, prior_module.load_prior
    monkeypatch.setattr(train_cbst, "target_domain", list_target)
    monkeypatch.setattr(prior_module, "load_prior", read_prior)
    train(mini_data, tmp_path / "run", "--with-prior", "--prior", str(tmp_path / "prior.mat"))
    assert len(listed) == len(read) == 1 and (tmp_path / "run/round1/finished.json").exists()


def test_the_prior_at_other_sizes(tmp_path, capsys):
    """As `load_prior` would resize it."""
    path = str(tmp_path / "prior.npz")
    save_prior(path, np.random.RandomState(0).rand(3, 8, 16).astype(np.float32))
    prior = prior_module.SpatialPrior(load_prior(path, 3))
    np.testing.assert_array_equal(prior.at((8, 16)), load_prior(path, 3))
    np.testing.assert_allclose(prior.at((24, 40)), load_prior(path, 3, (40, 24)), rtol=1e-5)
    np.testing.assert_array_equal(prior.at((8, 16)), load_prior(path, 3))


# Folders of labels and maps


def test_folders_follow_the_names_of_images(tmp_path):
    """Names may have sub-folders."""
    labels = LabelFolder(str(tmp_path / "labels"), CITYSCAPES)
    records = [Record(f"{tmp_path}/{name}", None, name) for name in ("a/x.jpg", "b/x.png", "y.png")]
    labels.check_names(records)
    for i, record in enumerate(records[:2]):
        assert not labels.has(record)
        labels.write(record.name, np.full((2, 3), i, np.uint8))
    assert [labels.has(record) for record in records] == [True, True, False]
    with pytest.raises(MissingDataError, match=r"labels/y.png: no such pseudo-label \(1 missing\); make it"):
        labels.dataset(records, None, "make it")
    found = labels.dataset(records[:2], None, "").records
    assert [record.label for record in found] == [str(tmp_path / "labels/a/x.png"), str(tmp_path / "labels/b/x.png")]
    assert (np.array(Image.open(found[1].label)) == 1).all() and found[0].image == records[0].image
    with pytest.raises(DataError, match="a/x.png and .*a/x.jpg have the same name"):
        labels.check_names([*records, Record(f"{tmp_path}/a/x.png", None, "a/x.png")])

    Image.new("RGB", (16, 8)).save(tmp_path / "image.png")
    dataset = SegmentationDataset([Record(str(tmp_path / "image.png"), None, "a/image.png")], None, labels=False)
    maps = ScoreMaps(str(tmp_path / "maps"), FullSizeLogits(flip=False))
    assert len(left_over(dataset, maps.has)) == 1
    maps.write(Stub([torch.zeros(19, 1, 2)]), left_over(dataset, maps.has))
    assert len(left_over(dataset, maps.has)) == 0 and (tmp_path / "maps/a/image.png.npz").exists()
    assert maps.scores(dataset.records[0]).shape == (19, 8, 16)


def test_label_folders_know_what_they_were_made_from(tmp_path):
    labels = LabelFolder(str(tmp_path), class_set(16))
    labels.claim(False, weights="a.pth")
    labels.write("x.png", np.zeros((2, 3), np.uint8))
    labels.claim(True, weights="a.pth")
    with pytest.raises(StateError, match="holds files already: go on with --resume"):
        labels.claim(False, weights="a.pth")
    with pytest.raises(StateError, match=r"made with other settings: weights a.pth \(now b.pth\)"):
        labels.claim(True, weights="b.pth")
    with pytest.raises(StateError, match="has 16 classes .road, .*, not these 19: road"):
        LabelFolder(str(tmp_path), CITYSCAPES).dataset([Record("x.png", None, "x.png")], None, "")
    (tmp_path / "made_from.json").write_text("[")
    with pytest.raises(StateError, match="made_from.json: damaged"):
        labels.claim(True, weights="a.pth")


# Protocols


def test_published_commands_of_the_mxnet_driver():
    command = (
        "--num-round 5 --test-scales 1850 --scale-rate-range 0.7,1.3 --dataset gta --dataset-tgt cityscapes --split train "
        "--split-tgt val --data-root A --data-root-tgt B --output C --model cityscapes_rna-a1_cls19_s8 --weights W "
        "--batch-images 2 --crop-size 500 --origin-size-tgt 2048 --init-tgt-port 0.15 --init-src-port 0.03 --seed-int 0 "
        "--mine-port 0.8 --mine-id-number 3 --mine-thresh 0.001 --base-lr 1e-4 --to-epoch 2 --source-sample-policy cumulative "
        "--self-training-script X --kc-policy cb --prefetch-threads 2 --gpus 0 --with-prior True"
    )
    args = get_arguments(command.split())
    assert (args.protocol, args.model, args.num_classes, args.source) == ("cbst", "ResNet38", 19, "gta5")
    assert (args.data_dir, args.data_dir_target, args.snapshot_dir, args.restore_from) == ("A", "B", "C", "W")
    assert (args.batch_size, args.learning_rate, args.with_prior, args.num_workers) == (2, 1e-4, True, 2)
    for flags, message in (
        (["--model", "ResNet38", "--lr-weight-ent", "0.25"], "belongs to --protocol crst"),
        (["--model", "ResNet38", "--crop-size", "500,400"], "crops of --protocol cbst are square"),
        (["--num-rounds", "1"], "must be at least 2"),
        (["--model", "ResNet38", "--protocol", "crst"], "does not go with --model ResNet38"),
        (["--with-prior", "--lr-weight-ent", "0.25"], "without --with-prior"),
    ):
        with pytest.raises(RunError, match=message):
            get_arguments(flags)


@pytest.mark.parametrize("flags", ("--scale-rate-range 1", "--train-scale-tgt 1.5,0.5", "--num-rounds 0"))
def test_values_that_are_none(flags):
    with pytest.raises(SystemExit):
        get_arguments(flags.split())


# Classes and images of one's own


@pytest.mark.parametrize(
    "flags",
    (
        "--model MiniResNet18 --num-rounds 3 --with-prior --prior {prior}",
        "--model MiniResNet18 --num-rounds 2 --lr-weight-ent 0.25",
        "--model ResNet38 --num-rounds 1 --with-prior --prior {prior} --test-scales 64",
    ),
)
def test_plain_folders(flags, plain_folders, tmp_path):
    """Three classes of the source's own; a target without labels and without a val split; names with sub-folders."""
    source = f"--source folder --data-dir {plain_folders}/field"
    count = f"{source} --size 64,40 --workers 1 --output {tmp_path}/prior.mat"
    spatial_prior.main(spatial_prior.get_arguments(count.split()))
    words = f"{source} --target folder --data-dir-target {plain_folders}/meadow {flags.format(prior=tmp_path / 'prior.mat')}"
    words += " --input-size 48 --epochs-per-round 1 --init-src-port 1 --max-src-port 1 --batch-size 4 --val-every 1"
    words += f" --restore-from none --device cpu --num-workers 0 --snapshot-dir {tmp_path}/run"
    train_cbst.main(get_arguments(words.split()))
    report = json.load(open(tmp_path / "run/round0/thresholds.json"))
    assert len(report["thresholds"]) == len(report["pixels_predicted"]) == 3
    for name in ("a/1", "a/2", "b/1", "b/2"):
        with Image.open(tmp_path / f"run/round0/pseudo_labels/{name}.png") as label:
            assert label.size == (64, 40) and set(np.unique(label)) <= {0, 1, 2, 255}
            assert label.getpalette()[3:6] == [0, 200, 0]
    network = load_model(tmp_path / "run/round0/folder2folder_round0_epoch1.pth")
    assert network.settings["num_classes"] == 3 and network.classes["names"] == ["soil", "plant", "stone"]
