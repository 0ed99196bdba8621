"""CBST: Domain Adaptation for Semantic Segmentation via Class-Balanced Self-Training (Zou et al., ECCV 2018, 1810.07911), and
its confidence-regularised successors MRKLD and LRENT (CRST, ICCV 2019, 1908.09822).

In rounds: label the target with the network's own confident predictions, then train on them and on a little of the source.
With p_c the probability of class c at a pixel (times the spatial prior with --with-prior, CBST-SP):

    pseudo-label   argmax_c p_c / t_c where that is at least 1, ignored elsewhere
    t_c            the confidence that a portion of the pixels predicted as c reach (--kc-policy cb), or all alike (global: ST)
    LRENT          soft labels s_c ~ (p_c / t_c)^(1/alpha), kept where sum_c (p_c / t_c)^(1/alpha) > 1
    loss           loss_seg + k * loss_reg: cross entropy, and MRKLD's w * mean_c(-log p_c) on the target's pixels, w = k

Each round the portions of target and source grow. Two protocols: `crst`, the authors' PyTorch code (DeepLab v2), and `cbst`,
the original MXNet code (ResNet-38: labels at stride 8, crops on a canvas, bicubic score maps).

    CBST   python train_cbst.py --restore-from src_model.pth --snapshot-dir ./snapshots/cbst
    MRKLD  ... --mr-weight-kld 0.1       LRENT  ... --lr-weight-ent 0.25
    2018   python train_cbst.py --model ResNet38 --restore-from gta_rna-a1_cls19_s8_ep-0000.params [--with-prior]
    --resume continues an interrupted run in any round: labels that are there stay, training goes on exactly.
"""

import argparse
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dataset import EndlessLoader, class_names
from dataset.classes import IGNORED
from model import build_model, upsample
from model.segmenter import Segmenter
from utils import distributed
from utils.arguments import (
    Parser,
    add_network_flags,
    add_optimization_flags,
    add_source_flags,
    add_target_flags,
    set_source_defaults,
    set_target_defaults,
    with_values,
)
from utils.device import prepare, set_up
from utils.evaluation import evaluate
from utils.loaders import endless, source_dataset, target_dataset, target_val_loader
from utils.losses import cross_entropy, mean_over_labelled
from utils.optimizers import poly, segmentation_optimizer, set_learning_rate
from utils.pictures import prediction_panel
from utils.run import Run, fixed_flags
from utils.self_training.flags import accept_old_names, add_crop_flags, add_labelling_flags, check, with_published_values
from utils.self_training.labelling import label_target
from utils.self_training.prior import read_prior
from utils.self_training.protocols import CRST, PROTOCOLS, Protocol
from utils.self_training.training_set import source_subset, training_set
from utils.start import exit_with_message, restore
from utils.state import claim_directory, has_state, seed_everything, write_json


def get_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add_source_flags(parser, aliases=("--dataset", "--data-src"))
    add_target_flags(parser, aliases=("--dataset-tgt",))
    add_network_flags(parser, model="DeeplabRes")
    add_optimization_flags(parser, None, None, save_pred_every=100000, in_epochs=True)
    group = parser.add_argument_group("CBST")
    group.add_argument(
        "--protocol", choices=PROTOCOLS, help="whose details to follow (default: cbst for ResNet38, crst for other networks)"
    )
    group.add_argument(
        "--num-rounds",
        "--num-round",
        type=int,
        metavar="N",
        help="number of rounds; with crst the last one is not trained (default 4; cbst 6)",
    )
    group.add_argument(
        "--epochs-per-round", "--epoch-per-round", "--epr", type=int, default=2, metavar="N", help="epochs in each round"
    )
    group.add_argument(
        "--init-tgt-port", type=float, metavar="P", help="portion of target pixels in the first round (default 0.2; cbst 0.15)"
    )
    group.add_argument("--max-tgt-port", type=float, default=0.5, metavar="P", help="largest portion of target pixels")
    group.add_argument("--tgt-port-step", "--step-tgt-port", type=float, default=0.05, metavar="P", help="added each round")
    group.add_argument(
        "--init-src-port", type=float, metavar="P", help="portion of source images in the first round (default 0.03)"
    )
    group.add_argument("--max-src-port", type=float, default=0.06, metavar="P", help="largest portion of source images")
    group.add_argument("--src-port-step", "--step-src-port", type=float, default=0.0025, metavar="P", help="added each round")
    group.add_argument(
        "--source-sample-policy",
        "--src-sampling-policy",
        type=lambda word: {"r": "random", "c": "cumulative"}.get(word, word),
        choices=("random", "cumulative"),
        help="random: other source images in each round; cumulative: the same ones and more (default random; cbst cumulative)",
    )
    group.add_argument(
        "--mr-weight-kld", type=float, default=0.0, metavar="K", help="MRKLD: k, and w on the target (published 0.1)"
    )
    group.add_argument("--mr-weight-src", type=float, default=0.0, metavar="W", help="MRKLD: w on the source")
    group.add_argument("--lr-weight-ent", type=float, default=0.0, metavar="ALPHA", help="LRENT: alpha (published 0.25)")
    parser.add_switch("--is-training", help="CRST's name for --batch-norm frozen-affine")
    add_labelling_flags(parser)
    add_crop_flags(parser)
    parser.describe(
        input_size="size of the crops of both domains; one number is a square (default 1024,512; cbst 504,504)",
        input_size_target="target images are resized to this for validation (default 2048,1024)",
        learning_rate="of the trunk (default 5e-5; cbst 1e-4 in the first round, divided by sqrt(2) from round to round)",
        restore_from="weights to start from, with their classifier: a file or URL (default src_model.pth, for ResNet38 "
        "gta_rna-a1_cls19_s8_ep-0000.params or the like, in ./model or ./pretrained_model)",
        save_pred_every="not used: there is a snapshot after each epoch",
        source_split="as for the other scripts; with cbst `train` means all, as there",
        power="of the poly schedule within an epoch (default 0: constant)",
        updates="crst: update most trunk parameters 3 or 4 times a step as the original did (published), or each once (clean)",
        batch_size="images per process, of both domains together",
        random_seed="seeds everything, the choice of source images too (default 3; cbst 0)",
    )
    accept_old_names(parser)
    parser.set_defaults(batch_size=2, **dict.fromkeys(CRST.defaults))
    args = with_published_values(parser.parse_args(arguments))
    check(args, PROTOCOLS[args.protocol])
    return set_target_defaults(set_source_defaults(args))


def soft_cross_entropy(logits: Tensor, soft: Tensor) -> Tensor:
    """Mean of -sum_c s_c log p_c over the labelled pixels of LRENT's soft labels.

    Args:
        logits: (N,C,H,W).
        soft: (N,C,H,W), all 0 where ignored.
    """
    pixels = -(soft * F.log_softmax(logits.float(), dim=1)).sum(1)
    return mean_over_labelled(pixels, soft.sum(1) != 0)


def confidence_regulariser(logits: Tensor, labelled: Tensor, weights: Tensor) -> Tensor:
    """MRKLD: mean of w * mean_c(-log p_c) over the labelled pixels of images with w > 0.

    Args:
        logits: (N,C,H,W).
        labelled: (N,H,W) bool.
        weights: (N) w of each image. The original sets it to k on the target, so that the regulariser counts k squared.
    """
    pixels = -F.log_softmax(logits.float(), dim=1).mean(1) * weights[:, None, None]
    return mean_over_labelled(pixels, labelled & (weights != 0)[:, None, None])


class Round(NamedTuple):
    """A round's portions of target pixels and source images, the seed that chooses the images, and its learning rate."""

    number: int
    target: float
    source: float
    seed: int
    learning_rate: float


def schedule(args: argparse.Namespace, protocol: Protocol) -> Iterator[Round]:
    """The rounds that are trained."""
    target, source = args.init_tgt_port, args.init_src_port
    for r in range(args.num_rounds - protocol.untrained_rounds):
        other_images = args.source_sample_policy == "random"
        seed = protocol.random_seed(args.random_seed, r) if other_images else args.random_seed
        yield Round(r, target, source, seed, args.learning_rate / protocol.rate_divisor**r)
        target = protocol.next_portion(target, args.tgt_port_step, args.max_tgt_port)
        source = protocol.next_portion(source, args.src_port_step, args.max_src_port)


def main(args: argparse.Namespace) -> None:
    device, protocol = set_up(args), PROTOCOLS[args.protocol]
    # What is missing is told now, not after hours of labelling.
    source, images = source_dataset(args, None), target_dataset(args, protocol.image_to_label(args))
    target_val_loader(args)
    prior = read_prior(args, device) if args.with_prior else None
    whole_batch = {"batch_size": args.batch_size * distributed.world_size()}
    claim_directory(args.snapshot_dir, fixed_flags(args) | whole_batch, args.resume)
    weights = args.restore_from
    for plan in schedule(args, protocol):
        seed_everything(args.random_seed + plan.number)  # the same whether the rounds before it ran or were finished
        directory = os.path.join(args.snapshot_dir, f"round{plan.number}")
        finished = os.path.join(directory, "finished.json")
        if not os.path.exists(finished):
            if distributed.is_main():
                os.makedirs(directory, exist_ok=True)
                print(f"\nround {plan.number}: {plan.target:.0%} of the target's pixels, {plan.source:.2%} of the source's")
            distributed.wait_for_all()
            settings = with_values(args, snapshot_dir=directory, resume=args.resume and has_state(directory))
            network = build_network(args, protocol, weights, device)
            report = label_target(settings, protocol, plan.target, network, images, prior, device)
            chosen = source_subset(len(source), plan.source, plan.seed)
            batches = endless(args, training_set(settings, protocol, report, source, chosen, images.records))
            last = retrain(settings, protocol, plan.learning_rate, network, batches, device)
            if distributed.is_main():
                write_json({"weights": last}, finished)
                shutil.rmtree(os.path.join(directory, "maps"), ignore_errors=True)
            distributed.wait_for_all()
        with open(finished) as file:
            weights = os.path.join(args.snapshot_dir, json.load(file)["weights"])


def build_network(args: argparse.Namespace, protocol: Protocol, weights: str | None, device: torch.device) -> Segmenter:
    """The network with the weights that label a round; they must have the classifier, or chance would label."""
    branches = args.aspp_branches or protocol.aspp_branches
    network = build_model(
        args.model, args.num_classes, batch_norm=args.batch_norm, heads=protocol.heads, aspp_branches=branches
    )
    restore(network, weights, protocol.usual_weights(args), fresh_heads=False)
    return prepare(network, args, device)


def retrain(
    args: argparse.Namespace,
    protocol: Protocol,
    learning_rate: float,
    network: Segmenter,
    batches: EndlessLoader,
    device: torch.device,
) -> str:
    """A round's training, in its directory; returns the path of the last weights, relative to the directory above."""
    whole_batch = args.batch_size * distributed.world_size()
    epoch = max(1, protocol.whole_steps(len(batches.dataset) / whole_batch))
    steps = epoch * args.epochs_per_round
    val_images = target_val_loader(args)
    network.train()
    updates = args.updates if protocol.repeated_updates else "clean"
    optimizer = segmentation_optimizer(network.parameter_groups(), updates, learning_rate, args.momentum, args.weight_decay)
    round_name = os.path.basename(args.snapshot_dir)
    snapshots = EpochSnapshots(f"{args.source}2{args.target}_{round_name}", epoch)
    run = Run(args, device, snapshots, {"": network}, {"G": optimizer}, {"both": batches})
    run.start()
    parallel, k = distributed.wrap(network), args.mr_weight_kld

    for step in run.steps(steps):
        rate = poly(learning_rate, step % epoch, epoch, args.power)
        set_learning_rate(optimizer, rate)
        optimizer.zero_grad(set_to_none=True)

        batch = run.next(batches)
        losses = {}
        with run.autocast():
            # Labels may be at 1/8 of the images, as logits are.
            logits = upsample(parallel(batch["image"])[-1], batch["label"].shape[-2:])
            if args.lr_weight_ent:
                losses["loss_seg"] = soft_cross_entropy(logits, batch["soft"].to(device))
            else:
                losses["loss_seg"] = cross_entropy(logits, batch["label"])
            loss = losses["loss_seg"]
            if k:
                weights = batch["target"].float().to(device) * (k - args.mr_weight_src) + args.mr_weight_src
                losses["loss_reg"] = confidence_regulariser(logits, batch["label"] != IGNORED, weights)
                loss = loss + k * losses["loss_reg"]
        run.backward(loss)
        run.update(optimizer)

        run.log(step, losses, {"lr_G": rate})
        run.save(step)
        if (step + 1) % epoch == 0:
            run.add_picture(step, "training", prediction_panel(batch, logits, args.save_num_images))
        if run.due(step, args.val_every):
            confusion = evaluate(network, val_images, args.num_classes, device, autocast=run.autocast)
            run.record_validation(step, confusion, class_names(args.num_classes))
    return os.path.join(round_name, next(iter(snapshots.files(steps, {"": network}))))


class EpochSnapshots:
    """`<source>2<target>_round<r>_epoch<e>.pth` after each epoch, as CRST's."""

    def __init__(self, name: str, epoch: int):
        self.name, self.epoch = name, epoch

    def tag(self, step: int, every: int) -> int | None:
        return step + 1 if (step + 1) % self.epoch == 0 else None

    def files(self, tag: int | str, networks: dict[str, nn.Module]) -> dict[str, Any]:
        tag = f"epoch{tag // self.epoch}" if isinstance(tag, int) else tag
        return {f"{self.name}_{tag}.pth": networks[""].state_dict()}


if __name__ == "__main__":
    with exit_with_message():
        main(get_arguments())
