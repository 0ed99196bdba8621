"""What each method looks at, computed from what its run directory holds, with the training script's own formulas.

A new method's report works without an entry here; it only has no such pictures.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dataset.reading import read_image
from dataset.resizing import resize_image
from dataset.spatial_prior import load_prior
from model import OutputDiscriminator, load_model, load_weights, read_discriminator, upsample
from model.segmenter import Segmenter
from utils.reporting.runs import TrainingRun, last_snapshot
from utils.reporting.views import View
from utils.self_training.thresholds import ClassReport


@torch.no_grad()
def view_of(run: TrainingRun, images: Sequence[str]) -> View | None:
    """What the method of a run looks at in these image files; None for a script without an entry, or if too little is left.

    Raises:
        WeightsError, DataError: a file is there, but damaged.
    """
    view = VIEWS.get(run.script)
    return view(run, images) if view else None


def discriminators(run: TrainingRun, images: Sequence[str]) -> View | None:
    script = import_module("train_adaptsegnet")
    network, part = _network(run)
    files = {level: last_snapshot(part, f"_D{level}") for level in (1, 2)}
    judges = {level: _discriminator(path, network) for level, path in files.items() if path}
    if not judges:
        return None
    maps, as_input = [], script.discriminator_input(str(run.flags.get("target_loss")))
    for outputs, size in _outputs(network, run, images):
        by_level = script.by_level(outputs, size)
        judged = {level: judge(as_input(by_level[level])) for level, judge in judges.items()}
        found = script.maps(judged, str(run.flags.get("gan")))
        maps.append({title: _at(values, size) for title, values in found.items()})
    text = (
        "A second network, the discriminator, looks at the label map and says for each region whether it seems to come from "
        "the target. Light regions gave the target away; there the method corrects the most. Dark ones pass for the source."
    )
    return View("What the discriminators answer", text, maps, "surely source", "surely target")


def local_weights(run: TrainingRun, images: Sequence[str]) -> View | None:
    script = import_module("train_clan")
    network, _ = _network(run)
    weighting = {"epsilon": float(run.flags["epsilon"]), "lambda_local": float(run.flags["lambda_local"])}
    maps = []
    for outputs, size in _outputs(network, run, images):
        found = script.maps([upsample(logits, size) for logits in outputs], **weighting)
        maps.append({title: _at(values, size) for title, values in found.items()})
    text = (
        "Two classifiers judge every pixel. Where they disagree (light), the class is taken to be badly aligned between the "
        "domains, and the pressure to look like the source is turned up by the factor shown."
    )
    return View("Local weights: where the two classifiers disagree", text, maps, "they agree", "they disagree")


def certainty(run: TrainingRun, images: Sequence[str]) -> View | None:
    script = import_module("train_maxsquare")
    network, _ = _network(run)
    maps = []
    for outputs, size in _outputs(network, run, images):
        logits = upsample(outputs[-1], size)
        found = script.maps(logits, str(run.flags["target_mode"]), float(run.flags["IW_ratio"]))
        maps.append({title: _at(values, size) for title, values in found.items()})
    text = (
        "The method makes the network surer of target images. Shown is how sure it is of each pixel, and (with image-wise "
        "weights) how many times it counts: pixels of small classes count more, so that road and sky do not decide alone."
    )
    return View("Certainty, and the image-wise weights", text, maps, "unsure / counts little", "sure / counts much")


def soft_labels(run: TrainingRun, images: Sequence[str]) -> View | None:
    part = next((part for part in run.parts if os.path.basename(part) == "adversarial"), None)
    weights = last_snapshot(part) if part else None
    if weights is None:
        return None
    script = import_module("train_fada")
    network, maps = load_model(weights), []
    temperature, clip = float(run.flags.get("temperature") or 1.8), float(run.flags.get("clip") or 0.9)
    for outputs, size in _outputs(network, run, images):
        q = script.soft_label(upsample(outputs[-1], size), temperature, clip)
        maps.append({title: _at(values, size) for title, values in script.maps(q).items()})
    text = (
        "The discriminator is told not only which domain a pixel is from but which class, with the network's own softened "
        "answers as labels. Shown is how much of a pixel's soft label its first class has: dark pixels are shared between "
        "several classes, and teach the discriminator about all of them."
    )
    return View("Soft labels", text, maps, "shared between classes", "one class")


def thresholds(run: TrainingRun, images: Sequence[str]) -> View | None:
    rounds = [part for part in run.parts if os.path.exists(os.path.join(part, "thresholds.json"))]
    if not rounds:
        return None
    reports = [ClassReport.read(os.path.join(part, "thresholds.json")) for part in rounds]
    per_class = {f"round {number}": report.thresholds for number, report in enumerate(reports)}
    script = import_module("train_cbst")
    network, _ = _network(run)
    maps, names = [], run.flags["classes"]["names"]
    shown = names.index("person") if "person" in names else 0
    for outputs, size in _outputs(network, run, images):
        prior = _prior(run, len(names), size)
        found = script.maps(upsample(outputs[-1], size), reports[-1].thresholds, prior)
        expected = {} if prior is None else {f"spatial prior of {names[shown]}": prior[shown]}
        maps.append({title: _at(values[None], size) for title, values in (found | expected).items()})
    text = (
        "Each class has a threshold of its own, the confidence that the wanted share of its pixels reaches, so that hard "
        "classes are not left out. Pixels from 1 on are above the threshold of their class and become labels to learn from. "
        "With a spatial prior, a class counts more where the source has it often, and thresholds may be above 1."
    )
    return View("Confidence against each class's threshold", text, maps, "stays unlabelled", "becomes a label", per_class)


# By the name of the training script.
VIEWS: dict[str, Callable[[TrainingRun, Sequence[str]], View | None]] = {
    "train_adaptsegnet": discriminators,
    "train_clan": local_weights,
    "train_maxsquare": certainty,
    "train_fada": soft_labels,
    "train_cbst": thresholds,
}


def _network(run: TrainingRun) -> tuple[Segmenter, str]:
    """The last weights of a run's last part, and its directory.

    Raises:
        WeightsError: there are none, or they cannot be read.
    """
    part = run.parts[-1]
    return load_model(last_snapshot(part) or os.path.join(part, "*.pth")), part


def _discriminator(path: str, network: Segmenter) -> OutputDiscriminator:
    discriminator = OutputDiscriminator(network.settings["num_classes"])
    weights = read_discriminator(path)
    if weights is not None:
        load_weights(discriminator, weights, path)
    return discriminator.eval()


def _outputs(network: Segmenter, run: TrainingRun, images: Sequence[str]) -> Iterator[tuple[list[Tensor], tuple[int, int]]]:
    """The network's list of logits (1,C,h,w) for each image, and the size (H,W) that the method sees it at."""
    width, height = run.flags["input_size_target"]
    for path in images:
        image = resize_image(read_image(path), (height, width))
        yield [output.float() for output in network(image[None])], (height, width)


def _prior(run: TrainingRun, num_classes: int, size: tuple[int, int]) -> Tensor | None:
    """The spatial prior (C,H,W) that the run labelled with; None if it had none, or its file is gone."""
    usual = os.path.join(str(run.flags["data_dir"]), f"spatial_prior_{num_classes}.mat") if run.flags.get("with_prior") else ""
    path = run.flags.get("prior") or usual
    if not run.flags.get("with_prior") or not os.path.exists(path):
        return None
    return torch.from_numpy(load_prior(path, num_classes, (size[1], size[0])))


def _at(values: Tensor, size: tuple[int, int]) -> np.ndarray:
    """A map, the last two dimensions of (1,..,h,w), at `size` (H,W)."""
    planes = values.detach().float().reshape(1, 1, *values.shape[-2:])
    return F.interpolate(planes, size=size, mode="bilinear", align_corners=False)[0, 0].numpy()
