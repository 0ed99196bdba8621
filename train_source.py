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

from dataset.transforms import Compose, RandomBlur, RandomMirror, Resize
from model import upsample
from utils import distributed, flags
from utils.device import prepare, set_up
from utils.domains import source_loader, source_val_loader
from utils.errors import exit_with_message
from utils.losses import cross_entropy
from utils.networks import segmentation_network
from utils.old_names import OLD_NAMES
from utils.optimizers import poly, segmentation_optimizer
from utils.parser import Flags, Parser, not_negative, positive
from utils.plan import plan_steps
from utils.run import Run
from utils.starting_weights import restore


def get_arguments(arguments: list[str] | None = None) -> Flags:
    parser = Parser(__doc__, OLD_NAMES["train_source.py"])
    flags.add_source_flags(parser)
    flags.add_network_flags(parser, model="DeepLab")
    flags.add_optimization_flags(parser, num_steps=250000, num_steps_stop=None, save_pred_every=5000)
    parser.set_defaults(batch_norm="train")
    group = parser.add_argument_group("source training")
    group.add_argument("--iter-size", type=positive, default=1, help="sub-iterations whose gradients are accumulated")
    parser.add_switch("--multi", group=group, help="also train the lower classifier (for MaxSquare --multi and AdaptSegNet)")
    group.add_argument("--lambda-seg", type=not_negative, default=0.1, help="weight of the lower classifier's loss")
    parser.add_switch("--freeze-bn", group=group, help="the original's name for --batch-norm frozen-statistics")
    parser.add_switch("--random-mirror", group=group, default=True, help="mirror every second image")
    parser.add_switch("--gaussian-blur", group=group, default=True, help="blur every second image, radius below 1 pixel")
    parser.leave_out_of_config("freeze_bn")  # is --batch-norm
    args = flags.complete(parser.parse_args(arguments))
    return args.with_values(batch_norm="frozen-statistics" if args.freeze_bn else args.batch_norm)


def main(args: Flags) -> None:
    device = set_up(args)
    classes = flags.classes_of(args)
    plan = plan_steps(args, classes)

    # Data
    augmentation = ([RandomMirror()] if args.random_mirror else []) + [Resize(args.input_size)]
    augmentation += [RandomBlur()] if args.gaussian_blur else []
    batches, size = source_loader(args, classes, Compose(augmentation)), args.input_size[::-1]

    # Network
    G = segmentation_network(args, len(classes))
    restore(G, args.restore_from)
    G.freeze_stem_norm()
    if not args.multi:
        for head in G.heads()[:-1]:
            head.requires_grad_(False)  # never used, as in the original; so DistributedDataParallel does not wait for it
    prepare(G, args, device).train()
    lambda_seg = [args.lambda_seg, 1.0][-len(G.head_names) :] if args.multi else [1.0]

    # Optimizer
    optimizer = segmentation_optimizer(G.parameter_groups(), args)

    validation = {"": source_val_loader(args, classes)}
    run = Run(args, plan, device, args.source.upper(), {"": G}, {"G": optimizer}, {"source": batches}, validation)
    parallel_G = distributed.wrap(G)

    for step in run.steps():
        run.start_step(G=poly(args.learning_rate, step, plan.schedule_steps, args.power))
        losses = dict.fromkeys(("loss_seg_low", "loss_seg")[-len(lambda_seg) :], 0.0)

        for iteration in range(args.iter_size):
            source = run.next(batches)
            with run.autocast():
                pred = [upsample(logits, size) for logits in parallel_G(source["image"])[-len(lambda_seg) :]]
                loss_seg = [cross_entropy(p, source["label"]) for p in pred]
                loss = sum(weight * value for weight, value in zip(lambda_seg, loss_seg, strict=True))
            run.backward(loss / args.iter_size, last=iteration == args.iter_size - 1)
            for name, value in zip(losses, loss_seg, strict=True):
                losses[name] += value.detach() / args.iter_size

        run.update(optimizer)
        run.end_step(step, losses, source=(source, pred[-1]))


if __name__ == "__main__":
    with exit_with_message():
        main(get_arguments())
