"""Which network a checkpoint was made for: from what is noted with it, from its keys and shapes, and where networks share
those, from its values."""

import json
import math
import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .checkpoint_formats import Checkpoint, are_settings, checked_classes
from .errors import WeightsError

# Above it the stem saw pixels of 0..255, below it normalised ones: those have about 1/3000 of the variance.
POWER_OF_PIXELS = 300


def settings_of(checkpoint: Checkpoint, source: str) -> dict[str, Any]:
    """The arguments of `build_model` for a checkpoint of `read_weights`: what is noted in the file or in the `args.json` beside
    it, or else what keys and values tell.

    Raises:
        WeightsError: the keys are those of no network known here.
    """
    found: Any = checkpoint.settings or _args_of_run(source).get("network")
    if are_settings(found):
        rates = (
            {"aspp_rates": tuple(found["aspp_rates"])} if isinstance(found.get("aspp_rates"), list) else {}
        )  # JSON made it a list
        return {**found, **rates}
    recognise = {"fada": _settings_from_fada, "advent": _settings_from_advent}.get(checkpoint.format, settings_from_weights)
    return recognise(checkpoint.tensors, source)


def place_of_settings(checkpoint: Checkpoint, source: str) -> str:
    """The file that `settings_of` has them from: the `args.json` beside the weights, or the weights themselves."""
    beside = checkpoint.settings is None and are_settings(_args_of_run(source).get("network"))
    return _args_path(source) if beside else source


def classes_of(checkpoint: Checkpoint, num_classes: int, source: str) -> dict[str, list] | None:
    """The names and colours of a network's classes, noted in its file or in the `args.json` beside it; None: unknown.

    Raises:
        WeightsError: the note is damaged, or is for another number of classes.
    """
    if checkpoint.classes is not None:
        return checked_classes(checkpoint.classes, num_classes, source)
    found = _args_of_run(source).get("classes")
    return None if found is None else checked_classes(found, num_classes, _args_path(source))


def settings_from_weights(state: Mapping[str, Tensor], source: str = "weights") -> dict[str, Any]:
    """What `build_model` needs to rebuild the network of a state dict, as far as the state dict tells.

    Raises:
        WeightsError: the keys are those of no network known here.
    """
    if "features.0.weight" in state and "classifier.conv2d_list.0.bias" in state:
        found = {"name": "DeeplabVGG", "num_classes": len(state["classifier.conv2d_list.0.bias"])}
        if "classifier2.conv2d_list.0.bias" in state:
            return {**found, "heads": "twin", "aspp_branches": 4}
        return found | _branches(state, "classifier")
    if "blocks.7a.projection.weight" in state and "classifier.bias" in state:
        return {"name": "ResNet38", "num_classes": len(state["classifier.bias"])}
    _check_keys(state, source, "conv1.weight", "bn1.running_var", "layer5.conv2d_list.0.weight", "layer5.conv2d_list.0.bias")
    found = {"num_classes": len(state["layer5.conv2d_list.0.bias"]), "heads": head_layout(state)}
    return {"name": _resnet_name(state), **found, **_branches(state, _main_head(state))}


def _settings_from_fada(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """The same for FADA's networks; its frozen norms, known by their missing counter, have no eps."""
    if "features.0.weight" in state:
        _check_keys(state, source, "classifier.conv2d_list.0.bias")
        return {"name": "deeplab_vgg16", "num_classes": len(state["classifier.conv2d_list.0.bias"])}
    _check_keys(state, source, "conv1.weight", "layer5.conv2d_list.0.bias")
    settings = {"name": "deeplab_resnet101", "num_classes": len(state["layer5.conv2d_list.0.bias"]), "heads": "single"}
    if "layer1.0.conv3.weight" not in state:
        settings["name"] = "MiniResNet18" if len(state["conv1.weight"]) < 64 else "ResNet18"
        settings["aspp_branches"] = 4
    elif "layer3.22.conv1.weight" not in state:
        settings |= {"name": "ResNet50", "aspp_branches": 4}
    if not any(key.endswith("num_batches_tracked") for key in state):
        settings |= {"norm_eps": 0.0, "batch_norm": "frozen"}
    return settings


def _settings_from_advent(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """The same for ADVENT's networks with one classifier, whose four branches all take part."""
    return {**settings_from_weights(state, source), "aspp_branches": 4}


def _check_keys(state: Mapping[str, Tensor], source: str, *keys: str) -> None:
    missing = [key for key in keys if key not in state]
    if missing:
        raise WeightsError(
            f"{source}: not a segmentation network known here (first keys: {', '.join(list(state)[:3])}); "
            f"expected DeepLab v2 keys such as {keys[-1]}"
        )


def head_layout(state: Mapping[str, Tensor]) -> str:
    """Where a ResNet's classifiers sit: "single", "multi" (layers 3 and 4) or "twin" (both on layer 4)."""
    if not {"layer5.conv2d_list.0.weight", "layer6.conv2d_list.0.weight"} <= state.keys():
        return "single"
    low, high = (state[f"{head}.conv2d_list.0.weight"].shape[1] for head in ("layer5", "layer6"))
    return "twin" if low == high else "multi"


def _main_head(state: Mapping[str, Tensor]) -> str:
    return "layer5" if head_layout(state) == "single" else "layer6"


def _resnet_name(state: Mapping[str, Tensor]) -> str:
    if state["conv1.weight"].shape[0] < 64:
        return "MiniResNet18"
    if "layer1.0.conv3.weight" not in state:
        return "ResNet18"
    if "layer3.22.conv1.weight" not in state:
        return "ResNet50"
    layout = head_layout(state)
    if layout == "single" and uses_all_branches(state, "layer5") and not sees_pixels(state):
        return "DeeplabRes"
    return {"single": "Oracle", "multi": "DeeplabMulti", "twin": "ResNet"}[layout]


def _branches(state: Mapping[str, Tensor], head: str) -> dict[str, int]:
    return {"aspp_branches": 4} if uses_all_branches(state, head) else {}


def uses_all_branches(state: Mapping[str, Tensor], head: str) -> bool:
    """True if the third and fourth branch of a classifier were trained too (CRST, ADVENT), False if they hold what they were
    initialised with (AdaptSegNet and MaxSquare, whose keys are the same).

    The values of a fresh filter are drawn independently, so its nine taps vary nine times as much in sum as one by one (up to
    chance). Training gives neighbouring taps nearly the same gradient, and they add up to more.
    """
    if f"{head}.conv2d_list.2.weight" not in state:
        return False
    filters = state[f"{head}.conv2d_list.2.weight"].float().flatten(2)
    chance = math.sqrt(2 / (filters.shape[0] * filters.shape[1]))
    return bool(filters.sum(2).var() > (1 + 6 * chance) * filters.shape[2] * filters.var())


def sees_pixels(state: Mapping[str, Tensor]) -> bool:
    """True if a ResNet's stem was trained on pixels of 0..255 (the caffe input convention), False if on normalised ones
    (imagenet): by how much the outputs of its filters vary, relative to the filters' squared norms."""
    power = state["bn1.running_var"].float() / state["conv1.weight"].float().flatten(1).square().sum(1)
    return bool(power.nanmedian() > POWER_OF_PIXELS)  # a filter that is 0 has none


def _args_of_run(source: str) -> dict[str, Any]:
    """The `args.json` beside a file, {} if there is none."""
    path = _args_path(source)
    if not os.path.isfile(source) or not os.path.exists(path):
        return {}
    try:
        with open(path) as file:
            found = json.load(file)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: is no args.json of a run ({error}); fix or remove it") from error
    if not isinstance(found, dict):
        raise WeightsError(f"{path}: is no args.json of a run (holds a {type(found).__name__}); fix or remove it")
    return found


def _args_path(source: str) -> str:
    return os.path.join(os.path.dirname(source), "args.json")
