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

import torch
from torch.nn import functional as F

from dataset.catalogue import class_set
from dataset.transforms import Compose, RandomBlur, RandomMirror, Resize
from model import build_model, upsample
from utils import distributed
from utils.arguments import (
    WITHOUT_EFFECT,
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
from utils.loaders import source_loader, source_val_loader, target_loader, target_val_loader
from utils.losses import IGNORED, cross_entropy
from utils.optimizers import adam, poly, segmentation_optimizer, set_learning_rate
from utils.pictures import prediction_panel
from utils.run import Run
from utils.start import exit_with_message, restore
from utils.state import has_state

TARGET_MODES = ("maxsquare", "IW_maxsquare", "entropy", "IW_entropy", "hard")
LONGEST_EPOCH = 5000  # the original counts no more iterations of an epoch when it lays out the learning rate


def get_arguments(arguments=None):
    parser = Parser(__doc__)
    add_source_flags(parser)
    add_target_flags(parser, aliases=("--dataset",))
    add_network_flags(parser, model="DeepLab")
    add_optimization_flags(parser, num_steps=None, num_steps_stop=None, save_pred_every=5000, run_aliases=("--save-dir",))
    parser.set_defaults(batch_norm="train", val_every=None)
    group = parser.add_argument_group("MaxSquare")
    group.add_argument("--target-mode", choices=TARGET_MODES, default="maxsquare", help="loss on target images")
    group.add_argument("--lambda-target", type=float, default=1.0, help="its weight (published: 0.1; with --multi 0.09)")
    group.add_argument(
        "--IW-ratio", type=float, default=0.2, help="of image-wise weights: 0 all classes alike, 1 inverse frequency"
    )
    group.add_argument("--threshold", type=float, default=0.95, help="of pseudo-labels (hard, and guidance with --multi)")
    parser.add_switch("--multi", group=group, help="train the lower classifier with self-produced guidance")
    group.add_argument("--lambda-seg", type=float, default=0.1, help="weight of the lower classifier")
    group.add_argument(
        "--round-num", type=positive, default=1, help="rounds; nothing changes between them but the learning rate"
    )
    group.add_argument("--epoch-each-round", type=positive, default=2, help="epochs of a round")
    group.add_argument("--epoch-num", type=positive, metavar="N", help="epochs in all, instead of rounds (CrossCity: 10)")
    group.add_argument(
        "--checkpoint-dir", metavar="DIR", help="where --restore-id is looked for; without that, the run directory"
    )
    group.add_argument("--restore-id", metavar="ID", help="start from CHECKPOINT_DIR/IDbest.pth, as the original names it")
    parser.add_switch("--continue-training", group=group, help="--resume if the run directory holds a run; else start from "
                      "CHECKPOINT_DIR/IDfinal.pth, ID being gta52cityscapes_<mode> (CrossCity: train_logbest.pth)")  # fmt: skip
    parser.add_switch("--val-source", group=group, help="validate on the source's val split too (GTA5: needs split.mat)")
    group.add_argument("--optim", choices=("SGD", "Adam"), default="SGD", help="Adam: betas (0.9, 0.99), each parameter once")
    parser.add_switch("--freeze-bn", group=group, help="the original's name for --batch-norm frozen-statistics")
    parser.add_switch("--random-mirror", group=group, default=True, help="mirror every second image")
    parser.add_switch("--gaussian-blur", group=group, default=True, help="blur every second image, radius below 1 pixel")
    parser.also("--data-dir-target", "--data-root-path")
    parser.also("--data-list-target", "--list-path")
    parser.accept_without_effect(*WITHOUT_EFFECT, "--gamma", "--exp-tag", "--exp", "--init-round", takes_value=True)
    parser.set_defaults(target=None)
    args = parser.parse_args(arguments)
    args.target = args.target or ("crosscity" if args.city_name else "cityscapes")
    set_target_defaults(set_source_defaults(args))
    if args.freeze_bn:
        args.batch_norm = "frozen-statistics"
    folder = args.checkpoint_dir or args.snapshot_dir
    if args.checkpoint_dir and not args.restore_id:
        args.snapshot_dir = args.checkpoint_dir
    args.resume = args.resume or (args.continue_training and has_state(args.snapshot_dir))
    if args.continue_training and not args.resume:
        usual, which = ("train_log", "best") if args.city_name else (f"gta52cityscapes_{args.target_mode}", "final")
        args.restore_from = f"{folder}/{args.restore_id or usual}{which}.pth"
    elif args.restore_id:
        args.restore_from = f"{folder}/{args.restore_id}best.pth"
    args.epoch_num = args.epoch_num or args.round_num * args.epoch_each_round
    return args


def class_weights(counts, ratio):
    """Image-wise weights of the classes: 1 / max(count^ratio * total^(1-ratio), 1).

    Args:
        counts: (N,C) pixels of each image that each class wins.
    """
    total = counts.sum(1, keepdim=True)
    return 1 / (counts**ratio * total ** (1 - ratio)).clamp(min=1)


def pixel_weights(probability, ratio):
    """(N,1,H,W) weight of each pixel: that of the class it is predicted as, within its own image. Detached."""
    n, num_classes = probability.shape[:2]
    winner = probability.detach().argmax(1).view(n, -1)
    ones = torch.ones_like(winner, dtype=torch.float32)
    counts = torch.zeros(n, num_classes, device=winner.device).scatter_add_(1, winner, ones)
    weights = class_weights(counts, ratio).gather(1, winner)
    return weights.view(n, 1, *probability.shape[2:])


def target_loss(logits, mode, ratio=0.2, threshold=0.95):
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


def pseudo_label(first, second, threshold):
    """(N,H,W) uint8: the class of the larger mean probability where either classifier is surer than `threshold`, else 255.

    Args:
        first, second: (N,C,H,W) probabilities of two classifiers (or twice the same).
    """
    label = (first + second).argmax(1).to(torch.uint8)
    sure = torch.maximum(first.amax(1), second.amax(1)) > threshold
    return label.where(sure, torch.full_like(label, IGNORED))


def guidance_loss(low_logits, logits, threshold):
    """Cross entropy of the lower classifier against what both classifiers say together (self-produced guidance)."""
    with torch.no_grad():
        label = pseudo_label(F.softmax(logits, dim=1), F.softmax(low_logits, dim=1), threshold)
    return cross_entropy(low_logits, label)


def main(args):
    device = set_up(args)

    # Data
    mirror = [RandomMirror()] if args.random_mirror else []
    blur = [RandomBlur()] if args.gaussian_blur else []
    source_batches = source_loader(args, Compose([*mirror, Resize(args.input_size), *blur]))
    target_batches = target_loader(args, Compose([*mirror, Resize(args.input_size_target), *blur]))
    lay_out_epochs(args, source_batches, target_batches)
    val_images = {"": target_val_loader(args), **({"source": source_val_loader(args)} if args.val_source else {})}

    # Network
    G = build_model(args.model, args.num_classes, aspp_branches=args.aspp_branches, batch_norm=args.batch_norm)
    if args.multi and len(G.head_names) == 1:
        raise ValueError(f"--multi needs a network with a lower classifier; {args.model} has one classifier")
    restore(G, args.restore_from)
    G.freeze_stem_norm()
    if not args.multi:
        for head in G.heads()[:-1]:
            head.requires_grad_(False)  # not used then, as in the original
    prepare(G, args, device).train()

    # Optimizer
    if args.optim == "SGD":
        optimizer = segmentation_optimizer(G.parameter_groups(), args.updates, args.learning_rate, args.momentum,
                                           args.weight_decay)  # fmt: skip
    else:
        optimizer = adam(G.parameter_groups(), args.learning_rate, args.weight_decay)

    loaders = {"source": source_batches, "target": target_batches}
    run = Run(args, device, args.source.upper(), {"": G}, {"G": optimizer}, loaders)
    run.start()
    parallel_G = distributed.wrap(G)
    levels = 2 if args.multi else 1
    source_size, target_size = args.input_size[::-1], args.input_size_target[::-1]

    for step in run.steps(args.num_steps_stop):
        rate = poly(args.learning_rate, step, args.num_steps, args.power)
        set_learning_rate(optimizer, rate)
        optimizer.zero_grad(set_to_none=True)

        # Source: cross entropy
        source = run.next(source_batches)
        with run.autocast():
            *low, pred_source = [upsample(logits, source_size) for logits in parallel_G(source["image"])[-levels:]]
            losses = {"loss_seg": cross_entropy(pred_source, source["label"])}
            loss = losses["loss_seg"]
            if args.multi:
                losses["loss_seg_low"] = cross_entropy(low[0], source["label"])
                loss = loss + args.lambda_seg * losses["loss_seg_low"]
        run.backward(loss)

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

        run.log(step, losses, {"lr": rate})
        run.save(step)
        if run.due(step, args.save_pred_every):
            run.add_picture(step, "source", prediction_panel(source, pred_source, args.save_num_images))
            run.add_picture(step, "target", prediction_panel(target, pred_target, args.save_num_images))
        if run.due(step, args.val_every):
            for domain, images in val_images.items():
                confusion = evaluate(G, images, args.num_classes, device, autocast=run.autocast)
                run.record_validation(step, confusion, class_set(args.num_classes).names, domain)


def lay_out_epochs(args, source_batches, target_batches):
    """Turn epochs into steps where --num-steps and --num-steps-stop are not given, and validate after each epoch.

    An epoch is as long as the shorter data set; the learning rate is laid out for one step more, as in the original.
    """
    batch = args.batch_size * distributed.world_size()
    images = min(len(source_batches.dataset), len(target_batches.dataset))
    epoch = max(1, images // batch)
    counted = min((len(target_batches.dataset) + batch) // batch, LONGEST_EPOCH)
    args.num_steps = args.num_steps or counted * args.epoch_num
    args.num_steps_stop = min(args.num_steps_stop or epoch * args.epoch_num, args.num_steps)
    args.val_every = epoch if args.val_every is None else args.val_every


if __name__ == "__main__":
    with exit_with_message():
        main(get_arguments())
