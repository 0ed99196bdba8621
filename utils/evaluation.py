"""Prediction with mirrored and rescaled images, and scoring over a data set."""

import contextlib
from functools import partial

import torch
from torch.nn import functional as F

from dataset.reading import image_size
from model import upsample

from .confusion import ConfusionMatrix
from .pseudo_labels import CoarseProbabilities


def predict(model, images, size, heads=None, flip=False, scales=(1.0,), average="probabilities"):
    """Scores (N,C,H,W) of images at output `size` (H,W): their argmax is the prediction.

    A single pass gives logits; with `flip` or several `scales` the probabilities (or the logits) of all passes are averaged.

    Args:
        images: (N,3,h,w) uint8 RGB, or floats that are normalised already.
        heads: "last" (the main classifier) or "sum" (the classifiers' logits added, as CLAN does); default: the network's own.
        scales: factors of the input size.
        average: "probabilities" or "logits" (CRST).
    """
    if not flip and tuple(scales) == (1.0,):
        return upsample(_logits(model, images, heads), size)
    total = 0.0
    vote = partial(F.softmax, dim=1) if average == "probabilities" else torch.nn.Identity()
    if not images.is_floating_point():
        images = model.normalize(images)  # before resizing, so that nothing is rounded
    for scale in scales:
        scaled = images if scale == 1.0 else _rescale(images, scale)
        total = total + vote(upsample(_logits(model, scaled, heads), size))
        if flip:
            total = total + vote(upsample(_logits(model, scaled.flip(-1), heads), size)).flip(-1)
    return total / (len(scales) * (2 if flip else 1))


def predict_coarsely(model, images, size, flip=False, steps=1):
    """Scores as the MXNet CBST makes them: probabilities at 1/8, interpolated with bicubic weights; one image at a time.

    With `steps` N they are at N/8, from N x N passes over shifted images.
    """
    predictor = CoarseProbabilities(flip, steps)
    return predictor.scores(predictor.maps(model, images), size, images.shape[-2:])[None]


@torch.inference_mode()
def predictions(model, loader, device, autocast=contextlib.nullcontext, predict=predict, **options):
    """Predict a loader of single samples (see `dataset.sequential_loader`) at full size.

    Yields (batch, prediction): prediction is (1,H,W) uint8 on the device, as large as the label or, without one, as the
    image's file. `options` are those of the function `predict`; `autocast` makes the context of
    mixed precision.
    """
    for batch in loader:
        size = batch["label"].shape[1:] if "label" in batch else image_size(batch["path"][0])[::-1]
        with autocast():
            scores = predict(model, batch["image"].to(device, non_blocking=True), size, **options)
        yield batch, scores.argmax(1).to(torch.uint8)


def evaluate(model, loader, num_classes, device, **options):
    """Score `model` on a loader of labelled single samples, at the labels' own size; a `ConfusionMatrix`.

    The network is put into evaluation mode, and back afterwards. With several processes each scores its share and all
    get the sum. `options` are those of `predictions`.
    """
    was_training = model.training
    model.eval()
    confusion = ConfusionMatrix(num_classes, device)
    for batch, prediction in predictions(model, loader, device, **options):
        confusion.add(batch["label"].to(device, non_blocking=True), prediction)
    model.train(was_training)
    return confusion.reduce()


def _logits(model, images, heads):
    # Interpolated in half precision, neighbouring classes would tie and the lower id win (0.4 % of the pixels with bf16).
    outputs = [output.float() for output in model(images)]
    if (heads or getattr(model, "default_heads", "last")) == "sum":
        return torch.stack(outputs).sum(0)
    return outputs[-1]


def _rescale(images, scale):
    size = [int(side * scale) for side in images.shape[-2:]]
    return F.interpolate(images, size=size, mode="bilinear", align_corners=True)
