"""Encoders of timm (an optional extra)."""

import hashlib
import os
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .encoders import FINEST_STRIDE, Encoder, intermediate_block
from .errors import ModelError
from .normalization import InputConvention

try:
    import timm
except ImportError as error:
    raise ModelError("networks of timm need the package timm: pip install .[timm]") from error


class TimmEncoder(Encoder):
    """Any network of timm that gives intermediate feature maps and takes images of any size.

    Of a pyramid the last map of each stride from 8 on, of a transformer the maps after two thirds of its blocks and after
    all, both normalised by its last norm.

    Args:
        architecture: as `timm.create_model` calls it, with the tag of the weights that it is for.
        drop_path: probability with which the last residual block is left out while training, rising from 0.
        checkpoint_activations: keep only what goes into each block for the backward pass, and compute the rest again.

    Raises:
        ModelError: timm has no such network, or it has no drop path, or gives no feature maps.
    """

    def __init__(self, architecture: str, drop_path: float = 0.0, checkpoint_activations: bool = False) -> None:
        super().__init__()
        self.name, self.checkpoint_activations = f"timm:{architecture}", checkpoint_activations
        self.model: Any = _create(architecture, drop_path)
        if not hasattr(self.model, "forward_intermediates"):
            raise ModelError(f"{self.name}: gives no intermediate feature maps; choose another family of timm")
        infos = [(info["num_chs"], info["reduction"]) for info in _feature_infos(self.model)]
        strides = [stride for _, stride in infos]
        if len(set(strides)) > 1:
            last = {stride: index for index, stride in enumerate(strides) if stride >= FINEST_STRIDE}
            self.levels = list(last.values())
        else:
            self.levels = [intermediate_block(len(infos)), len(infos) - 1]
        if len(self.levels) < 2:
            raise ModelError(
                f"{self.name}: has one feature map only (strides {', '.join(map(str, strides))}), but two are needed"
            )
        self.channels = tuple(infos[level][0] for level in self.levels)
        self.strides = tuple(strides[level] for level in self.levels)
        self.model.prune_intermediate_layers(self.levels, prune_norm=self.is_pyramid, prune_head=True)
        means = self.model.pretrained_cfg
        self.convention = InputConvention(False, 1 / 255, tuple(means["mean"]), tuple(means["std"]))
        self._check_sizes(architecture)

    def _check_sizes(self, architecture: str) -> None:
        """Try a size that no network is made for, without computing anything."""
        with torch.device("meta"):
            model = _create(architecture, 0.0).eval()
            try:
                self._maps(model, torch.empty(1, 3, 6 * self.multiple, 11 * self.multiple))
            except (AssertionError, RuntimeError, ValueError) as error:
                raise ModelError(f"{self.name}: takes images of certain sizes only ({error}); choose another family") from error

    def forward(self, images: Tensor) -> list[Tensor]:
        return self._maps(self.model, images)

    def _maps(self, model: Any, images: Tensor) -> list[Tensor]:
        options = {} if self.is_pyramid else {"norm": True}
        return model.forward_intermediates(images, indices=self.levels, intermediates_only=True, **options)

    def train(self, mode: bool = True) -> "TimmEncoder":
        super().train(mode)
        if self.checkpoint_activations:
            self.model.set_grad_checkpointing(mode)
        return self

    def depths(self) -> dict[str, int]:
        from timm.models import group_parameters

        found = group_parameters(self.model, self.model.group_matcher(coarse=False), reverse=True)
        return {f"model.{name}": depth for name, depth in found.items()}

    def from_library(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # Each family of timm has a function that knows the names of the original authors' files, and resizes positions.
        convert = getattr(sys.modules[type(self.model).__module__], "checkpoint_filter_fn", None)
        return super().from_library(convert(dict(tensors), self.model) if convert else tensors)

    def synchronize_norms(self) -> None:
        from timm.layers import convert_sync_batchnorm

        self.model = convert_sync_batchnorm(self.model)


def fetch(name: str) -> str:
    """The file of pretrained weights that timm calls `name`, from the Hugging Face hub's folder on this machine or, if it is
    not there, from the hub. Its content is checked against its hash, by which the hub's folder names it.

    Raises:
        ModelError: timm has no such weights, or the file is damaged.
    """
    import huggingface_hub  # comes with timm

    known = timm.get_pretrained_cfg(name)
    if known is None or not known.hf_hub_id:
        raise ModelError(f"timm:{name}: no pretrained weights of timm {timm.__version__}; timm.list_pretrained() names them")
    path = huggingface_hub.hf_hub_download(known.hf_hub_id, known.hf_hub_filename or "model.safetensors")
    stored = os.path.realpath(path)
    with open(stored, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if os.path.basename(stored) != digest:
        raise ModelError(f"timm:{name}: the downloaded file {stored} does not fit its hash; remove it and try again")
    return stored


def _create(architecture: str, drop_path: float) -> Any:
    """A network without classifier; how one is told to take images of any size differs from family to family."""
    if not timm.is_model(architecture):  # create_model would look for other names on the hub
        raise ModelError(f"timm:{architecture}: no network of timm {timm.__version__}; timm.list_models() names them")
    options: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
    any_size: tuple[dict[str, Any], ...] = {"dynamic_img_size": True}, {"strict_img_size": False}, {}
    problem: Exception | None = None
    for sizes in any_size:
        try:
            return timm.create_model(architecture, pretrained=False, num_classes=0, **sizes, **options)
        except TypeError as error:
            problem = error
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"timm:{architecture}: timm {timm.__version__} cannot make it ({error})") from error
    advice = "; leave --drop-path out" if drop_path else ""
    raise ModelError(f"timm:{architecture}: cannot be made ({problem}){advice}") from problem


def _feature_infos(model: Any) -> list[dict[str, Any]]:
    infos = model.feature_info
    return infos if isinstance(infos, list) else infos.get_dicts()
