"""What happens before and around a training loop: starting weights, and errors told in one line."""

import contextlib
import os
import sys

from model import WeightsError, load_weights, read_discriminator, read_weights

from . import distributed
from .run import NotFiniteError
from .state import StateError

INITIALISATION = "DeepLab_resnet_pretrained_init-f81d91e8.pth"
EXPECTED_ERRORS = (WeightsError, StateError, NotFiniteError, ValueError, OSError)


def restore(network, source, usual=INITIALISATION, fresh_heads=True):
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


def restore_discriminators(discriminators, files):
    """Give the discriminators their weights from --restore-discriminator: files, comma-separated, lowest level first, or None.

    Raises:
        WeightsError: another number of files, or one that does not fit.
    """
    if not files:
        return
    files = files.split(",")
    if len(files) != len(discriminators):
        raise WeightsError(f"--restore-discriminator names {len(files)} files for {len(discriminators)} discriminators")
    for network, file in zip(discriminators, files, strict=True):
        state = read_discriminator(file)
        if state is None:
            raise WeightsError(f"{file}: holds no discriminator")
        load_weights(network, state, file)


@contextlib.contextmanager
def exit_with_message():
    """Turn errors that the user can mend into one line and exit status 1; leave the process group in any case."""
    try:
        yield
    except EXPECTED_ERRORS as error:
        print(f"{os.path.basename(sys.argv[0])}: error: {error}", file=sys.stderr)
        sys.exit(1)
    finally:
        distributed.finish()
