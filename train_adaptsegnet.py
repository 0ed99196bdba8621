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

Several GPUs: torchrun --nproc-per-node N train_adaptsegnet.py ... (the batch size is per process).
"""

from collections import defaultdict

import torch
from torch.nn import functional as F

from dataset.catalogue import class_set
from dataset.transforms import Compose, RandomMirror, Resize
from model import OutputDiscriminator, build_model, upsample
from utils import distributed
from utils.arguments import (
    Parser,
    add_network_flags,
    add_optimization_flags,
    add_source_flags,
    add_target_flags,
    positive,
    set_source_defaults,
    set_target_defaults,
)
from utils.device import prepare, set_up
from utils.evaluation import evaluate
from utils.loaders import source_loader, target_loader, target_val_loader
from utils.losses import cross_entropy
from utils.optimizers import discriminator_optimizer, poly, segmentation_optimizer, set_learning_rate
from utils.pictures import prediction_panel
from utils.run import Run
from utils.start import exit_with_message, restore, restore_discriminators

SOURCE, TARGET = 0, 1


def get_arguments(arguments=None):
    parser = Parser(__doc__)
    add_source_flags(parser)
    add_target_flags(parser)
    add_network_flags(parser, model="DeepLab")
    add_optimization_flags(parser, num_steps=250000, num_steps_stop=150000, save_pred_every=5000)
    group = parser.add_argument_group("AdaptSegNet")
    group.add_argument("--iter-size", type=positive, default=1, help="sub-iterations whose gradients are accumulated")
    group.add_argument("--gan", choices=("Vanilla", "LS"), default="Vanilla", help="loss of the discriminators")
    group.add_argument("--lambda-seg", type=float, default=0.1, help="weight of level 1's segmentation loss (level 2: 1)")
    group.add_argument("--lambda-adv-target1", type=float, default=0.0002, help="weight of level 1's adversarial loss")
    group.add_argument("--lambda-adv-target2", type=float, default=0.001, help="weight of level 2's adversarial loss")
    group.add_argument("--learning-rate-D", type=float, default=1e-4, help="of the discriminators")
    group.add_argument("--restore-discriminator", metavar="D1,D2", help="weights of the discriminators, comma-separated")
    parser.add_switch("--random-mirror", group=group, help="mirror images at random (the original ignores this flag)")
    parser.accept_without_effect("--is-training", "--not-restore-last", "--random-scale", "--tensorboard")
    parser.accept_without_effect("--ignore-label", "--log-dir", takes_value=True)
    return set_target_defaults(set_source_defaults(parser.parse_args(arguments)))


def adversarial_loss(domain_logits, domain, gan):
    """How far a discriminator's logits are from saying `domain` (0 source, 1 target), averaged over the map (eq. 2 and 4).

    Args:
        domain_logits: (N,1,h,w).
        gan: "Vanilla" (binary cross entropy) or "LS" (mean squared error of the raw output, LSGAN).
    """
    truth = torch.full_like(domain_logits, domain)
    if gan == "LS":
        return F.mse_loss(domain_logits.float(), truth.float())
    return F.binary_cross_entropy_with_logits(domain_logits, truth)


def main(args):
    device = set_up(args)

    # Data
    mirror = [RandomMirror()] if args.random_mirror else []
    source_batches = source_loader(args, Compose([*mirror, Resize(args.input_size)]))
    target_batches = target_loader(args, Compose([*mirror, Resize(args.input_size_target)]))
    val_images = target_val_loader(args)

    # Networks: G and one discriminator per level
    G, D = build_networks(args, device)
    lambda_seg = {1: args.lambda_seg, 2: 1.0}
    lambda_adv = {1: args.lambda_adv_target1, 2: args.lambda_adv_target2}

    optimizers = build_optimizers(args, G, D)

    networks = {"": G, **{f"_D{level}": network for level, network in D.items()}}
    loaders = {"source": source_batches, "target": target_batches}
    run = Run(args, device, args.source.upper(), networks, optimizers, loaders)
    run.start()
    parallel_G, parallel_D = distributed.wrap(G), {level: distributed.wrap(network) for level, network in D.items()}
    source_size, target_size = args.input_size[::-1], args.input_size_target[::-1]

    for step in run.steps(args.num_steps_stop):
        rates = {"lr_G": args.learning_rate, "lr_D": args.learning_rate_D}
        rates = {name: poly(rate, step, args.num_steps, args.power) for name, rate in rates.items()}
        for name, optimizer in optimizers.items():
            set_learning_rate(optimizer, rates["lr_G" if name == "G" else "lr_D"])
            optimizer.zero_grad(set_to_none=True)
        losses = defaultdict(float)

        for _ in range(args.iter_size):
            # Train G: the discriminators judge, but do not learn.
            for network in D.values():
                network.requires_grad_(False)

            # ... with source
            source = run.next(source_batches)
            with run.autocast():
                pred_source = by_level(parallel_G(source["image"]), source_size)
                loss_seg = {level: cross_entropy(pred, source["label"]) for level, pred in pred_source.items()}
                loss = sum(lambda_seg[level] * loss_seg[level] for level in D)
            run.backward(loss / args.iter_size)

            # ... with target
            target = run.next(target_batches)
            with run.autocast():
                pred_target = by_level(parallel_G(target["image"]), target_size)
                judged = {level: D[level](F.softmax(pred, dim=1)) for level, pred in pred_target.items()}
                loss_adv = {level: adversarial_loss(logits, SOURCE, args.gan) for level, logits in judged.items()}
                loss = sum(lambda_adv[level] * loss_adv[level] for level in D)
            run.backward(loss / args.iter_size)

            # Train D, with the maps of both domains as G made them before its update.
            loss_D = dict.fromkeys(D, 0.0)
            for network in D.values():
                network.requires_grad_(True)
            for domain, predictions in ((SOURCE, pred_source), (TARGET, pred_target)):
                for level, pred in predictions.items():
                    with run.autocast():
                        domain_logits = parallel_D[level](F.softmax(pred.detach(), dim=1))
                        loss = adversarial_loss(domain_logits, domain, args.gan) / 2
                    run.backward(loss / args.iter_size)
                    loss_D[level] += loss.detach()

            for name, values in (("seg", loss_seg), ("adv", loss_adv), ("D", loss_D)):
                for level in D:
                    losses[f"loss_{name}{level}"] += values[level].detach() / args.iter_size

        run.update(*optimizers.values())

        run.log(step, losses, rates)
        run.save(step)
        if run.due(step, args.save_pred_every):
            run.add_picture(step, "source", prediction_panel(source, pred_source[2], args.save_num_images))
            run.add_picture(step, "target", prediction_panel(target, pred_target[2], args.save_num_images))
        if run.due(step, args.val_every):
            confusion = evaluate(G, val_images, args.num_classes, device, autocast=run.autocast)
            run.record_validation(step, confusion, class_set(args.num_classes).names)


def by_level(outputs, size):
    """{level: logits upsampled to `size`}; the last output is level 2, the one before it level 1."""
    return {level: upsample(logits, size) for level, logits in zip((1, 2)[-len(outputs) :], outputs, strict=True)}


def build_networks(args, device):
    """G, and {level: its discriminator}; VGG has level 2 alone."""
    heads = None if "vgg" in args.model.lower() else "multi"
    G = build_model(args.model, args.num_classes, aspp_branches=args.aspp_branches, batch_norm=args.batch_norm, heads=heads)
    restore(G, args.restore_from)
    D = {level: OutputDiscriminator(args.num_classes) for level in (1, 2)[-len(G.head_names) :]}
    restore_discriminators(list(D.values()), args.restore_discriminator)
    for network in (G, *D.values()):
        prepare(network, args, device).train()
    return G, D


def build_optimizers(args, G, D):
    """SGD for G, Adam for each discriminator."""
    groups = G.parameter_groups()
    optimizers = {"G": segmentation_optimizer(groups, args.updates, args.learning_rate, args.momentum, args.weight_decay)}
    for level, network in D.items():
        optimizers[f"D{level}"] = discriminator_optimizer(network.parameters(), args.updates, args.learning_rate_D)
    return optimizers


if __name__ == "__main__":
    with exit_with_message():
        main(get_arguments())
