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

import os
from collections.abc import Callable, Mapping
from functools import partial
from glob import escape, glob
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dataset.catalogue import DATA_SETS, ClassSet, data_set
from dataset.loader import EndlessLoader
from dataset.segmentation import SegmentationDataset
from dataset.transforms import Compose, RandomColorJitter, RandomCrop, RandomMirror, RandomScale, Resize
from model import FeatureDiscriminator, WeightsError, load_model, to_fada, upsample
from model.segmenter import Segmenter
from utils import distributed, flags
from utils.device import prepare, set_up
from utils.domains import (
    class_balanced_loader,
    endless,
    source_domain,
    source_loader,
    target_domain,
    target_loader,
    target_val_loader,
)
from utils.errors import exit_with_message
from utils.evaluation import classes_of_network
from utils.losses import cross_entropy
from utils.networks import segmentation_network
from utils.old_names import OLD_NAMES
from utils.optimizers import discriminator_optimizer, poly, segmentation_optimizer
from utils.parser import Flags, Parser, above_zero, not_negative, numbers, scale_range, share, size
from utils.plan import plan_steps
from utils.provenance import write_args
from utils.run import Run, fixed_flags
from utils.seeding import seed_everything
from utils.self_training.claims import claim_directory, finish, outcome_of, working_in
from utils.self_training.label_folders import LabelFolder, readable
from utils.self_training.labelling import label_every_pixel
from utils.starting_weights import restore, restore_discriminators

JITTER, NO_JITTER = (0.5, 0.5, 0.5, 0.2), (0, 0, 0, 0)
SOURCE, TARGET = 0, 1

# What is published for a stage's flags: used where they are not given. The exceptions stand in `stage_settings`.
STAGES: dict[str, dict[str, Any]] = {
    "source": {"learning_rate": 5e-4, "num_steps": 31250, "num_steps_stop": 20000, "color_jitter": NO_JITTER},
    "adversarial": {"learning_rate": 2.5e-4, "num_steps": 62500, "num_steps_stop": 40000, "color_jitter": JITTER},
    "pseudo-label": {},
    "distill": {"learning_rate": 5e-4, "num_steps": 31250, "num_steps_stop": 20000, "color_jitter": JITTER},
}
GOES_ON_FROM = {"adversarial": "source", "pseudo-label": "adversarial"}  # the others start from ImageNet weights
IMAGENET, IMAGENET_VGG = "resnet101-5d3b4d8f.pth", "vgg16-00b39a1b.pth"

# Help that takes more than a line.
COLOR_JITTER = (
    "strength for brightness, contrast, saturation and hue, of the source in adversarial and of the target in distill "
    "(default 0.5,0.5,0.5,0.2; none in VGG16's distill)"
)
INPUT_SIZE_TEST = (
    "target images are resized to this for validation and pseudo-labels (default: as usual for the target, in distill its "
    "official size; Cityscapes 1024,512 and 2048,1024)"
)


def get_arguments(arguments: list[str] | None = None) -> Flags:
    parser = Parser(__doc__, OLD_NAMES["train_fada.py"])
    flags.add_source_flags(parser)
    flags.add_target_flags(parser)
    flags.add_network_flags(parser, model="deeplab_resnet101")
    flags.add_optimization_flags(parser, None, None, 2000, batch_help="images of all processes and domains together")
    group = parser.add_argument_group("FADA")
    group.add_argument("--stage", choices=(*STAGES, "all"), default="all", help="one stage, or the whole chain")
    group.add_argument(
        "--temperature", type=above_zero, default=1.8, help="T, which divides the logits in the adversarial stage"
    )
    group.add_argument("--clip", type=share, default=0.9, help="upper bound of soft labels")
    group.add_argument("--lambda-adv", type=not_negative, default=0.001, help="weight of the adversarial loss")
    group.add_argument("--learning-rate-D", type=not_negative, default=1e-4, help="of the discriminator")
    group.add_argument("--restore-discriminator", metavar="FILE", help="weights of the discriminator, or a FADA checkpoint")
    group.add_argument("--color-jitter", type=numbers, metavar="B,C,S,H", help=COLOR_JITTER)
    group.add_argument(
        "--scale-range", type=scale_range, default=(0.5, 1.5), metavar="LOW,HIGH", help="random scales in distill"
    )
    group.add_argument("--input-size-test", type=size, metavar="W,H", help=INPUT_SIZE_TEST)
    group.add_argument("--pseudo-labels", metavar="DIR", help="folder of labels for distill (default: from pseudo-label)")
    parser.add_switch("--class-balanced", group=group, default=True, help="sample rare classes more often")
    group.add_argument("--class-statistics", metavar="FILE", help="of the source, as JSON or .p (default: beside it, or made)")
    parser.describe(
        restore_from="weights to start from: a file, a URL, torchvision:NAME or timm:NAME (default for source and distill: "
        "resnet101-5d3b4d8f.pth or vgg16-00b39a1b.pth in ./model or ./pretrained_model; for the others the stage before)",
        learning_rate="of the features (default 5e-4, adversarial 2.5e-4); the classifier has 10 times that",
        num_steps="where the poly schedule reaches 0 (default 31250, adversarial 62500)",
        num_steps_stop="where training stops (default 20000, adversarial 40000)",
        num_classes="default 19, for SYNTHIA 16; the classes.json of a plain folder has its own",
        batch_norm=f"{flags.BATCH_NORM} (default frozen; train in distill for GTA5 with ResNet-101)",
        updates="of the discriminator's Adam: as PyTorch 1.2 computed it (published) or as today (clean)",
        input_size_target="images are resized to this; in distill crops have this size (default 1024,512)",
    )
    parser.set_defaults(batch_size=8, learning_rate=None, batch_norm=None)
    args = parser.parse_args(arguments)
    if args.color_jitter is not None and (len(args.color_jitter) != 4 or not 0 <= args.color_jitter[3] <= 0.5):
        parser.error("--color-jitter wants four numbers, the last (hue) at most 0.5")
    if args.stage == "all" and args.pseudo_labels:
        parser.error("--pseudo-labels names a folder for --stage distill; --stage all makes its own")
    args.num_classes = args.num_classes or data_set(args.source, args.data_dir).num_classes
    return flags.complete(args).with_values(num_steps_stop=args.num_steps_stop)  # each stage has its own usual stop


def stage_settings(args: Flags, stage: str) -> Flags:
    """The flags of one stage: its directory, its share of the batch, and published values where none are given.

    Raises:
        RunError: --num-steps-stop is beyond --num-steps, or --batch-size cannot be shared out.
    """
    values = {"batch_norm": "frozen", **STAGES[stage]}
    if stage == "distill" and is_vgg(args):
        values["color_jitter"] = NO_JITTER
    elif stage == "distill" and args.source == "gta5":
        values["batch_norm"] = "train"
    usual_stop = values.pop("num_steps_stop", None)
    values |= {flag: getattr(args, flag) for flag in values if getattr(args, flag) is not None}
    target = DATA_SETS[args.target]
    usual_size = target.image_size if stage == "distill" else target.test_size
    values["input_size_test"] = args.input_size_test or usual_size or args.input_size_target
    if stage != "pseudo-label":
        values["batch_size"] = distributed.share_of_batch(args.batch_size, domains=2 if stage == "adversarial" else 1)
    if args.stage == "all" and stage in GOES_ON_FROM:
        values["restore_from"] = None  # --restore-from is where the chain starts
    settings = args.with_values(stage=stage, snapshot_dir=stage_directory(args.snapshot_dir, stage), **values)
    return flags.complete(settings, usual_stop)


def is_vgg(args: Flags) -> bool:
    return "vgg" in args.model.lower()


def stage_directory(root: str, stage: str) -> str:
    return os.path.join(root, "pseudo-labels" if stage == "pseudo-label" else stage)


def soft_label(logits: Tensor, temperature: float, clip: float = 0.9) -> Tensor:
    """q (N,C,H,W): softmax(logits / T) clipped at `clip` and not normalised again; no gradient."""
    return F.softmax(logits.detach().float() / temperature, dim=1).clamp(max=clip)


def maps(q: Tensor) -> dict[str, Tensor]:
    """For pictures: the largest entry of each pixel's soft label, (N,H,W) from q (N,C,H,W)."""
    return {"soft label, largest": q.amax(1)}


def soft_cross_entropy(domain_logits: Tensor, q: Tensor, domain: int) -> Tensor:
    """Mean over pixels of -sum q log softmax(d), with q in the source (domain 0) or target half (1) of the 2C channels.

    Args:
        domain_logits: (N,2C,H,W).
        q: (N,C,H,W).
    """
    half = F.log_softmax(domain_logits.float(), dim=1).chunk(2, dim=1)[domain]
    return -(q * half).sum(1).mean()


def main(args: Flags) -> None:
    device, classes = set_up(args), flags.classes_of(args)
    run_stage = {
        "source": train_supervised,
        "adversarial": train_adversarial,
        "pseudo-label": write_pseudo_labels,
        "distill": train_supervised,
    }
    chain = args.stage == "all"
    stages = [stage_settings(args, stage) for stage in (STAGES if chain else (args.stage,))]
    if chain:
        # What is missing is told now, not after days of training.
        source_domain(args).dataset(classes)
        target_domain(args).dataset(classes, labels=False)
    with working_in(args):
        if chain:
            claim_directory(args.snapshot_dir, fixed_flags(args) | {"batch_size": args.batch_size}, args.resume)
        if distributed.is_main():
            path = os.path.join(args.snapshot_dir, "args.json" if chain else f"args_{args.stage}.json")
            parts = [os.path.basename(settings.snapshot_dir) for settings in stages]
            write_args(path, args, device, bool(args.resume), parts=parts)
        for settings in stages:
            if chain:
                settings = settings.with_values(resume="auto" if args.resume else False)
                if outcome_of(settings.snapshot_dir, "steps") == settings.num_steps_stop:
                    continue
            seed_everything(args.random_seed)  # a stage is the same whether the ones before it ran or were finished
            if distributed.is_main():
                print(f"\nstage {settings.stage}: {settings.snapshot_dir}")
            run_stage[settings.stage](settings, classes, device)
            if chain and settings.stage != "pseudo-label" and distributed.is_main():
                finish(settings.snapshot_dir, steps=settings.num_steps_stop)


def train_supervised(args: Flags, classes: ClassSet, device: torch.device) -> None:
    """Stage source: cross-entropy on the source. Stage distill: the same on the target's pseudo-labels."""
    if args.stage == "source":
        domain, batches = "source", labelled_batches(args, classes, Resize(args.input_size))
    else:
        domain, batches = "target", endless(args, pseudo_labelled_dataset(args, classes))
    G = build_network(args, classes, device)
    optimizer = segmentation_optimizer(G.parameter_groups(10), args, updates="clean")
    validation = {"": target_val_loader(args, classes, args.input_size_test)}
    plan = plan_steps(args, classes)
    run = Run(args, plan, device, FadaSnapshots(), {"": G}, {"G": optimizer}, {domain: batches}, validation)
    parallel_G = distributed.wrap(G)

    for step in run.steps():
        run.start_step(G=poly(args.learning_rate, step, plan.schedule_steps, args.power))
        batch = run.next(batches)
        with run.autocast():
            pred = upsample(parallel_G(batch["image"])[-1], batch["label"].shape[1:])
            loss_seg = cross_entropy(pred, batch["label"])
        run.backward(loss_seg)
        run.update(optimizer)
        shown: dict[str, Any] = {domain: (batch, pred)}
        run.end_step(step, {"loss_seg": loss_seg}, **shown)


def train_adversarial(args: Flags, classes: ClassSet, device: torch.device) -> None:
    """Cross-entropy on the source, and features of the target that the class-level discriminator takes for the source's."""
    plan = plan_steps(args, classes)

    # Data
    jitter = RandomColorJitter(args.color_jitter)
    source_batches = labelled_batches(args, classes, Compose([jitter, Resize(args.input_size)]))
    target_batches = target_loader(args, classes, Resize(args.input_size_target))
    source_size, target_size = args.input_size[::-1], args.input_size_target[::-1]

    # Networks: features and classifier in G, the class-level discriminator on the features
    G = build_network(args, classes, device)
    D = FeatureDiscriminator(G.feature_channels, len(classes))
    restore_discriminators([D], args.restore_discriminator)
    prepare(D, args, device)

    # Optimizers
    optimizer_G = segmentation_optimizer(G.parameter_groups(10), args, updates="clean")
    optimizer_D = discriminator_optimizer(D.parameters(), args.updates, args.learning_rate_D)

    networks, optimizers = {"": G, "_D": D}, {"G": optimizer_G, "D": optimizer_D}
    loaders = {"source": source_batches, "target": target_batches}
    validation = {"": target_val_loader(args, classes, args.input_size_test)}
    run = Run(args, plan, device, FadaSnapshots(), networks, optimizers, loaders, validation)
    parallel_G, parallel_D = distributed.wrap(G), distributed.wrap(D)

    for step in run.steps():
        schedule = step, plan.schedule_steps, args.power
        run.start_step(G=poly(args.learning_rate, *schedule), D=poly(args.learning_rate_D, *schedule))

        # Train features and classifier with source
        source = run.next(source_batches)
        with run.autocast():
            logits, source_features = parallel_G(source["image"], with_features=True)
            pred_source = upsample(logits[-1], source_size)
            loss_seg = cross_entropy(pred_source / args.temperature, source["label"])
        run.backward(loss_seg, last=False)
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
        run.backward(0.5 * loss_D_source, last=False)
        with run.autocast():
            domain_logits = upsample(parallel_D(target_features.detach()), target_size)
            loss_D_target = soft_cross_entropy(domain_logits, target_q, TARGET)
        run.backward(0.5 * loss_D_target)

        run.update(optimizer_G, optimizer_D)
        losses = {"loss_seg": loss_seg, "loss_adv": loss_adv, "loss_D_source": loss_D_source, "loss_D_target": loss_D_target}
        run.end_step(step, losses, source=(source, pred_source), target=(target, pred_target, partial(maps, target_q)))


def write_pseudo_labels(args: Flags, classes: ClassSet, device: torch.device) -> None:
    """Predict every training image of the target at its own size: palette PNGs of train ids, each pixel labelled.

    Those that are there already stay, so an interrupted run continues; they have to be of the same weights.

    Raises:
        WeightsError: no weights.
        StateError: they have other classes, or the folder holds labels that were made from something else.
    """
    weights = weights_before(args)
    G = prepare(load_model(weights), args, device)
    labels = LabelFolder(args.snapshot_dir, classes)
    labels.check_classes(classes_of_network(G, classes).names, weights)
    images = target_domain(args).dataset(classes, Resize(args.input_size_test), labels=False)
    made_of = os.path.relpath(weights, args.snapshot_dir)
    labels.claim(args.resume, weights=made_of, input_size_test=list(args.input_size_test))
    if distributed.is_main():
        print(G.load_report)
    label_every_pixel(args, G, readable(args, images, labels.has), labels, device)


def build_network(args: Flags, classes: ClassSet, device: torch.device) -> Segmenter:
    """G: features and one classifier, with its starting weights."""
    # FADA's own frozen norms have no epsilon; weights of other origin were trained with one.
    norm_eps = 0.0 if args.model.lower() == "deeplab_resnet101" and args.batch_norm == "frozen" else None
    G = segmentation_network(args, len(classes), heads="single", aspp_branches=4, norm_eps=norm_eps)
    if args.stage in GOES_ON_FROM:
        restore(G, weights_before(args), fresh_heads=False)
    else:
        restore(G, args.restore_from, IMAGENET_VGG if is_vgg(args) else IMAGENET)
    return prepare(distributed.synchronize_norms(G, device), args, device).train()


def weights_before(args: Flags) -> str:
    """The last weights of the stage that this one goes on from, or (a stage alone) those of --restore-from.

    Raises:
        WeightsError: that stage has left nothing.
    """
    if args.restore_from:
        return args.restore_from
    before = GOES_ON_FROM[args.stage]
    directory = stage_directory(os.path.dirname(args.snapshot_dir), before)
    snapshots = sorted(glob(os.path.join(escape(directory), "model_iter*.pth")))
    if not snapshots:
        raise WeightsError(f"{directory}: no weights of stage {before}; run it first, or name weights with --restore-from")
    return snapshots[-1]


def labelled_batches(args: Flags, classes: ClassSet, transform: Callable[..., Any]) -> EndlessLoader:
    """Endless source batches; with --class-balanced images with rare classes come more often."""
    if not args.class_balanced:
        return source_loader(args, classes, transform)
    return class_balanced_loader(args, classes, transform, args.class_statistics, os.path.dirname(args.snapshot_dir))


def pseudo_labelled_dataset(args: Flags, classes: ClassSet) -> SegmentationDataset:
    """The target's training images with their pseudo-labels, scaled, cropped and mirrored.

    Raises:
        MissingDataError: a pseudo-label is missing.
        StateError: the pseudo-labels are of other classes.
    """
    jitter = [RandomColorJitter(args.color_jitter)] if any(args.color_jitter) else []
    transform = Compose([*jitter, RandomScale(*args.scale_range), RandomCrop(args.input_size_target), RandomMirror()])
    labels = LabelFolder(args.pseudo_labels or stage_directory(os.path.dirname(args.snapshot_dir), "pseudo-label"), classes)
    images = readable(args, target_domain(args).dataset(classes, labels=False), labels.has)
    return labels.dataset(images.records, transform, "--stage pseudo-label makes them")


class FadaSnapshots:
    """`model_iter<updates>.pth` with feature extractor, classifier and (adversarial stage) discriminator, as FADA's own."""

    def tag(self, step: int, every: int) -> int | None:
        return step + 1 if (step + 1) % every == 0 else None

    def files(self, tag: int | str, networks: Mapping[str, nn.Module]) -> dict[str, Any]:
        steps = tag if isinstance(tag, int) else None
        name = f"model_{tag}.pth" if steps is None else f"model_iter{steps:06d}.pth"
        return {name: to_fada(cast(Segmenter, networks[""]), steps, networks.get("_D"))}


if __name__ == "__main__":
    with exit_with_message():
        main(get_arguments())
