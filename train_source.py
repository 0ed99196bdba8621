"""Source-only training: the model that every adaptation method is compared with, and that several of them start from.

Cross entropy on labelled source images; no target image is ever seen while training, not even by BatchNorm:

    L = CE(main classifier) + lambda_seg * CE(lower classifier)          (the second term only with --multi)

The defaults are the published recipe of MaxSquare (Chen et al., ICCV 2019, section 4): ResNet-101, BatchNorm trained
except in the stem, mirrored and blurred images. Its commands:

    GTA5         python train_source.py --dataset gta5 --checkpoint_dir ./log/gta5_pretrain/ --iter_max 200000 \\
                     --iter_stop 80000 --freeze_bn False --weight_decay 5e-4 --lr 2.5e-4 --crop_size 1280,720
    two heads    ... --multi True
    Cityscapes   python train_source.py --dataset cityscapes --checkpoint_dir ./log/cityscapes_pretrain_class13/ \\
                     --iter_max 200000 --iter_stop 80000 --lr 2.5e-4 --crop_size 1024,512 --num_classes 13

Several GPUs: torchrun --nproc-per-node N train_source.py ... (the batch size is per process).
"""

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
    positive,
    set_source_defaults,
)
from utils.device import prepare, set_up
from utils.evaluation import evaluate
from utils.loaders import source_loader, source_val_loader
from utils.losses import cross_entropy
from utils.optimizers import adam, poly, segmentation_optimizer, set_learning_rate
from utils.pictures import prediction_panel
from utils.run import Run
from utils.start import exit_with_message, restore


def get_arguments(arguments=None):
    parser = Parser(__doc__)
    add_source_flags(parser, aliases=("--dataset",))
    add_network_flags(parser, model="DeepLab")
    add_optimization_flags(parser, num_steps=250000, num_steps_stop=None, save_pred_every=5000)
    parser.set_defaults(batch_norm="train")
    group = parser.add_argument_group("source training")
    group.add_argument("--iter-size", type=positive, default=1, help="sub-iterations whose gradients are accumulated")
    parser.add_switch("--multi", group=group, help="also train the lower classifier (for MaxSquare --multi and AdaptSegNet)")
    group.add_argument("--lambda-seg", type=float, default=0.1, help="weight of the lower classifier's loss")
    group.add_argument("--optim", choices=("SGD", "Adam"), default="SGD", help="Adam: betas (0.9, 0.99), each parameter once")
    group.add_argument("--warmup", type=int, default=0, metavar="N", help="steps over which the learning rate rises from 0")
    parser.add_switch("--freeze-bn", group=group, help="the original's name for --batch-norm frozen-statistics")
    parser.add_switch("--random-mirror", group=group, default=True, help="mirror every second image")
    parser.add_switch("--gaussian-blur", group=group, default=True, help="blur every second image, radius below 1 pixel")
    parser.also("--resume", "--continue-training")
    parser.also("--data-dir", "--data-root-path")
    parser.also("--data-list", "--list-path")
    parser.accept_without_effect(*WITHOUT_EFFECT, "--target-crop-size", takes_value=True)
    args = set_source_defaults(parser.parse_args(arguments))
    if args.freeze_bn:
        args.batch_norm = "frozen-statistics"
    args.num_steps_stop = args.num_steps_stop or args.num_steps
    return args


def main(args):
    device = set_up(args)

    # Data
    augmentation = ([RandomMirror()] if args.random_mirror else []) + [Resize(args.input_size)]
    augmentation += [RandomBlur()] if args.gaussian_blur else []
    source_batches, val_images = source_loader(args, Compose(augmentation)), source_val_loader(args)

    # Network
    G = build_model(args.model, args.num_classes, aspp_branches=args.aspp_branches, batch_norm=args.batch_norm)
    restore(G, args.restore_from)
    G.freeze_stem_norm()
    if not args.multi:
        for head in G.heads()[:-1]:
            head.requires_grad_(False)  # never used, as in the original; so DistributedDataParallel does not wait for it
    prepare(G, args, device).train()
    lambda_seg = [args.lambda_seg, 1.0][-len(G.head_names) :] if args.multi else [1.0]

    # Optimizer
    if args.optim == "SGD":
        optimizer = segmentation_optimizer(
            G.parameter_groups(), args.updates, args.learning_rate, args.momentum, args.weight_decay
        )
    else:
        optimizer = adam(G.parameter_groups(), args.learning_rate, args.weight_decay)

    run = Run(args, device, args.source.upper(), {"": G}, {"G": optimizer}, {"source": source_batches})
    run.start()
    parallel_G, size = distributed.wrap(G), args.input_size[::-1]

    for step in run.steps(args.num_steps_stop):
        rate = poly(args.learning_rate, step, args.num_steps, args.power) * min(1, (step + 1) / max(args.warmup, 1))
        set_learning_rate(optimizer, rate)
        optimizer.zero_grad(set_to_none=True)
        loss_seg = 0.0

        for _ in range(args.iter_size):
            source = run.next(source_batches)
            with run.autocast():
                pred = [upsample(logits, size) for logits in parallel_G(source["image"])[-len(lambda_seg) :]]
                loss = sum(weight * cross_entropy(p, source["label"]) for weight, p in zip(lambda_seg, pred, strict=True))
            run.backward(loss / args.iter_size)
            loss_seg += loss.detach() / args.iter_size

        run.update(optimizer)

        run.log(step, {"loss_seg": loss_seg}, {"lr": rate})
        run.save(step)
        if run.due(step, args.save_pred_every):
            run.add_picture(step, "source", prediction_panel(source, pred[-1], args.save_num_images))
        if run.due(step, args.val_every):
            confusion = evaluate(G, val_images, args.num_classes, device, autocast=run.autocast)
            run.record_validation(step, confusion, class_set(args.num_classes).names)


if __name__ == "__main__":
    with exit_with_message():
        main(get_arguments())
