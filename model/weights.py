"""Weight files: read safely, recognised by content, loaded with a report or refused with a reason."""

import json
import os
import pickle

import numpy as np
import torch
from torchvision.models import get_weight

from .dialects import fada_discriminator, fada_settings, from_fada, is_fada
from .mxnet import ParamsError, is_params, read_params
from .networks import build_model
from .resnet38 import from_mxnet
from .vgg import TORCHVISION_KEYS

# MaxSquare's checkpoints hold their best mIoU as a NumPy number, under the module name of the NumPy of 2019.
NUMPY_NUMBERS = [
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
    np._core.multiarray.scalar,
    np.dtype,
    type(np.dtype(np.float64)),
]


FADA = "a checkpoint of FADA"


class State(dict):
    """A state dict that remembers what kind of file it is from."""

    def __init__(self, tensors, dialect="a state dict"):
        super().__init__(tensors)
        self.dialect = dialect


class WeightsError(ValueError):
    """A weight file that cannot be read or does not fit; the message names the file and the way out."""


def read_weights(source):
    """Read the weights of one network as {key: tensor}, prefixes removed, from a file, a URL, or torchvision by name
    (`torchvision:ResNet101_Weights.IMAGENET1K_V1`; downloaded, and checked against its hash).

    Understood: plain state dicts, `{"state_dict": ...}` containers, FADA's containers, keys with `module.`, and the `Scale.`
    prefix of AdaptSegNet's initialisation file (whose classifier, made for other classes, is dropped).

    Raises:
        WeightsError: the file is missing, truncated, no PyTorch file, or holds anything but tensors.
    """
    state = _load(source)
    if is_fada(state):
        return State(from_fada(state), FADA)
    dialect = getattr(state, "dialect", "a state dict")
    if isinstance(state.get("state_dict"), dict):
        state, dialect = state["state_dict"], "a checkpoint with state_dict, as MaxSquare's"
    not_tensors = [key for key, value in state.items() if not isinstance(value, torch.Tensor)]
    if not_tensors or not state:
        raise WeightsError(
            f"{source}: holds no state dict (found {', '.join(map(repr, list(state)[:5])) or 'nothing'}); "
            "expected a mapping from parameter names to tensors"
        )
    state = {key.removeprefix("module."): value for key, value in state.items()}
    if all(key.startswith("Scale.") for key in state):
        state = {key.removeprefix("Scale."): value for key, value in state.items()}
        state = {key: value for key, value in state.items() if not key.startswith("layer5")}
        dialect = "AdaptSegNet's initialisation, without its classifier"
    elif "fc.weight" in state or "classifier.6.weight" in state:
        dialect = "torchvision's ImageNet weights"
    return State(state, dialect)


def read_discriminator(source):
    """Read a discriminator's weights: a state dict, or the one that a FADA checkpoint holds (None if it holds none).

    Raises:
        WeightsError: as `read_weights`.
    """
    container = _load(source)
    return fada_discriminator(container) if is_fada(container) else read_weights(source)


def load_weights(network, state, source, fresh_heads=False):
    """Load `state` (from `read_weights`) into `network` and return a report of one paragraph.

    With `fresh_heads`, a classifier that `state` lacks, or holds for another number of classes or on another layer, keeps
    its random values, as at the start of training; everything else has to fit.

    Raises:
        WeightsError: tensors are missing or have another shape; the message lists them and names `source`.
    """
    dialect = getattr(state, "dialect", "a state dict")
    state = _main_classifier(network, _adapt_torchvision(network, state, source))
    own = {key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    missing = [key for key in own if key not in state]
    misfits = [key for key in own if key in state and state[key].shape != own[key].shape]
    fresh = _fresh_heads(network, missing + misfits) if fresh_heads else set()
    bad = [key for key in missing + misfits if key.split(".")[0] not in fresh]
    if bad:
        raise WeightsError(_misfit_message(network, state, own, bad, source))
    usable = {key: value for key, value in state.items() if key in network.state_dict() and key.split(".")[0] not in fresh}
    network.load_state_dict(usable, strict=False)
    ignored = [key for key in state if key not in usable]
    report = f"{source}: {dialect}; {len(usable)} tensors loaded"
    if fresh:
        report += f"; {', '.join(sorted(fresh))} stay random (absent there, or for other classes, or on another layer)"
    if ignored:
        report += f"; {len(ignored)} ignored ({', '.join(ignored[:3])}{', ...' if len(ignored) > 3 else ''})"
    return report


def load_model(source, name=None, **settings):
    """Build the network that a weight file was made for and load it, ready for evaluation.

    What the file's keys cannot tell (input convention, ASPP branches and rates) is read from the `args.json` of the run
    directory that the file lies in; without one the published networks are assumed (see `settings_from_weights`). `name`
    and `settings` override both, as in `build_model`.

    Raises:
        WeightsError: the file cannot be read, recognised or loaded.
    """
    state = read_weights(source)
    found = _settings_of_run(source) or _published_settings(state, source)
    if name is not None and name.lower() != found["name"].lower():
        heads = {"heads": "single"} if state.dialect == FADA else {}
        found = {"name": name, "num_classes": found["num_classes"], **heads}
    found.update({key: value for key, value in settings.items() if value is not None})
    network = build_model(**found)
    network.load_report = load_weights(network, state, source)
    return network.eval()


def _published_settings(state, source):
    return fada_settings(state) if state.dialect == FADA else settings_from_weights(state, source)


def settings_from_weights(state, source="weights"):
    """What `build_model` needs to rebuild the network of a state dict, as far as keys and shapes tell.

    Raises:
        WeightsError: the keys are those of no network known here.
    """
    if "features.0.weight" in state and "classifier.conv2d_list.0.bias" in state:
        twin = {"heads": "twin", "aspp_branches": 4} if "classifier2.conv2d_list.0.bias" in state else {}
        return {"name": "DeeplabVGG", "num_classes": len(state["classifier.conv2d_list.0.bias"]), **twin}
    if "blocks.7a.projection.weight" in state and "classifier.bias" in state:
        return {"name": "ResNet38", "num_classes": len(state["classifier.bias"])}
    if "conv1.weight" not in state or "layer5.conv2d_list.0.weight" not in state:
        raise WeightsError(
            f"{source}: not a segmentation network known here (first keys: {', '.join(list(state)[:3])}); "
            "expected DeepLab v2 keys such as layer5.conv2d_list.0.weight"
        )
    return {"name": _resnet_name(state), "num_classes": len(state["layer5.conv2d_list.0.bias"]), "heads": _head_layout(state)}


def _resnet_name(state):
    if state["conv1.weight"].shape[0] < 64:
        return "MiniResNet18"
    if "layer1.0.conv3.weight" not in state:
        return "ResNet18"
    if "layer3.22.conv1.weight" not in state:
        return "ResNet50"
    return {"single": "Oracle", "multi": "DeeplabMulti", "twin": "ResNet"}[_head_layout(state)]


def _head_layout(state):
    if "layer6.conv2d_list.0.weight" not in state:
        return "single"
    low, high = (state[f"{head}.conv2d_list.0.weight"].shape[1] for head in ("layer5", "layer6"))
    return "twin" if low == high else "multi"


def _settings_of_run(source):
    path = os.path.join(os.path.dirname(str(source)), "args.json")
    if str(source).startswith(("http://", "https://")) or not os.path.exists(path):
        return None
    with open(path) as file:
        network = json.load(file).get("network")
    if network and "aspp_rates" in network:
        network["aspp_rates"] = tuple(network["aspp_rates"])
    return network


def _load(source):
    source = str(source)
    try:
        if source.startswith("torchvision:"):
            state = get_weight(source.removeprefix("torchvision:")).get_state_dict(check_hash=True, map_location="cpu")
        elif source.startswith(("http://", "https://")):
            state = torch.hub.load_state_dict_from_url(source, map_location="cpu", check_hash=True, weights_only=True)
        else:
            if os.path.isfile(source) and is_params(source):
                return State(from_mxnet(read_params(source)), "MXNet's parameters")
            _check_file(source)
            with torch.serialization.safe_globals(NUMPY_NUMBERS):
                state = torch.load(source, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except ParamsError as error:
        raise WeightsError(str(error)) from error
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{source}: refused, it holds Python objects other than tensors, which could run code when loaded"
        ) from error
    except Exception as error:
        raise WeightsError(
            f"{source}: cannot be read as weights, it is truncated or not a PyTorch file "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no details'})"
        ) from error
    if not isinstance(state, dict):
        raise WeightsError(f"{source}: holds a {type(state).__name__}, not a state dict")
    return state


def _check_file(path):
    if not os.path.isfile(path):
        raise WeightsError(f"{path}: no such file")
    with open(path, "rb") as file:
        start = file.read(512)
    if not start:
        raise WeightsError(f"{path}: is empty")
    if start.lstrip()[:1] == b"<":
        raise WeightsError(f"{path}: is a web page, not weights; the download failed (a sign-in or error page was saved)")
    if not start.startswith((b"PK", b"\x80")):
        kind = "not a PyTorch file" if b"\0" in start else "a text file, not weights"
        raise WeightsError(f"{path}: is {kind}")


def _adapt_torchvision(network, state, source):
    if "classifier.6.weight" in state:  # torchvision's VGG16: its fully connected layers have no place here.
        renumbered = {key: value for key, value in state.items() if key.startswith("features.")}
        renumbered = {_vgg_key(key): value for key, value in renumbered.items()}
        own = network.state_dict()
        return {**{key: own[key] for key in own if key.startswith(("features.29.", "features.31."))}, **renumbered}
    if "fc.weight" in state and getattr(network, "style", "torchvision") == "caffe":
        raise WeightsError(
            f"{source}: torchvision's ImageNet weights do not fit {network.settings['name']}, which has "
            "Caffe's strides and colours; use --model ResNet101 (or ResNet50, ResNet18)"
        )
    return state


def _main_classifier(network, state):
    """Of a file with classifiers on two layers, a network with one takes the main one."""
    if getattr(network, "head_names", ()) != ("layer5",) or "layer6.conv2d_list.0.weight" not in state:
        return state
    if _head_layout(state) != "multi":
        return state
    return {key.replace("layer6.", "layer5.", 1): value for key, value in state.items() if not key.startswith("layer5.")}


def _vgg_key(key):
    _, index, kind = key.split(".")
    return f"features.{TORCHVISION_KEYS.get(int(index), int(index))}.{kind}"


def _fresh_heads(network, unfit):
    """The classifiers that `state` cannot fill: it lacks them, or has them for other classes or on another layer."""
    return {key.split(".")[0] for key in unfit} & set(getattr(network, "head_names", ()))


def _misfit_message(network, state, own, bad, source):
    lines = []
    for key in bad[:5]:
        found = f"has shape {tuple(state[key].shape)}, expected {tuple(own[key].shape)}" if key in state else "is missing"
        lines.append(f"{key} {found}")
    more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
    hint = ""
    if any(key.startswith("layer5") and key in state and state[key].ndim == 4 for key in bad):
        hint = (
            "; the classifiers sit elsewhere: AdaptSegNet and MaxSquare have layer5 on layer 3, CLAN on layer 4 "
            "(choose the network with --model)"
        )
    name = getattr(network, "settings", {}).get("name", type(network).__name__)
    return f"{source}: does not fit {name}: {'; '.join(lines)}{more}{hint}"
