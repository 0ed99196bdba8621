"""MaxSquare: Domain Adaptation for Semantic Segmentation with Maximum Squares Loss (Chen et al., ICCV 2019, 1909.13589).

A source-trained network becomes more certain on target images by minimising a loss on its own probabilities p. Entropy
(MinEnt) is steepest at pixels that are certain already; the slope of squares grows only linearly, so easy pixels
dominate less:

    maxsquare      L_T = -mean(p^2) / 2                        over pixels and classes (the paper does not divide by classes)
    IW_maxsquare   L_T = -sum_n w_n sum_c p_nc^2 / (N C)       with image-wise weights w_n = 1 / (H_c^r (sum H)^(1-r))
    entropy        L_T = -mean(p log p)                        MinEnt
    IW_entropy     the same with the weights of IW_maxsquare
    hard           cross entropy against argmax p where max p > threshold
    G minimises    CE(source) + lambda_target * L_T(target)

H_c counts, in each image, the pixels of their own predicted class c, so that rare classes weigh more. With --multi the
classifier on layer 3 learns from pseudo-labels that both classifiers make together (self-produced guidance):

    + lambda_seg * CE(source, layer 3)  +  lambda_seg * lambda_target * CE(layer 3, argmax of the mean probability)

As published, after source training with train_source.py (--source synthia --num-classes 16 for SYNTHIA):

    MaxSquare      python train_maxsquare.py --restore-from SOURCE.pth --round-num 5 --target-mode maxsquare --lambda-target 0.1
    MaxSquare+IW   ... --target-mode IW_maxsquare --IW-ratio 0.2 --lambda-target 0.1
    +Multi         ... --target-mode IW_maxsquare --multi True --target-crop-size 1280,640 --lambda-target 0.09 --lambda-seg 0.1
    CrossCity      python train_maxsquare.py --source cityscapes --target crosscity --city-name Rome --num-classes 13
                       --restore-from SOURCE.pth --epoch-num 10 --target-mode maxsquare --lambda-target 0.1 --crop-size 1024,512

Several GPUs: torchrun --nproc-per-node N train_maxsquare.py ... (the batch size is per process).
"""

from argparse import Namespace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from dataset.catalogue import ClassSet
from dataset.loader import EndlessLoader
from dataset.transforms import Compose, RandomBlur, RandomMirror, Resize
from model import upsample
from utils import distributed, flags
from utils.device import prepare, set_up
from utils.domains import source_loader, source_val_loader, target_loader, target_val_loader
from utils.errors import RunError, exit_with_message
from utils.losses import IGNORED, cross_entropy
from utils.networks import segmentation_network
from utils.old_names import OLD_NAMES
from utils.optimizers import poly, segmentation_optimizer
from utils.parser import Flags, Parser, fraction, not_negative, positive
from utils.plan import Plan
from utils.run import Run
from utils.starting_weights import restore
from utils.state import has_state

TARGET_MODES = ("maxsquare", "IW_maxsquare", "entropy", "IW_entropy", "hard")
CONTINUE_TRAINING = (
    "--resume if the run directory holds a run; else start from CHECKPOINT_DIR/IDfinal.pth, ID being gta52cityscapes_<mode> "
    "(CrossCity: train_logbest.pth)"
)
LONGEST_EPOCH = 5000  # the original counts no more iterations of an epoch when it lays out the learning rate


def get_arguments(arguments: list[str] | None = None) -> Flags:
    parser = Parser(__doc__, OLD_NAMES["train_maxsquare.py"])
    flags.add_source_flags(parser)
    flags.add_target_flags(parser, default=None)
    flags.add_network_flags(parser, model="DeepLab")
    flags.add_optimization_flags(parser, num_steps=None, num_steps_stop=None, save_pred_every=5000)
    parser.set_defaults(batch_norm="train", val_every=None)
    group = parser.add_argument_group("MaxSquare (defaults with --city-name, the script for CrossCity, in brackets)")
    group.add_argument("--target-mode", choices=TARGET_MODES, default="maxsquare", help="loss on target images")
    group.add_argument("--lambda-target", type=not_negative, help="its weight (1 [0.1]; published: 0.1, with --multi 0.09)")
    group.add_argument("--IW-ratio", type=fraction, default=0.2, help="of image-wise weights: 0 all alike, 1 inverse frequency")
    group.add_argument("--threshold", type=fraction, help="of pseudo-labels, in hard and in --multi's guidance (0.95 [0.98])")
    parser.add_switch("--multi", group=group, help="train the lower classifier with self-produced guidance")
    group.add_argument("--lambda-seg", type=not_negative, default=0.1, help="weight of the lower classifier")
    group.add_argument("--round-num", type=positive, default=1, help="rounds; only the learning rate runs over all of them")
    group.add_argument("--epoch-each-round", type=positive, default=2, help="epochs of a round")
    group.add_argument("--epoch-num", type=positive, metavar="N", help="epochs in all, instead of rounds ([10])")
    group.add_argument("--checkpoint-dir", metavar="DIR", help="where --restore-id is looked for (default: --snapshot-dir)")
    group.add_argument("--restore-id", metavar="ID", help="start from CHECKPOINT_DIR/IDbest.pth, as the original names it")
    parser.add_switch("--continue-training", group=group, help=CONTINUE_TRAINING)
    parser.add_switch("--val-source", group=group, help="validate on the source's val split too (GTA5: needs split.mat)")
    parser.add_switch("--freeze-bn", group=group, help="the original's name for --batch-norm frozen-statistics")
    parser.add_switch("--fresh-classifier", group=group, help=flags.FRESH_CLASSIFIER)
    parser.add_switch("--random-mirror", group=group, default=True, help="mirror every second image")
    parser.add_switch("--gaussian-blur", group=group, default=True, help="blur every second image, radius below 1 pixel")
    # They are --batch-norm, --restore-from and --snapshot-dir by now.
    parser.leave_out_of_config("freeze_bn", "checkpoint_dir", "restore_id", "continue_training")
    return complete(parser.parse_args(arguments))


def complete(args: Namespace) -> Flags:
    """The values of flags that are not given, by the original's script for Cityscapes or (--city-name) for CrossCity."""
    given = Flags(**vars(args))
    crosscity = bool(given.city_name)
    usual = {
        "target": "crosscity" if crosscity else "cityscapes",
        "lambda_target": 0.1 if crosscity else 1.0,
        "threshold": 0.98 if crosscity else 0.95,
        "epoch_num": 10 if crosscity else given.round_num * given.epoch_each_round,
    }
    given = given.with_values(**{name: value for name, value in usual.items() if getattr(given, name) is None})
    directory = given.checkpoint_dir if given.checkpoint_dir and not given.restore_id else given.snapshot_dir
    resume = given.resume or (given.continue_training and has_state(directory))
    return flags.complete(given).with_values(
        batch_norm="frozen-statistics" if given.freeze_bn else given.batch_norm,
        snapshot_dir=directory,
        resume=resume,
        restore_from=starting_point(given, directory, resume),
    )


def starting_point(args: Flags, directory: str, resume: bool) -> str | None:
    """The file that --restore-from names, or the original's flags that say it in other words."""
    folder, name = args.checkpoint_dir or directory, args.restore_id
    if args.continue_training and not resume:
        usual, which = ("train_log", "best") if args.city_name else (f"gta52cityscapes_{args.target_mode}", "final")
        return f"{folder}/{name or usual}{which}.pth"
    return f"{folder}/{name}best.pth" if name else args.restore_from


def class_weights(counts: Tensor, ratio: float) -> Tensor:
    """Image-wise weights of the classes: 1 / max(count^ratio * total^(1-ratio), 1).

    Args:
        counts: (N,C) pixels of each image that each class wins.
    """
    total = counts.sum(1, keepdim=True)
    return 1 / (counts**ratio * total ** (1 - ratio)).clamp(min=1)


def pixel_weights(probability: Tensor, ratio: float) -> Tensor:
    """(N,1,H,W) weight of each pixel: that of the class it is predicted as, within its own image. Detached."""
    n, num_classes = probability.shape[:2]
    winner = probability.detach().argmax(1).view(n, -1)
    ones = torch.ones_like(winner, dtype=torch.float32)
    counts = torch.zeros(n, num_classes, device=winner.device).scatter_add_(1, winner, ones)
    weights = class_weights(counts, ratio).gather(1, winner)
    return weights.view(n, 1, *probability.shape[2:])


def target_loss(logits: Tensor, mode: str, ratio: float = 0.2, threshold: float = 0.95) -> Tensor:
    """The loss on target images that `mode` names; see the module's docstring.

    Args:
        logits: (N,C,H,W) at the input's size.
        ratio: of the image-wise modes. Their weights are each image's own, and the sum is divided by N * C.
        threshold: of `hard`.
    """
    probability = F.softmax(logits, dim=1)
    if mode == "hard":
        return cross_entropy(logits, pseudo_label(probability, probability, threshold))
    if mode.endswith("maxsquare"):
        values = -(probability**2)
    else:
        values = -probability * F.log_softmax(logits, dim=1)
    if mode == "maxsquare":
        return values.mean() / 2
    if mode == "entropy":
        return values.mean()
    n, num_classes = logits.shape[:2]
    return (values * pixel_weights(probability, ratio)).sum() / (n * num_classes)


def maps(logits: Tensor, mode: str, ratio: float) -> dict[str, Tensor]:
    """For pictures: the probability of each pixel's class, (N,H,W), and with an image-wise mode how much each pixel counts,
    relative to those of the class that fills most of the image.

    Args:
        logits: (N,C,H,W).
    """
    probability = F.softmax(logits.float(), dim=1)
    if not mode.startswith("IW"):
        return {"certainty": probability.amax(1)}
    weight = pixel_weights(probability, ratio)
    return {"certainty": probability.amax(1), "image-wise weight": weight / weight.amin((2, 3), keepdim=True)}


def pseudo_label(first: Tensor, second: Tensor, threshold: float) -> Tensor:
    """(N,H,W) uint8: the class of the larger mean probability where either classifier is surer than `threshold`, else 255.

    Args:
        first, second: (N,C,H,W) probabilities of two classifiers (or twice the same).
    """
    label = (first + second).argmax(1).to(torch.uint8)
    sure = torch.maximum(first.amax(1), second.amax(1)) > threshold
    return label.where(sure, torch.full_like(label, IGNORED))


def guidance_loss(low_logits: Tensor, logits: Tensor, threshold: float) -> Tensor:
    """Cross entropy of the lower classifier against what both classifiers say together (self-produced guidance)."""
    with torch.no_grad():
        label = pseudo_label(F.softmax(logits, dim=1), F.softmax(low_logits, dim=1), threshold)
    return cross_entropy(low_logits, label)


def main(args: Flags) -> None:
    device = set_up(args)
    classes = flags.classes_of(args)

    # Data
    mirror = [RandomMirror()] if args.random_mirror else []
    blur = [RandomBlur()] if args.gaussian_blur else []
    source_batches = source_loader(args, classes, Compose([*mirror, Resize(args.input_size), *blur]))
    target_batches = target_loader(args, classes, Compose([*mirror, Resize(args.input_size_target), *blur]))
    source_size, target_size = args.input_size[::-1], args.input_size_target[::-1]
    plan = plan_epochs(args, classes, source_batches, target_batches)

    # Network
    G = segmentation_network(args, len(classes))
    if args.multi and len(G.head_names) == 1:
        raise RunError(f"--multi needs a network with a lower classifier; {args.model} has one classifier")
    restore(G, args.restore_from, fresh_classifier=args.fresh_classifier)
    G.freeze_stem_norm()
    if not args.multi:
        for head in G.heads()[:-1]:
            head.requires_grad_(False)  # not used then, as in the original
    prepare(G, args, device).train()
    levels = 2 if args.multi else 1

    # Optimizer
    optimizer = segmentation_optimizer(G.parameter_groups(), args)

    loaders = {"source": source_batches, "target": target_batches}
    validation = {"": target_val_loader(args, classes)}
    if args.val_source:
        validation["source"] = source_val_loader(args, classes)
    run = Run(args, plan, device, args.source.upper(), {"": G}, {"G": optimizer}, loaders, validation)
    parallel_G = distributed.wrap(G)

    for step in run.steps():
        run.start_step(G=poly(args.learning_rate, step, plan.schedule_steps, args.power))

        # Source: cross entropy
        source = run.next(source_batches)
        with run.autocast():
            *low, pred_source = [upsample(logits, source_size) for logits in parallel_G(source["image"])[-levels:]]
            losses = {"loss_seg": cross_entropy(pred_source, source["label"])}
            loss = losses["loss_seg"]
            if args.multi:
                losses["loss_seg_low"] = cross_entropy(low[0], source["label"])
                loss = loss + args.lambda_seg * losses["loss_seg_low"]
        run.backward(loss, last=False)

        # Target: be certain, and with --multi teach the lower classifier
        target = run.next(target_batches)
        with run.autocast():
            *low, pred_target = [upsample(logits, target_size) for logits in parallel_G(target["image"])[-levels:]]
            losses["loss_target"] = target_loss(pred_target, args.target_mode, args.IW_ratio, args.threshold)
            loss = args.lambda_target * losses["loss_target"]
            if args.multi:
                losses["loss_guidance"] = guidance_loss(low[0], pred_target, args.threshold)
                loss = loss + args.lambda_seg * args.lambda_target * losses["loss_guidance"]
        run.backward(loss)

        run.update(optimizer)
        seen = (target, pred_target, partial(maps, pred_target, args.target_mode, args.IW_ratio))
        run.end_step(step, losses, source=(source, pred_source), target=seen)


def plan_epochs(args: Flags, classes: ClassSet, source_batches: EndlessLoader, target_batches: EndlessLoader) -> Plan:
    """Epochs as steps where --num-steps and --num-steps-stop are not given, with a validation after each epoch.

    An epoch is as long as the shorter data set. The learning rate is laid out by the list of Cityscapes, for one step more
    an epoch, as in the original: the source's where the target is CrossCity, the target's otherwise.
    """
    batch = args.batch_size * distributed.world_size()
    source, target = len(source_batches.dataset), len(target_batches.dataset)
    epoch = max(1, min(source, target) // batch)
    counted = min(((source if args.source == "cityscapes" else target) + batch) // batch, LONGEST_EPOCH)
    schedule_steps = args.num_steps or counted * args.epoch_num
    steps = min(args.num_steps_stop or epoch * args.epoch_num, schedule_steps)
    return Plan(classes, steps, schedule_steps, epoch if args.val_every is None else args.val_every, epoch)


if __name__ == "__main__":
    with exit_with_message():
        main(get_arguments())
