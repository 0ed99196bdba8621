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

To go on from a snapshot with its discriminator: --restore-from GTA5_N.pth --restore-discriminator GTA5_N_D.pth.
Several GPUs: torchrun --nproc-per-node N train_clan.py ... (the batch size is per process).
"""

import torch
from torch.nn import functional as F

from dataset.catalogue import class_set
from dataset.transforms import Compose, RandomImageScale, RandomMirror, Resize
from model import OutputDiscriminator, build_model, upsample
from utils import distributed
from utils.arguments import (
    Parser,
    add_network_flags,
    add_optimization_flags,
    add_source_flags,
    add_target_flags,
    set_source_defaults,
    set_target_defaults,
)
from utils.device import prepare, set_up
from utils.evaluation import evaluate
from utils.loaders import source_loader, target_loader, target_val_loader
from utils.losses import IGNORED, mean_over_labelled
from utils.optimizers import discriminator_optimizer, poly, segmentation_optimizer, set_learning_rate
from utils.pictures import prediction_panel
from utils.run import Run
from utils.start import exit_with_message, restore, restore_discriminators

SOURCE, TARGET = 0, 1
LAMBDA_LOCAL = {"synthia": 10.0}  # 40 for every other source


def get_arguments(arguments=None):
    parser = Parser(__doc__)
    add_source_flags(parser)
    add_target_flags(parser)
    add_network_flags(parser, model="ResNet")
    add_optimization_flags(parser, num_steps=100000, num_steps_stop=100000, save_pred_every=2000)
    group = parser.add_argument_group("CLAN")
    group.add_argument("--lambda-weight", type=float, default=0.01, help="weight of the weight discrepancy loss")
    group.add_argument("--lambda-adv", type=float, default=0.001, help="weight of the adversarial loss")
    group.add_argument("--lambda-local", type=float, help="how much disagreement adds to it (default 40; SYNTHIA 10)")
    group.add_argument("--epsilon", type=float, default=0.4, help="what is left of it without disagreement")
    group.add_argument("--preheat-steps", type=int, metavar="N", help="warm-up (default: a twentieth of --num-steps-stop)")
    group.add_argument("--learning-rate-D", type=float, default=1e-4, help="of the discriminator")
    group.add_argument("--restore-discriminator", metavar="FILE", help="weights of the discriminator")
    parser.add_switch("--random-scale", group=group, default=True, help="resize images to 0.8, 1 or 1.1 times the input size")
    parser.add_switch("--random-mirror", group=group, default=True, help="mirror every second image")
    parser.accept_without_effect("--is-training", "--not-restore-last")
    parser.accept_without_effect("--ignore-label", "--iter-size", takes_value=True)
    args = set_target_defaults(set_source_defaults(parser.parse_args(arguments)))
    if args.lambda_local is None:
        args.lambda_local = LAMBDA_LOCAL.get(args.source, 40.0)
    if args.preheat_steps is None:
        args.preheat_steps = args.num_steps_stop // 20
    return args


def focal_loss(logits, label):
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


def disagreement(first, second):
    """M: 1 - cosine similarity of two classifiers' probabilities, (N,1,H,W) in 0..1, from logits (N,C,H,W)."""
    return 1 - F.cosine_similarity(F.softmax(first.float(), dim=1), F.softmax(second.float(), dim=1), dim=1)[:, None]


def weight_discrepancy(first, second):
    """cos + 1 of the angle between two classifiers' parameters, each flattened into one vector."""
    vectors = [torch.cat([parameter.flatten() for parameter in head.parameters()]) for head in (first, second)]
    return F.cosine_similarity(*vectors, dim=0) + 1


def adversarial_loss(domain_logits, domain, weight=None, epsilon=0.4, lambda_local=40.0):
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


def rate_at(base, step, args):
    """Linear warm-up from 0 over --preheat-steps, then the poly schedule."""
    if step < args.preheat_steps:
        return base * step / args.preheat_steps
    return poly(base, step, args.num_steps, args.power)


def main(args):
    device = set_up(args)

    # Data
    source_batches = source_loader(args, augmentation(args, args.input_size))
    target_batches = target_loader(args, augmentation(args, args.input_size_target))
    val_images = target_val_loader(args)

    # Networks: G with twin classifiers, one discriminator
    G, D = build_networks(args, device)

    # Optimizers
    groups = G.parameter_groups()
    optimizer_G = segmentation_optimizer(groups, args.updates, args.learning_rate, args.momentum, args.weight_decay)
    optimizer_D = discriminator_optimizer(D.parameters(), args.updates, args.learning_rate_D)

    optimizers = {"G": optimizer_G, "D": optimizer_D}
    loaders = {"source": source_batches, "target": target_batches}
    run = Run(args, device, args.source.upper(), {"": G, "_D": D}, optimizers, loaders)
    run.start()
    parallel_G, parallel_D = distributed.wrap(G), distributed.wrap(D)
    source_size, target_size = args.input_size[::-1], args.input_size_target[::-1]
    weighting = {"epsilon": args.epsilon, "lambda_local": args.lambda_local}

    for step in run.steps(args.num_steps_stop):
        rates = {"lr_G": rate_at(args.learning_rate, step, args), "lr_D": rate_at(args.learning_rate_D, step, args)}
        for optimizer, rate in zip((optimizer_G, optimizer_D), rates.values(), strict=True):
            set_learning_rate(optimizer, rate)
            optimizer.zero_grad(set_to_none=True)
        damping = 1 - step / args.num_steps

        # Train G: the discriminator judges, but does not learn.
        D.requires_grad_(False)

        # ... with source
        source = run.next(source_batches)
        with run.autocast():
            pred_source = [upsample(logits, source_size) for logits in parallel_G(source["image"])]
            loss_seg = sum(focal_loss(pred, source["label"]) for pred in pred_source)
        run.backward(loss_seg)

        # ... with target, more strongly where its two classifiers disagree, and keep these different
        target = run.next(target_batches)
        with run.autocast():
            pred_target = [upsample(logits, target_size) for logits in parallel_G(target["image"])]
            weight = disagreement(*pred_target) if step > args.preheat_steps else None
            domain_logits = upsample(D(F.softmax(sum(pred_target), dim=1)), target_size)
            loss_adv = args.lambda_adv * damping * adversarial_loss(domain_logits, SOURCE, weight, **weighting)
            loss_weight = 2 * args.lambda_weight * damping * weight_discrepancy(*G.heads())
        run.backward(loss_adv + loss_weight)

        # Train D, with the maps of both domains as G made them before its update.
        D.requires_grad_(True)
        with run.autocast():
            domain_logits = upsample(parallel_D(F.softmax(sum(pred_source).detach(), dim=1)), source_size)
            loss_D_s = adversarial_loss(domain_logits, SOURCE)
        run.backward(loss_D_s)
        with run.autocast():
            domain_logits = upsample(parallel_D(F.softmax(sum(pred_target).detach(), dim=1)), target_size)
            weight = None if weight is None else weight.detach()
            loss_D_t = adversarial_loss(domain_logits, TARGET, weight, **weighting)
        run.backward(loss_D_t)

        run.update(optimizer_G, optimizer_D)

        losses = {
            "loss_seg": loss_seg,
            "loss_adv": loss_adv,
            "loss_weight": loss_weight,
            "loss_D_s": loss_D_s,
            "loss_D_t": loss_D_t,
        }
        run.log(step, losses, {**rates, "damping": damping})
        run.save(step)
        if run.due(step, args.save_pred_every):
            run.add_picture(step, "source", prediction_panel(source, sum(pred_source), args.save_num_images))
            run.add_picture(step, "target", prediction_panel(target, sum(pred_target), args.save_num_images))
        if run.due(step, args.val_every):
            confusion = evaluate(G, val_images, args.num_classes, device, autocast=run.autocast)
            run.record_validation(step, confusion, class_set(args.num_classes).names)


def build_networks(args, device):
    """G with twin classifiers, and its discriminator."""
    branches = args.aspp_branches or 4
    G = build_model(args.model, args.num_classes, aspp_branches=branches, batch_norm=args.batch_norm, heads="twin")
    restore(G, args.restore_from)
    D = OutputDiscriminator(args.num_classes)
    restore_discriminators([D], args.restore_discriminator)
    for network in (G, D):
        prepare(network, args, device).train()
    return G, D


def augmentation(args, size):
    """Random scale of the image alone, then mirroring, as in the original."""
    resize = RandomImageScale(size) if args.random_scale else Resize(size)
    return Compose([resize, *([RandomMirror()] if args.random_mirror else [])])


if __name__ == "__main__":
    with exit_with_message():
        main(get_arguments())
