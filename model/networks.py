"""The networks by the names that users know."""

from collections.abc import Callable
from inspect import signature
from typing import Any

from .backbones import BackboneSegmenter
from .encoders import LIBRARIES
from .errors import ModelError
from .resnet import DeepLabResNet
from .resnet38 import ResNet38
from .segmenter import Segmenter
from .vgg import DeepLabVGG

MULTI = (DeepLabResNet, {"depth": 101, "heads": "multi"})
SINGLE = (DeepLabResNet, {"depth": 101, "heads": "single"})
TORCHVISION = {"style": "torchvision", "normalization": "imagenet"}

MINI = (DeepLabResNet, {"depth": 18, "width": 32, "aspp_rates": (1, 2, 4, 6), "aspp_branches": 4})

# Published names first; the others are for torchvision's ImageNet weights and for small runs.
MODELS: dict[str, tuple[Callable[..., Segmenter], dict[str, Any]]] = {
    "DeepLab": MULTI,
    "DeeplabMulti": MULTI,
    "deeplabv2_multi": MULTI,
    "Res_Deeplab": SINGLE,
    "Oracle": SINGLE,
    "ResNet": (DeepLabResNet, {"depth": 101, "heads": "twin", "aspp_branches": 4}),
    "DeeplabRes": (DeepLabResNet, {"depth": 101, "heads": "single", "aspp_branches": 4, "normalization": "imagenet"}),
    "DeeplabVGG": (DeepLabVGG, {}),
    "ResNet38": (ResNet38, {}),
    "deeplab_resnet101": (DeepLabResNet, {"depth": 101, "heads": "single", "aspp_branches": 4, **TORCHVISION}),
    "deeplab_vgg16": (DeepLabVGG, {"aspp_branches": 4, "normalization": "caffe-vgg"}),
    "VGG16": (DeepLabVGG, {"normalization": "imagenet"}),
    "ResNet101": (DeepLabResNet, {"depth": 101, **TORCHVISION}),
    "ResNet50": (DeepLabResNet, {"depth": 50, **TORCHVISION}),
    "ResNet18": (DeepLabResNet, {"depth": 18, **TORCHVISION}),
    # The published dilations exceed the feature maps of images as small as the mini data's.
    "MiniResNet18": MINI,
    "MiniResNet18Twin": (DeepLabResNet, {**MINI[1], "heads": "twin"}),
}


def known_name(name: str) -> str:
    """The name of a network as `MODELS` spells it, or `torchvision:NAME` or `timm:NAME` as it is.

    CBST's MXNet code calls ResNet-38 `cityscapes_rna-a1_cls19_s8` or the like.

    Raises:
        ModelError: unknown name.
    """
    if name.partition(":")[0] in LIBRARIES:
        return name
    if "_rna-a1_cls" in name:
        return "ResNet38"
    known = {key.lower(): key for key in MODELS}
    if name.lower() not in known:
        raise ModelError(f"unknown network {name!r}; known: {', '.join(MODELS)}, torchvision:NAME, timm:NAME")
    return known[name.lower()]


def class_and_settings(name: str) -> tuple[Callable[..., Segmenter], dict[str, Any]]:
    """The class of a network and the settings that its name stands for.

    Raises:
        ModelError: unknown name.
    """
    name = known_name(name)
    return MODELS[name] if name in MODELS else (BackboneSegmenter, {"encoder": name})


def has_setting(name: str, setting: str) -> bool:
    """True if `build_model` takes `setting` for this network.

    Raises:
        ModelError: unknown name.
    """
    return setting in signature(class_and_settings(name)[0]).parameters


def has_lower_level(name: str) -> bool:
    """False for networks without a classifier on a lower layer (VGG16, ResNet-38).

    Raises:
        ModelError: unknown name.
    """
    return class_and_settings(name)[0] not in (DeepLabVGG, ResNet38)


def build_model(name: str, num_classes: int = 19, **settings: Any) -> Segmenter:
    """Build a network by name (of MODELS, where case does not matter, `torchvision:NAME` or `timm:NAME`) with fresh weights.

    `settings` override the name's own: heads, aspp_branches, style, aspp_rates, normalization, batch_norm, ... as far as
    the network knows them; those that are None are left at the name's default. The full choice is kept in
    `network.settings`, so that `build_model(**network.settings)` builds the same network again.

    Raises:
        ModelError: unknown name, or a setting that the network does not have or accept.
    """
    name = known_name(name)
    network_class, chosen = class_and_settings(name)
    chosen = {**chosen, **{key: value for key, value in settings.items() if value is not None}}
    _check_settings(name, network_class, {"num_classes": num_classes, **chosen})
    network = network_class(num_classes, **chosen)
    network.settings = {"name": name, "num_classes": num_classes, **chosen}
    return network


def describe(network: Segmenter) -> str:
    """A network's name, classes, ASPP branches and input convention in one line, for reports."""
    parts = [network.settings["name"], f"{network.settings['num_classes']} classes"]
    parts += [f"{network.aspp_branches} ASPP branches"] if network.aspp_branches else []
    return ", ".join([*parts, f"{network.normalize.convention} input convention"])


def _check_settings(name: str, network_class: Callable[..., Segmenter], settings: dict[str, Any]) -> None:
    """Hold settings, which may come from a file, against the parameters of the network's class and their defaults' types."""
    known = signature(network_class).parameters
    for key, value in settings.items():
        if key not in known:
            raise ModelError(f"network {name} has no setting {key}; it has {', '.join(known)}")
        kind = type(known[key].default)
        if not isinstance(value, {float: (float, int), tuple: (tuple, list)}.get(kind, kind)):
            raise ModelError(f"network {name}: setting {key} must be of type {kind.__name__}, not {value!r}")
    if settings["num_classes"] < 1:
        raise ModelError(f"network {name}: num_classes must be at least 1, not {settings['num_classes']}")
