"""Networks: uint8 images in, a list of logits out. See `build_model` for their names."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from .checkpoint_formats import Checkpoint, to_dacs, to_fada
from .discriminator import FeatureDiscriminator, OutputDiscriminator
from .errors import ModelError, WeightsError
from .networks import MODELS, build_model, describe, has_lower_level, has_setting
from .normalization import BATCH_NORM_MODES, CONVENTIONS
from .recognition import settings_from_weights
from .weights import load_model, load_weights, lost_heads, read_discriminator, read_weights

__all__ = [
    "BATCH_NORM_MODES",
    "CONVENTIONS",
    "Checkpoint",
    "FeatureDiscriminator",
    "MODELS",
    "ModelError",
    "OutputDiscriminator",
    "WeightsError",
    "build_model",
    "describe",
    "has_lower_level",
    "has_setting",
    "load_model",
    "load_weights",
    "lost_heads",
    "read_discriminator",
    "read_weights",
    "settings_from_weights",
    "to_dacs",
    "to_fada",
    "upsample",
]


def upsample(logits: Tensor, size: Sequence[int], mode: str = "bilinear") -> Tensor:
    """Logits (N,C,h,w) to (N,C,H,W) with align_corners=True: bilinear, as every one of the originals does, or bicubic."""
    return F.interpolate(logits, size=tuple(size), mode=mode, align_corners=True)
