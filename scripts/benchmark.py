"""Measure loaders, training steps and evaluation; the figures of one run are comparable with each other.

    python scripts/benchmark.py                                          # on a CPU: loaders at real sizes, a small network
    python scripts/benchmark.py --device cuda --amp bf16 --channels-last # on a GPU: the published network and sizes

Loaders: samples per second of one process with one thread, from rendered files in the official sizes and formats. Training: a
whole AdaptSegNet step (two forward and backward passes of the network, two discriminators, the published optimizers).
Evaluation: prediction at full label resolution with the confusion matrix on the device. Pseudo-labels: the labelling of a CBST
round for few and for more images of 2048x1024 (--images): memory must not grow with them. Medians; TFLOP/s count
multiplications and additions of convolutions, forward and backward.
"""

import json
import os
import platform
import statistics
import sys
import tempfile
import time
from glob import glob

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import train_adaptsegnet
import train_cbst
from dataset.segmentation import build_dataset
from dataset.transforms import Resize
from model import OutputDiscriminator, build_model, upsample
from scripts import make_mini_data
from utils.arguments import Parser, add_speed_flags, numbers, positive, size
from utils.confusion import ConfusionMatrix
from utils.device import autocast, choose, prepare
from utils.evaluation import predict
from utils.labelling import label_target
from utils.losses import cross_entropy
from utils.optimizers import discriminator_optimizer, segmentation_optimizer
from utils.run import peak_memory

SECTIONS = ("loaders", "training", "evaluation", "pseudo_labels")


def get_arguments(arguments=None):
    parser = Parser(__doc__)
    parser.add_argument("--only", choices=SECTIONS, action="append", help="measure only this section; may be repeated")
    parser.add_argument("--model", metavar="NAME", help="network (default: DeepLab on a GPU, MiniResNet18 on a CPU)")
    parser.add_argument("--input-size", type=size, metavar="W,H", help="source images (default 1280,720; on a CPU 192,96)")
    parser.add_argument(
        "--input-size-target", type=size, metavar="W,H", help="target images (default 1024,512; on a CPU 192,96)"
    )
    parser.add_argument("--label-size", type=size, metavar="W,H", help="of evaluation (default 2048,1024; on a CPU 384,192)")
    parser.add_argument("--images", type=numbers, metavar="N,M", help="of pseudo-labels (default 10,200; on a CPU 2,6)")
    parser.add_argument("--batch-size", type=positive, default=1, help="images per domain and step")
    parser.add_argument("--steps", type=positive, default=10, help="measured repetitions, after as many as needed to warm up")
    parser.add_argument("--threads", type=positive, default=1, help="threads of one process, on a CPU")
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file")
    add_speed_flags(parser)
    args = parser.parse_args(arguments)
    on_gpu = choose(args).type == "cuda"
    args.model = args.model or ("DeepLab" if on_gpu else "MiniResNet18")
    args.images = args.images or ((10, 200) if on_gpu else (2, 6))
    args.input_size = args.input_size or ((1280, 720) if on_gpu else (192, 96))
    args.input_size_target = args.input_size_target or ((1024, 512) if on_gpu else (192, 96))
    args.label_size = args.label_size or ((2048, 1024) if on_gpu else (384, 192))
    return args


def main(args):
    torch.set_num_threads(args.threads)
    device = choose(args)
    torch.backends.cudnn.benchmark = True
    figures = {"machine": describe(device, args)}
    print(json.dumps(figures["machine"]))
    for section in args.only or SECTIONS:
        figures[section] = globals()[f"measure_{section}"](args, device)
        for name, values in figures[section].items():
            print(f"{section:10s} {name:34s} " + "  ".join(f"{key} {value:.3g}" for key, value in values.items()), flush=True)
    if args.json:
        with open(args.json, "w") as file:
            json.dump(figures, file, indent=2)


def describe(device, args):
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {"device": name, "cores": os.cpu_count(), "threads": args.threads, "torch": torch.__version__, "amp": args.amp,
            "channels_last": args.channels_last, "compile": args.compile}  # fmt: skip


def measure_loaders(args, device):
    """Samples per second of reading and resizing one file after the other in this process."""
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        counts = ["--source-train", "4", "--source-val", "1", "--target-train", "4", "--target-val", "1"]
        for name, formats, image_size in (("source", "gta5,synthia", "1914,1052"), ("target", "cityscapes", "2048,1024")):
            command = [f"{folder}/{name}", "--formats", formats, "--size", image_size, *counts]
            make_mini_data.main(make_mini_data.get_arguments(command))
        cases = {
            "GTA5 1914x1052 -> 1280x720": ("gta5", f"{folder}/source/GTA5", "train", (1280, 720), True),
            "SYNTHIA 1914x1052 -> 1280x760": ("synthia", f"{folder}/source/SYNTHIA", "train", (1280, 760), True),
            "Cityscapes 2048x1024 -> 1024x512": ("cityscapes", f"{folder}/target/Cityscapes", "train", (1024, 512), False),
        }
        for title, (name, root, split, resized, labels) in cases.items():
            dataset = build_dataset(name, root, split, transform=Resize(resized), labels=labels)
            seconds = [
                timed(lambda i=i, dataset=dataset: dataset[i % len(dataset)], device) for i in range(2 + 2 * args.steps)
            ][2:]
            figures[title] = {"samples/s": 1 / statistics.median(seconds), "ms": 1000 * statistics.median(seconds)}
    return figures


def measure_training(args, device):
    """One whole AdaptSegNet step on random images."""
    G = prepare(build_model(args.model, heads=None if args.model.lower() == "deeplab" else "multi"), args, device).train()
    D = [prepare(OutputDiscriminator(), args, device) for _ in G.head_names]
    optimizers = [segmentation_optimizer(G.parameter_groups(), "published", 2.5e-4, 0.9, 5e-4)]
    optimizers += [discriminator_optimizer(network.parameters(), "published", 1e-4) for network in D]
    source, target = (random_images(args.batch_size, shape, device) for shape in (args.input_size, args.input_size_target))
    label = torch.randint(0, 19, (args.batch_size, *args.input_size[::-1]), dtype=torch.uint8, device=device)

    def step():
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        with autocast(args, device):
            pred_source = [upsample(logits, args.input_size[::-1]) for logits in G(source)]
            loss = sum(cross_entropy(pred, label) for pred in pred_source)
        loss.backward()
        with autocast(args, device):
            pred_target = [upsample(logits, args.input_size_target[::-1]) for logits in G(target)]
            loss = sum(adversarial(network, pred, 0) for network, pred in zip(D, pred_target, strict=True))
        loss.backward()
        for domain, predictions in enumerate((pred_source, pred_target)):
            for network, pred in zip(D, predictions, strict=True):
                with autocast(args, device):
                    loss = adversarial(network, pred.detach(), domain)
                loss.backward()
        for optimizer in optimizers:
            optimizer.step()

    with FlopCounterMode(display=False) as counter:
        step()
    figure = repeat(step, args.steps, device)
    figure["TFLOP/s"] = counter.get_total_flops() / 1e12 / (figure["ms"] / 1000)
    return {f"{args.model} AdaptSegNet step, batch {args.batch_size}+{args.batch_size}": figure}


def adversarial(discriminator, pred, domain):
    return train_adaptsegnet.adversarial_loss(discriminator(F.softmax(pred, dim=1)), domain, "Vanilla")


def measure_evaluation(args, device):
    """Prediction of one image after the other at full label size, with its confusion matrix."""
    model = prepare(build_model(args.model), args, device).eval()
    image = random_images(1, args.input_size_target, device)
    label = torch.randint(0, 19, (1, *args.label_size[::-1]), dtype=torch.uint8, device=device)
    confusion = ConfusionMatrix(19, device)

    @torch.inference_mode()
    def step():
        with autocast(args, device):
            scores = predict(model, image, args.label_size[::-1])
        confusion.add(label, scores.argmax(1))

    width, height = args.label_size
    return {f"{args.model}, labels {width}x{height}": repeat(step, args.steps, device)}


def measure_pseudo_labels(args, device):
    """A CBST round's labelling: score maps to the disk, thresholds, labels; seconds per image and bytes of maps per image."""
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        command = [
            f"{folder}/data",
            "--formats",
            "cityscapes",
            "--size",
            "2048,1024",
            "--target-train",
            "1",
            "--target-val",
            "1",
        ]
        make_mini_data.main(make_mini_data.get_arguments([*command, "--source-train", "1", "--source-val", "1"]))
        (image,) = glob(f"{folder}/data/Cityscapes/leftImg8bit/train/*/*.png")
        for count in map(int, args.images):
            for i in range(count):  # one picture under many names
                name = f"{folder}/{count}/leftImg8bit/train/bench/bench_{i:06d}_000000_leftImg8bit.png"
                os.makedirs(os.path.dirname(name), exist_ok=True)
                os.link(image, name)
            flags = ["--data-dir-target", f"{folder}/{count}", "--snapshot-dir", f"{folder}/run{count}", "--num-workers", "0"]
            settings = train_cbst.get_arguments([*flags, "--amp", args.amp])
            os.makedirs(settings.snapshot_dir)
            model = prepare(build_model(args.model, heads="single"), args, device)
            seconds = timed(lambda: label_target(settings, 0.2, model, device), device)  # noqa: B023
            size = statistics.mean(map(os.path.getsize, glob(f"{settings.snapshot_dir}/maps/*.npz")))
            figures[f"{args.model}, {count} images"] = {
                "s/image": seconds / count, "peak GB": peak_memory(device) / 2**30, "MB/image": size / 1e6
            }  # fmt: skip
    return figures


def random_images(batch_size, shape, device):
    return torch.randint(0, 256, (batch_size, 3, *shape[::-1]), dtype=torch.uint8, device=device)


def repeat(step, count, device):
    """Median time and peak memory of `count` calls after three to warm up."""
    for _ in range(3):
        step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    milliseconds = 1000 * statistics.median(timed(step, device) for _ in range(count))
    return {"steps/s": 1000 / milliseconds, "ms": milliseconds, "peak GB": peak_memory(device) / 2**30}


def timed(function, device):
    began = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


if __name__ == "__main__":
    main(get_arguments())
