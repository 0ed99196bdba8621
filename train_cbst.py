"""CBST: Domain Adaptation for Semantic Segmentation via Class-Balanced Self-Training (Zou et al., ECCV 2018, 1810.07911), and
its confidence-regularised successors MRKLD and LRENT (CRST, ICCV 2019, 1908.09822).

In rounds: label the target with the network's own confident predictions, then train on them and on a little of the source.
With p_c the probability of class c at a pixel (times the spatial prior with --with-prior, CBST-SP):

    pseudo-label   argmax_c p_c / t_c where that is at least 1, ignored elsewhere
    t_c            the confidence that a portion of the pixels predicted as c reach (--kc-policy cb), or all alike (global: ST)
    LRENT          soft labels s_c ~ (p_c / t_c)^(1/alpha), kept where sum_c (p_c / t_c)^(1/alpha) > 1
    loss           CE + MRKLD's k * w * mean_c(-log p_c) on the pixels of the target, w = k

Each round the portions of target and source grow. Two protocols: `crst`, the authors' PyTorch code (DeepLab v2), and `cbst`,
the original MXNet code (ResNet-38: labels at stride 8, crops on a canvas, bicubic score maps).

    CBST   python train_cbst.py --restore-from src_model.pth --snapshot-dir ./snapshots/cbst
    MRKLD  ... --mr-weight-kld 0.1       LRENT  ... --lr-weight-ent 0.25
    2018   python train_cbst.py --model ResNet38 --restore-from gta_rna-a1_cls19_s8_ep-0000.params [--with-prior]
    --resume goes on after an interruption, in any round: labels that are there stay, training continues exactly.
"""

import copy
import json
import math
import os
import shutil
from functools import partial

import numpy as np
import torch
from torch.nn import functional as F

from dataset.catalogue import DATA_SETS, class_set, data_set, identity_table, label_table
from dataset.layouts import Record
from dataset.self_training import CanvasCrop, PseudoLabelled, Relabelled, ScaledCrop, SourceAndTarget
from dataset.spatial_prior import load_prior
from model import build_model, upsample
from model.networks import known_name
from utils import distributed
from utils.arguments import (
    Parser,
    add_network_flags,
    add_optimization_flags,
    add_source_flags,
    add_target_flags,
    numbers,
    positive,
    set_source_defaults,
    set_target_defaults,
)
from utils.device import prepare, set_up
from utils.evaluation import evaluate
from utils.labelling import label_path, label_target, prior_path, scores_of
from utils.loaders import endless, source_dataset, target_dataset, target_val_loader
from utils.losses import cross_entropy, mean_over_labelled
from utils.optimizers import poly, segmentation_optimizer, set_learning_rate
from utils.pictures import prediction_panel
from utils.pseudo_labels import FullSizeLogits, soft_labels
from utils.run import Run, fixed_flags
from utils.start import exit_with_message, restore
from utils.state import claim_directory, has_state, seed_everything, write_json

# What the published runs of each code base use.
PROTOCOLS = {
    "crst": {
        "learning_rate": 5e-5, "power": 0.0, "num_rounds": 4, "init_tgt_port": 0.2, "init_src_port": 0.03, "random_seed": 3,
        "source_sample_policy": "random", "input_size": (1024, 512), "scale_rate_range": (0.5, 1.5), "batch_norm": "frozen",
    },
    "cbst": {
        "learning_rate": 1e-4, "power": 0.0, "num_rounds": 6, "init_tgt_port": 0.15, "init_src_port": 0.03, "random_seed": 0,
        "source_sample_policy": "cumulative", "input_size": (504, 504), "scale_rate_range": (0.7, 1.3),
        "batch_norm": "frozen-statistics",
    },
}  # fmt: skip


def get_arguments(arguments=None):
    parser = Parser(__doc__)
    add_source_flags(parser, aliases=("--dataset", "--data-src"))
    add_target_flags(parser, aliases=("--dataset-tgt",))
    add_network_flags(parser, model="DeeplabRes")
    add_optimization_flags(parser, None, None, save_pred_every=100000)
    group = parser.add_argument_group("CBST")
    group.add_argument("--protocol", choices=PROTOCOLS, help="whose details to follow (default: cbst for ResNet38, else crst)")
    group.add_argument(
        "--num-rounds",
        "--num-round",
        type=int,
        metavar="N",
        help="crst: one more than are trained, as there (default 4; cbst 6)",
    )
    group.add_argument(
        "--epochs-per-round",
        "--epoch-per-round",
        "--epr",
        type=int,
        default=2,
        metavar="N",
        help="epochs of training in a round",
    )
    group.add_argument("--kc-policy", choices=("cb", "global"), default="cb", help="thresholds per class, or one (ST)")
    group.add_argument(
        "--init-tgt-port", type=float, metavar="P", help="portion of target pixels at first (default 0.2; cbst 0.15)"
    )
    group.add_argument("--max-tgt-port", type=float, default=0.5, metavar="P", help="and at most")
    group.add_argument("--tgt-port-step", "--step-tgt-port", type=float, default=0.05, metavar="P", help="what a round adds")
    group.add_argument("--init-src-port", type=float, metavar="P", help="portion of source images at first (default 0.03)")
    group.add_argument("--max-src-port", type=float, default=0.06, metavar="P", help="and at most")
    group.add_argument("--src-port-step", "--step-src-port", type=float, default=0.0025, metavar="P", help="what a round adds")
    group.add_argument("--source-sample-policy", "--src-sampling-policy", choices=("random", "cumulative", "r", "c"),
                       help="source images of a round: new, or earlier ones and more (random; cbst cumulative)")  # fmt: skip
    parser.add_switch("--with-prior", group=group, help="CBST-SP: multiply by --prior")
    group.add_argument(
        "--prior", metavar="FILE", help="spatial prior (default prior_array.mat or spatial_prior_C.mat in the source's root)"
    )
    group.add_argument(
        "--mine-port", "--mine-chance", type=float, default=0.8, metavar="P", help="chance of a crop around a rare class"
    )
    group.add_argument("--mine-thresh", type=float, default=0.001, metavar="P", help="classes with a smaller share are rare")
    group.add_argument(
        "--mine-id-number", type=int, default=3, metavar="N", help="cbst: the rarest so many if no rarer one is there"
    )
    group.add_argument(
        "--mr-weight-kld", type=float, default=0.0, metavar="K", help="MRKLD: weight on the target (published 0.1)"
    )
    group.add_argument(
        "--mr-weight-src", type=float, default=0.0, metavar="K", help="w of the source's images (with --mr-weight-kld)"
    )
    group.add_argument("--lr-weight-ent", type=float, default=0.0, metavar="ALPHA", help="LRENT: alpha (published 0.25)")
    parser.add_switch("--random-mirror", group=group, default=True, help="crst: mirror half of the crops")
    parser.add_switch("--random-scale", group=group, default=True, help="crst: scale images")
    group.add_argument(
        "--scale-rate-range",
        "--train-scale-src",
        type=numbers,
        metavar="LOW,HIGH",
        help="sizes of crops (default 0.5,1.5; cbst 0.7,1.3)",
    )
    group.add_argument(
        "--train-scale-tgt", type=numbers, metavar="LOW,HIGH", help="of the target's, if they differ from the source's"
    )
    group.add_argument(
        "--eval-scale", type=float, default=0.9, metavar="F", help="crst: images are scaled by this to be labelled"
    )
    group.add_argument("--test-scales", type=int, default=1850, metavar="N", help="cbst: longer side of images to be labelled")
    group.add_argument("--test-steps", type=int, choices=(1, 2, 4), default=1, help="cbst: NxN passes over shifted images")
    group.add_argument("--ds-rate", type=positive, default=4, metavar="N", help="every Nth pixel counts for thresholds")
    group.add_argument(
        "--origin-size", type=int, metavar="N", help="cbst: longer side of source images (default: of the data set)"
    )
    group.add_argument("--origin-size-tgt", type=int, default=2048, metavar="N", help="cbst: longer side of target images")
    parser.add_switch("--test-flipping", group=group, default=True, help="average with the mirror image")
    parser.add_switch("--is-training", help="CRST's name for --batch-norm frozen-affine")
    parser.describe(
        input_size="size of the crops of both domains (default 1024,512; cbst 504,504, one number stands for both)",
        input_size_target="images are resized to this for validation (default 2048,1024)",
        learning_rate="of the trunk (default 5e-5; cbst 1e-4 in the first round, divided by sqrt(2) in each)",
        restore_from="weights to start from, with their classifier: a file or URL (default src_model.pth, for ResNet38 "
        "gta_rna-a1_cls19_s8_ep-0000.params or the like, in ./model or ./pretrained_model)",
        save_pred_every="not used: there is a snapshot after each epoch",
        source_split="as for the other scripts; with --protocol cbst `train` means all, as there",
        num_steps="not used: a round has --epochs-per-round epochs",
        num_steps_stop="not used: a round has --epochs-per-round epochs",
        power="of the poly schedule within an epoch (default 0: constant)",
        batch_size="images per process, of both domains together",
        random_seed="seeds everything, the choice of source images too (default 3; cbst 0)",
    )
    accept_old_names(parser)
    parser.set_defaults(batch_size=2, **dict.fromkeys(PROTOCOLS["crst"]))
    return with_published_defaults(parser.parse_args(arguments))


def accept_old_names(parser):
    """What the flags are called in the two originals, and the flags that had no effect there or have none here."""
    parser.also("--data-dir", "--data-root", "--data-src-dir")
    parser.also("--data-dir-target", "--data-root-tgt", "--data-tgt-dir")
    parser.also("--data-list", "--data-src-list")
    parser.also("--data-list-target", "--data-tgt-train-list")
    parser.also("--restore-from", "--weights")
    parser.also("--snapshot-dir", "--output", "--save")
    parser.also("--batch-size", "--batch-images")
    parser.also("--learning-rate", "--base-lr")
    parser.also("--random-seed", "--seed-int", "--randseed")
    parser.also("--num-workers", "--prefetch-threads")
    parser.also("--gpu", "--gpus")
    parser.accept_without_effect(
        "--rm-prob", "--debug", "--eval-training", "--pin-memory", "--no-cudnn", "--backward-do-mirror"
    )
    parser.accept_without_effect("--to-epoch", "--split-tgt", "--self-training-script", "--log-file", "--rare-cls-num",
                                 "--kc-value", "--ignore-label", "--data-tgt-test-list", "--test-image-size", "--test-scale",
                                 "--cache-images", "--kvstore", "--prefetcher", "--phase", takes_value=True)  # fmt: skip


def with_published_defaults(args):
    """What is not given gets the value of the published GTA5 runs, by protocol.

    Raises:
        ValueError: flags that do not go together.
    """
    if "_rna-a1_cls" in args.model:  # MXNet's names say everything: cityscapes_rna-a1_cls19_s8
        args.num_classes = int(args.model.split("_cls")[1].split("_")[0])
    args.model = known_name(args.model)
    args.protocol = args.protocol or ("cbst" if args.model == "ResNet38" else "crst")
    if args.is_training and args.batch_norm is None:
        args.batch_norm = "frozen-affine"
    for key, value in PROTOCOLS[args.protocol].items():
        if getattr(args, key) is None:
            setattr(args, key, value)
    if args.protocol == "cbst" and args.source_split == "train":
        args.source_split = "all"  # MXNet's train.lst names every image
    args.source_sample_policy = {"r": "random", "c": "cumulative"}.get(args.source_sample_policy, args.source_sample_policy)
    args.origin_size = args.origin_size or DATA_SETS[args.source].longest_side
    args.input_size_target = args.input_size_target or (2048, 1024)
    if (args.protocol == "cbst") != (args.model == "ResNet38"):
        raise ValueError(
            f"--protocol {args.protocol} does not go with --model {args.model}: cbst is for ResNet38, crst for others"
        )
    if args.lr_weight_ent and (args.protocol == "cbst" or args.with_prior):
        raise ValueError("--lr-weight-ent belongs to --protocol crst, without --with-prior")
    if not 0 < args.init_tgt_port <= 1 or not 0 <= args.init_src_port <= 1:
        raise ValueError("--init-tgt-port and --init-src-port are portions, between 0 and 1")
    args.train_scale_tgt = args.train_scale_tgt or args.scale_rate_range
    if len(args.scale_rate_range) != 2 or len(args.train_scale_tgt) != 2:
        raise ValueError("--scale-rate-range and --train-scale-tgt want two numbers")
    if args.protocol == "cbst" and args.input_size[0] != args.input_size[1]:
        raise ValueError(f"--input-size {args.input_size[0]},{args.input_size[1]}: crops of --protocol cbst are square")
    if args.protocol == "crst" and args.num_rounds < 2:
        raise ValueError("--num-rounds must be at least 2: the last round of --protocol crst trains nothing")
    return set_target_defaults(set_source_defaults(args))


def hard_loss(logits, label, weights, k):
    """CE of pseudo-labels plus MRKLD's regulariser: `k` times the mean of w * mean_c(-log p_c) over the pixels with w > 0.

    Args:
        logits: (N,C,H,W).
        label: (N,H,W) train ids, 255 for ignored.
        weights: (N) w of each image. The original sets it to k on the target, so that the regulariser counts k squared.
    """
    return cross_entropy(logits, label) + _regulariser(logits, label != 255, weights, k)


def soft_loss(logits, soft, weights, k):
    """The same for LRENT's soft labels (N,C,H,W), all 0 where ignored: cross-entropy is the sum over classes of -s log p."""
    labelled = soft.sum(1) != 0
    pixels = -(soft * F.log_softmax(logits.float(), dim=1)).sum(1)
    return mean_over_labelled(pixels, labelled) + _regulariser(logits, labelled, weights, k)


def _regulariser(logits, labelled, weights, k):
    if not k:
        return 0.0
    pixels = -F.log_softmax(logits.float(), dim=1).mean(1) * weights[:, None, None]
    return k * mean_over_labelled(pixels, labelled & (weights != 0)[:, None, None])


def schedule(args):
    """The rounds: target portion, source portion, learning rate and seed of the source images of each."""
    rounds, cbst = [], args.protocol == "cbst"
    target, source = args.init_tgt_port, args.init_src_port
    for r in range(args.num_rounds if cbst else args.num_rounds - 1):
        seed = args.random_seed
        if args.source_sample_policy == "random":
            seed = r if cbst else args.random_seed + 1 + r
        rounds.append({"target": target, "source": source, "seed": seed,
                       "learning_rate": args.learning_rate / math.sqrt(2) ** r if cbst else args.learning_rate})  # fmt: skip
        target = _next_portion(target, args.tgt_port_step, args.max_tgt_port, cbst)
        source = _next_portion(source, args.src_port_step, args.max_src_port, cbst)
    return rounds


def _next_portion(portion, step, most, cbst):
    # MXNet's driver looks at the maximum before it adds, so it may go beyond by less than a step.
    if cbst:
        return float(f"{portion + step:.12g}") if portion < most else portion
    return max(portion, min(portion + step, most))


def main(args):
    device = set_up(args)
    # What is missing is told now, not after hours of labelling.
    source_dataset(args, None), target_dataset(args, None), target_val_loader(args)
    if args.with_prior:
        load_prior(prior_path(args), args.num_classes)
    whole_batch = {"batch_size": args.batch_size * distributed.world_size()}
    claim_directory(args.snapshot_dir, fixed_flags(args) | whole_batch, args.resume)
    for r, portions in enumerate(schedule(args)):
        seed_everything(args.random_seed + r)  # a round is the same whether the ones before it ran or were finished
        settings = round_settings(args, r, portions)
        if os.path.exists(os.path.join(settings.snapshot_dir, "finished.json")):
            continue
        if distributed.is_main():
            os.makedirs(settings.snapshot_dir, exist_ok=True)
            print(f"\nround {r}: {portions['target']:.0%} of the target's pixels, {portions['source']:.2%} of the source's")
        distributed.wait_for_all()
        network = build_network(settings, round_weights(args, r), device)
        rare = label_target(settings, portions["target"], network, device)
        last = retrain(settings, portions, rare, network, device)
        if distributed.is_main():
            write_json({"weights": last}, os.path.join(settings.snapshot_dir, "finished.json"))
            shutil.rmtree(os.path.join(settings.snapshot_dir, "maps"), ignore_errors=True)
        distributed.wait_for_all()


def round_settings(args, r, portions):
    """The flags of one round: its directory, and its learning rate."""
    settings = copy.copy(args)
    settings.snapshot_dir = os.path.join(args.snapshot_dir, f"round{r}")
    settings.learning_rate = portions["learning_rate"]
    settings.resume = args.resume and has_state(settings.snapshot_dir)
    return settings


def round_weights(args, r):
    """What round `r` starts from: --restore-from, or what the round before left."""
    if r == 0:
        return args.restore_from
    with open(os.path.join(args.snapshot_dir, f"round{r - 1}", "finished.json")) as file:
        return os.path.join(args.snapshot_dir, json.load(file)["weights"])


def build_network(args, weights, device):
    """The network with the weights that label this round; they must have the classifier, or chance would label."""
    cbst = args.protocol == "cbst"
    heads = {} if cbst else {"heads": "single", "aspp_branches": args.aspp_branches or 4}
    network = build_model(args.model, args.num_classes, batch_norm=args.batch_norm, **heads)
    source = "synthia" if args.source == "synthia" else "gta"
    usual = f"{source}_rna-a1_cls{args.num_classes}_s8_ep-0000.params" if cbst else "src_model.pth"
    restore(network, weights, usual, fresh_heads=False)
    return prepare(network, args, device)


def retrain(args, portions, rare, network, device):
    """A round's training; returns the path of its last weights, relative to the run's directory."""
    dataset = training_set(args, portions, rare)
    batches = endless(args, dataset)
    share = args.batch_size * distributed.world_size()
    epoch = max(1, len(dataset) // share if args.protocol == "cbst" else math.ceil(len(dataset) / share))
    args.num_steps = args.num_steps_stop = epoch * args.epochs_per_round
    val_images = target_val_loader(args)
    network.train()
    optimizer = segmentation_optimizer(network.parameter_groups(), "clean" if args.protocol == "cbst" else args.updates,
                                       args.learning_rate, args.momentum, args.weight_decay)  # fmt: skip
    snapshots = EpochSnapshots(f"{args.source}2{args.target}_{os.path.basename(args.snapshot_dir)}", epoch)
    run = Run(args, device, snapshots, {"": network}, {"G": optimizer}, {"both": batches})
    run.start()
    parallel = distributed.wrap(network)

    for step in run.steps(args.num_steps_stop):
        rate = poly(args.learning_rate, step % epoch, epoch, args.power)
        set_learning_rate(optimizer, rate)
        optimizer.zero_grad(set_to_none=True)

        batch = run.next(batches)
        weights = batch["target"].float().to(device) * (args.mr_weight_kld - args.mr_weight_src) + args.mr_weight_src
        with run.autocast():
            logits = parallel(batch["image"])[-1]
            if args.protocol == "crst":
                logits = upsample(logits, args.input_size[::-1])
            if args.lr_weight_ent:
                loss = soft_loss(logits, batch["soft"].to(device), weights, args.mr_weight_kld)
            else:
                loss = hard_loss(logits, batch["label"], weights, args.mr_weight_kld)
        run.backward(loss)
        run.update(optimizer)

        run.log(step, {"loss": loss}, {"lr": rate})
        run.save(step)
        if (step + 1) % epoch == 0:
            run.add_picture(step, "training", prediction_panel(batch, logits, args.save_num_images))
        if run.due(step, args.val_every):
            confusion = evaluate(network, val_images, args.num_classes, device, autocast=run.autocast)
            run.record_validation(step, confusion, class_set(args.num_classes).names)
    return os.path.join(os.path.basename(args.snapshot_dir), next(iter(snapshots.files(args.num_steps_stop, {"": network}))))


def training_set(args, portions, rare):
    """The round's source images and all target images, augmented by the protocol."""
    target = target_dataset(args, None)
    records = [Record(record.image, label_path(args, record), record.name) for record in target.records]
    soft = None
    if args.protocol == "cbst":
        T = math.ceil(args.input_size[0] / 8) * 8
        crop = partial(CanvasCrop, T, priority=rare["priority"], rare=rare["rare"], chance=args.mine_port)
        source_crop = crop(args.scale_rate_range, args.origin_size, DATA_SETS[args.source].longest_side)
        target_crop = crop(args.train_scale_tgt, args.origin_size_tgt, DATA_SETS[args.target].longest_side)
    else:
        scales = (args.scale_rate_range, args.train_scale_tgt) if args.random_scale else (None, None)
        source_crop = ScaledCrop(args.input_size, scales[0], args.random_mirror)
        target_crop = ScaledCrop(args.input_size, scales[1], args.random_mirror, rare["rare"], args.mine_port)
        if args.lr_weight_ent:
            with open(os.path.join(args.snapshot_dir, "thresholds.json")) as file:
                thresholds = torch.tensor(json.load(file)["thresholds"])
            soft = partial(soft_labels_of, args, thresholds)
    table = label_table(data_set(args.source, args.data_dir).ids, class_set(args.num_classes))
    source = source_dataset(args, Relabelled(source_crop, table))
    source.table = identity_table(args.num_classes)
    chosen = source_subset(len(source), portions)
    return SourceAndTarget(source, chosen.tolist(), PseudoLabelled(records, target_crop, soft), args.num_classes)


def source_subset(total, portions):
    """Which of `total` source images take part in a round: positions in the list, as NumPy's legacy generator draws them."""
    return np.random.RandomState(portions["seed"]).choice(total, int(total * portions["source"]), replace=False)


def soft_labels_of(args, thresholds, record):
    """LRENT's soft labels of a whole target image, computed from its map on the disk."""
    scores = scores_of(args, FullSizeLogits(args.test_flipping), record, None, "cpu")
    return soft_labels(scores, thresholds, args.lr_weight_ent)


class EpochSnapshots:
    """`<source>2<target>_round<r>_epoch<e>.pth` after each epoch, as CRST's."""

    def __init__(self, name, epoch):
        self.name, self.epoch = name, epoch

    def tag(self, step, every):
        return step + 1 if (step + 1) % self.epoch == 0 else None

    def files(self, tag, networks):
        tag = f"epoch{tag // self.epoch}" if isinstance(tag, int) else tag
        return {f"{self.name}_{tag}.pth": networks[""].state_dict()}


if __name__ == "__main__":
    with exit_with_message():
        main(get_arguments())
