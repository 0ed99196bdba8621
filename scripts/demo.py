"""Watch a model being adapted to a new domain: mini data, training on the source, adaptation, evaluation, and a report.

    bash scripts/demo.sh            three seeds, about 45 minutes on 2 cores
    bash scripts/demo.sh --quick    one seed and fewer steps, about 6 minutes
    bash scripts/demo.sh --all      three seeds and more rows, about 100 minutes
    bash scripts/demo.sh --sweep    other gaps between the domains: narrow, wide, each part of the gap alone (with --quick: one
                                    seed and fewer steps); hours

It calls the ordinary scripts with ordinary flags (OUT/commands.txt lists the commands). What is finished is not done again:
start an interrupted demo again, and it goes on where it stopped.

Rows of the table, all scored on the target's val split with their last weights:
    source-only    trained on the source alone, scored with the source's BatchNorm statistics
    AdaBN          the same weights with the target's statistics: no training
    control        source-only trained on, still on the source alone, for as many steps as the longest method; then the
                   target's statistics
    MaxSquare+IW, AdaptSegNet, FADA, CBST, DACS    AdaBN adapted by these methods, then the target's statistics again
    ..., twin; CLAN    the same with CLAN's twin classifiers, which it is compared with
    AdvEnt, MinEnt, CBST-SP, CBST+MRKLD, DACS+RCS, DACS+mask    (--all) variants of the methods, treated alike
    ..., frozen    (--all) source-only adapted with BatchNorm frozen, and scored with the source's statistics
    oracle         (--all) trained on target labels for as many steps as source-only, first seed only

docs/mini_benchmark.md has the protocol, how the settings were chosen, and the figures.
"""

import json
import os
import platform
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from glob import glob
from multiprocessing import get_context
from typing import Any, NamedTuple

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from dataset.catalogue import CITYSCAPES
from scripts import mini_benchmark as preset
from scripts.mini_benchmark import ADABN, ALL, BLOCKS, FROM_SCRATCH, GAPS, HEADLINE, ROWS, SIZE, TWIN, WITHOUT_TARGET, Profile
from scripts.mini_tables import Results, plot_sweep, sweep_table, text_table
from utils.files import write_json
from utils.parser import Parser, positive
from utils.reporting import write_report
from utils.reporting.plots import check_matplotlib
from utils.reporting.runs import read_run

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
EVALUATING = ("scripts/adabn.py", "evaluate_cityscapes.py")
SECONDS = "seconds.txt"  # beside what a command has written: how long it took


class Step(NamedTuple):
    """A command, a script and its flags, and the file that is there once it is done."""

    command: list[str]
    finished: str


class Job(NamedTuple):
    """Steps to take one after the other, as soon as the jobs that it needs are done."""

    title: str
    needs: tuple[str, ...]
    steps: list[Step]


def get_arguments(arguments: list[str] | None = None) -> Namespace:
    parser = Parser(__doc__)
    parser.add_switch("--quick", help="one seed and fewer steps")
    parser.add_switch("--all", help="more rows: variants of the methods, frozen BatchNorm, an oracle")
    parser.add_switch("--sweep", help="other gaps between the domains")
    parser.add_argument("--out", metavar="DIR", help="where everything goes (default ./demo, ./demo-quick, ./demo-sweep, ...)")
    parser.add_argument("--processes", type=positive, default=min(2, os.cpu_count() or 1), help="scripts that run side by side")
    args = parser.parse_args(arguments)
    if args.all and args.sweep:
        parser.error("--all and --sweep: the sweep has the headline's rows; give one of them")
    kinds = [kind for kind in ("sweep", "quick") if getattr(args, kind)]
    args.out = args.out or "-".join(["demo", *kinds])
    return args


class Demo:
    """The folders of one table.

    Args:
        root: of what does not depend on the target: source data, source-only and control.
        out: of everything else.
        target_flags: of make_mini_data.py, for the gap between source and target.
    """

    def __init__(self, root: str, out: str, profile: Profile, rows: Sequence[str], target_flags: str = "") -> None:
        self.root, self.out, self.profile, self.target_flags = root, out, profile, target_flags
        self.source, self.target = os.path.join(root, "source"), os.path.join(out, "target")
        self.all_rows = rows

    def rows(self, seed: int) -> list[str]:
        """The rows of a seed; only the first seed has an oracle."""
        return [row for row in self.all_rows if row != "oracle" or seed == self.profile.seeds[0]]

    def run_directory(self, row: str, seed: int) -> str:
        """Where a row is trained."""
        return os.path.join(self.root if row in WITHOUT_TARGET else self.out, f"seed{seed}", row.replace(", ", "-"))

    def folder(self, row: str, seed: int) -> str:
        """Where what depends on the target goes: its statistics, predictions and figures."""
        return os.path.join(self.out, f"seed{seed}", row.replace(", ", "-"))

    def trained_weights(self, row: str, seed: int) -> str:
        """The last weights of a row's training."""
        if row in ADABN:
            return self.trained_weights(ADABN[row], seed)
        name = FROM_SCRATCH[row].weights if row in FROM_SCRATCH else ROWS[row].weights
        return os.path.join(self.run_directory(row, seed), name.format(steps=self.steps(row)))

    def weights(self, row: str, seed: int) -> str:
        """The weights that a row is scored with."""
        if has_target_statistics(row):
            return os.path.join(self.folder(row, seed), "target_statistics.pth")
        return self.trained_weights(row, seed)

    def steps(self, row: str) -> int:
        """The --num-steps that a row is trained with."""
        if row in FROM_SCRATCH:
            return self.profile.source_steps
        share = 1 if row in WITHOUT_TARGET else ROWS[row].share
        return self.profile.adaptation_steps if share is None else round(share * self.profile.control_steps)


def block_of(row: str) -> str:
    """The id of a row's block; "reference" for one that has no treatment of BatchNorm."""
    if row in ROWS:
        return ROWS[row].block
    return "reference" if row == "oracle" else "own"


def start_of(row: str) -> str | None:
    """The row whose weights a row goes on from; None if it is trained from scratch."""
    if row in FROM_SCRATCH:
        return None
    if row in ADABN:
        return ADABN[row]
    twin = ", twin" if ROWS[row].model == TWIN else ""
    return f"AdaBN{twin}" if has_target_statistics(row) and row not in WITHOUT_TARGET else f"source-only{twin}"


def baseline_of(row: str) -> str | None:
    """The source-only row that a row comes from."""
    start = start_of(row)
    return ADABN.get(start, start) if start else None


def has_target_statistics(row: str) -> bool:
    """True for a row that is scored with the target's BatchNorm statistics, estimated for it."""
    return row in ADABN or row in ROWS and BLOCKS[ROWS[row].block].target_statistics


class Workers:
    """Runs jobs, `processes` at a time. Training scripts have a process each; what only evaluates shares a few, for starting
    one takes longer than its work."""

    def __init__(self, out: str, processes: int) -> None:
        self.out = out
        os.makedirs(out, exist_ok=True)
        # One thread each: on busy cores two threads in one process can be slower than one.
        os.environ["OMP_NUM_THREADS"] = "1"
        self.threads = ThreadPoolExecutor(processes)
        self.evaluators = ProcessPoolExecutor(processes, mp_context=get_context("spawn"))

    def run(self, jobs: Iterable[Job]) -> None:
        """Run jobs, which come after those that they need, and skip the steps that are finished.

        Raises:
            RuntimeError: a command failed; the message shows the end of its log.
        """
        running: dict[str, Future] = {}
        for job in jobs:
            needed = [running[title] for title in job.needs]
            running[job.title] = self.threads.submit(self._run_job, job, needed)
        try:
            for future in running.values():
                future.result()
        except BaseException:
            self.threads.shutdown(cancel_futures=True)
            raise

    def _run_job(self, job: Job, needed: Sequence[Future]) -> None:
        for future in needed:
            future.result()
        left = [step for step in job.steps if not os.path.exists(step.finished)]
        began = time.monotonic()
        for step in left:
            self._take_step(job.title, step)
        if left:
            print(f"  {job.title}: {time.monotonic() - began:.0f} s", flush=True)

    def _take_step(self, title: str, step: Step) -> None:
        command, folder = step.command, os.path.dirname(step.finished)
        log = os.path.join(folder, "log.txt")
        os.makedirs(folder, exist_ok=True)
        if command[0].startswith("train_") and begun(command):
            command = [*command, "--resume", "auto"]
        with open(os.path.join(self.out, "commands.txt"), "a") as file:
            file.write(" ".join(["python", *command]) + "\n")
        began = time.monotonic()
        if command[0] in EVALUATING:
            failed = self.evaluators.submit(evaluate_here, command, log).result()
        else:
            with open(log, "a") as file:
                failed = subprocess.run([sys.executable, *command], cwd=ROOT, stdout=file, stderr=file).returncode != 0
        if failed:
            with open(log) as file:
                tail = "".join(file.readlines()[-5:])
            raise RuntimeError(f"{title} failed ({' '.join(command)}):\n{tail}\nthe whole log is in {log}")
        if command[0] not in EVALUATING:
            with open(os.path.join(folder, SECONDS), "w") as file:
                file.write(f"{time.monotonic() - began:.1f}\n")

    def close(self) -> None:
        self.threads.shutdown()
        self.evaluators.shutdown()


def evaluate_here(command: Sequence[str], log: str) -> bool:
    """Run one of EVALUATING in this process, with its output at the end of the file `log`; True if it failed."""
    import evaluate_cityscapes
    from scripts import adabn

    script: Any = evaluate_cityscapes if command[0] == "evaluate_cityscapes.py" else adabn
    with open(log, "a") as file, redirect_stdout(file), redirect_stderr(file):
        try:
            script.main(script.get_arguments(list(command[1:])))
        except (Exception, SystemExit) as error:
            print(f"{type(error).__name__}: {error}", file=file)
            return True
    return False


def begun(command: Sequence[str]) -> bool:
    """True if a training command was started before and has left something to resume from."""
    folder = command[command.index("--snapshot-dir") + 1]
    if "--stage" in command:
        stage = command[command.index("--stage") + 1]
        folder = os.path.join(folder, "pseudo-labels" if stage == "pseudo-label" else stage)
    return any(os.path.exists(os.path.join(folder, name)) for name in ("state.pth", "state.previous.pth", "made_from.json"))


def main(args: Namespace) -> None:
    check_matplotlib()  # now, not when everything is trained
    began = time.monotonic()
    out = os.path.abspath(args.out)
    profile = preset.QUICK if args.quick else preset.FULL
    workers = Workers(out, args.processes)
    try:
        if args.sweep:
            sweep(workers, out, profile)
        else:
            demo = Demo(out, out, profile, ALL if args.all else HEADLINE)
            print("\n" + text_table(make_table(workers, demo, "The mini benchmark")))
    finally:
        workers.close()
    minutes, of_cpu = (time.monotonic() - began) / 60, sum(os.times()[:4]) / 60
    pictures = f"Plot: {os.path.join(out, 'sweep.png')}" if args.sweep else f"Report: {os.path.join(out, 'report.html')}"
    print(f"\n{minutes:.1f} minutes, {of_cpu:.1f} of one core. {pictures}")


def sweep(workers: Workers, out: str, profile: Profile) -> None:
    """A table for each gap between the domains; the source's data and models are shared."""
    tables = {}
    for gap, target_flags in GAPS.items():
        print(f"\nGap: {gap}", flush=True)
        demo = Demo(out, os.path.join(out, gap.replace(" ", "-")), profile, HEADLINE, target_flags)
        tables[gap] = make_table(workers, demo, f"The mini benchmark, gap: {gap}")
        print(text_table(tables[gap]))
        write_json(os.path.join(out, "sweep.json"), tables)
    plot_sweep(tables, os.path.join(out, "sweep.png"))
    print("\n" + sweep_table(tables))


def make_table(workers: Workers, demo: Demo, title: str) -> Results:
    """Render, train, adapt and score what is not there yet; the figures, also in results.json and report.html."""
    print("Rendering the mini data ...", flush=True)
    workers.run(rendering(demo))
    print("Training, adapting and scoring ...", flush=True)
    seeds = demo.profile.seeds
    # What starts from scratch comes first, so that no process waits for another.
    rows = {seed: sorted(demo.rows(seed), key=lambda row: start_of(row) is not None) for seed in seeds}
    workers.run(row_job(demo, row, seed) for seed in seeds for row in rows[seed])
    results = collect(demo, title)
    report(demo, results)
    return results


def rendering(demo: Demo) -> list[Job]:
    """The jobs that render the data, and count the source's spatial prior."""
    source_train, source_val, target_train, target_val = map(str, demo.profile.images)
    common = ["--size", SIZE, "--seed", str(preset.DATA_SEED), "--workers", "1"]
    source_images = ["--formats", "gta5", "--source-train", source_train, "--source-val", source_val]
    target_images = ["--formats", "cityscapes", "--target-train", target_train, "--target-val", target_val]
    render_source = ["scripts/make_mini_data.py", demo.source, *common, *source_images]
    render_target = ["scripts/make_mini_data.py", demo.target, *common, *target_images, *demo.target_flags.split()]
    prior = os.path.join(demo.source, "GTA5", "spatial_prior_19.mat")
    count = ["scripts/spatial_prior.py", *source_data(demo), "--size", SIZE, "--output", prior, "--workers", "1"]
    with_prior = any("--with-prior" in ROWS[row].flags for row in demo.all_rows if row in ROWS)
    steps = [Step(render_source, os.path.join(demo.source, "mini_data.json")), *([Step(count, prior)] if with_prior else [])]
    return [
        Job("source images", (), steps),
        Job("target images", (), [Step(render_target, os.path.join(demo.target, "mini_data.json"))]),
    ]


def source_data(demo: Demo) -> list[str]:
    return ["--data-dir", f"{demo.source}/GTA5", "--source-split", "train"]


def target_data(demo: Demo) -> list[str]:
    return ["--data-dir-target", f"{demo.target}/Cityscapes", "--input-size-target", SIZE]


def row_job(demo: Demo, row: str, seed: int) -> Job:
    """The job that makes a row of one seed: training, the target's statistics, scores."""
    start = start_of(row)
    if start is None:
        steps = [training(demo, row, seed)]
    else:
        steps = adaptation(demo, row, seed, demo.weights(start, seed)) if row in ROWS else []
    if has_target_statistics(row):
        steps.append(target_statistics(demo, seed, demo.trained_weights(row, seed), demo.weights(row, seed)))
    steps.append(evaluation(demo, row, seed))
    if row == "source-only":
        steps.append(source_evaluation(demo, seed))
    return Job(f"{row}, seed {seed}", (f"{start}, seed {seed}",) if start else (), steps)


def training_flags(demo: Demo, row: str, seed: int, model: str) -> list[str]:
    """The flags that all training scripts have in common."""
    steps = str(demo.steps(row))
    run = ["--snapshot-dir", demo.run_directory(row, seed), "--save-pred-every", "100000", "--save-state-every", "100"]
    schedule = ["--num-steps", steps, "--num-steps-stop", steps, "--seed", str(seed)]
    return [*preset.SHARED.split(), "--model", model, "--input-size", SIZE, *schedule, *run]


def training(demo: Demo, row: str, seed: int) -> Step:
    """Training from random weights on one domain."""
    if row == "oracle":
        data = ["--source", "cityscapes", "--data-dir", f"{demo.target}/Cityscapes", "--source-split", "train"]
    else:
        data = source_data(demo)
    trained = FROM_SCRATCH[row]
    command = [trained.script, *data, *training_flags(demo, row, seed, trained.model), *trained.flags.split()]
    return Step(command, demo.trained_weights(row, seed))


def adaptation(demo: Demo, row: str, seed: int, start: str) -> list[Step]:
    """Training that goes on from the weights `start`."""
    adapted = ROWS[row]
    target = [] if row in WITHOUT_TARGET else target_data(demo)
    adapting = ["--batch-norm", BLOCKS[adapted.block].batch_norm, *preset.ADAPTATION.split(), *adapted.flags.split()]
    common = [adapted.script, *source_data(demo), *target, *training_flags(demo, row, seed, adapted.model), *adapting]
    if adapted.script == "train_fada.py":
        return fada(demo, row, seed, common, start)
    return [Step([*common, "--restore-from", start], demo.trained_weights(row, seed))]


def fada(demo: Demo, row: str, seed: int, common: Sequence[str], start: str) -> list[Step]:
    """FADA's stages but the first, source training: the source-only row takes its place."""
    folder, common = demo.run_directory(row, seed), [*common, "--input-size-test", SIZE, "--stage"]
    adapted = os.path.join(folder, f"adversarial/model_iter{demo.steps(row):06d}.pth")
    steps = [Step([*common, "adversarial", "--restore-from", start], adapted)]
    if has_target_statistics(row):  # pseudo-labels are made as rows are scored
        teacher = os.path.join(folder, "adversarial_target_statistics.pth")
        steps.append(target_statistics(demo, seed, adapted, teacher))
        adapted = teacher
    labelled = os.path.join(folder, "pseudo-labels", SECONDS)
    steps.append(Step([*common, "pseudo-label", "--restore-from", adapted], labelled))
    steps.append(Step([*common, "distill", "--restore-from", adapted], demo.trained_weights(row, seed)))
    return steps


def target_statistics(demo: Demo, seed: int, weights: str, adapted: str) -> Step:
    """BatchNorm statistics of all of the target's training images."""
    images = str(demo.profile.images[2])
    command = ["scripts/adabn.py", "--restore-from", weights, "--save", adapted, "--num-images", images, "--seed", str(seed)]
    return Step([*command, *preset.ON_CPU.split(), *target_data(demo)], adapted)


def evaluation(demo: Demo, row: str, seed: int) -> Step:
    """Scores of a row on the target's val split, and its predictions."""
    folder = demo.folder(row, seed)
    figures, predictions = os.path.join(folder, "figures.json"), os.path.join(folder, "predictions")
    data = ["--restore-from", demo.weights(row, seed), "--data-dir", f"{demo.target}/Cityscapes", "--input-size", SIZE]
    command = ["evaluate_cityscapes.py", *data, "--save", predictions, "--json", figures, *preset.ON_CPU.split()]
    return Step(command, figures)


def source_evaluation(demo: Demo, seed: int) -> Step:
    """Scores of source-only on the source's own val split, which show how wide the gap is."""
    figures = os.path.join(demo.run_directory("source-only", seed), "source_figures.json")
    data = ["--dataset", "gta5", "--restore-from", demo.weights("source-only", seed), "--data-dir", f"{demo.source}/GTA5"]
    flags = ["--input-size", SIZE, "--save", "none", "--json", figures, *preset.ON_CPU.split()]
    return Step(["evaluate_cityscapes.py", *data, *flags], figures)


def collect(demo: Demo, title: str) -> Results:
    """All figures, from the files that the commands wrote."""
    seeds = demo.profile.seeds
    on_source = [figures(os.path.join(demo.run_directory("source-only", seed), "source_figures.json")) for seed in seeds]
    validation = {kind: os.path.join("target", "Cityscapes", kind, "val") for kind in ("leftImg8bit", "gtFine")}
    return {
        "title": title,
        "machine": f"{os.cpu_count()} {platform.machine()} cores, one thread a process",
        "source": "one rendered town (GTA5's format)",
        "seeds": list(seeds),
        "classes": list(CITYSCAPES.names),
        "target": f"another one (Cityscapes' format{', ' if demo.target_flags else ''}{demo.target_flags})",
        "source_val_miou": [100 * entry["miou"] for entry in on_source],
        "rows": {row: row_results(demo, row) for row in demo.all_rows},
        "blocks": {id: {"title": block.title, "baselines": list(block.baselines)} for id, block in BLOCKS.items()},
        "validation": {"images": validation["leftImg8bit"], "labels": validation["gtFine"]},
    }


def row_results(demo: Demo, row: str) -> dict[str, Any]:
    """One row's figures: lists have a value for each of its seeds."""
    seeds = [seed for seed in demo.profile.seeds if row in demo.rows(seed)]
    found = [figures(os.path.join(demo.folder(row, seed), "figures.json")) for seed in seeds]
    runs = [demo.run_directory(row, seed) for seed in seeds]
    trained = [read_run(run) for run in runs] if row not in ADABN else []
    return {
        "miou": [100 * entry["miou"] for entry in found],
        "iou": [entry["iou"] for entry in found],
        "block": block_of(row),
        "statistics": "target's" if has_target_statistics(row) or row == "oracle" else "source's",
        "baseline": baseline_of(row) or ("source-only" if row == "oracle" else None),
        "steps": trained[0].steps if trained else None,
        "seconds": [training_seconds(run) if row not in ADABN else None for run in runs],
        "peak_memory_gb": [run.peak_memory_gb for run in trained] or [None for _ in runs],
        "runs": [os.path.relpath(run, demo.out) if row not in ADABN else None for run in runs],
        "predictions": [os.path.relpath(os.path.join(demo.folder(row, seed), "predictions"), demo.out) for seed in seeds],
    }


def figures(path: str) -> dict[str, Any]:
    """The figures of the one checkpoint that an evaluation's JSON file is about: `miou`, and `iou` by class, 0..1."""
    with open(path) as file:
        return next(iter(json.load(file).values()))


def training_seconds(run: str) -> float:
    """The seconds of all commands of a run, since their last start."""
    notes = glob(os.path.join(run, "**", SECONDS), recursive=True)
    return sum(float(open(path).read()) for path in notes)


def report(demo: Demo, results: Results) -> None:
    """results.json, and the report with its tables and pictures."""
    from scripts.method_views import view_of  # with PyTorch, which takes a while to import

    path = os.path.join(demo.out, "results.json")
    write_json(path, results)
    write_report(path, demo.out, view_of)


if __name__ == "__main__":
    try:
        main(get_arguments())
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"demo.py: error: {error}")
