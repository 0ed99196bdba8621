"""What all segmentation networks have in common: uint8 images in, a list of logits out, one BatchNorm choice."""

from torch import nn

from .normalization import BATCH_NORM_MODES, Normalize, freezes_affine, freezes_statistics

# The entry of a state dict's metadata that names the network.
SETTINGS = "segadapt"


class Segmenter(nn.Module):
    """Base of the networks: subclasses define `features(x)` and `classify(features)` and call `set_batch_norm`.

    Attributes:
        head_names: names of the classifier modules, low level to high.
        default_heads: which logits make the prediction, "last" or "sum" (CLAN's twin classifiers).
        head_multiplier: the classifiers' learning rate as a multiple of the trunk's.
        feature_channels: channels of the features that the main classifier sees.
    """

    head_names = ()
    default_heads = "last"
    head_multiplier = 10

    def __init__(self, normalization):
        super().__init__()
        self.normalize = Normalize(normalization)
        self.batch_norm = "train"

    def forward(self, images, with_features=False):
        """(N,3,H,W) uint8 RGB images (or floats that are normalised already) to a list of logits (N,C,~H/8,~W/8).

        With `with_features` to (logits, features): also what the main classifier sees, (N,feature_channels,~H/8,~W/8).
        """
        if not images.is_floating_point():
            images = self.normalize(images)
        features = self.features(images)
        logits = self.classify(features)
        if with_features:
            return logits, features[-1] if isinstance(features, tuple) else features
        return logits

    def state_dict(self, *args, **options):
        """As every module's, with the network's settings in the metadata, where they travel with the file and other code
        bases do not look."""
        state = super().state_dict(*args, **options)
        if hasattr(self, "settings"):
            state._metadata[SETTINGS] = self.settings
        return state

    def set_batch_norm(self, mode):
        """Choose what BatchNorm does while training; evaluation always uses the stored statistics.

        `train`: normalise with the batch, update the running statistics, train scale and shift.
        `frozen-affine`: the same with scale and shift fixed (AdaptSegNet, CLAN).
        `frozen-statistics`: normalise with the stored statistics and keep them; scale and shift trained.
        `frozen`: nothing of BatchNorm changes (CRST, FADA).
        """
        if mode not in BATCH_NORM_MODES:
            raise ValueError(f"unknown BatchNorm mode {mode!r}; known: {', '.join(BATCH_NORM_MODES)}")
        self.batch_norm = mode
        for norm in self.norms():
            norm.weight.requires_grad_(not freezes_affine(mode))
            norm.bias.requires_grad_(not freezes_affine(mode))
        return self.train(self.training)

    def freeze_stem_norm(self):
        """Fix scale and shift of the stem's BatchNorm (`bn1`), as MaxSquare does while it trains all others."""
        if hasattr(self, "bn1"):
            self.bn1.requires_grad_(False)

    def norms(self):
        return [module for module in self.modules() if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm))]

    def train(self, mode=True):
        super().train(mode)
        if mode and freezes_statistics(self.batch_norm):
            for norm in self.norms():
                norm.eval()
        return self

    def heads(self):
        return [getattr(self, name) for name in self.head_names]

    def parameter_groups(self, head_multiplier=None):
        """Parameter groups for an optimizer: the trunk at 1x the learning rate, the classifiers at `head_multiplier`
        (default: the network's own).

        Each group carries `lr_multiplier` and `visits`: how often the originals' parameter lists name its tensors (see
        `utils.optimizers.RepeatedUpdateSGD`). Each parameter stands in exactly one group.
        """
        groups = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                in_head = name.split(".")[0] in self.head_names
                key = (head_multiplier or self.head_multiplier, 1) if in_head else (1, self.times_listed(name))
                groups.setdefault(key, []).append(parameter)
        return [
            {"params": parameters, "lr_multiplier": multiplier, "visits": visits}
            for (multiplier, visits), parameters in sorted(groups.items())
        ]

    def times_listed(self, name):
        """How often the originals' optimizer list names the trunk parameter `name`."""
        return 1
