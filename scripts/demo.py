"""Watch a model being adapted to a new domain: mini data, training on the source, adaptation, evaluation, and a report.

    bash scripts/demo.sh            three seeds, about 27 minutes on 2 cores
    bash scripts/demo.sh --quick    one seed and fewer steps, 4 to 5 minutes

It calls the ordinary scripts with ordinary flags (OUT/commands.txt lists the commands). What is finished is not done again:
start an interrupted demo again, and it goes on where it stopped.

Rows of the table, all scored on the target's val split:
    source-only    trained on the source alone
    control        source-only trained on for as many steps as the methods, still on the source alone
    AdaBN          source-only with BatchNorm statistics re-estimated on target images
    MaxSquare, AdaptSegNet, FADA, CBST-SP    source-only adapted by these methods
    source-only, twin; CLAN         the same as source-only with CLAN's twin classifiers, and CLAN, which starts from it
    oracle         trained on target labels, for as many steps as source-only (first seed only, not with --quick)
"""

import csv
import html
import json
import os
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from typing import Any, NamedTuple, TypedDict

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np
from PIL import Image

from dataset.catalogue import CITYSCAPES, DATA_SETS, label_table
from utils.parser import Parser, positive
from utils.pictures import colorize, grid, save_picture

TRAIN_IDS = label_table(DATA_SETS["cityscapes"].ids, CITYSCAPES)
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SIZE = "192,96"

# The demo's preset. Images of 192x96 and a few hundred steps need other settings than the published ones, which are the
# scripts' defaults. They were tuned on seeds 0 and 1, so these are not results to compare methods by.
SHARED = "--batch-size 4 --num-workers 0 --amp bf16 --channels-last --device cpu".split()
ON_CPU = "--num-workers 0 --device cpu".split()
FROM_SCRATCH = "--restore-from none --optim Adam --learning-rate 1e-3 --warmup 50 --weight-decay 1e-4 --multi".split()
# Frozen BatchNorm: what the methods gain beyond re-estimated statistics, which the AdaBN row shows by themselves. FADA alone
# trains it, here in both of its stages (published: in the distillation on GTA5); its gain includes the target's statistics.
ADAPTATION = "--batch-norm frozen --updates clean --learning-rate 1e-3".split()
MAXSQUARE = "--target-mode IW_maxsquare --lambda-target 2 --IW-ratio 0.5 --val-every 0".split()
ADAPTSEGNET = "--lambda-adv-target1 0.006 --lambda-adv-target2 0.03 --learning-rate-D 2e-4".split()
CLAN = "--lambda-adv 0.6 --learning-rate-D 2e-4 --random-scale False".split()
FADA = "--batch-size 8 --batch-norm train --lambda-adv 0.005 --learning-rate 1e-3 --learning-rate-D 2e-4".split()
FADA += "--color-jitter 0,0,0,0 --class-balanced False --scale-range 1,1".split()
CBST = "--power 0.9 --init-tgt-port 0.3 --init-src-port 0.5 --max-src-port 0.5 --num-rounds 3".split()
CBST += "--epochs-per-round 1 --with-prior --mine-port 0 --eval-scale 1 --random-scale False".split()
CONTROL = "--multi --gaussian-blur False --random-mirror False".split()

METHODS = {
    "control": ("train_source.py", CONTROL),
    "MaxSquare": ("train_maxsquare.py", MAXSQUARE),
    "AdaptSegNet": ("train_adaptsegnet.py", ADAPTSEGNET),
    "CLAN": ("train_clan.py", CLAN),
    "CBST-SP": ("train_cbst.py", CBST),
}

ROWS = ("source-only", "control", "AdaBN", "MaxSquare", "AdaptSegNet", "FADA", "CBST-SP", "source-only, twin", "CLAN")
ONE_DOMAIN = ("source-only", "source-only, twin", "oracle")
TARGET_STATISTICS = ("AdaBN", "FADA", "oracle")


class Profile(NamedTuple):
    """How long a demo is; `images` are the numbers of images of source train, source val, target train and target val."""

    seeds: tuple[int, ...]
    source_steps: int
    adaptation_steps: int
    images: tuple[int, int, int, int]
    rows: tuple[str, ...]


FULL = Profile(seeds=(0, 1, 2), source_steps=800, adaptation_steps=150, images=(800, 160, 600, 160), rows=(*ROWS, "oracle"))
QUICK = Profile(seeds=(0,), source_steps=400, adaptation_steps=60, images=(400, 60, 200, 60), rows=ROWS)

Command = list[str]  # a script and its flags


class Job(NamedTuple):
    """Commands to run one after the other; the last one writes the file `finished`."""

    title: str
    finished: str
    commands: list[Command]


class RowFigures(TypedDict):
    """One row of the table: a value for each seed, in per cent; `iou` holds 0..1 by class, None for a class without pixels."""

    miou: list[float]
    iou: list[dict[str, float | None]]
    gain: list[float]


class LabelShares(TypedDict):
    """Of all pixels or of one class, in per cent: `labelled` are the pixels with this pseudo-label, relative to those with this
    label; `right` is how many of the pseudo-labels agree with the label, None if there are none."""

    labelled: float
    right: float | None


class LabelQuality(LabelShares):
    """The shares of all pixels, and of each class."""

    classes: dict[str, LabelShares]


class Results(TypedDict):
    """What results.json holds."""

    seeds: list[int]
    source_val_miou: list[float]
    rows: dict[str, RowFigures]
    pseudo_labels: dict[str, LabelQuality]


def get_arguments(arguments: list[str] | None = None) -> Namespace:
    parser = Parser(__doc__)
    parser.add_switch("--quick", help="one seed and fewer steps")
    parser.add_argument("--out", metavar="DIR", help="where everything goes (default ./demo, with --quick ./demo-quick)")
    parser.add_argument("--processes", type=positive, default=min(2, os.cpu_count() or 1), help="scripts that run side by side")
    args = parser.parse_args(arguments)
    args.out = args.out or ("demo-quick" if args.quick else "demo")
    return args


class Demo:
    """The folders and the profile of one demo, and how its commands are run."""

    def __init__(self, args: Namespace) -> None:
        self.out, self.processes = os.path.abspath(args.out), args.processes
        self.profile = QUICK if args.quick else FULL
        self.data = os.path.join(self.out, "data")
        os.makedirs(self.out, exist_ok=True)

    def folder(self, row: str, seed: int) -> str:
        """Where everything of a row and seed goes."""
        return os.path.join(self.out, f"seed{seed}", row.replace(", ", "-"))

    def weights(self, row: str, seed: int) -> str:
        """Where the row's final weights are."""
        steps = self.steps(row)
        name = {
            "AdaBN": "GTA5_adabn",
            "oracle": f"CITYSCAPES_{steps}",
            "FADA": f"distill/model_iter{steps:06d}",
            "CBST-SP": "round1/gta52cityscapes_round1_epoch1",
        }.get(row, f"GTA5_{steps}")
        return os.path.join(self.folder(row, seed), f"{name}.pth")

    def steps(self, row: str) -> int:
        return self.profile.source_steps if row in ONE_DOMAIN else self.profile.adaptation_steps

    def rows(self, seed: int) -> list[str]:
        """The rows of a seed; only the first seed has an oracle."""
        return [row for row in self.profile.rows if row != "oracle" or seed == self.profile.seeds[0]]

    def run(self, jobs: Iterable[Job]) -> None:
        """Run jobs, several at a time, and skip those that are finished.

        Raises:
            RuntimeError: a command failed; the message shows the end of its log.
        """
        unfinished = [job for job in jobs if not os.path.exists(job.finished)]
        with ThreadPoolExecutor(self.processes) as pool:
            for future in [pool.submit(self._run_job, job) for job in unfinished]:
                future.result()

    def _run_job(self, job: Job) -> None:
        began = time.monotonic()
        for command in job.commands:
            self._run_command(job.title, os.path.dirname(job.finished), command)
        print(f"  {job.title}: {time.monotonic() - began:.0f} s", flush=True)

    def _run_command(self, title: str, folder: str, command: Command) -> None:
        os.makedirs(folder, exist_ok=True)
        if command[0].startswith("train_") and begun(command):
            command = [*command, "--resume", "auto"]
        with open(os.path.join(self.out, "commands.txt"), "a") as file:
            file.write(" ".join(["python", *command]) + "\n")
        # One thread each: on busy cores two threads in one process can be slower than one.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        log = os.path.join(folder, "log.txt")
        with open(log, "a") as file:
            code = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, stdout=file, stderr=file).returncode
        if code:
            with open(log) as file:
                tail = "".join(file.readlines()[-5:])
            raise RuntimeError(f"{title} failed ({' '.join(command)}):\n{tail}\nthe whole log is in {log}")


def begun(command: Command) -> bool:
    """True if a training command was started before and has left something to resume from."""
    folder = command[command.index("--snapshot-dir") + 1]
    if "--stage" in command:
        stage = command[command.index("--stage") + 1]
        folder = os.path.join(folder, "pseudo-labels" if stage == "pseudo-label" else stage)
    return any(os.path.exists(os.path.join(folder, name)) for name in ("state.pth", "state.previous.pth", "made_from.json"))


def main(args: Namespace) -> None:
    began = time.monotonic()
    demo = Demo(args)
    print("Rendering the mini data ...", flush=True)
    make_data(demo)
    seeds = demo.profile.seeds
    prior = os.path.join(demo.data, "GTA5", "spatial_prior_19.mat")
    command = ["scripts/spatial_prior.py", *source_data(demo), "--size", SIZE, "--output", prior, "--workers", "1"]
    demo.run([Job("spatial prior", prior, [command])])
    print("Training on one domain ...", flush=True)
    demo.run([training(demo, row, seed) for seed in seeds for row in demo.rows(seed) if row in ONE_DOMAIN])
    print("Adapting ...", flush=True)
    demo.run([adaptation(demo, row, seed) for seed in seeds for row in demo.rows(seed) if row not in ONE_DOMAIN])
    print("Evaluating ...", flush=True)
    demo.run([evaluation(demo, row, seed) for seed in seeds for row in demo.rows(seed)])
    demo.run([source_evaluation(demo, seed) for seed in seeds])
    results = collect(demo)
    write_report(demo, results)
    print("\n" + text_table(results))
    print(f"\n{(time.monotonic() - began) / 60:.1f} minutes. Report with pictures: {os.path.join(demo.out, 'report.html')}")


def make_data(demo: Demo) -> None:
    names = ("--source-train", "--source-val", "--target-train", "--target-val")
    counts = [word for name, count in zip(names, demo.profile.images, strict=True) for word in (name, str(count))]
    command = ["scripts/make_mini_data.py", demo.data, "--size", SIZE, "--workers", str(demo.processes), *counts]
    demo.run([Job("mini data", os.path.join(demo.data, "mini_data.json"), [command])])


def common_flags(demo: Demo, row: str, seed: int) -> list[str]:
    """The flags that all training scripts have in common."""
    steps = str(demo.steps(row))
    model = "MiniResNet18Twin" if row in ("CLAN", "source-only, twin") else "MiniResNet18"
    run = ["--snapshot-dir", demo.folder(row, seed), "--save-pred-every", "100000", "--save-state-every", "100"]
    schedule = ["--num-steps", steps, "--num-steps-stop", steps, "--seed", str(seed)]
    return [*SHARED, "--model", model, "--input-size", SIZE, *schedule, *run]


def source_data(demo: Demo) -> list[str]:
    return ["--data-dir", f"{demo.data}/GTA5", "--source-split", "train"]


def target_data(demo: Demo) -> list[str]:
    return ["--data-dir-target", f"{demo.data}/Cityscapes", "--input-size-target", SIZE]


def training(demo: Demo, row: str, seed: int) -> Job:
    """The job of a row that is trained from random weights on one domain."""
    if row == "oracle":
        data = ["--source", "cityscapes", "--data-dir", f"{demo.data}/Cityscapes", "--source-split", "train"]
    else:
        data = source_data(demo)
    twin = ["--lambda-seg", "1"] if row == "source-only, twin" else []  # both classifiers are main ones
    command = ["train_source.py", *data, *common_flags(demo, row, seed), *FROM_SCRATCH, *twin]
    return Job(f"{row}, seed {seed}", demo.weights(row, seed), [command])


def adaptation(demo: Demo, row: str, seed: int) -> Job:
    """The job of a row that starts from a source-only model."""
    start = ["--restore-from", demo.weights("source-only, twin" if row == "CLAN" else "source-only", seed)]
    title, finished = f"{row}, seed {seed}", demo.weights(row, seed)
    if row == "FADA":
        return Job(title, finished, fada(demo, seed, start))
    if row == "AdaBN":
        save = ["--save", demo.weights(row, seed), "--seed", str(seed), *ON_CPU]
        command = ["scripts/adabn.py", *start, *save, *target_data(demo)]
    else:
        script, flags = METHODS[row]
        target = [] if row == "control" else target_data(demo)
        command = [script, *source_data(demo), *target, *common_flags(demo, row, seed), *start, *ADAPTATION, *flags]
    return Job(title, finished, [command])


def fada(demo: Demo, seed: int, start: Sequence[str]) -> list[Command]:
    """FADA's stages but the first, source training: the source-only row takes its place."""
    common = ["train_fada.py", *source_data(demo), *target_data(demo), *common_flags(demo, "FADA", seed)]
    common += ["--input-size-test", SIZE, *FADA]
    adapted = os.path.join(demo.folder("FADA", seed), f"adversarial/model_iter{demo.steps('FADA'):06d}.pth")
    return [
        [*common, "--stage", "adversarial", *start],
        [*common, "--stage", "pseudo-label"],
        [*common, "--stage", "distill", "--restore-from", adapted],
    ]


def evaluation(demo: Demo, row: str, seed: int) -> Job:
    """The job that scores a row on the target's val split and keeps its predictions."""
    folder = demo.folder(row, seed)
    figures, predictions = os.path.join(folder, "figures.json"), os.path.join(folder, "predictions")
    data = ["--restore-from", demo.weights(row, seed), "--data-dir", f"{demo.data}/Cityscapes", "--input-size", SIZE]
    command = ["evaluate_cityscapes.py", *data, "--save", predictions, "--json", figures, *ON_CPU]
    return Job(f"{row}, seed {seed}", figures, [command])


def source_evaluation(demo: Demo, seed: int) -> Job:
    """The job that scores the source-only model on the source's own val split, to show how wide the gap is."""
    figures = os.path.join(demo.folder("source-only", seed), "source_figures.json")
    data = ["--dataset", "gta5", "--restore-from", demo.weights("source-only", seed), "--data-dir", f"{demo.data}/GTA5"]
    command = ["evaluate_cityscapes.py", *data, "--input-size", SIZE, "--save", "none", "--json", figures, *ON_CPU]
    return Job(f"source-only on its own domain, seed {seed}", figures, [command])


def collect(demo: Demo) -> Results:
    """All figures, from the files that the evaluations wrote."""
    seeds = demo.profile.seeds
    rows: dict[str, RowFigures] = {}
    for row in demo.profile.rows:
        found = [figures(os.path.join(demo.folder(row, seed), "figures.json")) for seed in seeds if row in demo.rows(seed)]
        miou = [100 * entry["miou"] for entry in found]
        baseline = rows["source-only"]["miou"] if rows else miou  # it is the first row
        gain = [value - base for value, base in zip(miou, baseline, strict=False)]  # the oracle has one seed only
        rows[row] = RowFigures(miou=miou, iou=[entry["iou"] for entry in found], gain=gain)
    on_source = [figures(os.path.join(demo.folder("source-only", seed), "source_figures.json")) for seed in seeds]
    return Results(
        seeds=list(seeds),
        source_val_miou=[100 * entry["miou"] for entry in on_source],
        rows=rows,
        pseudo_labels={name: label_quality(demo, folder) for name, folder in label_folders(demo).items()},
    )


def figures(path: str) -> dict[str, Any]:
    """The figures of the one checkpoint that an evaluation's JSON file is about: `miou`, and `iou` by class, 0..1."""
    with open(path) as file:
        return next(iter(json.load(file).values()))


def label_folders(demo: Demo) -> dict[str, str]:
    """The folders of the first seed's pseudo-labels, by method and round."""
    seed = demo.profile.seeds[0]
    rounds = sorted(glob(os.path.join(demo.folder("CBST-SP", seed), "round*", "pseudo_labels")))
    folders = {f"CBST round {r}": folder for r, folder in enumerate(rounds)}
    return {**folders, "FADA": os.path.join(demo.folder("FADA", seed), "pseudo-labels")}


def label_quality(demo: Demo, folder: str) -> LabelQuality:
    """How many pixels of the target's training images have pseudo-labels, and how many of these are right.

    Only this report looks at the true labels of these images; the methods never see them.
    """
    truth_of, kept, right = np.zeros(19), np.zeros(19), np.zeros(19)
    for path in sorted(glob(os.path.join(folder, "*.png"))):
        name = os.path.basename(path).replace("_leftImg8bit.png", "_gtFine_labelIds.png")
        truth = TRAIN_IDS[np.array(Image.open(f"{demo.data}/Cityscapes/gtFine/train/{name.split('_')[0]}/{name}"))]
        label = np.array(Image.open(path))
        seen = (truth < 19) & (label < 19)
        truth_of += np.bincount(truth[truth < 19], minlength=19)
        kept += np.bincount(label[seen], minlength=19)
        right += np.bincount(label[seen & (label == truth)], minlength=19)
    counts = zip(CITYSCAPES.names, kept.tolist(), right.tolist(), truth_of.tolist(), strict=True)
    return LabelQuality(
        labelled=100 * kept.sum() / truth_of.sum(),
        right=100 * right.sum() / kept.sum(),
        classes={name: LabelShares(labelled=100 * k / max(t, 1), right=100 * r / k if k else None) for name, k, r, t in counts},
    )


def text_table(results: Results) -> str:
    """The demo's table as text."""
    lines = [f"{'target val, mIoU in %':21s}  mean  [min, max]       gain  [min, max]      BatchNorm statistics of"]
    for row, entry in results["rows"].items():
        gain = "" if row == "source-only" else spread(entry["gain"], "+.1f")
        lines.append(
            f"{row:21s} {spread(entry['miou'], '.1f'):22s} {gain:22s} {'target' if row in TARGET_STATISTICS else 'source'}"
        )
    source_val = statistics.mean(results["source_val_miou"])
    seeds = len(results["seeds"])
    lines.append(f"source-only on the source's own val split: {source_val:.1f}; {seeds} seed{'s' if seeds > 1 else ''}")
    return "\n".join(lines)


def spread(values: Sequence[float], form: str) -> str:
    """Mean, minimum and maximum, with numbers written as the format `form` says."""
    return f"{statistics.mean(values):{'+' if '+' in form else ''}5.1f}  [{min(values):{form}}, {max(values):{form}}]"


def write_report(demo: Demo, results: Results) -> None:
    """results.json, results.csv, pictures.png and report.html."""
    with open(os.path.join(demo.out, "results.json"), "w") as file:
        json.dump(results, file, indent=2)
    with open(os.path.join(demo.out, "results.csv"), "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["row", *(f"seed {seed}" for seed in results["seeds"]), "mean", "mean gain"])
        for row, entry in results["rows"].items():
            missing = [""] * (len(results["seeds"]) - len(entry["miou"]))
            writer.writerow([row, *entry["miou"], *missing, statistics.mean(entry["miou"]), statistics.mean(entry["gain"])])
    save_picture(os.path.join(demo.out, "pictures.png"), pictures(demo))
    save_picture(os.path.join(demo.out, "pseudo_labels.png"), label_pictures(demo))
    with open(os.path.join(demo.out, "report.html"), "w") as file:
        file.write(report_html(results))


def pictures(demo: Demo) -> np.ndarray:
    """Target val images with their labels and the first seed's predictions."""
    seed = demo.profile.seeds[0]
    folders = {row: os.path.join(demo.folder(row, seed), "predictions") for row in demo.profile.rows}
    return side_by_side(demo, "val", folders)


def label_pictures(demo: Demo) -> np.ndarray:
    """Target training images with their labels and the pseudo-labels; pixels without one are black."""
    return side_by_side(demo, "train", label_folders(demo))


def side_by_side(demo: Demo, split: str, folders: Mapping[str, str], count: int = 5) -> np.ndarray:
    """`count` target images of a split, their labels, and their maps of ids in each folder, as one (H,W,3) uint8 picture.

    Args:
        folders: from the title of a column to the folder of its maps, which have the images' names.
    """
    images = sorted(glob(f"{demo.data}/Cityscapes/leftImg8bit/{split}/*/*.png"))
    rows = []
    for path in images[:: max(1, len(images) // count)][:count]:
        label = path.replace("/leftImg8bit/", "/gtFine/").replace("_leftImg8bit.png", "_gtFine_labelIds.png")
        maps = [np.array(Image.open(os.path.join(folder, os.path.basename(path)))) for folder in folders.values()]
        row = [np.array(Image.open(path)), *map(colorize, [TRAIN_IDS[np.array(Image.open(label))], *maps])]
        rows.append([np.array(Image.fromarray(picture).resize((288, 144), Image.Resampling.NEAREST)) for picture in row])
    return grid(rows, ["target image", "label", *folders])


def label_table_html(results: Results) -> str:
    """A table of the quality of each set of pseudo-labels, for all pixels and by class."""
    sets = results["pseudo_labels"]

    def cell(entry: LabelShares) -> str:
        right = "-" if entry["right"] is None else f"{entry['right']:.0f}"
        return f"<td>{entry['labelled']:.1f}, {right}</td>"

    header = "".join(f"<th>{name}</th>" for name in sets)
    rows = [f"<tr><td>all</td>{''.join(cell(entry) for entry in sets.values())}</tr>"]
    for name in CITYSCAPES.names:
        rows.append(f"<tr><td>{name}</td>{''.join(cell(entry['classes'][name]) for entry in sets.values())}</tr>")
    return f"<table><tr><th></th>{header}</tr>{''.join(rows)}</table>"


def report_html(results: Results) -> str:
    """One page: the table, the classes, the pictures."""
    rows = results["rows"]
    classes = list(rows["source-only"]["iou"][0])

    def mean_iou(row: str, name: str) -> str:
        values = [value for iou in rows[row]["iou"] if (value := iou[name]) is not None]
        return f"{100 * statistics.mean(values):.1f}" if values else "-"

    header = "".join(f"<th>{row}</th>" for row in rows)
    cells = {name: "".join(f"<td>{mean_iou(row, name)}</td>" for row in rows) for name in classes}
    body = "".join(f"<tr><td>{name}</td>{cells[name]}</tr>" for name in classes)
    return f"""<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>SegAdapt demo</title>
<style>body{{font:15px/1.5 sans-serif;margin:2em;max-width:1400px}} td,th{{padding:2px 12px;text-align:right}}
td:first-child{{text-align:left}} img{{max-width:100%}} pre{{background:#f4f4f4;padding:1em}}</style>
<h1>From one domain to another</h1>
<pre>{html.escape(text_table(results))}</pre>
<h2>Target images, labels and predictions (first seed)</h2>
<img src="pictures.png" alt="predictions side by side">
<h2>IoU per class, mean over seeds, in %</h2>
<table><tr><th></th>{header}</tr>{body}</table>
<h2>Pseudo-labels of the target's training images (first seed)</h2>
<img src="pseudo_labels.png" alt="pseudo-labels round by round">
<p>For each class, the pixels that are labelled as it in % of those that truly are of it, and how many of these labels are
right, in %:</p>
{label_table_html(results)}
<p>The commands are in commands.txt, all figures in results.json and results.csv. TensorBoard shows the training:
<code>tensorboard --logdir .</code></p></html>
"""


if __name__ == "__main__":
    try:
        main(get_arguments())
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"demo.py: error: {error}")
