"""Measure loaders, training steps, evaluation and labelling; the figures of one run are comparable with each other.

    python scripts/benchmark.py                                          # on a CPU: loaders at real sizes, a small network
    python scripts/benchmark.py --device cuda --amp bf16 --channels-last # on a GPU: the published network and sizes
    python scripts/benchmark.py --model-step                             # without a GPU: what published steps ask of one
    python scripts/benchmark.py --model-step "train_clan.py --amp bf16"  # ... or this one
    python scripts/benchmark.py --model-evaluation                       # how busy evaluate_cityscapes.py would keep one

Loaders: samples per second of one process with one thread, from rendered files in the official sizes and formats. Training: the
training scripts themselves, loaders included, from the times in their metrics.jsonl. Evaluation: prediction at full label
resolution with the confusion matrix on the device. Scoring: compute_iou.py on pairs of 2048x1024. Pseudo-labels: the labelling
of a CBST round for few and for more images of 2048x1024 (--images); memory must not grow with their number. Repeated
measurements are given as medians; CPU times are fair where other programs share the cores. Modelled steps: see
utils/cost_model.py and docs/benchmarks.md.
"""

import contextlib
import importlib
import inspect
import itertools
import json
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from glob import glob
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np
import torch
from torch.nn import functional as F

import evaluate_cityscapes
import train_cbst
from dataset.catalogue import CITYSCAPES, LABEL_IDS, label_table
from dataset.layouts import find_records
from dataset.loader import sequential_loader
from dataset.reading import keep_freed_memory, read_label
from dataset.segmentation import SegmentationDataset, build_dataset, dataset_of
from dataset.transforms import Resize
from model import build_model, upsample
from scripts import make_mini_data
from utils import fake_cuda
from utils.confusion import ConfusionMatrix
from utils.cost_model import CARDS, StepCost, cost_of_steps, counting, pinned
from utils.device import autocast, choose, peak_memory, prepare
from utils.domains import target_domain
from utils.errors import exit_with_message
from utils.evaluation import on_its_way, predict, predictions
from utils.files import write_json
from utils.flags import add_speed_flags
from utils.outputs import check_file, is_json_with
from utils.parser import Flags, Parser, positive, positive_numbers, size
from utils.pictures import save_ids
from utils.self_training.labelling import label_target
from utils.self_training.protocols import PROTOCOLS

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SECTIONS = ("loaders", "training", "evaluation", "scoring", "pseudo_labels")
WARM_UP = 3
LAUNCH = 5e-6  # of the host for one kernel, in seconds
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
    parser.add_switch("--model-evaluation", help="count how busy evaluate_cityscapes.py keeps GPUs that need not be there")
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
    if args.model_evaluation:
        model_evaluation()
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


def model_evaluation() -> None:
    """Print what share of the time GPUs are busy in evaluate_cityscapes.py on Cityscapes with the published network.

    The slowest of these decides: the GPU, the main thread (its own work as measured here, and LAUNCH for each kernel), the
    processes that read, the threads that write and count. Each of them is given a core.
    """
    if fake_cuda.FOLDER not in os.environ:
        fake_cuda.start_again("--model-evaluation")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        main, reading, finishing = host_of_evaluation(folder)
    milliseconds = [f"{1000 * seconds:.1f}" for seconds in (main, reading, finishing)]
    print("CPU ms an image here: {} main thread, {} reading, {} writing and counting".format(*milliseconds))
    for flags in ("", "--amp bf16 --channels-last", "--fast"):
        cost = cost_of_prediction(evaluate_cityscapes.get_arguments(["--restore-from", "none", *flags.split()]))
        host = main + LAUNCH * cost.kernels
        print(f"{flags or 'fp32'}: {cost.kernels} kernels, host {1000 * host:.1f} ms")
        for name, card in CARDS.items():
            gpu = cost.seconds(card)
            busy = {
                workers: gpu / max(gpu, host, reading / workers, finishing / evaluate_cityscapes.FINISHING_THREADS)
                for workers in (4, 8, 16)
            }
            shares = ", ".join(f"{share:.0%} with {workers} workers" for workers, share in busy.items())
            print(f"    {name}: {1000 * gpu:.1f} ms an image, busy {shares}", flush=True)


def host_of_evaluation(folder: str) -> tuple[float, float, float]:
    """CPU seconds an image of Cityscapes: in the main thread, for reading, for writing and counting."""
    root = f"{folder}/Cityscapes"
    keep_freed_memory()
    render(folder, "cityscapes", "2048,1024", val=4)
    records = find_records("cityscapes", root, "val") * 4
    dataset = dataset_of(records, "cityscapes", root, CITYSCAPES, Resize((1024, 512), label=False))
    batches = iter(sequential_loader(dataset, 2))
    next(batches)  # the workers have started
    began = time.thread_time()
    count = sum(1 for _ in batches)
    main = (time.thread_time() - began) / count
    batches = iter(sequential_loader(dataset))
    reading = cpu_seconds(lambda: next(batches), 8)
    batch = next(batches)
    prediction = torch.from_numpy(like_a_prediction(batch["label"][0].numpy()))[None]
    finish = partial(evaluate_cityscapes.save_and_count, f"{folder}/result", None, CITYSCAPES, batch, lambda: prediction)
    return main, reading, cpu_seconds(finish, 8)


def cost_of_prediction(args: Flags) -> StepCost:
    """Of one image of 1024x512 with labels of 2048x1024."""
    device = torch.device("cuda")
    with counting() as recorder:
        model = prepare(build_model("DeepLab"), args, device).eval()
        batch = {"image": pinned(torch.zeros(1, 3, 512, 1024, dtype=torch.uint8)), "label": torch.zeros(1, 1024, 2048)}
        # In inference mode PyTorch would show convolutions under names that no FLOPs are known for.
        without_gradients = inspect.unwrap(predictions)
        with torch.no_grad(), recorder.step() as cost:
            for _, prediction in without_gradients(model, [batch], device, lambda: autocast(args, device)):
                on_its_way(prediction)
    return cost


def like_a_prediction(label: np.ndarray) -> np.ndarray:
    """Train ids (H,W) as a network of output stride 8 might predict them: smooth borders, and mistakes here and there."""
    generator = torch.Generator().manual_seed(1)
    height, width = label.shape
    truth = F.one_hot(torch.from_numpy(np.where(label < 19, label, 0)).long(), 19).permute(2, 0, 1)[None].float()
    scores = F.avg_pool2d(truth, 8)
    mistakes = torch.randn(1, 19, height // 64, width // 64, generator=generator)
    scores += 0.3 * F.interpolate(mistakes, scores.shape[2:], mode="bilinear")
    scores += 0.25 * torch.randn(scores.shape, generator=generator)
    return upsample(scores, (height, width)).argmax(1)[0].to(torch.uint8).numpy()


def describe(device: torch.device, args: Namespace) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    speed = {"amp": args.amp, "channels_last": args.channels_last, "compile": args.compile}
    return {"device": name, "cores": os.cpu_count(), "threads": args.threads, "torch": torch.__version__, **speed}


def measure_loaders(args: Namespace, device: torch.device) -> dict[str, dict[str, float]]:
    """Samples per second of reading and resizing one file after the other, in this process as in a loader's."""
    figures = {}
    keep_freed_memory()
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
            keys = itertools.cycle(range(len(dataset)))

            def read(dataset: SegmentationDataset = dataset, keys: Iterator[int] = keys) -> None:
                dataset[next(keys)]

            seconds = statistics.median([timed(read, device) for _ in range(2 + 2 * args.steps)][2:])
            cpu = cpu_seconds(read, 2 * args.steps)
            figures[title] = {"samples/s": 1 / seconds, "ms": 1000 * seconds, "CPU ms": 1000 * cpu}
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


def render(folder: str, formats: str, image_size: str, val: int = 1) -> None:
    """A few images of one domain."""
    counts = ["--source-train", "4", "--source-val", "1", "--target-train", "4", "--target-val", str(val)]
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


def measure_scoring(args: Namespace, device: torch.device) -> dict[str, dict[str, float]]:
    """compute_iou.py as a whole process, with one process that reads and with two: CPU time of all, and what passes."""
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        render(folder, "cityscapes", "2048,1024", val=4)
        labels = sorted(glob(f"{folder}/Cityscapes/gtFine/val/*/*labelIds.png"))
        os.makedirs(f"{folder}/labels")
        os.makedirs(f"{folder}/predictions")
        table = label_table(LABEL_IDS, CITYSCAPES)
        for i, label in enumerate(labels):
            save_ids(f"{folder}/{i}.png", like_a_prediction(table[read_label(label)]))
        pairs = 50 * args.steps
        for i in range(pairs):  # a few pairs under many names
            os.link(labels[i % len(labels)], f"{folder}/labels/bench_{i:06d}_000000_gtFine_labelIds.png")
            os.link(f"{folder}/{i % len(labels)}.png", f"{folder}/predictions/bench_{i:06d}_000000_leftImg8bit.png")
        for workers in (1, 2):
            command = [sys.executable, "compute_iou.py", f"{folder}/labels", f"{folder}/predictions", "--workers", str(workers)]
            run = partial(subprocess.run, command, cwd=ROOT, check=True, capture_output=True)
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds = timed(run, device)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            figures[f"{pairs} pairs, {workers} processes"] = {
                "CPU ms/pair": 1000 * cpu / pairs,
                "ms/pair": 1000 * seconds / pairs,
            }
    return figures


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
            began = time.process_time()
            seconds = timed(partial(label_target, settings, protocol, CITYSCAPES, 0.2, model, data, None, device), device)
            cpu = time.process_time() - began
            size = statistics.mean(map(os.path.getsize, glob(f"{settings.snapshot_dir}/maps/*.npz")))
            figures[f"{args.model}, {count} images"] = {
                "s/image": seconds / count,
                "CPU s/image": cpu / count,
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


def cpu_seconds(function: Callable[[], Any], count: int) -> float:
    """Median of this process's CPU time in `count` calls."""
    times = [time.process_time()]
    for _ in range(count):
        function()
        times.append(time.process_time())
    return statistics.median(after - before for before, after in itertools.pairwise(times))


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
