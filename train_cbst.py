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

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from dataset.catalogue import ClassSet
from dataset.loader import EndlessLoader
from model import upsample
from model.segmenter import Segmenter
from utils import distributed, flags
from utils.device import prepare, set_up
from utils.domains import endless, source_domain, target_domain, target_val_loader
from utils.errors import exit_with_message
from utils.losses import IGNORED, cross_entropy, mean_over_labelled
from utils.networks import segmentation_network
from utils.old_names import OLD_NAMES
from utils.optimizers import poly, segmentation_optimizer
from utils.parser import Flags, Parser, fraction, not_negative, positive, share
from utils.plan import Plan
from utils.provenance import write_args
from utils.run import Run, fixed_flags
from utils.seeding import seed_everything
from utils.self_training.claims import claim_directory, finish, outcome_of, working_in
from utils.self_training.flags import add_crop_flags, add_labelling_flags, check, with_published_values
from utils.self_training.label_folders import readable
from utils.self_training.labelling import label_target
from utils.self_training.prior import read_prior
from utils.self_training.protocols import CRST, PROTOCOLS, Protocol
from utils.self_training.training_set import source_subset, training_set
from utils.starting_weights import restore

SAMPLE_POLICIES = {"r": "random", "c": "cumulative"}  # both originals take the letters, too
SAMPLE_POLICY = "random: other images in each round; cumulative: the same and more (default random; cbst cumulative)"


def get_arguments(arguments: list[str] | None = None) -> Flags:
    parser = Parser(__doc__, OLD_NAMES["train_cbst.py"])
    flags.add_source_flags(parser)
    flags.add_target_flags(parser)
    flags.add_network_flags(parser, model="DeeplabRes")
    flags.add_optimizer_flags(parser, batch_help="images per process, of both domains together")
    flags.add_speed_flags(parser, workers=4)
    flags.add_run_flags(parser)
    group = parser.add_argument_group("CBST")
    group.add_argument("--protocol", choices=PROTOCOLS, help="whose details to follow (default: cbst for ResNet38, else crst)")
    group.add_argument("--num-rounds", type=positive, metavar="N", help="default 4, the last without training; cbst 6")
    group.add_argument("--epochs-per-round", type=positive, default=2, metavar="N", help="epochs in each round")
    group.add_argument(
        "--init-tgt-port", type=share, metavar="P", help="first portion of target pixels (default 0.2; cbst 0.15)"
    )
    group.add_argument("--max-tgt-port", type=fraction, default=0.5, metavar="P", help="largest portion of target pixels")
    group.add_argument("--tgt-port-step", type=fraction, default=0.05, metavar="P", help="added each round")
    group.add_argument("--init-src-port", type=fraction, metavar="P", help="first portion of source images (default 0.03)")
    group.add_argument("--max-src-port", type=fraction, default=0.06, metavar="P", help="largest portion of source images")
    group.add_argument("--src-port-step", type=fraction, default=0.0025, metavar="P", help="added each round")
    group.add_argument(
        "--source-sample-policy", type=sample_policy, choices=tuple(SAMPLE_POLICIES.values()), help=SAMPLE_POLICY
    )
    group.add_argument(
        "--mr-weight-kld", type=not_negative, default=0.0, metavar="K", help="MRKLD: k, and w on the target; published 0.1"
    )
    group.add_argument("--mr-weight-src", type=not_negative, default=0.0, metavar="W", help="MRKLD: w on the source")
    group.add_argument("--lr-weight-ent", type=not_negative, default=0.0, metavar="ALPHA", help="LRENT: alpha; published 0.25")
    parser.add_switch("--is-training", group=group, help="CRST's name for --batch-norm frozen-affine")
    add_labelling_flags(parser)
    add_crop_flags(parser)
    parser.describe(
        input_size="size of the crops of both domains; one number is a square (default 1024,512; cbst 504,504)",
        input_size_target="images are resized to this for validation (default: the target's own, 2048,1024 for Cityscapes)",
        source_split="as for the other scripts; with cbst `train` means all, as there",
        learning_rate="of the trunk (default 5e-5; cbst 1e-4, divided by sqrt(2) from round to round)",
        power="of the poly schedule within an epoch (default 0: constant)",
        updates="crst: update most trunk parameters 3 or 4 times a step as the original did (published), or each once (clean)",
        batch_norm=f"{flags.BATCH_NORM} (default frozen; cbst frozen-statistics)",
        random_seed="seeds everything, the choice of source images too (default 3; cbst 0)",
        restore_from="weights to start from, with their classifier: a file or URL (default src_model.pth, for ResNet38 "
        "gta_rna-a1_cls19_s8_ep-0000.params or the like, in ./model or ./pretrained_model)",
    )
    # Snapshots and pictures are made every `save_pred_every` steps, which is no flag here: each round fills in its epoch.
    parser.set_defaults(batch_size=2, save_pred_every=None, **dict.fromkeys(CRST.defaults))
    parser.leave_out_of_config("is_training")  # is --batch-norm
    args = with_published_values(parser.parse_args(arguments))
    check(args, PROTOCOLS[args.protocol])
    return flags.complete(args)


def sample_policy(word: str) -> str:
    """The name of a policy of choosing source images, from its name or first letter."""
    return SAMPLE_POLICIES.get(word, word)


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


def maps(logits: Tensor, thresholds: Sequence[float], prior: Tensor | None = None) -> dict[str, Tensor]:
    """For pictures: each pixel's largest p_c / t_c, cut off at 2, (N,H,W); labels are made where it is at least 1.

    Args:
        logits: (N,C,H,W).
        thresholds: t_c of each class.
        prior: (C,H,W), which p_c is multiplied with. It belongs to whole images, so that crops are shown without it.
    """
    scores = F.softmax(logits.float(), dim=1) * (1 if prior is None else prior)
    ratio = scores / logits.new_tensor(thresholds, dtype=torch.float32)[:, None, None]
    return {"confidence / threshold": ratio.amax(1).clamp(max=2)}


class Round(NamedTuple):
    """A round's portions of target pixels and source images, the seed that chooses the images, and its learning rate."""

    number: int
    target: float
    source: float
    seed: int
    learning_rate: float


def schedule(args: Flags, protocol: Protocol) -> Iterator[Round]:
    """The rounds that are trained."""
    target, source = args.init_tgt_port, args.init_src_port
    for number in range(args.num_rounds - protocol.untrained_rounds):
        other_images = args.source_sample_policy == "random"
        seed = protocol.random_seed(args.random_seed, number) if other_images else args.random_seed
        yield Round(number, target, source, seed, args.learning_rate / protocol.rate_divisor**number)
        target = protocol.next_portion(target, args.tgt_port_step, args.max_tgt_port)
        source = protocol.next_portion(source, args.src_port_step, args.max_src_port)


def main(args: Flags) -> None:
    device, protocol, classes = set_up(args), PROTOCOLS[args.protocol], flags.classes_of(args)
    # What is missing is told now, not after hours of labelling.
    source = source_domain(args).dataset(classes)
    target = target_domain(args).dataset(classes, protocol.image_to_label(args), labels=False)
    val_images = target_val_loader(args, classes)
    prior = read_prior(args, classes, device) if args.with_prior else None
    whole_batch = {"batch_size": args.batch_size * distributed.world_size()}
    with working_in(args):
        claim_directory(args.snapshot_dir, fixed_flags(args) | whole_batch, args.resume)
        if distributed.is_main():
            rounds = [f"round{now.number}" for now in schedule(args, protocol)]
            write_args(os.path.join(args.snapshot_dir, "args.json"), args, device, bool(args.resume), parts=rounds)
        target = readable(args, target)

        weights = args.restore_from
        for now in schedule(args, protocol):
            seed_everything(args.random_seed + now.number)  # the same whether the rounds before it ran or were finished
            directory = os.path.join(args.snapshot_dir, f"round{now.number}")
            if outcome_of(directory, "weights") is None:
                if distributed.is_main():
                    os.makedirs(directory, exist_ok=True)
                    portions = f"{now.target:.0%} of the target's pixels, {now.source:.2%} of the source's images"
                    print(f"\nround {now.number}: {portions}")
                distributed.wait_for_all()
                resume = "auto" if args.resume else False
                settings = args.with_values(snapshot_dir=directory, resume=resume, learning_rate=now.learning_rate)

                # Label the target, then train on it and on a little of the source
                network = build_network(args, protocol, classes, weights, device)
                report = label_target(settings, protocol, classes, now.target, network, target, prior, device)
                chosen = source_subset(len(source), now.source, now.seed)
                images = training_set(settings, protocol, classes, report, source, chosen, target.records)
                plan = plan_round(args, protocol, classes, len(images))
                last = retrain(settings, plan, network, endless(args, images), val_images, device, report.thresholds)

                if distributed.is_main():
                    finish(directory, weights=os.path.relpath(last, args.snapshot_dir))
                    shutil.rmtree(os.path.join(directory, "maps"), ignore_errors=True)
                distributed.wait_for_all()
            weights = os.path.join(args.snapshot_dir, outcome_of(directory, "weights"))


def build_network(args: Flags, protocol: Protocol, classes: ClassSet, weights: str | None, device: torch.device) -> Segmenter:
    """The network with the weights that label a round; they must have the classifier, or chance would label."""
    network = segmentation_network(args, len(classes), protocol.heads, aspp_branches=protocol.aspp_branches)
    restore(network, weights, protocol.usual_weights(args), fresh_heads=False)
    return prepare(network, args, device)


def plan_round(args: Flags, protocol: Protocol, classes: ClassSet, images: int) -> Plan:
    """--epochs-per-round epochs of so many images as steps."""
    epoch = max(1, protocol.whole_steps(images / (args.batch_size * distributed.world_size())))
    steps = epoch * args.epochs_per_round
    return Plan(classes, steps, steps, args.val_every, epoch)


def retrain(
    args: Flags,
    plan: Plan,
    network: Segmenter,
    batches: EndlessLoader,
    val_images: DataLoader | None,
    device: torch.device,
    thresholds: Sequence[float],
) -> str:
    """A round's training in its directory, with a snapshot after each epoch; returns the file of the last weights.

    Args:
        thresholds: t_c of the round, for the pictures.
    """
    network.train()
    optimizer = segmentation_optimizer(network.parameter_groups(), args)
    epoch = plan.steps // args.epochs_per_round
    snapshots = EpochSnapshots(f"{args.source}2{args.target}_{os.path.basename(args.snapshot_dir)}", epoch)
    args = args.with_values(save_pred_every=epoch)
    run = Run(args, plan, device, snapshots, {"": network}, {"G": optimizer}, {"both": batches}, {"": val_images})
    parallel, k = distributed.wrap(network), args.mr_weight_kld

    for step in run.steps():
        run.start_step(G=poly(args.learning_rate, step % epoch, epoch, args.power))

        batch = run.next(batches)
        losses = {}
        with run.autocast():
            # Labels may be at 1/8 of the images, as logits are.
            logits = upsample(parallel(batch["image"])[-1], batch["label"].shape[-2:])
            if args.lr_weight_ent:
                losses["loss_seg"] = soft_cross_entropy(logits, batch["soft"])
            else:
                losses["loss_seg"] = cross_entropy(logits, batch["label"])
            loss = losses["loss_seg"]
            if k:
                weights = torch.where(batch["target"] == 1, k, args.mr_weight_src)
                losses["loss_reg"] = confidence_regulariser(logits, batch["label"] != IGNORED, weights)
                loss = loss + k * losses["loss_reg"]
        run.backward(loss)
        run.update(optimizer)
        run.end_step(step, losses, training=(batch, logits, partial(maps, logits, thresholds)))
    return run.last_weights()


class EpochSnapshots:
    """`<source>2<target>_round<r>_epoch<e>.pth` after each epoch, as CRST's."""

    def __init__(self, name: str, epoch: int) -> None:
        self.name, self.epoch = name, epoch

    def tag(self, step: int, every: int) -> int | None:
        return step + 1 if (step + 1) % self.epoch == 0 else None

    def files(self, tag: int | str, networks: Mapping[str, nn.Module]) -> dict[str, Any]:
        tag = f"epoch{tag // self.epoch}" if isinstance(tag, int) else tag
        return {f"{self.name}_{tag}.pth": networks[""].state_dict()}


if __name__ == "__main__":
    with exit_with_message():
        main(get_arguments())
