"""The networks by the names that users know."""

from .resnet import DeepLabResNet
from .resnet38 import ResNet38
from .vgg import DeepLabVGG

MULTI = (DeepLabResNet, {"depth": 101, "heads": "multi"})
SINGLE = (DeepLabResNet, {"depth": 101, "heads": "single"})
TORCHVISION = {"style": "torchvision", "normalization": "imagenet"}

MINI = (DeepLabResNet, {"depth": 18, "width": 32, "aspp_rates": (1, 2, 4, 6), "aspp_branches": 4})

# Published names first; the others are for torchvision's ImageNet weights and for small runs.
MODELS = {
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


def known_name(name):
    """The name of a network as `MODELS` spells it; CBST's MXNet code calls ResNet-38 `cityscapes_rna-a1_cls19_s8` or the like.

    Raises:
        ValueError: unknown name.
    """
    if "_rna-a1_cls" in name:
        return "ResNet38"
    known = {key.lower(): key for key in MODELS}
    if name.lower() not in known:
        raise ValueError(f"unknown network {name!r}; known: {', '.join(MODELS)}")
    return known[name.lower()]


def build_model(name, num_classes=19, **settings):
    """Build a network by name (case does not matter) with fresh weights.

    `settings` override the name's own: heads, aspp_branches, style, aspp_rates, normalization, batch_norm, ... as far as
    the network knows them; those that are None are left at the name's default. The full choice is kept in
    `network.settings`, so that `build_model(**network.settings)` builds the same network again.

    Raises:
        ValueError: unknown name, or a setting that the network does not know or accept.
    """
    name = known_name(name)
    network_class, chosen = MODELS[name]
    chosen = {**chosen, **{key: value for key, value in settings.items() if value is not None}}
    try:
        network = network_class(num_classes, **chosen)
    except TypeError as error:
        raise ValueError(f"network {name} does not take these settings: {chosen} ({error})") from error
    network.settings = {"name": name, "num_classes": num_classes, **chosen}
    return network


def describe(network):
    """A network's name, classes, ASPP branches and colours in one line, for reports."""
    branches = {head.branches for head in network.heads() if hasattr(head, "branches")}
    parts = [network.settings["name"], f"{network.settings['num_classes']} classes"]
    parts += [f"{', '.join(map(str, branches))} ASPP branches"] if branches else []
    return ", ".join([*parts, f"{network.normalize.convention} colours"])
