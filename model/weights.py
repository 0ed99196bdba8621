"""Weight files: read safely, and loaded with a report or refused with a reason."""

import hashlib
import os
import pickle
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from torch import Tensor, nn

from utils.files import fits_checksum

from .backbones import BackboneSegmenter
from .checkpoint_formats import MXNET, PADDLE, PYTORCH, TITLES, Checkpoint, fada_discriminator, is_fada, read_contents
from .errors import ModelError, WeightsError
from .mxnet import is_params, read_params
from .networks import build_model, class_and_settings
from .paddle import is_pdparams, read_pdparams
from .recognition import classes_of, head_layout, place_of_settings, settings_of
from .segmenter import Segmenter
from .vgg import TORCHVISION_KEYS

# MaxSquare's checkpoints hold their best mIoU as a NumPy number, under the module name of the NumPy of 2019.
NUMPY_NUMBER = np._core.multiarray.scalar  # type: ignore[attr-defined]
NUMPY_NUMBERS = [(NUMPY_NUMBER, "numpy.core.multiarray.scalar"), NUMPY_NUMBER, np.dtype, type(np.dtype(np.float64))]


def read_weights(source: str | os.PathLike) -> Checkpoint:
    """Read the weights of one network, in any of the formats of `checkpoint_formats.FORMATS`.

    `source` is a file, a URL, or a name of torchvision's or timm's weights (`torchvision:ResNet101_Weights.IMAGENET1K_V1`,
    `timm:vit_small_patch14_reg4_dinov2.lvd142m`; downloaded, and checked against its hash).

    Raises:
        WeightsError: the file is missing, truncated, of no such format, or holds anything but tensors.
    """
    return read_contents(*_load(str(source)), str(source))


def read_discriminator(source: str | os.PathLike) -> Checkpoint | None:
    """Read a discriminator's weights: a state dict, or the one that a FADA checkpoint holds (None if it holds none).

    Raises:
        WeightsError: as `read_weights`.
    """
    contents, framework = _load(str(source))
    return fada_discriminator(contents) if is_fada(contents) else read_contents(contents, framework, str(source))


def load_weights(network: nn.Module, checkpoint: Checkpoint, source: str | os.PathLike, fresh_heads: bool = False) -> str:
    """Load `checkpoint` (from `read_weights`) into `network`, a `Segmenter` or a discriminator; return a one-paragraph report.

    With `fresh_heads`, a classifier that `checkpoint` lacks, or holds for another number of classes or on another layer, keeps
    its random values, as at the start of training; everything else has to fit.

    Raises:
        WeightsError: tensors are missing, have another shape or hold NaN; the message lists them and names `source`.
    """
    name, tensors = type(network).__name__, checkpoint.tensors
    heads: set[str] = set()
    notes: list[str] = []
    if isinstance(network, Segmenter):
        name, heads = network.settings.get("name", name), set(network.head_names)
        tensors, notes = _adapted(network, checkpoint, source, fresh_heads)
        notes += _other_names(network.classes, checkpoint.classes)
    own = network.state_dict()
    missing = [key for key in own if key not in tensors and not key.endswith("num_batches_tracked")]
    misfits = [key for key in own if key in tensors and tensors[key].shape != own[key].shape]
    fresh = {key.split(".")[0] for key in missing + misfits} & heads if fresh_heads else set()
    bad = [key for key in missing + misfits if key.split(".")[0] not in fresh]
    if bad:
        raise WeightsError(f"{source}: does not fit {name}: {_misfits(tensors, own, bad)}")
    usable = {key: value for key, value in tensors.items() if key in own and key.split(".")[0] not in fresh}
    not_finite = [key for key, value in usable.items() if value.is_floating_point() and not value.isfinite().all()]
    if not_finite:
        raise WeightsError(f"{source}: holds values that are NaN or infinite, in {not_finite[0]} ({len(not_finite)} tensors)")
    network.load_state_dict(usable, strict=False)
    ignored = [key for key in tensors if key not in own]
    if fresh:
        notes.append(f"{', '.join(sorted(fresh))} stay random (absent there, or for other classes, or on another layer)")
    if ignored:
        shown = ", ".join(ignored[:3] + ["..."] * (len(ignored) > 3))
        notes.append(f"{len(ignored)} ignored, which it has no place for ({shown})")
    return "; ".join([f"{source}: {TITLES[checkpoint.format]}", f"{len(usable)} tensors loaded", *notes])


def lost_heads(network: Segmenter, checkpoint: Checkpoint, source: str | os.PathLike) -> list[str]:
    """The classifiers of `network` that `load_weights(..., fresh_heads=True)` would leave random although `checkpoint` holds
    some; none for a file without a classifier for segmentation, such as ImageNet weights or AdaptSegNet's initialisation."""
    tensors, _ = _adapted(network, checkpoint, source, fresh_heads=True)
    own = {key: value.shape for key, value in network.state_dict().items() if key.split(".")[0] in network.head_names}
    if not any(key.split(".")[0] in network.head_names for key in tensors):
        return []
    return sorted({key.split(".")[0] for key, shape in own.items() if key not in tensors or tensors[key].shape != shape})


def load_model(source: str | os.PathLike, name: str | None = None, **settings: Any) -> Segmenter:
    """Build the network that a weight file was made for and load it, ready for evaluation.

    What the scripts here save names its network, in the file and in the run directory's `args.json`; any other is recognised
    among the published networks by its keys and values (see `settings_from_weights`). `name` and `settings` override both, as
    in `build_model`. The network's `classes`, `load_report` and `checkpoint_format` say what was loaded.

    Raises:
        WeightsError: the file cannot be read, recognised or loaded, or the settings do not fit it.
        ModelError: unknown name.
    """
    checkpoint = read_weights(source)
    found = settings_of(checkpoint, str(source))
    if name is not None and class_and_settings(name) != class_and_settings(found["name"]):
        fixed = {"name": name, **class_and_settings(name)[1]}  # what the name leaves open, the file tells
        kept: dict[str, Any] = {
            key: found[key] for key in ("num_classes", "heads", "aspp_branches") if key in found and key not in fixed
        }
        found = {"name": name, **kept}
    found.update({key: value for key, value in settings.items() if value is not None})
    try:
        network = build_model(**found)
    except ModelError as error:
        raise WeightsError(f"{place_of_settings(checkpoint, str(source))}: {error}") from error
    except (TypeError, ValueError, RuntimeError) as error:
        place, reason = place_of_settings(checkpoint, str(source)), str(error).splitlines()[0]
        raise WeightsError(f"{place}: the settings that it notes build no network ({reason})") from error
    network.classes = classes_of(checkpoint, network.settings["num_classes"], str(source))
    network.load_report = load_weights(network, checkpoint, source)
    network.checkpoint_format = checkpoint.format
    return network.eval()


def _load(source: str) -> tuple[Mapping[str, Any], str]:
    """What a file holds, and which framework's file it is."""
    if source.startswith("torchvision:"):
        return _from_torchvision(source), PYTORCH
    if source.startswith("timm:"):
        return _load_file(_from_timm(source), source)
    if not source.startswith(("http://", "https://")):
        return _load_file(source, source)
    path = _download(source)
    try:
        return _load_file(path, source)
    except WeightsError:
        os.remove(path)  # or the next try would find the same broken file
        raise


def _from_torchvision(source: str) -> Mapping[str, Any]:
    from torchvision.models import get_weight  # takes more than a second to import

    try:
        return get_weight(source.removeprefix("torchvision:")).get_state_dict(check_hash=True, map_location="cpu")
    except Exception as error:
        raise _not_fetched(source, error) from error


def _from_timm(source: str) -> str:
    """The file of weights that timm names so, kept in the folder of the Hugging Face hub."""
    try:
        from .timm_encoder import fetch

        return fetch(source.removeprefix("timm:"))
    except ModelError:
        raise
    except Exception as error:
        raise _not_fetched(source, error) from error


def _download(url: str) -> str:
    """A URL's file, kept in PyTorch Hub's folder under a name that is the URL's own; a hash in its name is checked."""
    name = os.path.basename(urlsplit(url).path) or "weights"
    path = os.path.join(torch.hub.get_dir(), "checkpoints", f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}")
    if not os.path.exists(path):
        digest = re.search(r"-([0-9a-f]{8,})\.", name)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            torch.hub.download_url_to_file(url, path, hash_prefix=digest[1] if digest else None)
        except Exception as error:
            raise _not_fetched(url, error) from error
    return path


def _not_fetched(source: str, error: Exception) -> WeightsError:
    return WeightsError(f"{source}: cannot be fetched ({type(error).__name__}: {error})")


def _load_file(path: str, source: str) -> tuple[Mapping[str, Any], str]:
    """What the file at `path` holds; in messages it is called `source`."""
    if not os.path.isfile(path):
        raise WeightsError(f"{source}: no such file")
    if is_params(path):
        return read_params(path), MXNET
    if is_safetensors(path):
        return _read_safetensors(path, source), PYTORCH
    _check_file(path, source)
    if is_pdparams(path):
        return read_pdparams(path, source), PADDLE
    try:
        with torch.serialization.safe_globals(NUMPY_NUMBERS):
            state = torch.load(path, map_location="cpu", weights_only=True)
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
    return state, PYTORCH


def is_safetensors(path: str) -> bool:
    """True for a file of the package safetensors: the length of a header in JSON, and that header."""
    with open(path, "rb") as file:
        return file.read(10)[8:] in (b'{"', b"{ ")


def _read_safetensors(path: str, source: str) -> Mapping[str, Any]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise WeightsError(
            f"{source}: to read it takes the package safetensors, which comes with timm: pip install .[timm]"
        ) from error
    if not fits_checksum(path):
        raise WeightsError(f"{source}: is damaged, its content does not fit its checksum; copy or save it again")
    try:
        return load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        raise WeightsError(f"{source}: cannot be read as weights, it is truncated or damaged ({error})") from error


def _check_file(path: str, source: str) -> None:
    with open(path, "rb") as file:
        start = file.read(512)
    if not start:
        raise WeightsError(f"{source}: is empty")
    if start.lstrip()[:1] == b"<":
        raise WeightsError(f"{source}: is a web page, not weights; the download failed (a sign-in or error page was saved)")
    if not fits_checksum(path):
        raise WeightsError(f"{source}: is damaged, its content does not fit its checksum; copy or save it again")
    if not start.startswith((b"PK", b"\x80")):
        kind = "not a PyTorch file" if b"\0" in start else "a text file, not weights"
        raise WeightsError(f"{source}: is {kind}")


def _adapted(
    network: Segmenter, checkpoint: Checkpoint, source: str | os.PathLike, fresh_heads: bool
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors under the names of `network`, and notes for the report.

    Raises:
        WeightsError: ImageNet weights for another input convention.
    """
    tensors = checkpoint.tensors
    if isinstance(network, BackboneSegmenter):
        return _from_library(network, tensors, source), []
    if checkpoint.format in ("vgg16", "torchvision"):
        _check_convention(network, checkpoint, source)
    if checkpoint.format == "vgg16":
        convention = network.normalize.convention
        return _from_vgg16(network, tensors), (
            [] if checkpoint.convention else [f"taken as weights for the {convention} input convention"]
        )
    if network.head_names == ("layer5",) and head_layout(tensors) == "multi":
        return _with_main_classifier(tensors), ["of its two classifiers the one on layer 4"]
    if fresh_heads and checkpoint.format == "paddle" and "layer6" in network.head_names and head_layout(tensors) == "single":
        # ImageNet weights of CLAN's reproduction, which takes everything but this classifier.
        return {key: value for key, value in tensors.items() if not key.startswith("layer5.")}, []
    return tensors, []


def _from_library(network: BackboneSegmenter, tensors: Mapping[str, Tensor], source: str | os.PathLike) -> dict[str, Tensor]:
    try:
        return network.from_library(tensors)
    except Exception as error:  # whatever timm's code does with tensors of another network
        raise WeightsError(f"{source}: does not fit {network.settings['name']} ({type(error).__name__}: {error})") from error


def _other_names(own: dict[str, list] | None, found: dict[str, list] | None) -> list[str]:
    """A note for the report if a checkpoint's classes have other names than the network's."""
    if own is None or found is None or len(own["names"]) != len(found["names"]):
        return []
    pairs = enumerate(zip(found["names"], own["names"], strict=True))
    differ = [f"class {index} is {there} there, {here} here" for index, (there, here) in pairs if there != here]
    if not differ:
        return []
    return [f"its classes have other names ({differ[0]}{f', and {len(differ) - 1} more' if differ[1:] else ''})"]


def _check_convention(network: Segmenter, checkpoint: Checkpoint, source: str | os.PathLike) -> None:
    convention = network.normalize.convention
    reasons = [] if checkpoint.convention in (None, convention) else [f"the {convention} input convention"]
    reasons += ["Caffe's strides"] if network.style == "caffe" else []
    if reasons:
        names = "VGG16" if checkpoint.format == "vgg16" else "ResNet101 (or ResNet50, ResNet18)"
        raise WeightsError(
            f"{source}: torchvision's ImageNet weights do not fit {network.settings['name']}, which has "
            f"{' and '.join(reasons)}; use --model {names}"
        )


def _from_vgg16(network: Segmenter, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """VGG16's layers under our numbers; what it lacks (fc6, fc7) keeps its random values."""
    own = network.state_dict()
    fresh = {key: own[key] for key in own if key.startswith(("features.29.", "features.31."))}
    return fresh | {_vgg_key(key): value for key, value in tensors.items() if key.startswith("features.")}


def _vgg_key(key: str) -> str:
    _, index, kind = key.split(".")
    return f"features.{TORCHVISION_KEYS.get(int(index), int(index))}.{kind}"


def _with_main_classifier(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a file with classifiers on two layers, the main one, named as in a network with one."""
    return {key.replace("layer6.", "layer5.", 1): value for key, value in tensors.items() if not key.startswith("layer5.")}


def _misfits(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], bad: list[str]) -> str:
    lines = []
    for key in bad[:5]:
        found = f"has shape {tuple(tensors[key].shape)}, expected {tuple(own[key].shape)}" if key in tensors else "is missing"
        lines.append(f"{key} {found}")
    more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
    hint = ""
    if any(key.startswith("layer5") and key in tensors and tensors[key].ndim == 4 for key in bad):
        hint = (
            "; the classifiers sit elsewhere: AdaptSegNet and MaxSquare have layer5 on layer 3, CLAN on layer 4 "
            "(choose the network with --model)"
        )
    return f"{'; '.join(lines)}{more}{hint}"
