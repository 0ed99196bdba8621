"""Weight files: read safely, recognised by content, loaded with a report or refused with a reason."""

import hashlib
import os
import pickle
import re
from urllib.parse import urlsplit

import numpy as np
import torch
from torchvision.models import VGG16_Weights, get_weight

from .dialects import FADA, MAXSQUARE, fada_discriminator, from_fada, is_fada
from .mxnet import ParamsError, is_params, read_params
from .networks import MODELS, build_model, known_name
from .normalization import CONVENTIONS
from .recognition import WeightsError, head_layout, settings_of
from .resnet38 import from_mxnet
from .segmenter import SETTINGS
from .vgg import TORCHVISION_KEYS

# MaxSquare's checkpoints hold their best mIoU as a NumPy number, under the module name of the NumPy of 2019.
NUMPY_NUMBERS = [
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
    np._core.multiarray.scalar,
    np.dtype,
    type(np.dtype(np.float64)),
]


class State(dict):
    """A state dict that remembers what kind of file it is from, and as far as the file says so: how its network wants to see
    images, and the settings of one that was saved here."""

    def __init__(self, tensors, dialect="a state dict", convention=None, settings=None):
        super().__init__(tensors)
        self.dialect, self.convention, self.settings = dialect, convention, settings


def read_weights(source):
    """Read the weights of one network as {key: tensor}, prefixes removed, from a file, a URL, or torchvision by name
    (`torchvision:ResNet101_Weights.IMAGENET1K_V1`; downloaded, and checked against its hash).

    Understood: plain state dicts, `{"state_dict": ...}` containers, FADA's containers, keys with `module.`, MXNet's `.params`,
    and the `Scale.` prefix of AdaptSegNet's initialisation file (whose classifier, made for other classes, is dropped).

    Raises:
        WeightsError: the file is missing, truncated, no PyTorch file, or holds anything but tensors.
    """
    state = _load(source)
    if is_fada(state):
        return State(from_fada(state), FADA)
    dialect = getattr(state, "dialect", "a state dict")
    if isinstance(state.get("state_dict"), dict):
        dialect = MAXSQUARE if "best_MIou" in state else "a checkpoint with state_dict"
        state = state["state_dict"]
    not_tensors = [key for key, value in state.items() if not isinstance(value, torch.Tensor)]
    if not_tensors or not state:
        raise WeightsError(
            f"{source}: holds no state dict (found {', '.join(map(repr, list(state)[:5])) or 'nothing'}); "
            "expected a mapping from parameter names to tensors"
        )
    metadata = getattr(state, "_metadata", None)
    settings = metadata.get(SETTINGS) if isinstance(metadata, dict) else None
    state = {key.removeprefix("module."): value for key, value in state.items()}
    if all(key.startswith("Scale.") for key in state):
        state = {key.removeprefix("Scale."): value for key, value in state.items()}
        state = {key: value for key, value in state.items() if not key.startswith("layer5")}
        dialect = "AdaptSegNet's initialisation, without its classifier"
    elif is_vgg16(state):
        return State(state, "VGG16's ImageNet weights", _convention_of_vgg16(str(source)))
    elif "fc.weight" in state:
        return State(state, "torchvision's ImageNet weights", "imagenet")
    return State(state, dialect, settings=settings)


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
    given, dialect = state, getattr(state, "dialect", "a state dict")
    state = _main_classifier(network, _adapt_imagenet(network, state, source))
    halved = "layer6.conv2d_list.0.weight" in given and "layer6.conv2d_list.0.weight" not in state
    own = network.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    misfits = [key for key in own if key in state and state[key].shape != own[key].shape]
    fresh = _fresh_heads(network, missing + misfits) if fresh_heads else set()
    bad = [key for key in missing + misfits if key.split(".")[0] not in fresh]
    if bad:
        raise WeightsError(_misfit_message(network, state, own, bad, source))
    usable = {key: value for key, value in state.items() if key in own and key.split(".")[0] not in fresh}
    network.load_state_dict(usable, strict=False)
    ignored = [key for key in state if key not in own]
    report = f"{source}: {dialect}; {len(usable)} tensors loaded"
    if is_vgg16(given) and getattr(given, "convention", None) is None:
        report += f"; taken as weights for {'Caffe' if network.normalize.bgr else 'ImageNet'} colours"
    if halved:
        report += "; of its two classifiers the one on layer 4"
    if fresh:
        report += f"; {', '.join(sorted(fresh))} stay random (absent there, or for other classes, or on another layer)"
    if ignored:
        shown = ", ".join(ignored[:3] + ["..."] * (len(ignored) > 3))
        report += f"; {len(ignored)} ignored, which it has no place for ({shown})"
    return report


def load_model(source, name=None, **settings):
    """Build the network that a weight file was made for and load it, ready for evaluation.

    What the scripts here save names its network, in the file and in the run directory's `args.json`; any other is recognised
    among the published networks by its keys and values (see `settings_from_weights`). `name` and `settings` override both, as
    in `build_model`. The network has two attributes more: `load_report`, a sentence, and `dialect`, whose file it was.

    Raises:
        WeightsError: the file cannot be read, recognised or loaded.
        ValueError: unknown name.
    """
    state = read_weights(source)
    found = settings_of(state, source)
    if name is not None and MODELS[known_name(name)] != MODELS[known_name(found["name"])]:
        fixed = {"name": name, **MODELS[known_name(name)][1]}  # what the name leaves open, the file tells
        kept = {key: found[key] for key in ("num_classes", "heads", "aspp_branches") if key in found and key not in fixed}
        found = {"name": name, **kept}
    found.update({key: value for key, value in settings.items() if value is not None})
    network = build_model(**found)
    network.load_report, network.dialect = load_weights(network, state, source), state.dialect
    return network.eval()


def _load(source):
    source = str(source)
    try:
        if source.startswith("torchvision:"):
            return get_weight(source.removeprefix("torchvision:")).get_state_dict(check_hash=True, map_location="cpu")
        path = _download(source) if source.startswith(("http://", "https://")) else source
    except Exception as error:
        raise WeightsError(f"{source}: cannot be fetched ({type(error).__name__}: {error})") from error
    try:
        return _load_file(path, source)
    except WeightsError:
        if path != source:
            os.remove(path)  # or the next try would find the same broken file
        raise


def _download(url):
    """A URL's file, kept in PyTorch Hub's folder under a name that is the URL's own; a hash in its name is checked."""
    name = os.path.basename(urlsplit(url).path) or "weights"
    path = os.path.join(torch.hub.get_dir(), "checkpoints", f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}")
    if not os.path.exists(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        digest = re.search(r"-([0-9a-f]{8,})\.", name)
        torch.hub.download_url_to_file(url, path, hash_prefix=digest and digest[1])
    return path


def _load_file(path, source):
    """What the file at `path` holds; in messages it is called `source`."""
    try:
        if os.path.isfile(path) and is_params(path):
            return State(from_mxnet(read_params(path)), "MXNet's parameters")
        _check_file(path, source)
        with torch.serialization.safe_globals(NUMPY_NUMBERS):
            state = torch.load(path, map_location="cpu", weights_only=True)
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


def _check_file(path, source):
    if not os.path.isfile(path):
        raise WeightsError(f"{source}: no such file")
    if source.endswith((".pdparams", ".paradms")):
        raise WeightsError(f"{source}: PaddlePaddle's weights, which are not read here; convert them to PyTorch's first")
    with open(path, "rb") as file:
        start = file.read(512)
    if not start:
        raise WeightsError(f"{source}: is empty")
    if start.lstrip()[:1] == b"<":
        raise WeightsError(f"{source}: is a web page, not weights; the download failed (a sign-in or error page was saved)")
    if not start.startswith((b"PK", b"\x80")):
        kind = "not a PyTorch file" if b"\0" in start else "a text file, not weights"
        raise WeightsError(f"{source}: is {kind}")


def _adapt_imagenet(network, state, source):
    """ImageNet weights under our names: VGG16's layers are renumbered, and what it lacks (fc6, fc7) keeps its random values.

    Raises:
        WeightsError: the network wants other colours than the weights.
    """
    if not is_vgg16(state) and "fc.weight" not in state:
        return state
    convention = getattr(state, "convention", None)
    other_colours = convention not in (None, network.normalize.convention)
    if other_colours or getattr(network, "style", "torchvision") == "caffe":
        names = "VGG16" if is_vgg16(state) else "ResNet101 (or ResNet50, ResNet18)"
        raise WeightsError(
            f"{source}: torchvision's ImageNet weights do not fit {network.settings['name']}, which has "
            f"Caffe's colours{'' if is_vgg16(state) else ' and strides'}; use --model {names}"
        )
    if "fc.weight" in state:
        return state
    own = network.state_dict()
    fresh = {key: own[key] for key in own if key.startswith(("features.29.", "features.31."))}
    return fresh | {_vgg_key(key): value for key, value in state.items() if key.startswith("features.")}


def is_vgg16(state):
    """True for the keys of torchvision's VGG16, with which Caffe's weights are stored too."""
    return "features.28.weight" in state and "features.29.weight" not in state


def _convention_of_vgg16(source):
    """torchvision trained its VGG16 on normalised RGB, Caffe's sees BGR of 0..255; nothing but the file's hash tells.

    Raises:
        WeightsError: torchvision's name of weights for images that no network here makes.
    """
    if source.startswith("torchvision:"):
        if tuple(get_weight(source.removeprefix("torchvision:")).transforms().mean) != CONVENTIONS["imagenet"].mean:
            raise WeightsError(f"{source}: wants other colours than the networks here; use VGG16_Weights.IMAGENET1K_V1")
        return "imagenet"
    prefix = re.search(r"-([0-9a-f]+)\.pth$", VGG16_Weights.IMAGENET1K_V1.url)[1]
    if not os.path.isfile(source):
        return "imagenet" if prefix in source else None
    with open(source, "rb") as file:
        return "imagenet" if hashlib.file_digest(file, "sha256").hexdigest().startswith(prefix) else None


def _main_classifier(network, state):
    """Of a file with classifiers on two layers, a network with one takes the main one."""
    if getattr(network, "head_names", ()) != ("layer5",) or "layer6.conv2d_list.0.weight" not in state:
        return state
    if head_layout(state) != "multi":
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
