"""What all segmentation networks have in common: uint8 images in, a list of logits out, one BatchNorm choice."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .errors import ModelError
from .normalization import BATCH_NORM_MODES, BatchNorm, InputConvention, Normalize, freezes_affine, freezes_statistics

# The entries of a state dict's metadata that name the network and its classes.
SETTINGS, CLASSES = "segadapt", "segadapt classes"


class Segmenter(nn.Module):
    """Base of the networks: subclasses define `features(x)` and `classify(features)` and call `set_batch_norm`.

    Attributes:
        head_names: names of the classifier modules, low level to high.
        default_heads: which logits make the prediction, "last" or "sum" (CLAN's twin classifiers).
        head_multiplier: the classifiers' learning rate as a multiple of the trunk's.
        feature_channels: channels of the features that the main classifier sees.
        aspp_branches: how many branches of each classifier are added; None for a classifier without branches.
        style: which convolution of a ResNet's block carries the stride, "caffe" or "torchvision"; None for other trunks.
        exports: false if PyTorch cannot trace the network for images of any size.
        settings: the arguments of `build_model` that build the network again, as `build_model` notes them.
        classes: {"names": [str, ...], "colors": [[red, green, blue], ...]} with 0..255, one entry per class; None: unknown.
        load_report: what `load_model` has loaded, in a sentence.
        checkpoint_format: the name of the format that `load_model` has read (see `checkpoint_formats.FORMATS`).
    """

    head_names: tuple[str, ...] = ()
    default_heads: str = "last"
    head_multiplier: float = 10
    feature_channels: int
    aspp_branches: int | None = None
    style: str | None = None
    exports: bool = True
    features: Callable[..., Any]
    classify: Callable[..., Any]

    def __init__(self, normalization: str | InputConvention) -> None:
        super().__init__()
        self.normalize = Normalize(normalization)
        self.batch_norm = "train"
        self.settings: dict[str, Any] = {}
        self.classes: dict[str, list] | None = None
        self.load_report = ""
        self.checkpoint_format: str | None = None

    def forward(self, images: torch.Tensor, with_features: bool = False) -> Any:
        """(N,3,H,W) uint8 RGB images (or floats that are normalised already) to a list of logits (N,C,~H/8,~W/8).

        With `with_features` to (logits, features): also what the main classifier sees, (N,feature_channels,~H/8,~W/8).
        """
        self._count_batch()
        if not images.is_floating_point():
            images = self.normalize(images)
        features = self.features(images)
        logits = self.classify(features)
        if with_features:
            return logits, features[-1] if isinstance(features, tuple) else features
        return logits

    def _count_batch(self) -> None:
        """One more batch for every norm that takes statistics: one launch, where PyTorch's norms would make a hundred."""
        counters = [norm.num_batches_tracked for norm in self.norms() if isinstance(norm, BatchNorm) and norm.training]
        if counters:
            torch._foreach_add_(counters, 1)

    def notes(self) -> dict[str, Any]:
        """What a state dict's metadata says about the network, as far as it is known."""
        known = {SETTINGS: self.settings or None, CLASSES: self.classes}
        return {key: value for key, value in known.items() if value is not None}

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """As every module's, with `notes` in the metadata, where they travel with the file and other code bases do not look."""
        state = super().state_dict(*args, **options)
        state._metadata.update(self.notes())
        return state

    def set_batch_norm(self, mode: str) -> "Segmenter":
        """Choose what BatchNorm does while training; evaluation always uses the stored statistics.

        `train`: normalise with the batch, update the running statistics, train scale and shift.
        `frozen-affine`: the same with scale and shift fixed (AdaptSegNet, CLAN).
        `frozen-statistics`: normalise with the stored statistics and keep them; scale and shift trained.
        `frozen`: nothing of BatchNorm changes (CRST, FADA).

        Raises:
            ModelError: unknown mode.
        """
        if mode not in BATCH_NORM_MODES:
            raise ModelError(f"unknown BatchNorm mode {mode!r}; known: {', '.join(BATCH_NORM_MODES)}")
        self.batch_norm = mode
        for norm in self.norms():
            norm.weight.requires_grad_(not freezes_affine(mode))
            norm.bias.requires_grad_(not freezes_affine(mode))
        return self.train(self.training)

    def synchronize_norms(self) -> None:
        """Let BatchNorm use the batches of all processes; call it before the network is moved or wrapped."""
        nn.SyncBatchNorm.convert_sync_batchnorm(self)

    def fitted(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size (H,W) at which the network sees images of `size`."""
        return size

    def freeze_stem_norm(self) -> None:
        """Fix scale and shift of the stem's BatchNorm, where there is one, as MaxSquare does while it trains all others."""

    def norms(self) -> list[nn.BatchNorm2d | nn.SyncBatchNorm]:
        """Every BatchNorm layer."""
        return [module for module in self.modules() if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm))]

    def train(self, mode: bool = True) -> "Segmenter":
        """As every module's, but norms whose statistics are frozen stay in evaluation mode."""
        super().train(mode)
        if mode and freezes_statistics(self.batch_norm):
            for norm in self.norms():
                norm.eval()
        return self

    def heads(self) -> list[nn.Module]:
        """The classifiers, low level to high."""
        return [getattr(self, name) for name in self.head_names]

    def parameter_groups(self, head_multiplier: float | None = None) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer: the trunk at 1x the learning rate, the classifiers at `head_multiplier`
        (default: the network's own).

        Each group carries `lr_multiplier` and `visits`: how often the originals' parameter lists name its tensors (see
        `utils.optimizers.RepeatedUpdateSGD`). Each parameter stands in exactly one group.
        """
        groups: dict[tuple[float, int], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                in_head = name.split(".")[0] in self.head_names
                key = (head_multiplier or self.head_multiplier, 1) if in_head else (1, self.times_listed(name))
                groups.setdefault(key, []).append(parameter)
        return [
            {"params": parameters, "lr_multiplier": multiplier, "visits": visits}
            for (multiplier, visits), parameters in sorted(groups.items())
        ]

    def times_listed(self, name: str) -> int:
        """How often the originals' optimizer list names the trunk parameter `name`."""
        return 1
