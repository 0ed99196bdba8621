"""Measure loaders, training steps, evaluation and labelling; the figures of one run are comparable with each other.

    python scripts/benchmark.py                                          # on a CPU: loaders at real sizes, a small network
    python scripts/benchmark.py --device cuda --amp bf16 --channels-last # on a GPU: the published network and sizes
    python scripts/benchmark.py --model-step                             # without a GPU: what published steps ask of one
    python scripts/benchmark.py --model-step "train_clan.py --amp bf16"  # ... or this one

Loaders: samples per second of one process with one thread, from rendered files in the official sizes and formats. Training: the
training scripts themselves, loaders included, from the times in their metrics.jsonl. Evaluation: prediction at full label
resolution with the confusion matrix on the device. Pseudo-labels: the labelling of a CBST round for few and for more images of
2048x1024 (--images); memory must not grow with their number. Repeated measurements are given as medians. Modelled steps: see
utils/cost_model.py and docs/benchmarks.md.
"""

import contextlib
import importlib
import itertools
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from glob import glob
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch

import train_cbst
from dataset.catalogue import CITYSCAPES
from dataset.segmentation import build_dataset
from dataset.transforms import Resize
from model import build_model
from scripts import make_mini_data
from utils import fake_cuda
from utils.confusion import ConfusionMatrix
from utils.cost_model import CARDS, cost_of_steps
from utils.device import autocast, choose, peak_memory, prepare
from utils.domains import target_domain
from utils.errors import exit_with_message
from utils.evaluation import predict
from utils.files import write_json
from utils.flags import add_speed_flags
from utils.outputs import check_file, is_json_with
from utils.parser import Parser, positive, positive_numbers, size
from utils.self_training.labelling import label_target
from utils.self_training.protocols import PROTOCOLS

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SECTIONS = ("loaders", "training", "evaluation", "pseudo_labels")
WARM_UP = 3
# Each method's own script, with flags that let it start from nothing.
STEPS = {
    "source": ["train_source.py"],
    "AdaptSegNet": ["train_adaptsegnet.py"],
    "MaxSquare": ["train_maxsquare.py", "--target-mode", "IW_maxsquare", "--val-every", "0"],
    "CLAN": ["train_clan.py", "--random-scale", "False"],
}
# For what needs no data: the methods that go on from a network, or in stages and rounds, too.
MODELLED_STEPS = [
    *STEPS.values(),
    ["train_source.py", "--batch-norm", "frozen"],
    ["train_fada.py", "--stage", "adversarial", "--batch-size", "2"],
    ["train_cbst.py", "--batch-size", "1", "--num-rounds", "2", "--mr-weight-kld", "0.1"],
]
MODEL_STEP = (
    "count the kernels, memory and time of a training step on GPUs that need not be there, and measure nothing: of published "
    "methods, or of a script with its flags, in quotes"
)


def get_arguments(arguments: list[str] | None = None) -> Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--only", choices=SECTIONS, action="append", help="measure only this section; may be repeated")
    parser.add_argument("--model", metavar="NAME", help="network (default: DeepLab on a GPU, MiniResNet18 on a CPU)")
    parser.add_argument("--input-size", type=size, metavar="W,H", help="source images (default 1280,720; on a CPU 192,96)")
    parser.add_argument(
        "--input-size-target", type=size, metavar="W,H", help="target images (default 1024,512; on a CPU 192,96)"
    )
    parser.add_argument("--label-size", type=size, metavar="W,H", help="of evaluation (default 2048,1024; on a CPU 384,192)")
    parser.add_argument(
        "--images", type=positive_numbers, metavar="N,M", help="of pseudo-labels (default 10,200; on a CPU 2,6)"
    )
    parser.add_argument("--batch-size", type=positive, default=1, help="images per domain and step")
    parser.add_argument("--steps", type=positive, default=10, help="measured repetitions, after as many as needed to warm up")
    parser.add_argument("--threads", type=positive, default=1, help="threads of one process, on a CPU")
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file")
    parser.add_argument("--model-step", nargs="?", const="", metavar="COMMAND", help=MODEL_STEP)
    add_speed_flags(parser)
    args = parser.parse_args(arguments)
    on_gpu = choose(args).type == "cuda"
    args.model = args.model or ("DeepLab" if on_gpu else "MiniResNet18")
    args.images = args.images or ((10, 200) if on_gpu else (2, 6))
    args.input_size = args.input_size or ((1280, 720) if on_gpu else (192, 96))
    args.input_size_target = args.input_size_target or ((1024, 512) if on_gpu else (192, 96))
    args.label_size = args.label_size or ((2048, 1024) if on_gpu else (384, 192))
    return args


def main(args: Namespace) -> None:
    check_file("--json", args.json, is_json_with("machine"))
    if args.model_step is not None:
        model_step(args.model_step)
        return
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
        write_json(args.json, figures)


def model_step(command: str) -> None:
    """Print what a step of the script and flags in `command`, or of every published method, asks of a GPU."""
    if fake_cuda.FOLDER not in os.environ:
        fake_cuda.start_again("--model-step")
    precisions = ("", "--amp bf16 --channels-last", "--fast")
    commands = [command] if command else [f"{' '.join(words)} {more}" for words in MODELLED_STEPS for more in precisions]
    for one in commands:
        name, *flags = shlex.split(one)
        script = importlib.import_module(name.removesuffix(".py"))
        with contextlib.redirect_stdout(sys.stderr):
            costs = cost_of_steps(script, script.get_arguments(flags))
        for run, cost in costs.items():
            times = "  ".join(f"{card} {1000 * cost.seconds(rates):.1f} ms" for card, rates in CARDS.items())
            print(f"{one} ({run})\n    {cost.flops / 1e12:.2f} TFLOP, {cost.moved / 1e9:.1f} GB moved, ", end="")
            print(f"{cost.kernels} kernels, at most {cost.peak / 1e9:.2f} GB, {len(cost.waits)} waits")
            longest = itertools.islice(cost.profile(CARDS["H100"]).items(), 8)
            print(f"    at least: {times}\n    of this on an H100: ", end="")
            print(", ".join(f"{name} {1000 * seconds:.1f}" for name, seconds in longest), flush=True)


def describe(device: torch.device, args: Namespace) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    speed = {"amp": args.amp, "channels_last": args.channels_last, "compile": args.compile}
    return {"device": name, "cores": os.cpu_count(), "threads": args.threads, "torch": torch.__version__, **speed}


def measure_loaders(args: Namespace, device: torch.device) -> dict[str, dict[str, float]]:
    """Samples per second of reading and resizing one file after the other in this process."""
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        render(f"{folder}/source", "gta5,synthia", "1914,1052")
        render(f"{folder}/target", "cityscapes", "2048,1024")
        cases = {
            "GTA5 1914x1052 -> 1280x720": ("gta5", f"{folder}/source/GTA5", "train", (1280, 720), True),
            "SYNTHIA 1914x1052 -> 1280x760": ("synthia", f"{folder}/source/SYNTHIA", "train", (1280, 760), True),
            "Cityscapes 2048x1024 -> 1024x512": ("cityscapes", f"{folder}/target/Cityscapes", "train", (1024, 512), False),
        }
        for title, (name, root, split, resized, labels) in cases.items():
            dataset = build_dataset(name, root, split, transform=Resize(resized), labels=labels)
            reads = [partial(dataset.__getitem__, i % len(dataset)) for i in range(2 + 2 * args.steps)]
            seconds = [timed(read, device) for read in reads][2:]
            figures[title] = {"samples/s": 1 / statistics.median(seconds), "ms": 1000 * statistics.median(seconds)}
    return figures


def measure_training(args: Namespace, device: torch.device) -> dict[str, dict[str, float]]:
    """Whole steps of the training scripts, run as a user runs them on rendered data of the network's sizes."""
    figures = {}
    sizes = [f"{width},{height}" for width, height in (args.input_size, args.input_size_target)]
    with tempfile.TemporaryDirectory() as folder:
        render(f"{folder}/source", "gta5", sizes[0])
        render(f"{folder}/target", "cityscapes", sizes[1])
        data = ["--data-dir", f"{folder}/source/GTA5", "--input-size", sizes[0], "--restore-from", "none", "--log-every", "1"]
        target = ["--data-dir-target", f"{folder}/target/Cityscapes", "--input-size-target", sizes[1]]
        speed = ["--device", str(device), "--amp", args.amp, "--batch-size", str(args.batch_size)]
        speed += ["--channels-last", str(args.channels_last), "--compile", str(args.compile)]
        steps = ["--num-steps", str(WARM_UP + args.steps)]
        for title, (script, *flags) in STEPS.items():
            both = target if script != "train_source.py" else []
            model = ["--model", f"{args.model}Twin" if (args.model, title) == ("MiniResNet18", "CLAN") else args.model]
            run = ["--snapshot-dir", f"{folder}/{title}"]
            command = [sys.executable, script, *data, *both, *speed, *steps, *model, *run, *flags]
            environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
            result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
            if result.returncode:
                raise SystemExit(f"benchmark.py: error: {script} failed:\n{result.stderr[-2000:]}")
            with open(f"{folder}/{title}/metrics.jsonl") as file:
                rows = [json.loads(line) for line in file][WARM_UP:]
            images = args.batch_size * (2 if both else 1)
            figures[f"{title}, {args.model}, batch {args.batch_size} a domain"] = {
                "ms": 1000 * images / statistics.median(row["images_per_second"] for row in rows),
                "waiting for data": statistics.median(row["data_wait"] for row in rows),
                "peak GB": rows[-1]["peak_memory_gb"],
            }
    return figures


def render(folder: str, formats: str, image_size: str) -> None:
    """A few images of one domain."""
    counts = ["--source-train", "4", "--source-val", "1", "--target-train", "4", "--target-val", "1"]
    make_mini_data.main(make_mini_data.get_arguments([folder, "--formats", formats, "--size", image_size, *counts]))


def measure_evaluation(args: Namespace, device: torch.device) -> dict[str, dict[str, float]]:
    """Prediction of one image after the other at full label size, with its confusion matrix."""
    model = prepare(build_model(args.model), args, device).eval()
    image = random_images(1, args.input_size_target, device)
    label = torch.randint(0, 19, (1, *args.label_size[::-1]), dtype=torch.uint8, device=device)
    confusion = ConfusionMatrix(19, device)

    @torch.inference_mode()
    def step() -> None:
        with autocast(args, device):
            scores = predict(model, image, args.label_size[::-1])
        confusion.add(label, scores.argmax(1))

    width, height = args.label_size
    return {f"{args.model}, labels {width}x{height}": repeat(step, args.steps, device)}


def measure_pseudo_labels(args: Namespace, device: torch.device) -> dict[str, dict[str, float]]:
    """A CBST round's labelling: score maps to the disk, thresholds, labels; seconds per image and bytes of maps per image."""
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        render(f"{folder}/data", "cityscapes", "2048,1024")
        image = sorted(glob(f"{folder}/data/Cityscapes/leftImg8bit/train/*/*.png"))[0]
        for count in map(int, args.images):
            for i in range(count):  # one picture under many names
                name = f"{folder}/{count}/leftImg8bit/train/bench/bench_{i:06d}_000000_leftImg8bit.png"
                os.makedirs(os.path.dirname(name), exist_ok=True)
                os.link(image, name)
            flags = ["--data-dir-target", f"{folder}/{count}", "--snapshot-dir", f"{folder}/run{count}", "--num-workers", "0"]
            settings = train_cbst.get_arguments([*flags, "--amp", args.amp])
            os.makedirs(settings.snapshot_dir)
            model = prepare(build_model(args.model, heads="single"), args, device)
            protocol = PROTOCOLS[settings.protocol]
            data = target_domain(settings).dataset(CITYSCAPES, protocol.image_to_label(settings), labels=False)
            seconds = timed(partial(label_target, settings, protocol, CITYSCAPES, 0.2, model, data, None, device), device)
            size = statistics.mean(map(os.path.getsize, glob(f"{settings.snapshot_dir}/maps/*.npz")))
            figures[f"{args.model}, {count} images"] = {
                "s/image": seconds / count,
                "peak GB": peak_memory(device) / 2**30,
                "MB/image": size / 1e6,
            }
    return figures


def random_images(batch_size: int, shape: tuple[int, int], device: torch.device) -> torch.Tensor:
    return torch.randint(0, 256, (batch_size, 3, *shape[::-1]), dtype=torch.uint8, device=device)


def repeat(step: Callable[[], None], count: int, device: torch.device) -> dict[str, float]:
    """Median time and peak memory of `count` calls after some to warm up."""
    for _ in range(WARM_UP):
        step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    milliseconds = 1000 * statistics.median(timed(step, device) for _ in range(count))
    return {"ms": milliseconds, "peak GB": peak_memory(device) / 2**30}


def timed(function: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


if __name__ == "__main__":
    with exit_with_message():
        main(get_arguments())
