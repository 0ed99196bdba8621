"""The segmentation network as a script's flags describe it."""

from argparse import Namespace
from typing import Any

from model import build_model, has_setting
from model.segmenter import Segmenter

# The flags that are settings of networks. Not every network has each; one that is given and not had is an error.
SETTINGS = ("aspp_branches", "batch_norm", "drop_path", "layer_decay", "checkpoint_activations", "freeze_encoder")


def segmentation_network(args: Namespace, num_classes: int, heads: str | None = None, **published: Any) -> Segmenter:
    """The network of --model with fresh weights.

    Args:
        heads: where its classifiers sit (see `model.resnet.DeepLabResNet`); None: as its name says.
        published: other settings of the method's publication, for networks that have them; flags win.

    Raises:
        ModelError: unknown name, or a setting that the network does not have or accept.
    """
    known = {key: value for key, value in published.items() if has_setting(args.model, key)}
    given = {key: getattr(args, key) for key in SETTINGS if getattr(args, key) not in (None, False)}
    return build_model(args.model, num_classes, heads=heads, **(known | given))
