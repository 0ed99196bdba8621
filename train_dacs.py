"""DACS: Domain Adaptation via Cross-domain Mixed Sampling (Tranheden et al., WACV 2021, 2007.08702).

A student learns from source labels, and from a teacher's labels on target images into which half of the classes of a source
image are pasted (ClassMix). The teacher is an exponential moving average of the student (algorithm 1 of the paper):

    L_seg    cross entropy on the source                                              over labelled pixels
    y_t, q   the teacher's prediction on target images, and the share of pixels that it is sure of: max p >= 0.968
    x_m, y_m = M * (x_s, y_s) + (1 - M) * (x_t, y_t)                                  M: half of the source's classes
    L_mixed  mean over all pixels of w * CE(student(jitter and blur(x_m)), y_m)       w = 1 where M, else q
    student  minimises  L_seg + lambda_mixed * L_mixed
    teacher  <- alpha * teacher + (1 - alpha) * student,  alpha = min(1 - 1 / (step + 1), 0.99)

    --mask                     masked image consistency (MIC, Hoyer et al., CVPR 2023, 2212.01322): + lambda_mask * L_masked,
                               mean of q * CE(student(target image with hidden blocks), y_t)
    --rare-class-sampling T    source images by rare classes (DAFormer, Hoyer et al., CVPR 2022, 2111.14887), T = 0.01 there

As published, from weights trained on COCO (resnet101COCO-41f33a49.pth in ./model; the classifier stays random):

    python train_dacs.py --snapshot-dir ./saved/DeepLabv2/UDA --val-every 5000
    python train_dacs.py --snapshot-dir ./saved/DeepLabv2/UDA_synthia --source synthia --num-classes 16

Several GPUs: torchrun --nproc-per-node N train_dacs.py ... (the batch size is per process).
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dataset.catalogue import ClassSet
from dataset.loader import EndlessLoader
from dataset.transforms import Compose, RandomCrop, Resize
from model import to_dacs, upsample
from model.segmenter import Segmenter
from utils import distributed, flags
from utils.device import prepare, set_up
from utils.domains import rare_class_loader, source_loader, target_loader, target_val_loader
from utils.errors import RunError, exit_with_message
from utils.losses import IGNORED, cross_entropy, mean_over_labelled
from utils.mean_teacher import AVERAGES, make_teacher, teacher_momentum, update_teacher
from utils.mixing import IDS, block_mask, blocks, class_mask, draw_classes, uniform
from utils.networks import segmentation_network
from utils.old_names import OLD_NAMES
from utils.optimizers import poly, segmentation_optimizer
from utils.parser import Flags, Parser, above_zero, count, fraction, not_negative, positive, size
from utils.plan import plan_steps
from utils.run import Run
from utils.snapshots import Snapshots
from utils.starting_weights import restore
from utils.strong_augmentation import augment

COCO = "resnet101COCO-41f33a49.pth"
CROP = (512, 512)

# Help that takes more than a line.
PIXEL_WEIGHT = (
    "of pseudo-labels: the share of sure pixels of the whole batch (threshold_uniform in the original), of each image, 1 or 0 "
    "for each pixel (threshold), or always 1"
)
TEACHER_AVERAGES = "what the teacher averages: parameters (its BatchNorm statistics are its own), or these statistics too"


def get_arguments(arguments: list[str] | None = None) -> Flags:
    parser = Parser(__doc__, OLD_NAMES["train_dacs.py"])
    flags.add_source_flags(parser)
    flags.add_target_flags(parser)
    flags.add_network_flags(parser, model="Res_Deeplab")
    flags.add_optimization_flags(parser, num_steps=250000, num_steps_stop=None, save_pred_every=5000)
    group = parser.add_argument_group("DACS")
    group.add_argument("--crop", type=size, metavar="W,H", help="of the resized images (default 512,512, as far as they reach)")
    group.add_argument("--lambda-mixed", type=not_negative, default=1.0, help="weight of the loss on mixed images")
    group.add_argument("--threshold", type=fraction, default=0.968, help="probability from which a pseudo-label is sure")
    group.add_argument("--pixel-weight", choices=("batch", "image", "pixel", "none"), default="batch", help=PIXEL_WEIGHT)
    group.add_argument("--teacher-momentum", type=fraction, default=0.99, help="alpha, the teacher's share of the average")
    group.add_argument("--teacher-averages", choices=AVERAGES, default="parameters", help=TEACHER_AVERAGES)
    parser.add_switch("--teacher-first", group=group, help="update the teacher before each step, not after it (as MIC does)")
    parser.add_switch("--paste-ignored", group=group, default=True, help="ignored pixels are a class that may be pasted")
    parser.add_switch("--divide-by-all", group=group, default=True, help="ignored pixels count where mixed pixels are averaged")
    parser.add_switch("--color-jitter", group=group, default=True, help="jitter colours of four mixed batches in five")
    parser.add_switch("--blur", group=group, default=True, help="blur every second mixed batch")
    parser.add_switch("--augment-each", group=group, help="decide on jitter and blur for each image, not for the batch")
    parser.add_switch("--fresh-classifier", group=group, help=flags.FRESH_CLASSIFIER)
    group = parser.add_argument_group("masked image consistency, and rare class sampling")
    parser.add_switch("--mask", group=group, help="learn from masked target images too (MIC)")
    group.add_argument("--mask-block", type=positive, default=32, metavar="N", help="side of the blocks that are hidden")
    group.add_argument("--mask-ratio", type=fraction, default=0.7, help="share of blocks that are hidden")
    group.add_argument("--lambda-mask", type=not_negative, default=1.0, help="weight of the loss on masked images")
    group.add_argument(
        "--rare-class-sampling", type=above_zero, metavar="T", help="temperature; smaller: rare classes more often"
    )
    group.add_argument("--rare-class-pixels", type=count, default=3000, metavar="N", help="an image has more of its class")
    group.add_argument("--class-statistics", metavar="FILE", help="of the source, as JSON (default: beside it, or made)")
    parser.set_defaults(batch_size=2)
    args = flags.complete(parser.parse_args(arguments))
    largest = tuple(map(min, args.input_size, args.input_size_target))
    if args.crop and any(side > limit for side, limit in zip(args.crop, largest, strict=True)):
        raise RunError(
            f"--crop {args.crop[0]},{args.crop[1]} is larger than the resized images; at most {largest[0]},{largest[1]}"
        )
    return args.with_values(crop=args.crop or tuple(map(min, CROP, largest)))


def pseudo_label(logits: Tensor, threshold: float, weighting: str) -> tuple[Tensor, Tensor]:
    """The teacher's labels (N,H,W) uint8, and their weights, (N,H,W) or as many as that broadcasts to.

    Args:
        logits: (N,C,H,W) at the images' size.
        weighting: "batch" (the share of all pixels, of all processes, with a probability of at least `threshold`), "image" (the
            share of each image), "pixel" (1 or 0) or "none" (1).
    """
    probability, label = F.softmax(logits.float(), dim=1).max(1)
    sure = (probability >= threshold).float()
    if weighting == "batch":
        weight = distributed.sum_across_processes(sure.mean()).view(1, 1, 1) / distributed.world_size()
    elif weighting == "image":
        weight = sure.mean((1, 2), keepdim=True)
    else:
        weight = sure if weighting == "pixel" else torch.ones_like(sure)
    return label.to(torch.uint8), weight


def weighted_cross_entropy(logits: Tensor, label: Tensor, weight: Tensor, divide_by_all: bool = True) -> Tensor:
    """Mean of weight * cross entropy, which is 0 for ignored pixels: over all pixels as published, or the labelled ones.

    Args:
        logits: (N,C,H,W); label: (N,H,W) train ids, 255 for ignored; weight: broadcasts to (N,H,W).
    """
    pixels = weight * F.cross_entropy(logits, label.long(), ignore_index=IGNORED, reduction="none")
    return pixels.mean() if divide_by_all else mean_over_labelled(pixels, label != IGNORED)


def main(args: Flags) -> None:
    device = set_up(args)
    classes = flags.classes_of(args)
    plan = plan_steps(args, classes)

    # Data: crops; validation with labels resized to the images, as published, and at full size
    crop, crop_size = RandomCrop(args.crop), args.crop[::-1]
    source_batches = source_crops(args, classes, crop)
    resize_target = Resize(args.input_size_target, mode="bilinear")
    target_batches = target_loader(args, classes, Compose([resize_target, crop]))
    full_size = Resize(args.input_size_target, label=False, mode="bilinear")
    validation = {
        "": target_val_loader(args, classes, transform=resize_target),
        "full_size": target_val_loader(args, classes, transform=full_size),
    }

    # Student and teacher
    G = segmentation_network(args, len(classes), heads="single")
    restore(G, args.restore_from, COCO, fresh_classifier=args.fresh_classifier or not args.restore_from)
    teacher = make_teacher(G, args.teacher_averages)
    for network in (G, teacher):
        prepare(network, args, device).train()

    optimizer = segmentation_optimizer(G.parameter_groups(), args)
    networks, loaders = {"": G, "_teacher": teacher}, {"source": source_batches, "target": target_batches}
    run = Run(args, plan, device, DacsSnapshots(), networks, {"G": optimizer}, loaders, validation)
    parallel_G = distributed.wrap(G)

    for step in run.steps():
        run.start_step(G=poly(args.learning_rate, step, plan.schedule_steps, args.power))
        alpha = teacher_momentum(step, args.teacher_momentum)
        if args.teacher_first:
            update_teacher(teacher, G, alpha, args.teacher_averages)

        # Learn from the source
        source = run.next(source_batches)
        with run.autocast():
            pred_source = upsample(parallel_G(source["image"])[-1], crop_size)
            losses = {"loss_seg": cross_entropy(pred_source, source["label"])}
        run.backward(losses["loss_seg"], last=False)

        # Label the target
        target = run.next(target_batches)
        with torch.no_grad(), run.autocast():
            pred_target = upsample(teacher(target["image"])[-1], crop_size)
        target["label"], weight = pseudo_label(pred_target, args.threshold, args.pixel_weight)

        # Paste half of the source's classes into the target, and learn from that
        draws = uniform(args.batch_size, IDS, device=device)
        pasted = class_mask(source["label"], draw_classes(source["label"], draws, args.paste_ignored))
        mixed = {
            "image": torch.where(pasted[:, None], source["image"], target["image"]),
            "label": torch.where(pasted, source["label"], target["label"]),
        }
        mixed_weight = torch.where(pasted, 1.0, weight)
        images = augmented(G, mixed["image"], args)
        with run.autocast():
            pred_mixed = upsample(parallel_G(images)[-1], crop_size)
            loss_mixed = weighted_cross_entropy(pred_mixed, mixed["label"], mixed_weight, args.divide_by_all)
        run.backward(args.lambda_mixed * loss_mixed, last=not args.mask)
        losses |= {"loss_mixed": loss_mixed, "confidence": weight.mean()}

        # See the target through holes
        if args.mask:
            draws = uniform(args.batch_size, 1, *blocks(crop_size, args.mask_block), device=device)
            images = augmented(G, target["image"], args) * block_mask(draws, crop_size, args.mask_ratio)
            with run.autocast():
                pred_masked = upsample(parallel_G(images)[-1], crop_size)
                losses["loss_masked"] = weighted_cross_entropy(pred_masked, target["label"], weight)
            run.backward(args.lambda_mask * losses["loss_masked"])

        run.update(optimizer)
        if not args.teacher_first:
            update_teacher(teacher, G, alpha, args.teacher_averages)
        run.end_step(step, losses, source=(source, pred_source), target=(target, pred_target), mixed=(mixed, pred_mixed))


def source_crops(args: Flags, classes: ClassSet, crop: RandomCrop) -> EndlessLoader:
    """Endless crops of the source, with --rare-class-sampling around rare classes."""
    resize, temperature = Resize(args.input_size), args.rare_class_sampling
    if temperature is None:
        return source_loader(args, classes, Compose([resize, crop]))
    return rare_class_loader(args, classes, (resize, crop), temperature, args.rare_class_pixels)


def augmented(network: Segmenter, images: Tensor, args: Flags) -> Tensor:
    """(N,3,H,W) uint8 RGB images with other colours and blurred, normalised for `network`."""
    return network.normalize(255 * augment(images / 255, args.color_jitter, args.blur, alike=not args.augment_each))


class DacsSnapshots(Snapshots):
    """`checkpoint-iter<step>.pth` and `best_model.pth` with student and teacher, as DACS' own."""

    def __init__(self) -> None:
        super().__init__("checkpoint")

    def files(self, tag: int | str, networks: Mapping[str, nn.Module]) -> dict[str, Any]:
        name = f"{tag}_model.pth" if isinstance(tag, str) else f"checkpoint-iter{tag}.pth"
        student, teacher = (cast(Segmenter, networks[suffix]) for suffix in ("", "_teacher"))
        return {name: to_dacs(student, teacher, tag if isinstance(tag, int) else None)}


if __name__ == "__main__":
    with exit_with_message():
        main(get_arguments())
