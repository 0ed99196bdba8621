"""Which network a state dict was made for: from its keys and shapes, and where networks share those, from its values."""

import json
import math
import os

from .dialects import FADA, fada_settings

# Above it the stem saw pixels of 0..255, below it normalised ones: those have about 1/3000 of the variance.
POWER_OF_PIXELS = 300


class WeightsError(ValueError):
    """Weights that cannot be read, recognised or used; the message names the file and the way out."""


def settings_of(state, source):
    """The arguments of `build_model` for a state dict of `read_weights`: what is noted in the file or in the `args.json` beside
    it, or else what keys and values tell.

    Raises:
        WeightsError: the keys are those of no network known here.
    """
    found = getattr(state, "settings", None) or _settings_of_run(source)
    if isinstance(found, dict) and {"name", "num_classes"} <= found.keys():
        return dict(found)
    return fada_settings(state) if getattr(state, "dialect", None) == FADA else settings_from_weights(state, source)


def settings_from_weights(state, source="weights"):
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
    if not {"conv1.weight", "bn1.running_var", "layer5.conv2d_list.0.weight", "layer5.conv2d_list.0.bias"} <= state.keys():
        raise WeightsError(
            f"{source}: not a segmentation network known here (first keys: {', '.join(list(state)[:3])}); "
            "expected DeepLab v2 keys such as layer5.conv2d_list.0.weight"
        )
    found = {"num_classes": len(state["layer5.conv2d_list.0.bias"]), "heads": head_layout(state)}
    return {"name": _resnet_name(state), **found, **_branches(state, _main_head(state))}


def head_layout(state):
    """Where a ResNet's classifiers sit: "single", "multi" (layers 3 and 4) or "twin" (both on layer 4)."""
    if "layer6.conv2d_list.0.weight" not in state:
        return "single"
    low, high = (state[f"{head}.conv2d_list.0.weight"].shape[1] for head in ("layer5", "layer6"))
    return "twin" if low == high else "multi"


def _main_head(state):
    return "layer5" if head_layout(state) == "single" else "layer6"


def _resnet_name(state):
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


def _branches(state, head):
    return {"aspp_branches": 4} if uses_all_branches(state, head) else {}


def uses_all_branches(state, head):
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


def sees_pixels(state):
    """True if a ResNet's stem was trained on pixels of 0..255 (Caffe's colours), False if on normalised ones (ImageNet's):
    by how much the outputs of its filters vary, relative to the filters' squared norms."""
    power = state["bn1.running_var"].float() / state["conv1.weight"].float().flatten(1).square().sum(1)
    return bool(power.nanmedian() > POWER_OF_PIXELS)  # a filter that is 0 has none


def _settings_of_run(source):
    path = os.path.join(os.path.dirname(str(source)), "args.json")
    if not os.path.isfile(source) or not os.path.exists(path):
        return None
    try:
        with open(path) as file:
            network = json.load(file).get("network")
    except (ValueError, AttributeError) as error:
        raise WeightsError(f"{path}: is no args.json of a run ({error}); mend or remove it") from error
    if network and "aspp_rates" in network:
        network["aspp_rates"] = tuple(network["aspp_rates"])
    return network
