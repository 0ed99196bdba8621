"""Any encoder of torchvision or timm with plain linear classifiers."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .encoders import build_encoder
from .errors import ModelError
from .normalization import freezes_statistics
from .segmenter import Segmenter

# Names of the classifiers, low level to high; which of them there are is the setting `heads`.
HEADS = {"single": ("classifier",), "multi": ("classifier_low", "classifier"), "twin": ("classifier", "classifier2")}
# Position embeddings and tokens are no weights: pulling them towards 0 has no sense.
WITHOUT_DECAY = ("pos_embed", "pos_embedding", "cls_token", "class_token", "reg_token", "mask_token")


class BackboneSegmenter(Segmenter):
    """An encoder with one linear classifier (a 1x1 convolution) for each level.

    The main classifier sees the last map of a transformer, or all maps of a pyramid: each normalised over its channels,
    resized to the finest (1/8 of the input) and stacked. The lower classifier sees the map before the last. Images whose
    sides are no multiples of the patch (of the coarsest stride) are resized to the nearest ones first.

    Args:
        encoder: `torchvision:NAME` or `timm:NAME`.
        heads: "single", "multi" (a second classifier on the lower level: AdaptSegNet, MaxSquare) or "twin" (two on the high
            level: CLAN).
        batch_norm: what BatchNorm does, where the encoder has any (see `Segmenter.set_batch_norm`).
        drop_path: stochastic depth, the probability of leaving out the last block while training, from 0 to below 1.
        checkpoint_activations: compute the blocks again in the backward pass instead of keeping what they computed.
        freeze_encoder: train the classifiers alone (a linear probe).
        layer_decay: learning rate of each block as a multiple of the next one's, above 0 and at most 1.

    Raises:
        ModelError: a value that is not among those named here, or that the encoder cannot do.
    """

    def __init__(
        self,
        num_classes: int = 19,
        encoder: str = "",
        heads: str = "multi",
        batch_norm: str = "frozen-affine",
        drop_path: float = 0.0,
        checkpoint_activations: bool = False,
        freeze_encoder: bool = False,
        layer_decay: float = 1.0,
    ) -> None:
        if heads not in HEADS:
            raise ModelError(f"heads must be one of {', '.join(HEADS)}, not {heads!r}")
        if not 0 <= drop_path < 1:
            raise ModelError(f"drop_path must be from 0 to below 1, not {drop_path}")
        if not 0 < layer_decay <= 1:
            raise ModelError(f"layer_decay must be above 0 and at most 1, not {layer_decay}")
        built = build_encoder(encoder, drop_path, checkpoint_activations)
        super().__init__(built.convention)
        self.encoder, self.layer_decay, self.exports = built, layer_decay, built.exports
        self.feature_channels = sum(built.channels) if built.is_pyramid else built.channels[-1]
        self.head_names = HEADS[heads]
        self.default_heads = "sum" if heads == "twin" else "last"
        for name in self.head_names:
            channels = built.channels[-2] if name == "classifier_low" else self.feature_channels
            head = nn.Conv2d(channels, num_classes, 1)
            nn.init.normal_(head.weight, 0, 0.01)
            nn.init.constant_(cast(Tensor, head.bias), 0)
            setattr(self, name, head)
        self.set_batch_norm(batch_norm)
        if freeze_encoder:
            self.encoder.requires_grad_(False)
        if checkpoint_activations and self.norms() and not freezes_statistics(batch_norm):
            raise ModelError(
                f"--checkpoint-activations would make {encoder} count each batch twice in BatchNorm's statistics; use "
                "--batch-norm frozen or frozen-statistics"
            )

    def fitted(self, size: tuple[int, int]) -> tuple[int, int]:
        """The nearest size (H,W) that the encoder takes."""
        patch = self.encoder.multiple
        height, width = (max(1, (side + patch // 2) // patch) * patch for side in size)
        return height, width

    def synchronize_norms(self) -> None:
        self.encoder.synchronize_norms()

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images (N,3,H,W) to what the lower and the main classifier see."""
        size = self.fitted((x.shape[-2], x.shape[-1]))
        if torch.compiler.is_exporting() or size != tuple(x.shape[-2:]):  # a program has to decide for all sizes
            x = F.interpolate(x, size, mode="bilinear", align_corners=True)
        maps = self.encoder(x)
        if not self.encoder.is_pyramid:
            return maps[-2], maps[-1]
        # Levels differ in scale, in some families by orders of magnitude.
        maps = [F.layer_norm(each.movedim(1, -1), each.shape[1:2]).movedim(-1, 1) for each in maps]
        finest = maps[0].shape[-2:]
        stacked = [F.interpolate(each, finest, mode="bilinear", align_corners=True) for each in maps]
        return maps[-2], torch.cat(stacked, dim=1)

    def classify(self, features: tuple[Tensor, Tensor]) -> list[Tensor]:
        """What `features` returns to the logits of each classifier."""
        low, high = features
        return [getattr(self, name)(low if name == "classifier_low" else high) for name in self.head_names]

    def parameter_groups(self, head_multiplier: float | None = None) -> list[dict[str, Any]]:
        """As every network's, with `layer_decay`; vectors (biases, norms) and position embeddings have no weight decay."""
        depths = {f"encoder.{name}": depth for name, depth in self.encoder.depths().items()} if self.layer_decay < 1 else {}
        deepest = max(depths.values(), default=0)
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                in_head = name.split(".")[0] in self.head_names
                multiplier = head_multiplier or self.head_multiplier if in_head else 1.0
                multiplier *= 1 if in_head else self.layer_decay ** (deepest - depths.get(name, deepest))
                decays = parameter.ndim > 1 and name.split(".")[-1] not in WITHOUT_DECAY
                groups.setdefault((multiplier, decays), []).append(parameter)
        return [
            {"params": parameters, "lr_multiplier": multiplier, "visits": 1, **({} if decays else {"weight_decay": 0.0})}
            for (multiplier, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
        ]

    def from_library(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of the library's network under the names here; those of a snapshot have these names already."""
        own = {"encoder", *(name for names in HEADS.values() for name in names)}
        if all(key.split(".")[0] in own for key in tensors) and any(key.startswith("encoder.model.") for key in tensors):
            return dict(tensors)
        return {f"encoder.{key}": value for key, value in self.encoder.from_library(tensors).items()}
