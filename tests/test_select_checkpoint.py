"""scripts/select_checkpoint.py: each criterion against an independent calculation, and the whole tool on the mini data."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import logsumexp

from model import WeightsError, build_model
from scripts import select_checkpoint
from utils.errors import RunError
from utils.selection import (
    CRITERIA,
    Ensemble,
    PredictionStatistics,
    SampledPixels,
    choices,
    class_correlation,
    information_maximisation,
    mean_entropy,
    nuclear_norm,
    regrets,
    soft_neighbourhood_density,
    unique_names,
)

CLASSES = 5


@pytest.fixture
def maps():
    """Probabilities of three images of different sizes."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(CLASSES, *size, generator=generator).mul(2).softmax(0) for size in ((4, 6), (3, 5), (7, 2))]


@pytest.fixture
def statistics(maps):
    found = PredictionStatistics(CLASSES, SampledPixels(len(maps), 40, seed=1))
    for image, probability in enumerate(maps):
        found.add(image, probability)
    return found


@pytest.fixture
def matrix(maps):
    """P as a whole, (N,C) float64."""
    return np.concatenate([probability.double().flatten(1).T.numpy() for probability in maps])


def entropy(distribution):
    return -sum(p * math.log(p) for p in distribution if p > 0)


def test_entropy_and_information_maximisation(statistics, matrix):
    assert mean_entropy(statistics) == pytest.approx(np.mean([entropy(row) for row in matrix]), rel=1e-6)
    expected = entropy(matrix.mean(0)) - np.mean([entropy(row) for row in matrix])
    assert information_maximisation(statistics) == pytest.approx(expected, rel=1e-6)


def test_nuclear_norm_is_that_of_the_whole_matrix(statistics, matrix):
    assert nuclear_norm(statistics) == pytest.approx(np.linalg.svd(matrix, compute_uv=False).sum() / len(matrix), rel=1e-6)


def test_class_correlation_is_the_cosine_with_the_identity(statistics, matrix):
    correlation = matrix.T @ matrix / len(matrix)
    cosine = (correlation * np.eye(CLASSES)).sum() / np.sqrt((correlation**2).sum() * CLASSES)
    assert class_correlation(statistics) == pytest.approx(math.sqrt(CLASSES) * cosine, rel=1e-6)


def test_soft_neighbourhood_density_one_pixel_after_the_other(statistics):
    rows = statistics.samples.double().numpy()
    assert rows.shape == (40, CLASSES)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    entropies = []
    for i in range(len(unit)):
        similarity = np.array([unit[i] @ unit[j] for j in range(len(unit)) if j != i]) / 0.05
        entropies.append(entropy(np.exp(similarity - logsumexp(similarity))))
    assert soft_neighbourhood_density(statistics) == pytest.approx(np.mean(entropies), rel=1e-4)


def statistics_of(rows):
    """Of probabilities (N,C) as one image of one row."""
    found = PredictionStatistics(rows.shape[1], SampledPixels(1, 30, seed=0))
    found.add(0, rows.T[:, None])
    return found


def test_directions():
    """Certain predictions of all classes are better than certain ones of one class, and than uncertain ones."""
    good, uncertain = torch.eye(3).repeat(10, 1), torch.full((30, 3), 1 / 3)
    collapsed = torch.tensor([[1.0, 0.0, 0.0]]).repeat(30, 1)
    for name in ("information maximisation", "Corr-C", "nuclear norm"):
        value, best = CRITERIA[name]
        values = {
            "good": value(statistics_of(good)),
            "bad": value(statistics_of(uncertain)),
            "one": value(statistics_of(collapsed)),
        }
        assert best is max and values["good"] > max(values["bad"], values["one"]), name
    value, best = CRITERIA["entropy"]
    assert best is min and value(statistics_of(good)) < value(statistics_of(uncertain))


def test_sampled_pixels_are_the_same_for_every_checkpoint(maps):
    sampled = SampledPixels(len(maps), 40, seed=1)
    first = torch.cat([sampled.of(i, probability) for i, probability in enumerate(maps)])
    again = torch.cat([SampledPixels(len(maps), 40, seed=1).of(i, probability) for i, probability in enumerate(maps)])
    assert torch.equal(first, again) and len(first) == 40
    pixels = torch.cat([probability.flatten(1).T for probability in maps])
    assert all((pixels == row).all(1).any() for row in first)


def test_ensemble_agrees_with_arrays_in_memory(tmp_path):
    generator = torch.Generator().manual_seed(3)
    images = [torch.randn(4, CLASSES, *size, generator=generator).softmax(1) for size in ((5, 6), (4, 3))]
    ensemble = Ensemble(str(tmp_path), CLASSES)
    for checkpoint in range(4):
        for image, probability in enumerate(images):
            ensemble.add(image, probability[checkpoint])
    role_model = np.concatenate([each.double().mean(0).argmax(0).flatten().numpy() for each in images])
    for checkpoint, agreement in enumerate(ensemble.agreement(2, 4)):
        predicted = np.concatenate([each[checkpoint].argmax(0).flatten().numpy() for each in images])
        ious = []
        for c in range(CLASSES):
            union = ((predicted == c) | (role_model == c)).sum()
            if union:
                ious.append(((predicted == c) & (role_model == c)).sum() / union)
        assert agreement == pytest.approx(np.mean(ious))
    with pytest.raises(ValueError, match="after some of shape"):
        ensemble.add(0, torch.rand(CLASSES, 2, 2))


def test_choices_regrets_and_names():
    values = {"EnsV": {"a": 0.1, "b": 0.3}, "entropy": {"a": 0.1, "b": 0.3}, "SND": {"a": 1.0, "b": 1.0}}
    choice = choices(values)
    assert choice == {"EnsV": "b", "entropy": "a", "SND": "a"}
    assert regrets(choice, {"a": 0.5, "b": 0.4}) == pytest.approx({"EnsV": 0.1, "entropy": 0.0, "SND": 0.0})
    assert unique_names(["x/a_1.pth", "x/a_2.pth"]) == ["a_1", "a_2"]
    assert unique_names(["x/a_1.pth", "y/a_1.pth"]) == ["x/a_1", "y/a_1"]


@pytest.fixture
def run_folder(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for step in (10, 20, 100):
        torch.manual_seed(step)
        torch.save(build_model("MiniResNet18").state_dict(), folder / f"GTA5_{step}.pth")
    torch.save(build_model("MiniResNet18").state_dict(), folder / "GTA5_best.pth")
    return folder


def select(*words):
    arguments = [*map(str, words), "--device", "cpu", "--num-workers", "0"]
    return select_checkpoint.main(select_checkpoint.get_arguments(arguments))


def test_a_run_on_the_mini_data(run_folder, mini_data, tmp_path, capsys):
    images, out = mini_data / "Cityscapes/leftImg8bit/train", tmp_path / "out/selection.json"
    labels = ("--dataset", "cityscapes", "--data-dir", mini_data / "Cityscapes", "--set", "val")
    figures = select(run_folder, "--target", images, "--input-size", "96,48", "--json", out, *labels)
    assert json.loads(out.read_text()) == figures
    assert list(figures["criteria"]) == ["EnsV", *CRITERIA] and set(figures) == {"criteria", "choice", "miou", "regret"}
    assert list(figures["miou"]) == ["GTA5_10", "GTA5_20", "GTA5_100"]  # not the one that labels have chosen
    for name, choice in figures["choice"].items():
        assert figures["regret"][name] == pytest.approx(max(figures["miou"].values()) - figures["miou"][choice])
    shown = capsys.readouterr().out
    assert "GTA5_best.pth is left out" in shown and "regret" in shown
    again = select(run_folder, "--target", images, "--input-size", "96,48", "--json", out)  # our own file may be replaced
    assert again["criteria"] == figures["criteria"] and set(again) == {"criteria", "choice"}


def test_images_of_different_sizes_may_be_compared(run_folder, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for name, size in (("a", (40, 60)), ("b", (70, 50))):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)).save(images / f"{name}.png")
    assert len(select(run_folder, "--target", images, "--input-size", "64,32")["criteria"]["EnsV"]) == 3


def test_what_cannot_be_compared_is_told(run_folder, mini_data, tmp_path):
    images = mini_data / "Cityscapes/leftImg8bit/val"
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="empty: no checkpoints"):
        select(tmp_path / "empty", "--target", images)
    with pytest.raises(RunError, match="1 checkpoint, so there is nothing to choose; train with --save-pred-every"):
        select(run_folder / "GTA5_10.pth", "--target", images)
    with pytest.raises(FileNotFoundError, match="empty: no images"):
        select(run_folder, "--target", tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="no labels"):
        words = ("--dataset", "crosscity", "--city-name", "Rome", "--data-dir", mini_data / "NTHU_Datasets", "--set", "train")
        select(run_folder, "--target", images, *words)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(RunError, match="other.json: exists already and was not written here"):
        select(run_folder, "--target", images, "--json", tmp_path / "other.json")
    torch.save(build_model("MiniResNet18", 16).state_dict(), run_folder / "GTA5_200.pth")
    with pytest.raises(RunError, match="GTA5_200.pth: has 16 classes, .*GTA5_10.pth 19; only checkpoints of the same"):
        select(run_folder, "--target", images)
