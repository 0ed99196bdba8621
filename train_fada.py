"""FADA: Classes Matter, A Fine-grained Adversarial Approach to Cross-domain Semantic Segmentation (Wang et al., ECCV 2020,
2007.09222).

A discriminator on the features tells not only the domain of a pixel but domain and class, 2C answers; the classes it is trained
with are the classifier's own soft ones (section 3 of the paper, with the published code's constants). With q the soft label
softmax(logits / T), clipped at 0.9, d the discriminator's answer and CE(d, q) = mean over pixels of -sum q log softmax(d):

    source        CE(classifier(F(x_s)), y_s)                                      features F and classifier on the source
    adversarial   F, classifier minimise  CE(logits_s / T, y_s) + lambda_adv * CE(D(F(x_t)), [q_t, 0])
                  D minimises             0.5 * CE(D(F(x_s)), [q_s, 0]) + 0.5 * CE(D(F(x_t)), [0, q_t])
    pseudo-label  argmax of the adapted network on the target's training images
    distill       CE(classifier(F(x_t)), pseudo-label)                             a fresh network, on the target alone

Published, on 4 GPUs (the batch size is of all processes together); every stage finds what the one before it left:

    torchrun --nproc-per-node 4 train_fada.py --stage all --snapshot-dir ./snapshots/fada_gta5
    torchrun --nproc-per-node 4 train_fada.py --stage all --source synthia --snapshot-dir ./snapshots/fada_synthia
    ... --model deeplab_vgg16 for VGG16; --resume to go on after an interruption, between or inside stages
"""

import copy
import os
from glob import escape, glob

from torch.nn import functional as F
from tqdm import tqdm

from dataset.catalogue import class_set, identity_table
from dataset.layouts import Record
from dataset.loader import sequential_loader
from dataset.segmentation import SegmentationDataset
from dataset.transforms import Compose, RandomColorJitter, RandomCrop, RandomMirror, RandomScale, Resize
from model import FeatureDiscriminator, WeightsError, build_model, load_model, load_weights, read_weights, to_fada, upsample
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
)
from utils.device import autocast, prepare, set_up
from utils.evaluation import evaluate, predictions
from utils.loaders import class_balanced_order, endless, source_dataset, target_dataset, target_loader, target_val_loader
from utils.losses import cross_entropy
from utils.optimizers import discriminator_optimizer, poly, segmentation_optimizer, set_learning_rate
from utils.pictures import prediction_panel, save_colours
from utils.run import Run, fixed_flags
from utils.start import exit_with_message, restore, restore_discriminators
from utils.state import claim_directory, has_state, seed_everything

STAGES = ("source", "adversarial", "pseudo-label", "distill")
IMAGENET = {"resnet": "resnet101-5d3b4d8f.pth", "vgg": "vgg16-00b39a1b.pth"}
JITTER = (0.5, 0.5, 0.5, 0.2)
SOURCE, TARGET = 0, 1


def get_arguments(arguments=None):
    parser = Parser(__doc__)
    add_source_flags(parser)
    add_target_flags(parser)
    add_network_flags(parser, model="deeplab_resnet101")
    add_optimization_flags(parser, None, None, save_pred_every=2000, batch_help="images of all processes and domains together")
    parser.set_defaults(batch_size=8, learning_rate=None, num_classes=None, batch_norm=None)
    group = parser.add_argument_group("FADA")
    group.add_argument("--stage", choices=(*STAGES, "all"), default="all", help="one stage, or the whole chain")
    group.add_argument("--temperature", type=float, default=1.8, help="T, dividing the logits in the adversarial stage")
    group.add_argument("--clip", type=float, default=0.9, help="upper bound of soft labels")
    group.add_argument("--lambda-adv", type=float, default=0.001, help="weight of the adversarial loss")
    group.add_argument("--learning-rate-D", type=float, default=1e-4, help="of the discriminator")
    group.add_argument("--restore-discriminator", metavar="FILE", help="weights of the discriminator, or a FADA checkpoint")
    group.add_argument("--color-jitter", type=numbers, metavar="B,C,S,H",
                       help="of the source in the adversarial stage and of the target in distill (default 0.5,0.5,0.5,0.2; "
                       "none in VGG16's distill)")  # fmt: skip
    group.add_argument("--scale-range", type=numbers, default=(0.5, 1.5), metavar="LOW,HIGH", help="of images in distill")
    group.add_argument("--input-size-test", type=size, metavar="W,H",
                       help="target images are resized to this for pseudo-labels and validation (default 1024,512; for "
                       "validation in distill 2048,1024)")  # fmt: skip
    group.add_argument("--pseudo-labels", metavar="DIR", help="where distill reads them (default: of the stage pseudo-label)")
    parser.add_switch("--class-balanced", group=group, default=True, help="sample rare classes more often")
    group.add_argument("--class-statistics", metavar="FILE",
                       help="class_statistics_C.json or label_info.p (default: beside the source data, or made)")  # fmt: skip
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


def stage_settings(args, stage):
    """The flags of one stage: what is not given gets its published value."""
    args, vgg = copy.copy(args), "vgg" in args.model.lower()
    stop, num_steps = (40000, 62500) if stage == "adversarial" else (20000, 31250)
    trains_norms = stage == "distill" and args.source == "gta5" and not vgg
    defaults = {
        "learning_rate": 2.5e-4 if stage == "adversarial" else 5e-4,
        "num_steps": num_steps,
        "num_steps_stop": min(stop, args.num_steps or stop),
        "batch_norm": "train" if trains_norms else "frozen",
        "color_jitter": (0, 0, 0, 0) if stage == "source" or (vgg and stage == "distill") else JITTER,
        "input_size_test": (2048, 1024) if stage == "distill" else (1024, 512),
    }
    for key, value in defaults.items():
        if getattr(args, key) is None:
            setattr(args, key, value)
    if args.stage == "all" and stage in ("adversarial", "pseudo-label"):
        args.restore_from = None  # in the chain these start from the stage before
    args.stage = stage
    args.snapshot_dir = stage_directory(args.snapshot_dir, stage)
    if args.num_steps_stop > args.num_steps:
        raise ValueError(f"--num-steps-stop {args.num_steps_stop} is beyond --num-steps {args.num_steps}, where the rate is 0")
    if stage != "pseudo-label":
        args.batch_size = share_of_batch(args.batch_size, domains=2 if stage == "adversarial" else 1)
    return args


def stage_directory(root, stage):
    return os.path.join(root, "pseudo-labels" if stage == "pseudo-label" else stage)


def share_of_batch(batch_size, domains):
    """Images per process and domain of a published batch size, which counts all of them.

    Raises:
        ValueError: it cannot be shared out evenly.
    """
    shares = distributed.world_size() * domains
    if batch_size % shares:
        raise ValueError(f"--batch-size {batch_size} cannot be shared by {distributed.world_size()} processes"
                         + (" and two domains" if domains == 2 else ""))  # fmt: skip
    return batch_size // shares


def soft_label(logits, temperature, clip=0.9):
    """q (N,C,H,W): softmax(logits / T) clipped at `clip` and not normalised again; no gradient."""
    return F.softmax(logits.detach().float() / temperature, dim=1).clamp(max=clip)


def soft_cross_entropy(domain_logits, q, domain):
    """Mean over pixels of -sum q log softmax(d), with q in the source (domain 0) or target half (1) of the 2C channels.

    Args:
        domain_logits: (N,2C,H,W).
        q: (N,C,H,W).
    """
    half = F.log_softmax(domain_logits.float(), dim=1).chunk(2, dim=1)[domain]
    return -(q * half).sum(1).mean()


def main(args):
    device = set_up(args)
    run_stage = {"source": train_source, "adversarial": train_adversarial, "pseudo-label": write_pseudo_labels,
                 "distill": train_distill}  # fmt: skip
    if args.stage == "all":
        claim_directory(args.snapshot_dir, fixed_flags(args) | {"batch_size": args.batch_size}, args.resume)
    stages = STAGES if args.stage == "all" else (args.stage,)
    for stage, settings in [(stage, stage_settings(args, stage)) for stage in stages]:
        seed_everything(args.random_seed)  # a stage is the same whether the ones before it ran or were finished
        if args.stage == "all":
            last = os.path.join(settings.snapshot_dir, f"model_iter{settings.num_steps_stop:06d}.pth")
            if args.resume and os.path.exists(last):
                continue
            if stage != "pseudo-label":
                settings.resume = args.resume and has_state(settings.snapshot_dir)
        if distributed.is_main():
            print(f"\nstage {stage}: {settings.snapshot_dir}")
        run_stage[stage](settings, device)


def train_source(args, device):
    """Cross-entropy on the source."""
    batches = source_loader(args, Resize(args.input_size))
    train_supervised(args, device, "source", batches, args.input_size)


def train_distill(args, device):
    """Cross-entropy on the target's pseudo-labels, with a fresh network."""
    batches = endless(args, pseudo_labelled_dataset(args))
    train_supervised(args, device, "target", batches, args.input_size_target)


def train_supervised(args, device, domain, batches, size):
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
            run.record_validation(step, confusion, class_set(args.num_classes).names)


def train_adversarial(args, device):
    # Data
    source_batches = source_loader(args, Compose([RandomColorJitter(args.color_jitter), Resize(args.input_size)]))
    target_batches = target_loader(args, Resize(args.input_size_target))
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

        # ... the features with target too: each pixel shall pass for the same class of the source
        D.requires_grad_(False)
        target = run.next(target_batches)
        with run.autocast():
            logits, target_features = parallel_G(target["image"], with_features=True)
            pred_target = upsample(logits[-1], target_size)
            target_q = soft_label(pred_target, args.temperature, args.clip)
            loss_adv = args.lambda_adv * soft_cross_entropy(upsample(D(target_features), target_size), target_q, SOURCE)
        # The classifier learns nothing here, but several processes wait for a gradient of each parameter.
        run.backward(loss_adv + (0 * logits[-1].sum() if distributed.world_size() > 1 else 0))

        # Train D with the features of both domains, as they were before the update
        D.requires_grad_(True)
        with run.autocast():
            domain_logits = upsample(parallel_D(source_features.detach()), source_size)
            loss_D_src = 0.5 * soft_cross_entropy(domain_logits, source_q, SOURCE)
        run.backward(loss_D_src)
        with run.autocast():
            domain_logits = upsample(parallel_D(target_features.detach()), target_size)
            loss_D_tgt = 0.5 * soft_cross_entropy(domain_logits, target_q, TARGET)
        run.backward(loss_D_tgt)
        run.update(optimizer_G, optimizer_D)

        losses = {"loss_seg": loss_seg, "loss_adv_tgt": loss_adv, "loss_D_src": loss_D_src, "loss_D_tgt": loss_D_tgt}
        run.log(step, {**losses, "loss_D": loss_D_src + loss_D_tgt}, rates)
        run.save(step)
        if run.due(step, args.save_pred_every):
            run.add_picture(step, "source", prediction_panel(source, pred_source, args.save_num_images))
            run.add_picture(step, "target", prediction_panel(target, pred_target, args.save_num_images))
        if run.due(step, args.val_every):
            confusion = evaluate(G, val_images, args.num_classes, device, autocast=run.autocast)
            run.record_validation(step, confusion, class_set(args.num_classes).names)


def write_pseudo_labels(args, device):
    """Predict every training image of the target at its own size: palette PNGs of train ids, each pixel labelled.

    Those that are there already stay, so an interrupted run continues; they have to be of the same weights.
    """
    weights = stage_weights(args)
    G = prepare(load_model(weights), args, device)
    if G.settings["num_classes"] != args.num_classes:
        raise WeightsError(f"{weights}: has {G.settings['num_classes']} classes, not --num-classes {args.num_classes}")
    made_from = {"weights": os.path.relpath(weights, args.snapshot_dir), "input_size_test": list(args.input_size_test),
                 "num_classes": args.num_classes}  # fmt: skip
    claim_directory(args.snapshot_dir, made_from, args.resume)
    if distributed.is_main():
        print(G.load_report)
    dataset = target_dataset(args, Resize(args.input_size_test))
    dataset.records = [r for r in dataset.records if not os.path.exists(label_path(args.snapshot_dir, r.name))]
    distributed.wait_for_all()  # all processes share out the same list
    loader = sequential_loader(dataset, args.num_workers, distributed.rank(), distributed.world_size())
    labelled = predictions(G, loader, device, autocast=lambda: autocast(args, device))
    for batch, prediction in tqdm(labelled, total=len(loader), unit="image", disable=not distributed.is_main()):
        save_colours(label_path(args.snapshot_dir, batch["name"][0]), prediction[0].cpu().numpy(), args.num_classes)
    distributed.wait_for_all()


def label_path(folder, name):
    """The pseudo-label of the image `name`: the same name, always as a PNG."""
    return os.path.join(folder, f"{os.path.splitext(name)[0]}.png")


def build_network(args, device):
    """G: features and one classifier, with its starting weights."""
    # FADA's own frozen norms have no epsilon; weights of other origin were trained with one.
    norm_eps = 0.0 if args.model.lower() == "deeplab_resnet101" and args.batch_norm == "frozen" else None
    G = build_model(args.model, args.num_classes, heads="single", aspp_branches=args.aspp_branches or 4,
                    batch_norm=args.batch_norm, norm_eps=norm_eps)  # fmt: skip
    if args.stage == "adversarial":
        weights = stage_weights(args)
        report = load_weights(G, read_weights(weights), weights)
        if distributed.is_main():
            print(report)
    else:
        restore(G, args.restore_from, usual=IMAGENET["vgg" if "vgg" in args.model.lower() else "resnet"])
    return prepare(distributed.synchronize_norms(G, device), args, device).train()


def stage_weights(args):
    """What the adversarial and the pseudo-label stage start from: the stage before, or (a stage alone) --restore-from.

    Raises:
        WeightsError: the stage before has left nothing.
    """
    if args.restore_from:
        return args.restore_from
    before = STAGES[STAGES.index(args.stage) - 1]
    directory = stage_directory(os.path.dirname(args.snapshot_dir), before)
    snapshots = sorted(glob(os.path.join(escape(directory), "model_iter*.pth")))
    if not snapshots:
        raise WeightsError(f"{directory}: no weights of stage {before}; run it first, or name weights with --restore-from")
    return snapshots[-1]


def source_loader(args, transform):
    """Endless source batches, rare classes sampled more often."""
    dataset = source_dataset(args, transform)
    order = (
        class_balanced_order(args, dataset, args.class_statistics, os.path.dirname(args.snapshot_dir))
        if args.class_balanced
        else None
    )
    return endless(args, dataset, order=order)


def pseudo_labelled_dataset(args):
    """The target's training images with their pseudo-labels, scaled, cropped and mirrored.

    Raises:
        FileNotFoundError: a pseudo-label is missing.
    """
    records = target_dataset(args, None).records
    folder = args.pseudo_labels or stage_directory(os.path.dirname(args.snapshot_dir), "pseudo-label")
    records = [Record(record.image, label_path(folder, record.name), record.name) for record in records]
    missing = [record.label for record in records if not os.path.exists(record.label)]
    if missing:
        raise FileNotFoundError(f"{missing[0]}: no such pseudo-label ({len(missing)} missing); --stage pseudo-label makes them")
    steps = [RandomScale(*args.scale_range), RandomCrop(args.input_size_target), RandomMirror()]
    transform = Compose([RandomColorJitter(args.color_jitter), *steps] if any(args.color_jitter) else steps)
    return SegmentationDataset(records, identity_table(args.num_classes), transform)


class FadaSnapshots:
    """`model_iter<updates>.pth` with feature extractor, classifier and (adversarial stage) discriminator, as FADA's own."""

    def tag(self, step, every):
        return step + 1 if (step + 1) % every == 0 else None

    def files(self, tag, networks):
        name = f"model_iter{tag:06d}" if isinstance(tag, int) else f"model_{tag}"
        return {f"{name}.pth": to_fada(networks[""], tag if isinstance(tag, int) else None, networks.get("_D"))}


if __name__ == "__main__":
    with exit_with_message():
        main(get_arguments())
