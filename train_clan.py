"""CLAN: Taking a Closer Look at Domain Shift: Category-level Adversaries (Luo et al., CVPR 2019, 1809.09478).

Two classifiers on the same features are kept different, and where they disagree on a target pixel its class is badly
aligned: there the adversarial loss is turned up (section 3 of the paper, with the published code's factors):

    L_seg    = focal loss of both classifiers on the source, (1 - p)^2 * -log p        (the paper says cross entropy)
    L_weight = cos(W_1, W_2) + 1                                                       the classifiers' weights as vectors
    M        = 1 - cos(softmax(p_1), softmax(p_2))                                     per pixel: the discrepancy map
    L_adv    = mean((epsilon + lambda_local * M) * BCE(D(softmax(p_1 + p_2)), source)) category-level adversarial loss
    G minimises  L_seg + damping * (2 * lambda_weight * L_weight + lambda_adv * L_adv)
    D minimises  mean BCE on source maps (label 0) + mean((epsilon + lambda_local * M) * BCE) on target maps (label 1)

Until the learning rate has warmed up, M is left out (plain BCE). damping falls linearly to 0. As published:

    GTA5      python train_clan.py --snapshot-dir ./snapshots/GTA2Cityscapes
    SYNTHIA   python train_clan.py --snapshot-dir ./snapshots/SYN2Cityscapes --source SYNTHIA

With the settings of its reproduction in PaddlePaddle (docs/clan.md), where no flag says otherwise: --protocol paddle.
To go on from a snapshot with its discriminator: --restore-from GTA5_N.pth --restore-discriminator GTA5_N_D.pth.
Several GPUs: torchrun --nproc-per-node N train_clan.py ... (the batch size is per process).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dataset.transforms import Compose, ImageScale, RandomImageScale, RandomMirror, Resize, Transform
from model import OutputDiscriminator, upsample
from utils import distributed, flags
from utils.device import prepare, set_up
from utils.domains import source_loader, target_loader, target_val_loader
from utils.errors import RunError, exit_with_message
from utils.losses import IGNORED, cross_entropy, mean_over_labelled
from utils.networks import segmentation_network
from utils.old_names import OLD_NAMES
from utils.optimizers import discriminator_optimizer, poly, segmentation_optimizer
from utils.parser import Flags, Parser, count, not_negative
from utils.plan import plan_steps
from utils.run import Run
from utils.starting_weights import INITIALISATION, restore, restore_discriminators

SOURCE, TARGET = 0, 1
LAMBDA_LOCAL = {"synthia": 10.0}  # 40 for every other source

# Help that takes more than a line.
RANDOM_SCALE = "resize images to 0.8, 1 or 1.1 times the input size (paddle: always to 1.5 times); labels have the input size"


def get_arguments(arguments: list[str] | None = None) -> Flags:
    parser = Parser(__doc__, OLD_NAMES["train_clan.py"])
    flags.add_source_flags(parser)
    flags.add_target_flags(parser)
    flags.add_network_flags(parser, model="ResNet")
    flags.add_optimization_flags(parser, num_steps=100000, num_steps_stop=None, save_pred_every=2000)
    group = parser.add_argument_group("CLAN")
    group.add_argument("--protocol", choices=PROTOCOLS, default="original", help=flags.PROTOCOL)
    group.add_argument("--lambda-weight", type=not_negative, default=0.01, help="weight of the weight discrepancy loss")
    group.add_argument("--lambda-adv", type=not_negative, default=0.001, help="weight of the adversarial loss")
    group.add_argument("--lambda-local", type=not_negative, help="how much disagreement adds to it (default 40; SYNTHIA 10)")
    group.add_argument("--epsilon", type=not_negative, default=0.4, help="what is left of it without disagreement")
    group.add_argument("--preheat-steps", type=count, metavar="N", help="warm-up (default: a twentieth of --num-steps-stop)")
    group.add_argument("--learning-rate-D", type=not_negative, help="of the discriminator (default 1e-4; paddle 1e-3)")
    group.add_argument("--restore-discriminator", metavar="FILE", help="weights of the discriminator")
    parser.add_switch("--fresh-classifier", group=group, help=flags.FRESH_CLASSIFIER)
    parser.add_switch("--random-scale", group=group, default=True, help=RANDOM_SCALE)
    parser.add_switch("--random-mirror", group=group, default=True, help="mirror every second image")
    parser.describe(
        source="data set to learn from (default gta5; paddle synthia)",
        batch_norm=f"{flags.BATCH_NORM} (default frozen-affine; paddle train, but for the stem's scale and shift)",
        restore_from=f"{flags.RESTORE_FROM}; with --protocol paddle pretrained.pdparams",
        learning_rate="of the trunk; classifiers have 10 times that (default 2.5e-4; paddle 2.5e-3 for both)",
        updates=f"{flags.UPDATES} (default published; paddle clean)",
    )
    parser.set_defaults(**dict.fromkeys(PROTOCOLS["original"].defaults))
    args = parser.parse_args(arguments)
    protocol = PROTOCOLS[args.protocol]
    args = flags.with_defaults(args, **protocol.defaults)
    args = flags.complete(flags.with_defaults(args, input_size=protocol.source_sizes.get(args.source)))
    if args.preheat_steps is not None and args.preheat_steps >= args.num_steps_stop:
        raise RunError(f"--preheat-steps {args.preheat_steps}: the run ends before, after {args.num_steps_stop} steps")
    return flags.with_defaults(args, lambda_local=LAMBDA_LOCAL.get(args.source, 40.0), preheat_steps=args.num_steps_stop // 20)


def focal_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Mean of (1 - p)^2 * -log p over the labelled pixels, p the probability of the label, clamped to [1e-9, 1].

    Args:
        logits: (N,C,H,W).
        label: (N,H,W) train ids, 255 for ignored.
    """
    label = label.long()
    labelled = label != IGNORED
    picked = F.softmax(logits.float(), dim=1).gather(1, label.where(labelled, torch.zeros_like(label))[:, None])[:, 0]
    p = picked.clamp(1e-9, 1 - 1e-9)
    return mean_over_labelled((1 - p) ** 2 * -torch.log(p), labelled)


def disagreement(first: Tensor, second: Tensor) -> Tensor:
    """M: 1 - cosine similarity of two classifiers' probabilities, (N,1,H,W) in 0..1, from logits (N,C,H,W)."""
    return 1 - F.cosine_similarity(F.softmax(first.float(), dim=1), F.softmax(second.float(), dim=1), dim=1)[:, None]


def weight_discrepancy(first: nn.Module, second: nn.Module) -> Tensor:
    """cos + 1 of the angle between two classifiers' parameters, each flattened into one vector."""
    vectors = [torch.cat([parameter.flatten() for parameter in head.parameters()]) for head in (first, second)]
    return F.cosine_similarity(*vectors, dim=0) + 1


def adversarial_loss(
    domain_logits: Tensor, domain: int, weight: Tensor | None = None, epsilon: float = 0.4, lambda_local: float = 40.0
) -> Tensor:
    """Binary cross entropy against `domain` (0 source, 1 target), averaged over the map; with `weight`, each pixel's counts
    epsilon + lambda_local * weight times.

    Args:
        domain_logits, weight: (N,1,H,W).
    """
    domain_logits = domain_logits.float()
    truth = torch.full_like(domain_logits, domain)
    if weight is None:
        return F.binary_cross_entropy_with_logits(domain_logits, truth)
    pixels = F.binary_cross_entropy_with_logits(domain_logits, truth, reduction="none")
    return (pixels * (epsilon + lambda_local * weight)).mean()


def maps(pred: Sequence[Tensor], epsilon: float, lambda_local: float) -> dict[str, Tensor]:
    """For pictures: how often each pixel counts in the adversarial loss, (N,1,H,W), from both classifiers' logits (N,C,H,W)."""
    return {"local weight": epsilon + lambda_local * disagreement(*pred)}


@dataclass(frozen=True)
class Protocol:
    """What differs between the original program and its reproduction in PaddlePaddle.

    Attributes:
        defaults: of flags.
        source_sizes: {source: --input-size}, where it is another one than usual.
        usual_weights: the name of the file of starting weights.
        image_scale: from the input size (W,H) to the transform that --random-scale turns on.
        stem_norm_fixed: scale and shift of the stem's norm are not trained, whatever --batch-norm says.
        head_multiplier: the classifiers' learning rate as a multiple of the trunk's (None: the network's own).
        segmentation_loss: of each classifier, from logits (N,C,H,W) and label (N,H,W).
    """

    defaults: Mapping[str, Any]
    source_sizes: Mapping[str, tuple[int, int]]
    usual_weights: str
    image_scale: Callable[[tuple[int, int]], Transform]
    stem_norm_fixed: bool
    head_multiplier: float | None
    segmentation_loss: Callable[[Tensor, Tensor], Tensor]


PROTOCOLS = {
    "original": Protocol(
        defaults=MappingProxyType(
            {
                "source": "gta5",
                "learning_rate": 2.5e-4,
                "learning_rate_D": 1e-4,
                "updates": "published",
                "batch_norm": "frozen-affine",
            }
        ),
        source_sizes=MappingProxyType({}),
        usual_weights=INITIALISATION,
        image_scale=RandomImageScale,
        stem_norm_fixed=False,
        head_multiplier=None,
        segmentation_loss=focal_loss,
    ),
    "paddle": Protocol(
        defaults=MappingProxyType(
            {"source": "synthia", "learning_rate": 2.5e-3, "learning_rate_D": 1e-3, "updates": "clean", "batch_norm": "train"}
        ),
        source_sizes=MappingProxyType({"synthia": (1024, 512)}),
        usual_weights="pretrained.pdparams",
        image_scale=partial(ImageScale, factor=1.5),
        stem_norm_fixed=True,
        head_multiplier=1.0,
        segmentation_loss=cross_entropy,
    ),
}


def rate_at(base: float, step: int, args: Flags) -> float:
    """Linear warm-up from 0 over --preheat-steps, then the poly schedule."""
    if step < args.preheat_steps:
        return base * step / args.preheat_steps
    return poly(base, step, args.num_steps, args.power)


def main(args: Flags) -> None:
    device, protocol = set_up(args), PROTOCOLS[args.protocol]
    classes = flags.classes_of(args)
    plan = plan_steps(args, classes)

    # Data
    source_batches = source_loader(args, classes, augmentation(args, args.input_size))
    target_batches = target_loader(args, classes, augmentation(args, args.input_size_target))
    source_size, target_size = args.input_size[::-1], args.input_size_target[::-1]

    # Networks: G with twin classifiers, one discriminator
    G = segmentation_network(args, len(classes), heads="twin", aspp_branches=4)
    D = OutputDiscriminator(len(classes))
    if protocol.stem_norm_fixed:
        G.freeze_stem_norm()
    restore(G, args.restore_from, protocol.usual_weights, fresh_classifier=args.fresh_classifier)
    restore_discriminators([D], args.restore_discriminator)
    for network in (G, D):
        prepare(network, args, device).train()

    # Optimizers
    optimizer_G = segmentation_optimizer(G.parameter_groups(protocol.head_multiplier), args)
    optimizer_D = discriminator_optimizer(D.parameters(), args.updates, args.learning_rate_D)

    networks, optimizers = {"": G, "_D": D}, {"G": optimizer_G, "D": optimizer_D}
    loaders = {"source": source_batches, "target": target_batches}
    validation = {"": target_val_loader(args, classes)}
    run = Run(args, plan, device, args.source.upper(), networks, optimizers, loaders, validation)
    parallel_G, parallel_D = distributed.wrap(G), distributed.wrap(D)
    weighting = {"epsilon": args.epsilon, "lambda_local": args.lambda_local}

    for step in run.steps():
        run.start_step(G=rate_at(args.learning_rate, step, args), D=rate_at(args.learning_rate_D, step, args))
        damping = 1 - step / args.num_steps

        # Train G: the discriminator judges, but does not learn.
        D.requires_grad_(False)

        # ... with source
        source = run.next(source_batches)
        with run.autocast():
            pred_source = [upsample(logits, source_size) for logits in parallel_G(source["image"])]
            loss_seg = sum(protocol.segmentation_loss(pred, source["label"]) for pred in pred_source)
        run.backward(loss_seg, last=False)

        # ... with target, more strongly where its two classifiers disagree, and keep these different
        target = run.next(target_batches)
        with run.autocast():
            pred_target = [upsample(logits, target_size) for logits in parallel_G(target["image"])]
            weight = disagreement(*pred_target) if step > args.preheat_steps else None
            domain_logits = upsample(D(F.softmax(sum(pred_target), dim=1)), target_size)
            loss_adv = adversarial_loss(domain_logits, SOURCE, weight, **weighting)
            loss_weight = weight_discrepancy(*G.heads())
        run.backward(damping * (args.lambda_adv * loss_adv + 2 * args.lambda_weight * loss_weight))

        # Train D, with the maps of both domains as G made them before its update.
        D.requires_grad_(True)
        with run.autocast():
            domain_logits = upsample(parallel_D(F.softmax(sum(pred_source).detach(), dim=1)), source_size)
            loss_D_source = adversarial_loss(domain_logits, SOURCE)
        run.backward(loss_D_source, last=False)
        with run.autocast():
            domain_logits = upsample(parallel_D(F.softmax(sum(pred_target).detach(), dim=1)), target_size)
            weight = None if weight is None else weight.detach()
            loss_D_target = adversarial_loss(domain_logits, TARGET, weight, **weighting)
        run.backward(loss_D_target)

        run.update(optimizer_G, optimizer_D)

        losses = {"loss_seg": loss_seg, "loss_adv": loss_adv, "loss_weight": loss_weight}
        losses |= {"loss_D_source": loss_D_source, "loss_D_target": loss_D_target}
        seen = (target, sum(pred_target), partial(maps, pred_target, **weighting))
        run.end_step(step, losses, weights={"damping": damping}, source=(source, sum(pred_source)), target=seen)


def augmentation(args: Flags, size: tuple[int, int]) -> Compose:
    """The protocol's scale of the image alone, then mirroring."""
    resize = PROTOCOLS[args.protocol].image_scale(size) if args.random_scale else Resize(size)
    return Compose([resize, *([RandomMirror()] if args.random_mirror else [])])


if __name__ == "__main__":
    with exit_with_message():
        main(get_arguments())
