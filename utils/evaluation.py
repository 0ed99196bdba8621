"""Prediction with mirrored and rescaled images, and scoring over a data set."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dataset.catalogue import ClassSet, class_set, class_set_from_json
from dataset.reading import image_size
from model import upsample
from model.segmenter import Segmenter

from .confusion import ConfusionMatrix
from .decision import highest


def predict(
    model: Segmenter,
    images: Tensor,
    size: Sequence[int],
    heads: str | None = None,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
    average: str = "probabilities",
    interpolation: str = "bilinear",
) -> Tensor:
    """Scores (N,C,H,W) of images at output `size` (H,W): their argmax is the prediction.

    A single pass gives logits; with `flip` or several `scales` the probabilities (or the logits) of all passes are averaged.

    Args:
        images: (N,3,h,w) uint8 RGB, or floats that are normalised already.
        heads: "last" (the main classifier) or "sum" (the classifiers' logits added, as CLAN does); default: the network's own.
        scales: factors of the input size.
        average: "probabilities" or "logits" (CRST).
        interpolation: of the logits, "bilinear" or "bicubic" (CLAN's reproduction in PaddlePaddle).
    """
    if not flip and tuple(scales) == (1.0,):
        return upsample(main_logits(model, images, heads), size, interpolation)
    vote: Callable[[Tensor], Tensor] = partial(F.softmax, dim=1) if average == "probabilities" else torch.nn.Identity()
    if not images.is_floating_point():
        images = model.normalize(images)  # before resizing, so that nothing is rounded

    def votes() -> Iterator[Tensor]:
        for scale in scales:
            scaled = images if scale == 1.0 else _rescale(images, scale)
            yield vote(upsample(main_logits(model, scaled, heads), size, interpolation))
            if flip:
                yield vote(upsample(main_logits(model, scaled.flip(-1), heads), size, interpolation)).flip(-1)

    return reduce(torch.add, votes()) / (len(scales) * (2 if flip else 1))


@torch.inference_mode()
def predictions(
    model: Segmenter,
    loader: Iterable[dict[str, Any]],
    device: torch.device,
    autocast: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    predict: Callable[..., Tensor] = predict,
    **options: Any,
) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """Predict a loader of single samples (see `dataset.sequential_loader`) at full size.

    Yields (batch, prediction): prediction is (1,H,W) uint8 on the device, as large as the label or, without one, as the
    image's file. `options` are those of the function `predict`; `autocast` makes the context of
    mixed precision.
    """
    for batch in loader:
        size = batch["label"].shape[1:] if "label" in batch else image_size(batch["path"][0])[::-1]
        with autocast():
            scores = predict(model, batch["image"].to(device, non_blocking=True), size, **options)
        yield batch, highest(scores)[1]


def on_its_way(tensor: Tensor) -> Callable[[], Tensor]:
    """Begin to copy a tensor to the host; the function that comes back waits for it.

    A thread that calls it lets the one that feeds the GPU go on.
    """
    copied = tensor.to("cpu", non_blocking=True)
    if not tensor.is_cuda:
        return lambda: copied
    arrived = torch.cuda.Event()
    arrived.record()

    def wait() -> Tensor:
        arrived.synchronize()
        return copied

    return wait


def evaluate(
    model: Segmenter, loader: Iterable[dict[str, Any]], num_classes: int, device: torch.device, **options: Any
) -> ConfusionMatrix:
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


def classes_of_network(model: Segmenter, otherwise: ClassSet | None = None) -> ClassSet:
    """The classes that a network's checkpoint names; for the originals' files, which name none, `otherwise` if it has as many
    classes, or the published set of that number."""
    if model.classes is not None:
        return class_set_from_json(model.classes)
    num_classes = model.settings["num_classes"]
    return otherwise if otherwise is not None and len(otherwise) == num_classes else class_set(num_classes)


def main_logits(model: Segmenter, images: Tensor, heads: str | None = None) -> Tensor:
    """The logits (N,C,~H/8,~W/8) float32 that decide: the main classifier's, or the sum; see `predict` for the arguments."""
    # Interpolated in half precision, neighbouring classes would tie and the lower id win (0.4 % of the pixels with bf16).
    outputs = [output.float() for output in model(images)]
    if (heads or model.default_heads) == "sum":
        return torch.stack(outputs).sum(0)
    return outputs[-1]


def _rescale(images: Tensor, scale: float) -> Tensor:
    size = [int(side * scale) for side in images.shape[-2:]]
    return F.interpolate(images, size=size, mode="bilinear", align_corners=True)
