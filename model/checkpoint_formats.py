"""Checkpoint formats: how each is recognised, how it becomes our tensors, and how a network is written in it.

`FORMATS` is the table. Its functions work on what a file holds, a dict; reading the bytes is `weights.py`'s part.
"""

import hashlib
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from .errors import WeightsError
from .normalization import CONVENTIONS, NO_EPS
from .resnet38 import BLOCKS, BRANCHES, ResNet38
from .segmenter import CLASSES, SETTINGS, Segmenter

# The framework that wrote the file, and reads it.
PYTORCH, MXNET, PADDLE = "PyTorch", "MXNet", "PaddlePaddle"

# How Paddle calls a norm's statistics.
PADDLE_ENDINGS = {"running_mean": "_mean", "running_var": "_variance"}

# How MXNet calls what a norm holds.
NORM_ENDINGS = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_var"}
MXNET_CLASSIFIER = re.compile(r"arg:linear(\d+)_(weight|bias)")


@dataclass(frozen=True)
class Checkpoint:
    """The weights of one network, under the names that the networks here use.

    Attributes:
        tensors: {key: tensor}.
        format: name of the format in `FORMATS` that the file has.
        convention: the input convention that the weights need, None where the file does not tell.
        settings: the arguments of `build_model` that are noted in files written here, else None.
        classes: the classes' names and colours that are noted in files written here (see `Segmenter`), else None.
    """

    tensors: dict[str, torch.Tensor]
    format: str = "plain"
    convention: str | None = None
    settings: dict[str, Any] | None = None
    classes: dict[str, list] | None = None


@dataclass(frozen=True)
class Format:
    """One checkpoint format.

    Attributes:
        name: what `Checkpoint.format` and `convert_checkpoint.py --to` call it.
        title: what reports call it.
        framework: PYTORCH, MXNET or PADDLE, whose file it is.
        recognised: True for the contents of such a file.
        read: contents and the file's name (for messages) to a `Checkpoint`; raises WeightsError.
        write: a network to the contents of a file; raises WeightsError if the format cannot hold it. None: is only read.
    """

    name: str
    title: str
    framework: str
    recognised: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Mapping[str, Any], str], Checkpoint]
    write: Callable[[Segmenter], dict[str, Any]] | None = None


def read_contents(
    contents: Mapping[str, Any], framework: str, source: str, formats: Sequence[Format] | None = None
) -> Checkpoint:
    """What a file of `framework` holds to a `Checkpoint`, by the first of `formats` (default: all) that recognises it.

    Raises:
        WeightsError: it is not {str: ...}, or holds something else than the tensors of one network; `source` is named.
    """
    if not contents or not all(isinstance(key, str) for key in contents):
        raise _no_state_dict(contents, source)
    contents = _without_module(contents)
    chosen = next(each for each in formats or FORMATS if each.framework == framework and each.recognised(contents))
    return chosen.read(contents, source)


# Plain state dicts


def from_state_dict(contents: Mapping[str, Any], source: str) -> Checkpoint:
    """A state dict; one that was saved here has notes in its metadata."""
    return Checkpoint(_tensors(contents, source), "plain", **_notes(contents, source))


def _tensors(contents: Mapping[str, Any], source: str) -> dict[str, torch.Tensor]:
    if not all(isinstance(value, torch.Tensor) for value in contents.values()):
        raise _no_state_dict(contents, source)
    return dict(contents)


def _notes(state: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The notes in a state dict's metadata, as arguments of `Checkpoint`; the inverse of `Segmenter.notes`."""
    metadata = getattr(state, "_metadata", None)  # PyTorch's own place for notes; only an OrderedDict can have it
    metadata = metadata if isinstance(metadata, dict) else {}
    settings, classes = metadata.get(SETTINGS), metadata.get(CLASSES)
    settings = settings if are_settings(settings) else None
    if classes is not None:
        classes = checked_classes(classes, settings and settings["num_classes"], source)
    return {"settings": settings, "classes": classes}


def are_settings(found: Any) -> bool:
    """True for a note of a network's settings, as far as its form goes; `build_model` checks the rest."""
    return (
        isinstance(found, dict)
        and all(isinstance(key, str) for key in found)
        and isinstance(found.get("name"), str)
        and "num_classes" in found
    )


def checked_classes(classes: Any, num_classes: int | None, source: str) -> dict[str, list]:
    """Class names and colours from a file (see `Segmenter`), if they have the right form and, where it is known, number.

    Raises:
        WeightsError: they do not.
    """
    noted = classes if isinstance(classes, dict) else {}
    names: Any = noted.get("names")
    colors: Any = noted.get("colors")
    if not (_is_list(names, _is_name) and _is_list(colors, _is_color) and len(names) == len(colors)):
        raise WeightsError(
            f'{source}: its note of the classes is damaged; expected {{"names": [text, ...], '
            '"colors": [[red, green, blue], ...]}, as many colours of 0 to 255 as names'
        )
    if num_classes not in (None, len(names)):
        raise WeightsError(f"{source}: its note of the classes names {len(names)}, for a network of {num_classes}")
    return {"names": list(names), "colors": [list(color) for color in colors]}


def _is_list(values: Any, holds: Callable[[Any], bool]) -> bool:
    return isinstance(values, (list, tuple)) and all(map(holds, values))


def _is_name(value: Any) -> bool:
    return isinstance(value, str)


def _is_color(value: Any) -> bool:
    return _is_list(value, lambda part: type(part) is int and 0 <= part <= 255) and len(value) == 3


def _no_state_dict(contents: Mapping[Any, Any], source: str) -> WeightsError:
    found = ", ".join(map(repr, list(contents)[:5])) or "nothing"
    return WeightsError(f"{source}: holds no state dict (found {found}); expected a mapping from parameter names to tensors")


def _without_module(state: Mapping[str, Any]) -> OrderedDict[str, Any]:
    """A state dict, with its metadata, without the `module.` that DataParallel puts before each key."""
    plain: Any = OrderedDict((key.removeprefix("module."), value) for key, value in state.items())
    plain._metadata = getattr(state, "_metadata", None)
    return plain


def _with_notes(tensors: Mapping[str, torch.Tensor], network: Segmenter) -> OrderedDict[str, torch.Tensor]:
    """A state dict under another format's keys, with nothing but the network's notes in its metadata: what PyTorch puts there
    would make it look for the counters that frozen norms lack."""
    noted: Any = OrderedDict(tensors)
    noted._metadata = network.notes()
    return noted


# Containers with a `state_dict`, MaxSquare's among them


def is_container(contents: Mapping[str, Any]) -> bool:
    """True for `{"state_dict": {...}, ...}`."""
    return isinstance(contents.get("state_dict"), dict)


def is_maxsquare(contents: Mapping[str, Any]) -> bool:
    """True for the container that MaxSquare's solvers save."""
    return is_container(contents) and "best_MIou" in contents


def from_container(contents: Mapping[str, Any], source: str) -> Checkpoint:
    """The network in a container."""
    inner = read_contents(contents["state_dict"], PYTORCH, source, BARE)
    return replace(inner, format="container") if inner.format == "plain" else inner


def from_maxsquare(contents: Mapping[str, Any], source: str) -> Checkpoint:
    """The network in MaxSquare's container."""
    inner = from_container(contents, source)
    return replace(inner, format="maxsquare") if inner.format == "container" else inner


def to_maxsquare(network: Segmenter) -> dict[str, Any]:
    """`{"state_dict": ...}` with `module.` before each key, as MaxSquare's solvers load it."""
    return {"state_dict": _with_notes({f"module.{key}": value for key, value in network.state_dict().items()}, network)}


# FADA


def is_fada(contents: Mapping[str, Any]) -> bool:
    """True for FADA's container."""
    return all(isinstance(contents.get(part), dict) for part in ("feature_extractor", "classifier"))


def from_fada(contents: Mapping[str, Any], source: str = "weights") -> Checkpoint:
    """FADA's container (`feature_extractor`, `classifier`, ...).

    ResNet trunks: `backbone.X` is X here, the classifier is `layer5`; VGG16: `features.N` and `classifier`.
    """
    trunk, head = (_without_module(_only_tensors(contents[part])) for part in ("feature_extractor", "classifier"))
    resnet, vgg = "backbone.conv1.weight" in trunk, "backbone.0.weight" in trunk
    tensors = {("features." if vgg else "") + key.removeprefix("backbone."): value for key, value in trunk.items()}
    tensors.update({("layer5." if resnet else "classifier.") + key: value for key, value in head.items()})
    return Checkpoint(tensors, "fada", **_notes(contents["feature_extractor"], source))


def fada_discriminator(contents: Mapping[str, Any]) -> Checkpoint | None:
    """The feature discriminator in FADA's container, or None."""
    state = contents.get("model_D")
    return Checkpoint(dict(_without_module(_only_tensors(state))), "fada") if isinstance(state, dict) else None


def to_fada(network: Segmenter, iteration: int | None, discriminator: nn.Module | None = None) -> dict[str, Any]:
    """A single-headed network (and its feature discriminator) as FADA's `model_iter<N>.pth`: the inverse of `from_fada`.

    Frozen norms are plain buffers there, without the counter `num_batches_tracked`.
    """
    state = dict(network.state_dict())
    (head,) = network.head_names
    if all(norm.eps <= NO_EPS for norm in network.norms()):
        state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    trunk, classifier = {}, {}
    for key, value in state.items():
        if key.startswith(f"{head}."):
            classifier[key.removeprefix(f"{head}.")] = value
        else:
            trunk["backbone." + key.removeprefix("features.")] = value
    parts = {"iteration": iteration, "feature_extractor": _with_notes(trunk, network), "classifier": classifier}
    if discriminator is not None:
        parts["model_D"] = discriminator.state_dict()
    return parts


def _write_fada(network: Segmenter) -> dict[str, Any]:
    if len(network.head_names) != 1:
        raise WeightsError(f"{network.settings['name']} has {len(network.head_names)} classifiers; FADA's format holds one")
    if network.normalize.convention == "caffe":
        raise WeightsError(f"{network.settings['name']} has the caffe input convention, which FADA's networks do not have")
    return to_fada(network, 0)


def _only_tensors(state: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in state.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}


# DACS


def is_dacs(contents: Mapping[str, Any]) -> bool:
    """True for DACS' dict of a student and its mean teacher."""
    return all(isinstance(contents.get(part), dict) for part in ("model", "ema_model"))


def from_dacs(contents: Mapping[str, Any], source: str) -> Checkpoint:
    """The student, which is the one that its authors evaluate; the teacher's BatchNorm statistics are its training's own."""
    return replace(read_contents(contents["model"], PYTORCH, source, BARE), format="dacs")


def to_dacs(network: Segmenter, teacher: Segmenter, iteration: int | None) -> dict[str, Any]:
    """Student and teacher as DACS' evaluation reads them, which asks `config` for the data and the ignored label; without the
    optimizer's state, which lists most parameters several times there."""
    config = {"dataset": "cityscapes", "ignore_label": 255}
    return {"iteration": iteration, "config": config, "model": network.state_dict(), "ema_model": teacher.state_dict()}


def _write_dacs(network: Segmenter) -> dict[str, Any]:
    _check_single(network, "DACS'")
    return to_dacs(network, network, 0)


def _check_single(network: Segmenter, whose: str) -> None:
    if network.head_names != ("layer5",):
        raise WeightsError(f"{network.settings['name']} is no ResNet with one classifier, which {whose} format holds")


# ADVENT: a network with one classifier, on layer 4, calls it `layer6`


def is_advent(contents: Mapping[str, Any]) -> bool:
    """True for ADVENT's single-level network, whose only classifier is `layer6`."""
    return "layer6.conv2d_list.0.weight" in contents and not any(key.startswith("layer5.") for key in contents)


def from_advent(contents: Mapping[str, Any], source: str) -> Checkpoint:
    """The network, its classifier named as in a network with one; four branches, as its authors add."""
    tensors = {re.sub(r"^layer6\.", "layer5.", key): value for key, value in _tensors(contents, source).items()}
    return Checkpoint(tensors, "advent", **_notes(contents, source))


def to_advent(network: Segmenter) -> OrderedDict[str, torch.Tensor]:
    """The inverse of `from_advent`. (Networks with two classifiers have the same keys there and here.)"""
    _check_single(network, "ADVENT's single-level")
    tensors = {re.sub(r"^layer5\.", "layer6.", key): value for key, value in network.state_dict().items()}
    return _with_notes(tensors, network)


def is_advent_discriminator(contents: Mapping[str, Any]) -> bool:
    """True for ADVENT's discriminator, whose layers have numbers for names."""
    return contents.keys() == {f"{layer}.{value}" for layer in range(0, 10, 2) for value in ("weight", "bias")}


def from_advent_discriminator(contents: Mapping[str, Any], source: str) -> Checkpoint:
    """The discriminator, its layers named as in `OutputDiscriminator`."""
    names = dict(zip("02468", ("conv1", "conv2", "conv3", "conv4", "classifier"), strict=True))
    return Checkpoint({names[key[0]] + key[1:]: value for key, value in _tensors(contents, source).items()}, "advent D")


# Weights to start from: AdaptSegNet's initialisation, torchvision's ImageNet weights


def is_initialisation(contents: Mapping[str, Any]) -> bool:
    """True for AdaptSegNet's `DeepLab_resnet_pretrained_init-*.pth`, whose keys all begin with `Scale.`."""
    return all(key.startswith("Scale.") for key in contents)


def from_initialisation(contents: Mapping[str, Any], source: str) -> Checkpoint:
    """The trunk; the classifier there is for other classes."""
    tensors = {key.removeprefix("Scale."): value for key, value in _tensors(contents, source).items()}
    return Checkpoint({key: value for key, value in tensors.items() if not key.startswith("layer5")}, "initialisation")


def is_vgg16(contents: Mapping[str, Any]) -> bool:
    """True for the keys of torchvision's VGG16, under which Caffe's weights are stored too."""
    return "features.28.weight" in contents and "features.29.weight" not in contents


def from_vgg16(contents: Mapping[str, Any], source: str) -> Checkpoint:
    """torchvision's or Caffe's VGG16, with torchvision's numbers for the layers."""
    return Checkpoint(_tensors(contents, source), "vgg16", _convention_of_vgg16(source))


def is_torchvision(contents: Mapping[str, Any]) -> bool:
    """True for torchvision's ResNets, which have a classifier for ImageNet."""
    return "fc.weight" in contents


def from_torchvision(contents: Mapping[str, Any], source: str) -> Checkpoint:
    """torchvision's ResNet, with its classifier."""
    return Checkpoint(_tensors(contents, source), "torchvision", "imagenet")


def _convention_of_vgg16(source: str) -> str | None:
    """torchvision trained its VGG16 on normalised RGB, Caffe's sees BGR of 0..255; nothing but the file's hash tells.

    Raises:
        WeightsError: torchvision's name of weights for images that no network here makes.
    """
    from torchvision.models import VGG16_Weights, get_weight  # takes more than a second to import

    if source.startswith("torchvision:"):
        if tuple(get_weight(source.removeprefix("torchvision:")).transforms().mean) != CONVENTIONS["imagenet"].mean:
            raise WeightsError(
                f"{source}: is for another input convention than any network here has; use VGG16_Weights.IMAGENET1K_V1"
            )
        return "imagenet"
    prefix = VGG16_Weights.IMAGENET1K_V1.url.rpartition("-")[2].removesuffix(".pth")
    if not os.path.isfile(source):
        return "imagenet" if prefix in source else None
    with open(source, "rb") as file:
        return "imagenet" if hashlib.file_digest(file, "sha256").hexdigest().startswith(prefix) else None


# CBST's ResNet-38 in MXNet


def from_mxnet(arrays: Mapping[str, np.ndarray], source: str = "weights") -> Checkpoint:
    """{"arg:..." or "aux:...": array} of CBST's ResNet-38; the 1000-class classifier is dropped.

    Raises:
        WeightsError: a name that no part of the network has, or two classifiers.
    """
    keys, tensors = {name: key for key, name in _mxnet_names().items()}, {}
    for name, array in arrays.items():
        head = MXNET_CLASSIFIER.fullmatch(name)
        if head and head[1] == "1000":
            continue
        key = f"classifier.{head[2]}" if head else keys.get(name)
        if key is None:
            raise WeightsError(f"{source}: {name!r} is no part of ResNet-38, the only network read from MXNet's files")
        if key in tensors:
            raise WeightsError(f"{source}: {name!r} is a second classifier")
        tensors[key] = torch.from_numpy(np.ascontiguousarray(array, np.float32))
    return Checkpoint(tensors, "mxnet")


def to_mxnet(state: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """A `ResNet38` state dict as {"arg:..." or "aux:...": float32 array}: the inverse of `from_mxnet`.

    Raises:
        WeightsError: a key that MXNet's network does not have.
    """
    names = _mxnet_names()
    for value in ("weight", "bias"):
        key = f"classifier.{value}"
        if key in state:
            names[key] = f"arg:linear{len(state[key])}_{value}"
    kept = [key for key in state if not key.endswith("num_batches_tracked")]
    unknown = [key for key in kept if key not in names]
    if unknown:
        raise WeightsError(f"{unknown[0]!r} is no part of MXNet's ResNet-38")
    return {names[key]: state[key].detach().cpu().float().numpy() for key in kept}


def _write_mxnet(network: Segmenter) -> dict[str, np.ndarray]:
    if not isinstance(network, ResNet38):
        raise WeightsError(f"{network.settings['name']} is no ResNet-38; CBST's format is for ResNet-38 only")
    return to_mxnet(network.state_dict())


def _mxnet_names() -> dict[str, str]:
    """{our key: MXNet's name} of everything but the classifier, whose name there depends on the number of classes."""
    names = {"conv1a.weight": "arg:conv1a_weight", **_mxnet_norm_names("bn7", "bn7")}
    names |= {f"conv6a.{value}": f"arg:conv6a_{value}" for value in ("weight", "bias")}
    for block, widths, *_ in BLOCKS:
        if block.endswith("a"):
            names[f"blocks.{block}.projection.weight"] = f"arg:res{block}_branch1_weight"
        for branch in BRANCHES[: len(widths)]:
            names[f"blocks.{block}.convolutions.{branch}.weight"] = f"arg:res{block}_{branch}_weight"
            names |= _mxnet_norm_names(f"blocks.{block}.norms.{branch}", f"bn{block}_{branch}")
    return names


def _mxnet_norm_names(path: str, module: str) -> dict[str, str]:
    kinds = {value: "aux" if value.startswith("running") else "arg" for value in NORM_ENDINGS}
    return {f"{path}.{value}": f"{kinds[value]}:{module}_{ending}" for value, ending in NORM_ENDINGS.items()}


# PaddlePaddle: the reproductions of AdaptSegNet and CLAN


def from_paddle(arrays: Mapping[str, np.ndarray], source: str = "weights") -> Checkpoint:
    """{key: array} of a network or a discriminator, with PyTorch's keys but for the norms' statistics.

    CLAN's reproduction has biases in the projections of its ResNet, which are folded into the norms behind them.

    Raises:
        WeightsError: such a bias without its norm.
    """
    ours = {theirs: ours for ours, theirs in PADDLE_ENDINGS.items()}
    tensors = {_with_ending(key, ours): torch.from_numpy(array.copy()) for key, array in arrays.items()}
    for key in [key for key in tensors if key.endswith("downsample.0.bias")]:
        bias, mean = tensors.pop(key), key.replace("downsample.0.bias", "downsample.1.running_mean")
        if mean not in tensors or tensors[mean].shape != bias.shape:
            raise WeightsError(
                f"{source}: {key} cannot be folded into the norm behind it ({mean} is missing or of another shape)"
            )
        tensors[mean] = tensors[mean] - bias
    return Checkpoint(tensors, "paddle")


def from_paddle_initialisation(arrays: Mapping[str, np.ndarray], source: str) -> Checkpoint:
    """AdaptSegNet's initialisation as its reproduction has it."""
    return replace(from_initialisation(from_paddle(arrays, source).tensors, source), format="paddle initialisation")


def to_paddle(network: Segmenter) -> dict[str, np.ndarray]:
    """{key: array} as the reproductions load it, the inverse of `from_paddle`; CLAN's projections get biases of 0.

    Raises:
        WeightsError: the network is no DeepLab.
    """
    if network.aspp_branches is None:
        raise WeightsError(f"{network.settings['name']} is no DeepLab, as all networks of the reproductions are")
    arrays = {}
    for key, value in network.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            arrays[_with_ending(key, PADDLE_ENDINGS)] = value.detach().cpu().numpy()
        if key.endswith("downsample.0.weight") and network.settings.get("heads") == "twin":
            arrays[key.replace("weight", "bias")] = np.zeros(len(value), np.float32)
    return arrays


def _with_ending(key: str, endings: Mapping[str, str]) -> str:
    path, _, ending = key.rpartition(".")
    return f"{path}.{endings[ending]}" if ending in endings else key


# The table. The first one that recognises a file counts.


def _any(contents: Mapping[str, Any]) -> bool:
    return True


BARE = (
    Format(
        "initialisation",
        "AdaptSegNet's initialisation, without its classifier",
        PYTORCH,
        is_initialisation,
        from_initialisation,
    ),
    Format("vgg16", "VGG16's ImageNet weights", PYTORCH, is_vgg16, from_vgg16),
    Format("torchvision", "torchvision's ImageNet weights", PYTORCH, is_torchvision, from_torchvision),
    Format("advent", "a single-level network of ADVENT", PYTORCH, is_advent, from_advent, to_advent),
    Format("advent D", "a discriminator of ADVENT", PYTORCH, is_advent_discriminator, from_advent_discriminator),
    Format("plain", "a state dict", PYTORCH, _any, from_state_dict, Segmenter.state_dict),
)
FORMATS = (
    Format("dacs", "a checkpoint of DACS", PYTORCH, is_dacs, from_dacs, _write_dacs),
    Format("fada", "a checkpoint of FADA", PYTORCH, is_fada, from_fada, _write_fada),
    Format("maxsquare", "a checkpoint of MaxSquare", PYTORCH, is_maxsquare, from_maxsquare, to_maxsquare),
    Format("container", "a checkpoint with state_dict", PYTORCH, is_container, from_container),
    *BARE,
    Format(
        "paddle initialisation",
        "AdaptSegNet's initialisation for Paddle, without its classifier",
        PADDLE,
        is_initialisation,
        from_paddle_initialisation,
    ),
    Format("paddle", "PaddlePaddle's parameters", PADDLE, _any, from_paddle, to_paddle),
    Format("mxnet", "MXNet's parameters", MXNET, _any, from_mxnet, _write_mxnet),
)
TITLES = {each.name: each.title for each in FORMATS}
