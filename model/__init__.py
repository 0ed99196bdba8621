"""Networks: uint8 images in, a list of logits out. See `build_model` for their names."""

from torch.nn import functional as F

from .dialects import to_fada
from .discriminator import FeatureDiscriminator, OutputDiscriminator
from .networks import MODELS, build_model, describe
from .normalization import BATCH_NORM_MODES, CONVENTIONS
from .recognition import WeightsError, settings_from_weights
from .weights import load_model, load_weights, read_discriminator, read_weights

__all__ = [
    "BATCH_NORM_MODES",
    "CONVENTIONS",
    "FeatureDiscriminator",
    "MODELS",
    "OutputDiscriminator",
    "WeightsError",
    "build_model",
    "describe",
    "load_model",
    "load_weights",
    "read_discriminator",
    "read_weights",
    "settings_from_weights",
    "to_fada",
    "upsample",
]


def upsample(logits, size):
    """Logits (N,C,h,w) to (N,C,H,W), bilinear with align_corners=True, as every one of the originals does."""
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=True)
