"""AdaptSegNet: Learning to Adapt Structured Output Space for Semantic Segmentation (Tsai et al., CVPR 2018, 1802.10349).

A discriminator D learns to tell the softmax maps of source images from those of target images; the segmentation network
G learns from source labels, and to make its target maps look like source maps (sections 3 and 4 of the paper):

    L_seg = cross entropy of the source prediction                                 (eq. 3)
    L_adv = D's loss on the target prediction, if it were a source one             (eq. 4)
    G minimises  sum over levels i:  lambda_seg_i * L_seg_i + lambda_adv_i * L_adv_i        (eq. 1 and 5)
    D_i minimises  (loss on source maps, label 0) / 2 + (loss on target maps, label 1) / 2  (eq. 2)

Level 1 is the classifier on layer 3, level 2 (lambda_seg = 1) the one on layer 4. As published:

    multi-level   python train_adaptsegnet.py --snapshot-dir ./snapshots/GTA2Cityscapes_multi \\
                      --lambda-seg 0.1 --lambda-adv-target1 0.0002 --lambda-adv-target2 0.001
    single-level  python train_adaptsegnet.py --snapshot-dir ./snapshots/GTA2Cityscapes_single \\
                      --lambda-seg 0.0 --lambda-adv-target1 0.0 --lambda-adv-target2 0.001
    LS-GAN        python train_adaptsegnet.py --snapshot-dir ./snapshots/GTA2Cityscapes_single_lsgan \\
                      --lambda-seg 0.0 --lambda-adv-target1 0.0 --lambda-adv-target2 0.01 --gan LS

AdvEnt (Vu et al., CVPR 2019, 1811.12833) shows the discriminators where the network is unsure: they see weighted
self-information, I = -p log p / log C for each class, instead of the probabilities p. MinEnt does without discriminators: G
minimises the mean entropy (the sum of I over the classes) on target images itself, with the weights of L_adv.

    AdvEnt        python train_adaptsegnet.py --protocol advent --snapshot-dir ./snapshots/GTA2Cityscapes_AdvEnt
    MinEnt        python train_adaptsegnet.py --protocol minent --snapshot-dir ./snapshots/GTA2Cityscapes_MinEnt

With the settings of its reproduction in PaddlePaddle (docs/adaptsegnet.md), where no flag says otherwise: --protocol paddle.
Several GPUs: torchrun --nproc-per-node N train_adaptsegnet.py ... (the batch size is per process).
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dataset.transforms import Compose, RandomMirror, Resize
from model import OutputDiscriminator, has_lower_level, upsample
from model.segmenter import Segmenter
from utils import distributed, flags
from utils.device import prepare, set_up
from utils.domains import source_loader, target_loader, target_val_loader
from utils.errors import exit_with_message
from utils.losses import cross_entropy
from utils.networks import segmentation_network
from utils.old_names import OLD_NAMES
from utils.optimizers import discriminator_optimizer, poly, segmentation_optimizer
from utils.parser import Flags, Parser, not_negative, positive
from utils.plan import plan_steps
from utils.run import Run
from utils.starting_weights import INITIALISATION, restore, restore_discriminators

DOMAINS = {"source": 0, "target": 1}  # what the discriminators answer
SUFFIX = {1: "_low", 2: ""}  # of the losses of a level

# Help that takes more than a line.
PROTOCOL = (
    "whose settings, where no flag says otherwise: the authors', those of their reproduction in PaddlePaddle, or of AdvEnt and "
    "MinEnt"
)
TARGET_LOSS = (
    "on target images: what discriminators say of the class probabilities, or (AdvEnt) of their self-information; or without "
    "discriminators the entropy (MinEnt)"
)


@dataclass(frozen=True)
class Protocol:
    """What differs between the original program, its reproduction in PaddlePaddle, and the programs of ADVENT.

    Attributes:
        defaults: of flags.
        usual_stop: the default of --num-steps-stop.
        usual_weights: the name of the file of starting weights.
        head_multiplier: the classifiers' learning rate as a multiple of the trunk's (None: the network's own).
        last_rate: what the poly schedule of G and D ends at.
    """

    defaults: Mapping[str, Any]
    usual_stop: int = 150000
    usual_weights: str = INITIALISATION
    head_multiplier: float | None = None
    last_rate: float = 0.0


ORIGINAL = {"updates": "published", "target_loss": "adversarial", "aspp_branches": None, "save_pred_every": 5000}
ADVENT = {**ORIGINAL, "target_loss": "adversarial-entropy", "aspp_branches": 4, "save_pred_every": 2000}
ADVENT_WEIGHTS = "DeepLab_resnet_pretrained_imagenet.pth"
PROTOCOLS = {
    "original": Protocol(defaults=MappingProxyType(ORIGINAL)),
    "paddle": Protocol(
        defaults=MappingProxyType({**ORIGINAL, "updates": "clean"}),
        usual_weights=INITIALISATION.replace(".pth", ".pdparams"),
        head_multiplier=1.0,
        last_rate=1e-4,  # Paddle's own default
    ),
    # Its program stops after the update of step 120000, counted from 0; that of MinEnt one earlier.
    "advent": Protocol(defaults=MappingProxyType(ADVENT), usual_stop=120001, usual_weights=ADVENT_WEIGHTS),
    "minent": Protocol(
        defaults=MappingProxyType({**ADVENT, "target_loss": "entropy"}), usual_stop=120000, usual_weights=ADVENT_WEIGHTS
    ),
}


def get_arguments(arguments: list[str] | None = None) -> Flags:
    parser = Parser(__doc__, OLD_NAMES["train_adaptsegnet.py"])
    flags.add_source_flags(parser)
    flags.add_target_flags(parser)
    flags.add_network_flags(parser, model="DeepLab")
    flags.add_optimization_flags(parser, num_steps=250000, num_steps_stop=150000, save_pred_every=5000)
    group = parser.add_argument_group("AdaptSegNet")
    group.add_argument("--protocol", choices=PROTOCOLS, default="original", help=PROTOCOL)
    group.add_argument("--target-loss", choices=("adversarial", "adversarial-entropy", "entropy"), help=TARGET_LOSS)
    group.add_argument("--levels", type=int, choices=(1, 2), default=2, help="classifiers; 1: none on layer 3")
    group.add_argument("--iter-size", type=positive, default=1, help="sub-iterations whose gradients are accumulated")
    group.add_argument("--gan", choices=("Vanilla", "LS"), default="Vanilla", help="loss of the discriminators")
    group.add_argument("--lambda-seg", type=not_negative, default=0.1, help="weight of level 1's segmentation (level 2: 1)")
    group.add_argument("--lambda-adv-target1", type=not_negative, default=0.0002, help="weight of level 1's target loss")
    group.add_argument("--lambda-adv-target2", type=not_negative, default=0.001, help="weight of level 2's target loss")
    group.add_argument("--learning-rate-D", type=not_negative, default=1e-4, help="of the discriminators")
    group.add_argument("--restore-discriminator", metavar="D1,D2", help="weights of the discriminators, comma-separated")
    parser.add_switch("--fresh-classifier", group=group, help=flags.FRESH_CLASSIFIER)
    parser.add_switch("--random-mirror", group=group, help="mirror images at random (the original ignores this flag)")
    parser.describe(
        restore_from=f"{flags.RESTORE_FROM}; with --protocol paddle the same file for Paddle; for AdvEnt {ADVENT_WEIGHTS}",
        num_steps_stop="where training stops (default 150000; advent 120001, minent 120000; at most --num-steps)",
        save_pred_every="steps between snapshots (default 5000; advent and minent 2000)",
        aspp_branches=f"{flags.ASPP_BRANCHES}; advent and minent 4",
        learning_rate="of the trunk; classifiers have 10 times that (paddle: the same)",
        num_steps="where the poly schedule reaches 0 (paddle: 1e-4)",
        updates=f"{flags.UPDATES} (default published; paddle clean)",
    )
    parser.set_defaults(**dict.fromkeys(PROTOCOLS["original"].defaults))
    args = parser.parse_args(arguments)
    protocol = PROTOCOLS[args.protocol]
    return flags.complete(flags.with_defaults(args, **protocol.defaults), usual_stop=protocol.usual_stop)


def self_information(logits: Tensor) -> Tensor:
    """Weighted self-information -p log p / log C (N,C,H,W) of logits (N,C,H,W): from 0 to 1 / (e ln C) each, and summed over
    the classes the entropy of the pixel, from 0 to 1 (AdvEnt, section 3.2)."""
    probability = F.softmax(logits.float(), dim=1)
    return -probability * torch.log2(probability + 1e-30) / math.log2(logits.shape[1])


def entropy(logits: Tensor) -> Tensor:
    """Mean over the pixels of their normalised entropy, from 0 to 1 (MinEnt, section 3.1)."""
    return self_information(logits).sum(1).mean()


def discriminator_input(target_loss: str) -> Callable[[Tensor], Tensor]:
    """What discriminators see of logits (N,C,H,W): probabilities, with --target-loss adversarial-entropy self-information."""
    return self_information if target_loss == "adversarial-entropy" else partial(F.softmax, dim=1)


def adversarial_loss(domain_logits: Tensor, domain: int, gan: str) -> Tensor:
    """How far a discriminator's logits are from saying `domain` (0 source, 1 target), averaged over the map (eq. 2 and 4).

    Args:
        domain_logits: (N,1,h,w).
        gan: "Vanilla" (binary cross entropy) or "LS" (mean squared error of the raw output, LSGAN).
    """
    truth = torch.full_like(domain_logits, domain)
    if gan == "LS":
        return F.mse_loss(domain_logits.float(), truth.float())
    return F.binary_cross_entropy_with_logits(domain_logits, truth)


def maps(judged: Mapping[int, Tensor], gan: str) -> dict[str, Tensor]:
    """For pictures: how sure the discriminator of each level is that it sees the target, 0..1.

    Args:
        judged: {level: the discriminator's logits (N,1,h,w)}; LSGAN's raw output is cut off at 0 and 1.
    """
    squash: Callable[[Tensor], Tensor] = partial(torch.clamp, min=0, max=1) if gan == "LS" else torch.sigmoid
    return {f"discriminator {level}: target?": squash(logits.float()) for level, logits in judged.items()}


def main(args: Flags) -> None:
    device, protocol = set_up(args), PROTOCOLS[args.protocol]
    classes = flags.classes_of(args)
    plan = plan_steps(args, classes)

    # Data
    mirror = [RandomMirror()] if args.random_mirror else []
    source_batches = source_loader(args, classes, Compose([*mirror, Resize(args.input_size)]))
    target_batches = target_loader(args, classes, Compose([*mirror, Resize(args.input_size_target)]))
    source_size, target_size = args.input_size[::-1], args.input_size_target[::-1]

    # Networks: G and one discriminator per level, none for MinEnt
    G, D = build_networks(args, protocol, len(classes), device)
    as_input = discriminator_input(args.target_loss)
    lambda_seg = {1: args.lambda_seg, 2: 1.0}
    lambda_adv = {1: args.lambda_adv_target1, 2: args.lambda_adv_target2}

    # Optimizers
    optimizers = {"G": segmentation_optimizer(G.parameter_groups(protocol.head_multiplier), args)}
    for level, network in D.items():
        optimizers[f"D{level}"] = discriminator_optimizer(network.parameters(), args.updates, args.learning_rate_D)

    networks = {"": G, **{f"_D{level}": network for level, network in D.items()}}
    loaders = {"source": source_batches, "target": target_batches}
    validation = {"": target_val_loader(args, classes)}
    run = Run(args, plan, device, args.source.upper(), networks, optimizers, loaders, validation)
    parallel_G, parallel_D = distributed.wrap(G), {level: distributed.wrap(network) for level, network in D.items()}

    for step in run.steps():
        rate_G, rate_D = (
            poly(rate, step, plan.schedule_steps, args.power, protocol.last_rate)
            for rate in (args.learning_rate, args.learning_rate_D)
        )
        run.start_step(G=rate_G, **({"D": rate_D} if D else {}))
        losses: dict[str, Tensor | float] = defaultdict(float)

        for iteration in range(args.iter_size):
            last = iteration == args.iter_size - 1

            # Train G: the discriminators judge, but do not learn.
            for network in D.values():
                network.requires_grad_(False)

            # ... with source
            source = run.next(source_batches)
            with run.autocast():
                pred_source = by_level(parallel_G(source["image"]), source_size)
                loss_seg = {level: cross_entropy(pred, source["label"]) for level, pred in pred_source.items()}
                loss = sum(lambda_seg[level] * loss_seg[level] for level in loss_seg)
            run.backward(loss / args.iter_size, last=False)

            # ... with target
            target = run.next(target_batches)
            with run.autocast():
                pred_target = by_level(parallel_G(target["image"]), target_size)
                judged = {level: D[level](as_input(pred)) for level, pred in pred_target.items() if D}
                on_target = {level: adversarial_loss(out, DOMAINS["source"], args.gan) for level, out in judged.items()}
                if not D:
                    on_target = {level: entropy(pred) for level, pred in pred_target.items()}
                loss = sum(lambda_adv[level] * on_target[level] for level in on_target)
            run.backward(loss / args.iter_size, last=last)

            # Train D, with the maps of both domains as G made them before its update.
            for network in D.values():
                network.requires_grad_(True)
            for domain, predictions in (("source", pred_source), ("target", pred_target)):
                for level in D:
                    with run.autocast():
                        domain_logits = parallel_D[level](as_input(predictions[level].detach()))
                        loss = adversarial_loss(domain_logits, DOMAINS[domain], args.gan)
                    run.backward(loss / 2 / args.iter_size, last=last and domain == "target")
                    losses[f"loss_D_{domain}{SUFFIX[level]}"] += loss.detach() / args.iter_size

            name = "loss_adv" if D else "loss_target"
            for level in on_target:
                losses[f"loss_seg{SUFFIX[level]}"] += loss_seg[level].detach() / args.iter_size
                losses[f"{name}{SUFFIX[level]}"] += on_target[level].detach() / args.iter_size

        run.update(*optimizers.values())
        shown = (target, pred_target[2], partial(maps, judged, args.gan))
        run.end_step(step, losses, source=(source, pred_source[2]), target=shown)


def build_networks(
    args: Flags, protocol: Protocol, num_classes: int, device: torch.device
) -> tuple[Segmenter, dict[int, OutputDiscriminator]]:
    """G and {level: its discriminator}, with their starting weights. Level 2 is the main classifier; VGG has no other."""
    heads = {1: "single", 2: "multi"}[args.levels] if has_lower_level(args.model) else None
    G = segmentation_network(args, num_classes, heads)
    levels = (1, 2)[-len(G.head_names) :] if args.target_loss != "entropy" else ()
    D = {level: OutputDiscriminator(num_classes) for level in levels}
    restore(G, args.restore_from, protocol.usual_weights, fresh_classifier=args.fresh_classifier)
    restore_discriminators(list(D.values()), args.restore_discriminator)
    for network in (G, *D.values()):
        prepare(network, args, device).train()
    return G, D


def by_level(outputs: list[Tensor], size: tuple[int, int]) -> dict[int, Tensor]:
    """{level: logits upsampled to `size` (H,W)}; the last output is level 2, the one before it level 1."""
    return {level: upsample(logits, size) for level, logits in zip((1, 2)[-len(outputs) :], outputs, strict=True)}


if __name__ == "__main__":
    with exit_with_message():
        main(get_arguments())
