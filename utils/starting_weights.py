"""What a run starts from: weights for its networks."""

import os
from collections.abc import Sequence

from torch import nn

from model import WeightsError, load_weights, read_discriminator, read_weights
from model.segmenter import Segmenter

from . import distributed

INITIALISATION = "DeepLab_resnet_pretrained_init-f81d91e8.pth"


def restore(network: Segmenter, source: str | None, usual: str = INITIALISATION, fresh_heads: bool = True) -> None:
    """Give `network` its starting weights from --restore-from, or else from the file `usual`, and print what was loaded.

    With `fresh_heads` classifiers that the file lacks, or has for another number of classes, keep their random values.

    Raises:
        WeightsError: the file does not fit, or none is named and the usual one is not found.
    """
    if source == "none":
        return
    if source is None:
        candidates = [os.path.join(folder, usual) for folder in ("model", "pretrained_model", ".")]
        source = next((path for path in candidates if os.path.exists(path)), None)
        if source is None:
            raise WeightsError(
                f"no weights to start from: {usual} is neither in ./model nor in ./pretrained_model. "
                "Name a file or URL with --restore-from, or start from random weights with "
                "--restore-from none"
            )
    report = load_weights(network, read_weights(source), source, fresh_heads)
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
