"""Checkpoint dialects that need more than a prefix removed, in both directions."""

import torch

from .normalization import NO_EPS

FADA = "a checkpoint of FADA"
MAXSQUARE = "a checkpoint of MaxSquare"


def from_fada(checkpoint):
    """FADA's container (`feature_extractor`, `classifier`, ...) to one state dict with our names.

    ResNet trunks: `backbone.X` is X here, the classifier is `layer5`; VGG16: `features.N` and `classifier`.
    """
    trunk, head = (_without_module(checkpoint[part]) for part in ("feature_extractor", "classifier"))
    resnet = "backbone.conv1.weight" in trunk
    state = {("" if resnet else "features.") + key.removeprefix("backbone."): value for key, value in trunk.items()}
    state.update({("layer5." if resnet else "classifier.") + key: value for key, value in head.items()})
    return state


def to_fada(network, iteration, discriminator=None):
    """A single-headed network (and its feature discriminator) as FADA's `model_iter<N>.pth`: the inverse of `from_fada`.

    Frozen norms are plain buffers there, without the counter `num_batches_tracked`.
    """
    state = dict(network.state_dict())
    (head,) = network.head_names
    if all(norm.eps <= NO_EPS for norm in network.norms()):
        state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    parts = {"iteration": iteration, "feature_extractor": {}, "classifier": {}}
    for key, value in state.items():
        if key.startswith(f"{head}."):
            parts["classifier"][key.removeprefix(f"{head}.")] = value
        else:
            parts["feature_extractor"]["backbone." + key.removeprefix("features.")] = value
    if discriminator is not None:
        parts["model_D"] = discriminator.state_dict()
    return parts


def is_fada(checkpoint):
    """True for FADA's container."""
    return all(isinstance(checkpoint.get(part), dict) for part in ("feature_extractor", "classifier"))


def fada_discriminator(checkpoint):
    """The feature discriminator's state dict of FADA's container, or None."""
    state = checkpoint.get("model_D")
    return _without_module(state) if isinstance(state, dict) else None


def fada_settings(state):
    """What `build_model` needs for a state dict from `from_fada`: frozen norms, known by their missing counter, have no eps."""
    if "features.0.weight" in state:
        return {"name": "deeplab_vgg16", "num_classes": len(state["classifier.conv2d_list.0.bias"])}
    settings = {"name": "deeplab_resnet101", "num_classes": len(state["layer5.conv2d_list.0.bias"]), "heads": "single"}
    if "layer1.0.conv3.weight" not in state:
        settings["name"] = "MiniResNet18" if len(state["conv1.weight"]) < 64 else "ResNet18"
        settings["aspp_branches"] = 4
    elif "layer3.22.conv1.weight" not in state:
        settings |= {"name": "ResNet50", "aspp_branches": 4}
    if not any(key.endswith("num_batches_tracked") for key in state):
        settings |= {"norm_eps": 0.0, "batch_norm": "frozen"}
    return settings


def _without_module(state):
    return {key.removeprefix("module."): value for key, value in state.items() if isinstance(value, torch.Tensor)}
