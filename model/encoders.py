"""Encoders of torchvision and timm behind one small interface: normalised images in, a list of feature maps out."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .errors import ModelError
from .normalization import CONVENTIONS, InputConvention

# Of the finest map of a pyramid: published networks have their logits at 1/8 of the input too.
FINEST_STRIDE = 8


class Encoder(nn.Module):
    """A network of a library without its classifier.

    `forward` takes normalised images (N,3,H,W), whose sides are multiples of `multiple`, and returns at least two maps
    (N,channels[i],H/strides[i],W/strides[i]), low level to high. They are either a pyramid, each coarser than the one before,
    or all of one stride. The library's own names stay: its parameter `x` is `model.x` here.

    Attributes:
        convention: how the library's weights want to see an image.
        channels, strides: of the maps.
    """

    model: Any
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    convention: InputConvention = CONVENTIONS["imagenet"]

    @property
    def is_pyramid(self) -> bool:
        return self.strides[0] < self.strides[-1]

    @property
    def multiple(self) -> int:
        return self.strides[-1]

    @property
    def exports(self) -> bool:
        """False if PyTorch cannot trace it for images of any size: with Swin's shifted windows it never finishes."""
        return "Swin" not in type(self.model).__name__

    def depths(self) -> dict[str, int]:
        """{parameter: depth of its block}, 0 for the stem, for layer-wise learning rates.

        Raises:
            ModelError: the encoder does not tell.
        """
        raise ModelError(f"--layer-decay: {type(self).__name__} does not tell how deep its parameters lie; leave the flag out")

    def from_library(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights as the library stores them under the names here; what belongs to no part of the encoder stays as it is."""
        return {f"model.{key}": value for key, value in tensors.items()}

    def synchronize_norms(self) -> None:
        """Let BatchNorm use the batches of all processes."""
        self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)


class TorchvisionEncoder(Encoder):
    """A ResNet, ConvNeXt, Swin or ViT of torchvision, or one of its segmentation models without its last convolutions.

    Args:
        architecture: as `torchvision.models.get_model` calls it.
        drop_path: probability with which the last residual block is left out while training, rising from 0 (ConvNeXt, Swin).
        checkpoint_activations: keep only what goes into each block for the backward pass, and compute the rest again.

    Raises:
        ModelError: torchvision has no such network, or it is of another family.
    """

    def __init__(self, architecture: str, drop_path: float = 0.0, checkpoint_activations: bool = False) -> None:
        super().__init__()
        self.checkpoint_activations = checkpoint_activations
        self.model = _torchvision_model(architecture, drop_path)
        self._maps, self.channels, self.strides = _torchvision_family(architecture, self.model)

    def forward(self, images: Tensor) -> list[Tensor]:
        return self._maps(self.model, images, self._run)

    def _run(self, stage: Iterable[nn.Module], x: Tensor) -> Tensor:
        """A stage's blocks one after another."""
        again = self.checkpoint_activations and self.training and torch.is_grad_enabled()
        for block in stage:
            x = checkpoint(block, x, use_reentrant=False) if again else block(x)
        return x

    def depths(self) -> dict[str, int]:
        # layer3.4.conv1 (ResNet), features.5.2.norm (ConvNeXt, Swin), encoder.layers.encoder_layer_7.ln_1 (ViT)
        found = {
            name: re.search(r"(?:layer|features\.)\d+\.\d+|encoder_layer_\d+", name)
            for name, _ in self.model.named_parameters()
        }
        blocks = list(dict.fromkeys(match[0] for match in found.values() if match))
        last = len(blocks) + 1  # what follows the blocks: the last norm, the decoder of a segmentation model
        after = re.compile(r"encoder\.ln|(aux_)?classifier\.")
        return {
            f"model.{name}": blocks.index(match[0]) + 1 if match else last * bool(after.match(name))
            for name, match in found.items()
        }


def _torchvision_model(architecture: str, drop_path: float) -> Any:
    from torchvision import models, ops  # takes more than a second to import

    for_segmentation = {"weights_backbone": None, "aux_loss": True}
    options = for_segmentation if architecture.startswith(("deeplabv3_", "fcn_")) else {}
    try:
        model = models.get_model(architecture, weights=None, **options)
    except ValueError as error:
        raise ModelError(f"torchvision:{architecture}: no network of torchvision ({error})") from error
    paths = [module for module in model.modules() if isinstance(module, ops.StochasticDepth)]
    if drop_path and not paths:
        raise ModelError(f"--drop-path: torchvision:{architecture} has no stochastic depth; ConvNeXt and Swin have it")
    for index, path in enumerate(paths):
        path.p = drop_path * index / max(len(paths) - 1, 1)
    return model


Run = Callable[[Iterable[nn.Module], Tensor], Tensor]
Maps = Callable[[Any, Tensor, Run], list[Tensor]]


def _torchvision_family(architecture: str, model: Any) -> tuple[Maps, tuple[int, ...], tuple[int, ...]]:
    """How a model's maps are computed, their channels and strides; its classifier is taken away."""
    from torchvision.models import ConvNeXt, ResNet, SwinTransformer, VisionTransformer
    from torchvision.models.segmentation import FCN, DeepLabV3

    pyramid = FINEST_STRIDE, 2 * FINEST_STRIDE, 4 * FINEST_STRIDE
    if isinstance(model, ResNet):
        width = model.fc.in_features
        model.fc = nn.Identity()
        return _resnet_maps, (width // 4, width // 2, width), pyramid
    if isinstance(model, ConvNeXt):
        width = model.classifier[-1].in_features
        model.classifier = nn.Identity()
        return _convnext_maps, (width // 4, width // 2, width), pyramid
    if isinstance(model, SwinTransformer):
        width = model.head.in_features
        model.norm = model.head = nn.Identity()
        return _swin_maps, (width // 4, width // 2, width), pyramid
    if isinstance(model, VisionTransformer):
        model.heads = nn.Identity()
        return _vit_maps, (model.hidden_dim,) * 2, (model.patch_size,) * 2
    if isinstance(model, (DeepLabV3, FCN)):
        heads = model.aux_classifier, model.classifier
        channels = tuple(head[-1].in_channels for head in heads)
        for head in heads:
            head[-1] = nn.Identity()
        return _segmentation_maps, channels, (FINEST_STRIDE,) * 2
    raise ModelError(
        f"torchvision:{architecture}: of torchvision's networks ConvNeXt, ResNet, Swin, ViT, DeepLabV3 and FCN can be used; "
        "timm has many more families"
    )


def _resnet_maps(model: Any, x: Tensor, run: Run) -> list[Tensor]:
    x = run(model.layer1, model.maxpool(model.relu(model.bn1(model.conv1(x)))))
    maps = []
    for stage in (model.layer2, model.layer3, model.layer4):
        x = run(stage, x)
        maps.append(x)
    return maps


def _convnext_maps(model: Any, x: Tensor, run: Run) -> list[Tensor]:
    maps = []
    for index, stage in enumerate(model.features):
        x = run(stage, x)
        if index in (3, 5, 7):  # the even ones halve the sides
            maps.append(x)
    return maps


def _swin_maps(model: Any, x: Tensor, run: Run) -> list[Tensor]:
    maps = []
    for index, stage in enumerate(model.features):
        x = run(stage if index % 2 else [stage], x)
        if index in (3, 5, 7):
            maps.append(x.permute(0, 3, 1, 2))
    return maps


def _vit_maps(model: Any, x: Tensor, run: Run) -> list[Tensor]:
    """After two thirds of the blocks and after all, normalised; the class token only takes part."""
    height, width = (side // model.patch_size for side in x.shape[-2:])
    tokens = model.conv_proj(x).flatten(2).transpose(1, 2)
    tokens = torch.cat((model.class_token.expand(len(x), -1, -1), tokens), dim=1)
    x = model.encoder.dropout(tokens + _resized_positions(model.encoder.pos_embedding, (height, width)))
    blocks = list(model.encoder.layers)
    middle = intermediate_block(len(blocks)) + 1
    maps = []
    for part in (blocks[:middle], blocks[middle:]):
        x = run(part, x)
        maps.append(model.encoder.ln(x)[:, 1:].transpose(1, 2).unflatten(2, (height, width)))
    return maps


def _resized_positions(positions: Tensor, size: tuple[int, int]) -> Tensor:
    """Position embeddings (1,1+n*n,C), the class token's first, for a grid of `size` (h,w)."""
    side = round((positions.shape[1] - 1) ** 0.5)
    if size == (side, side):
        return positions
    token, grid = positions[:, :1], positions[:, 1:].transpose(1, 2).unflatten(2, (side, side))
    grid = F.interpolate(grid, size, mode="bicubic", antialias=True)
    return torch.cat((token, grid.flatten(2).transpose(1, 2)), dim=1)


def _segmentation_maps(model: Any, x: Tensor, run: Run) -> list[Tensor]:
    found = model.backbone(x)
    return [run([model.aux_classifier], found["aux"]), run([model.classifier], found["out"])]


def intermediate_block(blocks: int) -> int:
    """Which of a transformer's blocks stands for the lower level: the one after two thirds, as layer 3 in a ResNet."""
    return max(2 * blocks // 3 - 1, 0)


def build_encoder(name: str, drop_path: float = 0.0, checkpoint_activations: bool = False) -> Encoder:
    """The encoder `torchvision:NAME` or `timm:NAME` with random weights.

    Raises:
        ModelError: the library is not installed, has no such network, or cannot give its feature maps.
    """
    library, _, architecture = name.partition(":")
    if library not in LIBRARIES:
        raise ModelError(f"{name}: encoders are called {', '.join(f'{each}:NAME' for each in LIBRARIES)}")
    return LIBRARIES[library](architecture, drop_path, checkpoint_activations)


def _timm(*args: Any) -> Encoder:
    from .timm_encoder import TimmEncoder  # timm is an optional extra

    return TimmEncoder(*args)


LIBRARIES: dict[str, Callable[..., Encoder]] = {"torchvision": TorchvisionEncoder, "timm": _timm}
