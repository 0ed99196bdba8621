"""What a run starts from: weights for its networks."""

import os
from collections.abc import Sequence

from torch import nn

from model import WeightsError, load_weights, lost_heads, read_discriminator, read_weights
from model.backbones import BackboneSegmenter
from model.segmenter import Segmenter

from . import distributed

INITIALISATION = "DeepLab_resnet_pretrained_init-f81d91e8.pth"


def restore(
    network: Segmenter, source: str | None, usual: str = INITIALISATION, fresh_heads: bool = True, fresh_classifier: bool = True
) -> None:
    """Give `network` its starting weights from --restore-from, or else from the file `usual`, and print what was loaded.

    Args:
        fresh_heads: classifiers that do not fit keep their random values, as at the start of training; otherwise everything
            has to fit.
        fresh_classifier: false for adaptation: what was trained on the source must not lose its classifier unnoticed, so only
            a file without any classifier for segmentation, such as ImageNet's, leaves them random.

    Raises:
        WeightsError: the file does not fit, or none is named and the usual one is not found.
    """
    if source == "none":
        return
    if source is None and isinstance(network, BackboneSegmenter):
        raise WeightsError(
            f"no weights to start from: name those of {network.settings['name']} with --restore-from: a file, timm:NAME or "
            "torchvision:NAME, which fetch them, or none for random ones"
        )
    if source is None:
        candidates = [os.path.join(folder, usual) for folder in ("model", "pretrained_model", ".")]
        source = next((path for path in candidates if os.path.exists(path)), None)
        if source is None:
            raise WeightsError(
                f"no weights to start from: {usual} is neither in ./model nor in ./pretrained_model. "
                "Name a file or URL with --restore-from, or start from random weights with "
                "--restore-from none"
            )
    checkpoint = read_weights(source)
    lost = [] if fresh_classifier else lost_heads(network, checkpoint, source)
    if lost:
        raise WeightsError(
            f"{source}: its classifiers do not fit: {', '.join(lost)} would start from random values (other classes, or on "
            "another layer); adapt weights that fit --num-classes and --model, or accept it with --fresh-classifier"
        )
    report = load_weights(network, checkpoint, source, fresh_heads)
    if distributed.is_main():
        print(report)


def restore_discriminators(discriminators: Sequence[nn.Module], files: str | None) -> None:
    """Give the discriminators their weights from --restore-discriminator: files, comma-separated, lowest level first, or None.

    Raises:
        WeightsError: another number of files, or one that does not fit.
    """
    if not files:
        return
    paths = files.split(",")
    if len(paths) != len(discriminators):
        raise WeightsError(f"--restore-discriminator names {len(paths)} files for {len(discriminators)} discriminators")
    for network, path in zip(discriminators, paths, strict=True):
        weights = read_discriminator(path)
        if weights is None:
            raise WeightsError(f"{path}: holds no discriminator")
        load_weights(network, weights, path)
