"""FADA: Classes Matter, A Fine-grained Adversarial Approach to Cross-domain Semantic Segmentation (Wang et al., ECCV 2020,
2007.09222).

A discriminator on the features tells not only the domain of a pixel but domain and class, 2C answers; the classes it is trained
with are the classifier's own soft ones (section 3 of the paper, with the published code's constants). With q the soft label
softmax(logits / T), clipped at 0.9, d the discriminator's answer and CE(d, q) = mean over pixels of -sum q log softmax(d):

    source        loss_seg = CE(classifier(F(x_s)), y_s)                           features F and classifier on the source
    adversarial   F, classifier minimise  loss_seg = CE(logits_s / T, y_s)  plus lambda_adv * loss_adv
                                          loss_adv = CE(D(F(x_t)), [q_t, 0])
                  D minimises             loss_D = 0.5 * CE(D(F(x_s)), [q_s, 0]) + 0.5 * CE(D(F(x_t)), [0, q_t])
    pseudo-label  argmax of the adapted network on the target's training images
    distill       CE(classifier(F(x_t)), pseudo-label)                             a fresh network, on the target alone

Published, on 4 GPUs (the batch size is of all processes together); every stage finds what the one before it left:

    torchrun --nproc-per-node 4 train_fada.py --stage all --snapshot-dir ./snapshots/fada_gta5
    torchrun --nproc-per-node 4 train_fada.py --stage all --source synthia --snapshot-dir ./snapshots/fada_synthia
    ... --model deeplab_vgg16 for VGG16; --resume continues an interrupted run, between or inside stages
"""

import argparse
import os
from collections.abc import Callable, Sequence
from glob import escape, glob
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dataset import EndlessLoader, class_names, sequential_loader
from dataset.classes import identity_table
from dataset.segmentation import SegmentationDataset
from dataset.transforms import Compose, RandomColorJitter, RandomCrop, RandomMirror, RandomScale, Resize
from model import FeatureDiscriminator, WeightsError, build_model, load_model, load_weights, read_weights, to_fada, upsample
from model.segmenter import Segmenter
from utils import distributed
from utils.arguments import (
    Parser,
    add_network_flags,
    add_optimization_flags,
    add_source_flags,
    add_target_flags,
    numbers,
    set_source_defaults,
    set_target_defaults,
    size,
    with_values,
)
from utils.device import autocast, prepare, set_up
from utils.evaluation import evaluate, predictions
from utils.loaders import class_balanced_order, endless, source_dataset, target_dataset, target_val_loader
from utils.losses import cross_entropy
from utils.optimizers import discriminator_optimizer, poly, segmentation_optimizer, set_learning_rate
from utils.pictures import prediction_panel
from utils.run import Run, fixed_flags
from utils.self_training.label_folders import LabelFolder, left_over, progress
from utils.start import exit_with_message, restore, restore_discriminators
from utils.state import claim_directory, has_state, seed_everything

JITTER, NO_JITTER = (0.5, 0.5, 0.5, 0.2), (0, 0, 0, 0)
SOURCE, TARGET = 0, 1


class Stage(NamedTuple):
    """What is published for a stage's flags: used where they are not given."""

    learning_rate: float | None
    num_steps: int | None
    num_steps_stop: int | None
    color_jitter: tuple[float, ...] | None
    input_size_test: tuple[int, int]
    batch_norm: str = "frozen"


STAGES = {
    "source": Stage(5e-4, 31250, 20000, NO_JITTER, (1024, 512)),
    "adversarial": Stage(2.5e-4, 62500, 40000, JITTER, (1024, 512)),
    "pseudo-label": Stage(None, None, None, None, (1024, 512)),
    "distill": Stage(5e-4, 31250, 20000, JITTER, (2048, 1024)),
}
# What is published otherwise: distillation trains BatchNorm, but not for SYNTHIA or VGG16, which has no jitter either.
EXCEPTIONS = (
    ({"stage": "distill", "source": "gta5", "backbone": "resnet"}, {"batch_norm": "train"}),
    ({"stage": "distill", "backbone": "vgg"}, {"color_jitter": NO_JITTER}),
)
IMAGENET = {"resnet": "resnet101-5d3b4d8f.pth", "vgg": "vgg16-00b39a1b.pth"}


def get_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add_source_flags(parser)
    add_target_flags(parser)
    add_network_flags(parser, model="deeplab_resnet101")
    add_optimization_flags(parser, None, None, save_pred_every=2000, batch_help="images of all processes and domains together")
    parser.set_defaults(batch_size=8, learning_rate=None, num_classes=None, batch_norm=None)
    group = parser.add_argument_group("FADA")
    group.add_argument("--stage", choices=(*STAGES, "all"), default="all", help="one stage, or the whole chain")
    group.add_argument("--temperature", type=float, default=1.8, help="T, which divides the logits in the adversarial stage")
    group.add_argument("--clip", type=float, default=0.9, help="upper bound of soft labels")
    group.add_argument("--lambda-adv", type=float, default=0.001, help="weight of the adversarial loss")
    group.add_argument("--learning-rate-D", type=float, default=1e-4, help="of the discriminator")
    group.add_argument("--restore-discriminator", metavar="FILE", help="weights of the discriminator, or a FADA checkpoint")
    group.add_argument(
        "--color-jitter",
        type=numbers,
        metavar="B,C,S,H",
        help="strength of the jitter of brightness, contrast, saturation and hue, on the source in adversarial and on the "
        "target in distill (default 0.5,0.5,0.5,0.2; none in VGG16's distill)",
    )
    group.add_argument(
        "--scale-range", type=numbers, default=(0.5, 1.5), metavar="LOW,HIGH", help="range of random scales in distill"
    )
    group.add_argument(
        "--input-size-test",
        type=size,
        metavar="W,H",
        help="target images are resized to this for pseudo-labels and validation (default 1024,512; in distill 2048,1024)",
    )
    group.add_argument("--pseudo-labels", metavar="DIR", help="folder of labels for distill (default: from pseudo-label)")
    parser.add_switch("--class-balanced", group=group, default=True, help="sample rare classes more often")
    group.add_argument(
        "--class-statistics", metavar="FILE", help="class_statistics_C.json or label_info.p (default: beside the data, or made)"
    )
    parser.describe(
        restore_from="weights to start from: a file, a URL, or torchvision:NAME (default for source and distill: "
        "resnet101-5d3b4d8f.pth or vgg16-00b39a1b.pth in ./model or ./pretrained_model; for the others the stage before)",
        learning_rate="of the features (default 5e-4, adversarial 2.5e-4); the classifier has 10 times that",
        num_steps="where the poly schedule reaches 0 (default 31250, adversarial 62500)",
        num_steps_stop="where training stops (default 20000, adversarial 40000)",
        num_classes="default 19, for SYNTHIA 16",
        batch_norm="default frozen; train in distill for GTA5 with ResNet-101",
        updates="of the discriminator's Adam: as PyTorch 1.2 computed it (published) or as today (clean)",
        input_size_target="target images are resized to this; in distill crops have this size (default 1024,512)",
    )
    args = set_target_defaults(set_source_defaults(parser.parse_args(arguments)))
    args.num_classes = args.num_classes or (16 if args.source == "synthia" else 19)
    if args.color_jitter is not None and (len(args.color_jitter) != 4 or not 0 <= args.color_jitter[3] <= 0.5):
        parser.error("--color-jitter wants four numbers, the last (hue) at most 0.5")
    if len(args.scale_range) != 2:
        parser.error("--scale-range wants two numbers")
    if args.stage == "all" and args.pseudo_labels:
        parser.error("--pseudo-labels names a folder for --stage distill; --stage all makes its own")
    return args


def stage_settings(args: argparse.Namespace, stage: str) -> argparse.Namespace:
    """The flags of one stage: its directory, and published values where none are given.

    Raises:
        ValueError: --num-steps-stop is beyond --num-steps, or --batch-size cannot be shared out.
    """
    values = STAGES[stage]._asdict()
    facts = {"stage": stage, "source": args.source, "backbone": backbone(args)}
    for case, others in EXCEPTIONS:
        if case.items() <= facts.items():
            values |= others
    values |= {key: getattr(args, key) for key in values if getattr(args, key) is not None}
    if args.stage == "all" and stage in ("adversarial", "pseudo-label"):
        values["restore_from"] = None  # in the chain these start from the stage before
    settings = with_values(args, stage=stage, snapshot_dir=stage_directory(args.snapshot_dir, stage), **values)
    if stage == "pseudo-label":
        return settings
    share_of_batch(settings)
    stop = args.num_steps_stop or min(settings.num_steps_stop, settings.num_steps)
    if stop > settings.num_steps:
        raise ValueError(f"--num-steps-stop {stop} is beyond --num-steps {settings.num_steps}, where the rate is 0")
    return with_values(settings, num_steps_stop=stop)


def backbone(args: argparse.Namespace) -> str:
    return "vgg" if "vgg" in args.model.lower() else "resnet"


def stage_directory(root: str, stage: str) -> str:
    return os.path.join(root, "pseudo-labels" if stage == "pseudo-label" else stage)


def share_of_batch(args: argparse.Namespace) -> int:
    """Images per process and domain in a stage: a published batch size counts all of them.

    Raises:
        ValueError: it cannot be shared out evenly.
    """
    domains = 2 if args.stage == "adversarial" else 1
    share, rest = divmod(args.batch_size, distributed.world_size() * domains)
    if rest:
        both = " and two domains" if domains == 2 else ""
        raise ValueError(f"--batch-size {args.batch_size} cannot be shared by {distributed.world_size()} processes{both}")
    return share


def soft_label(logits: Tensor, temperature: float, clip: float = 0.9) -> Tensor:
    """q (N,C,H,W): softmax(logits / T) clipped at `clip` and not normalised again; no gradient."""
    return F.softmax(logits.detach().float() / temperature, dim=1).clamp(max=clip)


def soft_cross_entropy(domain_logits: Tensor, q: Tensor, domain: int) -> Tensor:
    """Mean over pixels of -sum q log softmax(d), with q in the source (domain 0) or target half (1) of the 2C channels.

    Args:
        domain_logits: (N,2C,H,W).
        q: (N,C,H,W).
    """
    half = F.log_softmax(domain_logits.float(), dim=1).chunk(2, dim=1)[domain]
    return -(q * half).sum(1).mean()


def main(args: argparse.Namespace) -> None:
    device = set_up(args)
    run_stage = {
        "source": train_source,
        "adversarial": train_adversarial,
        "pseudo-label": write_pseudo_labels,
        "distill": train_distill,
    }
    chain = args.stage == "all"
    if chain:
        claim_directory(args.snapshot_dir, fixed_flags(args) | {"batch_size": args.batch_size}, args.resume)
    for settings in [stage_settings(args, stage) for stage in (STAGES if chain else (args.stage,))]:
        seed_everything(args.random_seed)  # a stage is the same whether the ones before it ran or were finished
        if chain and settings.stage != "pseudo-label":
            last = os.path.join(settings.snapshot_dir, f"model_iter{settings.num_steps_stop:06d}.pth")
            if args.resume and os.path.exists(last):
                continue
            settings = with_values(settings, resume=args.resume and has_state(settings.snapshot_dir))
        if distributed.is_main():
            print(f"\nstage {settings.stage}: {settings.snapshot_dir}")
        run_stage[settings.stage](settings, device)


def train_source(args: argparse.Namespace, device: torch.device) -> None:
    """Cross-entropy on the source."""
    train_supervised(args, device, "source", class_balanced_loader(args, Resize(args.input_size)), args.input_size)


def train_distill(args: argparse.Namespace, device: torch.device) -> None:
    """Cross-entropy on the target's pseudo-labels, with a fresh network."""
    batches = endless(args, pseudo_labelled_dataset(args), batch_size=share_of_batch(args))
    train_supervised(args, device, "target", batches, args.input_size_target)


def train_supervised(
    args: argparse.Namespace, device: torch.device, domain: str, batches: EndlessLoader, size: tuple[int, int]
) -> None:
    """Cross-entropy on the labels of one domain, with images of `size` (W,H)."""
    val_images = target_val_loader(args, args.input_size_test)
    G = build_network(args, device)
    optimizer = segmentation_optimizer(G.parameter_groups(10), "clean", args.learning_rate, args.momentum, args.weight_decay)
    run = Run(args, device, FadaSnapshots(), {"": G}, {"G": optimizer}, {domain: batches})
    run.start()
    parallel_G = distributed.wrap(G)

    for step in run.steps(args.num_steps_stop):
        rates = {"lr_G": poly(args.learning_rate, step, args.num_steps, args.power)}
        set_learning_rate(optimizer, rates["lr_G"])
        optimizer.zero_grad(set_to_none=True)

        batch = run.next(batches)
        with run.autocast():
            pred = upsample(parallel_G(batch["image"])[-1], size[::-1])
            loss_seg = cross_entropy(pred, batch["label"])
        run.backward(loss_seg)
        run.update(optimizer)

        run.log(step, {"loss_seg": loss_seg}, rates)
        run.save(step)
        if run.due(step, args.save_pred_every):
            run.add_picture(step, domain, prediction_panel(batch, pred, args.save_num_images))
        if run.due(step, args.val_every):
            confusion = evaluate(G, val_images, args.num_classes, device, autocast=run.autocast)
            run.record_validation(step, confusion, class_names(args.num_classes))


def train_adversarial(args: argparse.Namespace, device: torch.device) -> None:
    """Cross-entropy on the source, and features of the target that the class-level discriminator takes for the source's."""
    # Data
    source_batches = class_balanced_loader(args, Compose([RandomColorJitter(args.color_jitter), Resize(args.input_size)]))
    target = target_dataset(args, Resize(args.input_size_target))
    target_batches = endless(args, target, seed_offset=1, batch_size=share_of_batch(args))
    val_images = target_val_loader(args, args.input_size_test)

    # Networks: features and classifier in G, the class-level discriminator on the features
    G = build_network(args, device)
    D = FeatureDiscriminator(G.feature_channels, args.num_classes)
    restore_discriminators([D], args.restore_discriminator)
    prepare(D, args, device)

    # Optimizers
    optimizer_G = segmentation_optimizer(G.parameter_groups(10), "clean", args.learning_rate, args.momentum, args.weight_decay)
    optimizer_D = discriminator_optimizer(D.parameters(), args.updates, args.learning_rate_D)
    loaders = {"source": source_batches, "target": target_batches}
    run = Run(args, device, FadaSnapshots(), {"": G, "_D": D}, {"G": optimizer_G, "D": optimizer_D}, loaders)
    run.start()
    parallel_G, parallel_D = distributed.wrap(G), distributed.wrap(D)
    source_size, target_size = args.input_size[::-1], args.input_size_target[::-1]

    for step in run.steps(args.num_steps_stop):
        rates = {
            "lr_G": poly(args.learning_rate, step, args.num_steps, args.power),
            "lr_D": poly(args.learning_rate_D, step, args.num_steps, args.power),
        }
        for optimizer, rate in zip((optimizer_G, optimizer_D), rates.values(), strict=True):
            set_learning_rate(optimizer, rate)
            optimizer.zero_grad(set_to_none=True)

        # Train features and classifier with source
        source = run.next(source_batches)
        with run.autocast():
            logits, source_features = parallel_G(source["image"], with_features=True)
            pred_source = upsample(logits[-1], source_size)
            loss_seg = cross_entropy(pred_source / args.temperature, source["label"])
        run.backward(loss_seg)
        source_q = soft_label(pred_source, args.temperature, args.clip)

        # Train the features with target: make each target pixel look like a source pixel of its class
        D.requires_grad_(False)
        target = run.next(target_batches)
        with run.autocast():
            logits, target_features = parallel_G(target["image"], with_features=True)
            pred_target = upsample(logits[-1], target_size)
            target_q = soft_label(pred_target, args.temperature, args.clip)
            loss_adv = soft_cross_entropy(upsample(D(target_features), target_size), target_q, SOURCE)
        # The classifier learns nothing here, but several processes wait for a gradient of each parameter.
        run.backward(args.lambda_adv * loss_adv + (0 * logits[-1].sum() if distributed.world_size() > 1 else 0))

        # Train D with the features of both domains, as they were before the update
        D.requires_grad_(True)
        with run.autocast():
            domain_logits = upsample(parallel_D(source_features.detach()), source_size)
            loss_D_source = soft_cross_entropy(domain_logits, source_q, SOURCE)
        run.backward(0.5 * loss_D_source)
        with run.autocast():
            domain_logits = upsample(parallel_D(target_features.detach()), target_size)
            loss_D_target = soft_cross_entropy(domain_logits, target_q, TARGET)
        run.backward(0.5 * loss_D_target)
        run.update(optimizer_G, optimizer_D)

        losses = {"loss_seg": loss_seg, "loss_adv": loss_adv, "loss_D_source": loss_D_source, "loss_D_target": loss_D_target}
        run.log(step, losses | {"loss_D": 0.5 * (loss_D_source + loss_D_target)}, rates)
        run.save(step)
        if run.due(step, args.save_pred_every):
            run.add_picture(step, "source", prediction_panel(source, pred_source, args.save_num_images))
            run.add_picture(step, "target", prediction_panel(target, pred_target, args.save_num_images))
        if run.due(step, args.val_every):
            confusion = evaluate(G, val_images, args.num_classes, device, autocast=run.autocast)
            run.record_validation(step, confusion, class_names(args.num_classes))


def write_pseudo_labels(args: argparse.Namespace, device: torch.device) -> None:
    """Predict every training image of the target at its own size: palette PNGs of train ids, each pixel labelled.

    Those that are there already stay, so an interrupted run continues; they have to be of the same weights.

    Raises:
        WeightsError: no weights, or of another number of classes.
        StateError: the folder holds labels that were made from something else.
    """
    weights = stage_weights(args)
    G = prepare(load_model(weights), args, device)
    if G.settings["num_classes"] != args.num_classes:
        raise WeightsError(f"{weights}: has {G.settings['num_classes']} classes, not --num-classes {args.num_classes}")
    labels = LabelFolder(args.snapshot_dir, args.num_classes)
    made_of = os.path.relpath(weights, args.snapshot_dir)
    labels.claim(args.resume, weights=made_of, input_size_test=list(args.input_size_test))
    if distributed.is_main():
        print(G.load_report)
    dataset = target_dataset(args, Resize(args.input_size_test))
    labels.check_names(dataset.records)
    images = left_over(dataset, labels.has)
    loader = sequential_loader(images, args.num_workers, distributed.rank(), distributed.world_size())
    labelled = predictions(G, loader, device, autocast=lambda: autocast(args, device))
    for batch, prediction in progress(labelled, "labels", len(loader)):
        labels.write(batch["name"][0], prediction[0].cpu().numpy())
    distributed.wait_for_all()


def build_network(args: argparse.Namespace, device: torch.device) -> Segmenter:
    """G: features and one classifier, with its starting weights."""
    # FADA's own frozen norms have no epsilon; weights of other origin were trained with one.
    norm_eps = 0.0 if args.model.lower() == "deeplab_resnet101" and args.batch_norm == "frozen" else None
    settings = {"heads": "single", "aspp_branches": args.aspp_branches or 4, "batch_norm": args.batch_norm}
    G = build_model(args.model, args.num_classes, norm_eps=norm_eps, **settings)
    if args.stage == "adversarial":
        weights = stage_weights(args)
        report = load_weights(G, read_weights(weights), weights)
        if distributed.is_main():
            print(report)
    else:
        restore(G, args.restore_from, usual=IMAGENET[backbone(args)])
    return prepare(distributed.synchronize_norms(G, device), args, device).train()


def stage_weights(args: argparse.Namespace) -> str:
    """What the adversarial and the pseudo-label stage start from: the stage before, or (a stage alone) --restore-from.

    Raises:
        WeightsError: the stage before has left nothing.
    """
    if args.restore_from:
        return args.restore_from
    before = list(STAGES)[list(STAGES).index(args.stage) - 1]
    directory = stage_directory(os.path.dirname(args.snapshot_dir), before)
    snapshots = sorted(glob(os.path.join(escape(directory), "model_iter*.pth")))
    if not snapshots:
        raise WeightsError(f"{directory}: no weights of stage {before}; run it first, or name weights with --restore-from")
    return snapshots[-1]


def class_balanced_loader(args: argparse.Namespace, transform: Callable[..., Any]) -> EndlessLoader:
    """Endless source batches; with --class-balanced images with rare classes come more often."""
    dataset, order = source_dataset(args, transform), None
    if args.class_balanced:
        order = class_balanced_order(args, dataset, args.class_statistics, os.path.dirname(args.snapshot_dir))
    return endless(args, dataset, order=order, batch_size=share_of_batch(args))


def pseudo_labelled_dataset(args: argparse.Namespace) -> SegmentationDataset:
    """The target's training images with their pseudo-labels, scaled, cropped and mirrored.

    Raises:
        FileNotFoundError: a pseudo-label is missing.
        StateError: the pseudo-labels are of another number of classes.
    """
    folder = args.pseudo_labels or stage_directory(os.path.dirname(args.snapshot_dir), "pseudo-label")
    labels = LabelFolder(folder, args.num_classes)
    records = labels.labelled(target_dataset(args, None).records, "--stage pseudo-label makes them")
    steps = [RandomScale(*args.scale_range), RandomCrop(args.input_size_target), RandomMirror()]
    transform = Compose([RandomColorJitter(args.color_jitter), *steps] if any(args.color_jitter) else steps)
    return SegmentationDataset(records, identity_table(args.num_classes), transform)


class FadaSnapshots:
    """`model_iter<updates>.pth` with feature extractor, classifier and (adversarial stage) discriminator, as FADA's own."""

    def tag(self, step: int, every: int) -> int | None:
        return step + 1 if (step + 1) % every == 0 else None

    def files(self, tag: int | str, networks: dict[str, nn.Module]) -> dict[str, Any]:
        name = f"model_iter{tag:06d}" if isinstance(tag, int) else f"model_{tag}"
        return {f"{name}.pth": to_fada(networks[""], tag if isinstance(tag, int) else None, networks.get("_D"))}


if __name__ == "__main__":
    with exit_with_message():
        main(get_arguments())
