"""Make everything go wrong that docs/reliability.md speaks of, for hours, and count what did not end as promised.

    python scripts/soak.py --hours 8                       # all parts, each for its share of the time
    python scripts/soak.py --hours 1 --only kills          # one part
    python scripts/soak.py --hours 1 --only fuzz --inputs 100000

kills      SIGKILL at file operations of every training script, before them and halfway through; then the same command again
disk       the disk is full from an operation on, or a single operation fails; then the same command again with space
writers    the same in scripts that train nothing: converting, predicting, evaluating, counting
signals    SIGTERM, SIGINT, SIGUSR1, once and twice, at file operations and at any time; then the same command again
processes  loader workers, ranks and a whole node are killed or stand still; then the same command again
fuzz       damaged files for every reader
long       2,000 steps, and 20 rounds of CBST: memory, open files, dead children

After each trial everything that the run left must be that of a run that nothing happened to: weights bit for bit, losses,
TensorBoard, labels, best and last, and no litter. The networks are small, and the images 64x32. Trials come in an order drawn
from --seed, so that another seed reaches others. A table ends the run; the exit status is 1 if anything failed.
"""

import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from tests.faults import lost_processes, runs
from tests.faults.injection import ROOT, Fault, why_not
from tests.faults.readers import readers
from tests.faults.trials import STOPS, Trials, points
from utils.errors import RunError, exit_with_message
from utils.files import make_parent, write_json
from utils.outputs import check_file, is_json_with
from utils.parser import Parser, above_zero, positive, seed

# Shares of the time, where all parts run.
SHARES = {"kills": 0.35, "disk": 0.2, "writers": 0.05, "signals": 0.1, "processes": 0.1, "fuzz": 0.1, "long": 0.1}
FILES_A_PROCESS = 4000
LONG_STEPS, LONG_ROUNDS = 2000, 20
SAMPLE_EVERY = 1.0
# How much more memory the last quarter of a long run may take than the second.
MORE_MEMORY = 1.1


@dataclass
class Row:
    """A line of the table: how many trials there could be, how many were made, and what went wrong."""

    fault: str
    script: str
    possible: int | None = None
    injections: int = 0
    failures: int = 0
    problems: dict[str, int] = field(default_factory=dict)


class Table:
    """All rows so far, and the file that keeps them."""

    def __init__(self, path: str, notes: dict[str, Any]) -> None:
        self.path, self.notes = path, notes
        self.rows: dict[tuple[str, str], Row] = {}
        self.long: dict[str, dict[str, float]] = {}

    def row(self, fault: str, script: str, possible: int | None = None) -> Row:
        found = self.rows.setdefault((fault, script), Row(fault, script, possible))
        return found

    def add(self, fault: str, script: str, problems: Iterable[str], example: str) -> None:
        """Count a trial."""
        row, problems = self.row(fault, script), list(problems)
        row.injections += 1
        row.failures += bool(problems)
        for problem in problems:
            row.problems[problem] = row.problems.get(problem, 0) + 1
            print(f"{fault}, {script}, {example}: {problem}", flush=True)

    def save(self) -> None:
        rows = [asdict(row) for row in self.rows.values()]
        write_json(self.path, {"soak": self.notes, "rows": rows, "long": self.long})

    def failures(self) -> int:
        return sum(row.failures for row in self.rows.values())

    def __str__(self) -> str:
        lines = [f"{'fault':<16}{'script or reader':<32}{'possible':>10}{'made':>9}{'failed':>8}"]
        for row in self.rows.values():
            possible = "" if row.possible is None else str(row.possible)
            lines.append(f"{row.fault:<16}{row.script:<32}{possible:>10}{row.injections:>9}{row.failures:>8}")
        for name, figures in self.long.items():
            lines.append(f"{name}: " + ", ".join(f"{key} {value:g}" for key, value in figures.items()))
        return "\n".join(lines)


def get_arguments(arguments: list[str] | None = None) -> Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--hours", type=above_zero, default=8.0, metavar="H", help="how long at most")
    parser.add_argument("--only", choices=tuple(SHARES), metavar="PART", help=f"one of {', '.join(SHARES)}")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="draws the order of the trials, and the damage")
    parser.add_argument(
        "--inputs", type=positive, default=100000, metavar="N", help="fuzz: damaged files, of all readers together"
    )
    parser.add_argument("--json", default="soak.json", metavar="FILE", help="where the table is kept, while it grows")
    return parser.parse_args(arguments)


def main(args: Namespace) -> int:
    missing = why_not()
    if missing:
        raise RunError(f"this machine cannot inject faults: {missing}")
    check_file("--json", args.json, is_json_with("soak", "rows"))
    make_parent(args.json)
    table = Table(args.json, {"hours": args.hours, "seed": args.seed, "only": args.only})
    parts: dict[str, Callable[[Table, random.Random, float, Namespace], None]] = {
        "kills": kills,
        "disk": disk,
        "writers": writers,
        "signals": signals,
        "processes": processes,
        "fuzz": fuzz_readers,
        "long": long_runs,
    }
    for name in [args.only] if args.only else SHARES:
        share = 1.0 if args.only else SHARES[name]
        deadline = time.monotonic() + 3600 * args.hours * share
        parts[name](table, random.Random(f"{args.seed} {name}"), deadline, args)
        table.save()
    print(f"\n{table}\nwritten to {args.json}")
    return 1 if table.failures() else 0


# Trials of single file operations


def kills(table: Table, rng: random.Random, deadline: float, args: Namespace) -> None:
    """Kills at every file operation of every script."""
    inject(table, rng, deadline, lambda at, kind: [Fault("kill", at), Fault("kill halfway", at)])


def disk(table: Table, rng: random.Random, deadline: float, args: Namespace) -> None:
    """A full disk, and failures of what can fail alone."""
    inject(table, rng, deadline, lambda at, kind: [Fault("full", at), *([Fault("fail", at)] if kind in "owslm" else [])])


def writers(table: Table, rng: random.Random, deadline: float, args: Namespace) -> None:
    """The same of the scripts that train nothing."""
    with Trials() as trials:
        chosen = []
        for name in trials.writers():
            operations = trials.whole_writer(name).operations
            found = [Fault("full", at) for at in points(operations)]
            found += [Fault("fail", at) for at in points(operations) if operations[at] in "owslm"]
            for action in ("full", "fail"):
                table.row(action, name, sum(fault.action == action for fault in found))
            chosen += [(name, fault) for fault in found]
        attempt(table, rng, deadline, chosen, trials.writer_problems)


def inject(table: Table, rng: random.Random, deadline: float, faults: Callable[[int, str], list[Fault]]) -> None:
    """Trials of these faults at the operations of every training script, in random order, until the time is up."""
    with Trials() as trials:
        chosen = []
        for script in runs.MORE:
            operations = trials.whole(script).operations
            found = [fault for at in points(operations) for fault in faults(at, operations[at])]
            for action in dict.fromkeys(fault.action for fault in found):
                table.row(action, script, sum(fault.action == action for fault in found))
            chosen += [(script, fault) for fault in found]
        attempt(table, rng, deadline, chosen, trials.problems)


def attempt(
    table: Table,
    rng: random.Random,
    deadline: float,
    chosen: list[tuple[str, Fault]],
    problems: Callable[[str, Fault], list[str]],
) -> None:
    """Try faults of scripts in random order, until the time is up."""
    rng.shuffle(chosen)
    for script, fault in chosen:
        if time.monotonic() > deadline:
            break
        table.add(fault.action, script, problems(script, fault), f"at {fault.at}")
        table.save()


def signals(table: Table, rng: random.Random, deadline: float, args: Namespace) -> None:
    """Signals at file operations, at any time, and twice."""
    with Trials() as trials:
        while time.monotonic() < deadline:
            script, number = rng.choice(list(runs.MORE)), int(rng.choice(STOPS))
            whole, when = trials.whole(script), rng.random()
            moment = rng.choice(("at an operation", "at any time", "twice"))
            fault, sent = None, [(when * whole.seconds, number)]
            if moment == "at an operation":
                fault, sent = Fault("signal", int(when * len(whole.operations)), number), []
            elif moment == "twice":
                sent.append((when * whole.seconds + 1.0 + rng.random(), int(rng.choice(STOPS))))
            problems = trials.problems(script, fault, sent)
            table.add(f"signal {moment}", script, problems, f"{signal.Signals(number).name} at {when:.3f}")
            table.save()


# Processes


def processes(table: Table, rng: random.Random, deadline: float, args: Namespace) -> None:
    """Workers, ranks and nodes that are lost or stand still."""
    root = Path(tempfile.mkdtemp(prefix="soak-"))
    try:
        runs.make_data(root / "data")
        kinds = [("loader worker", lost_processes.one_process, "kill"), ("loader worker", lost_processes.one_process, "stop")]
        kinds += [("rank", lost_processes.two_ranks, "kill"), ("rank", lost_processes.two_ranks, "stop")]
        kinds += [("node of two", lost_processes.two_nodes, "node")]
        while True:
            for name, launch, fault in kinds:
                if time.monotonic() > deadline:
                    return
                problems = lost_processes.problems(launch(root / "data"), root / name, fault, rng)
                table.add("stopped" if fault == "stop" else "killed", name, problems, "train_adaptsegnet")
                table.save()
    finally:
        shutil.rmtree(root)


# Damaged files


def fuzz_readers(table: Table, rng: random.Random, deadline: float, args: Namespace) -> None:
    """Damaged files, in processes of their own: a reader that ends its process is a failure, too."""
    names = list(readers())
    share = -(-args.inputs // len(names))
    for name in names:
        table.row("damaged file", name, share)
    for name in names:
        seed = rng.randrange(2**32)
        if time.monotonic() > deadline:
            break
        fuzz_one(table.row("damaged file", name), seed)
        table.save()


def fuzz_one(row: Row, seed: int) -> None:
    """Give one reader its files, some thousand per process."""
    assert row.possible is not None
    while row.injections < row.possible:
        count = min(FILES_A_PROCESS, row.possible - row.injections)
        folder = tempfile.mkdtemp(prefix="fuzz-")
        code = (
            "import json, sys, warnings; warnings.simplefilter('ignore'); from tests.faults.readers import fuzz, readers; "
            f"report = fuzz(readers()[{row.script!r}], {count}, {seed + row.injections}, {folder!r}); "
            "print(json.dumps(report.to_json()))"
        )
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
        if ended.returncode:
            row.problems[f"the process ended with status {ended.returncode}; the file is in {folder}"] = 1
            row.failures += 1
            row.injections += count
            print(f"{row.script}: status {ended.returncode}, see {folder}: {ended.stderr[-500:]}", flush=True)
            continue
        report = json.loads(ended.stdout.splitlines()[-1])
        row.injections += report["inputs"]
        row.failures += sum(report["problems"].values())
        row.problems.update(report["problems"])
        for problem, times in report["problems"].items():
            print(f"{problem} ({times} times), see {folder}", flush=True)
        if not report["problems"]:
            shutil.rmtree(folder)


# Long runs


def long_runs(table: Table, rng: random.Random, deadline: float, args: Namespace) -> None:
    """2,000 steps and 20 rounds, with memory, open files and dead children sampled."""
    root = Path(tempfile.mkdtemp(prefix="soak-"))
    try:
        runs.make_data(root / "data")
        for name, script, more in (
            (f"{LONG_STEPS} steps", "train_adaptsegnet", ("--num-steps", str(LONG_STEPS), "--num-steps-stop", str(LONG_STEPS))),
            (f"{LONG_ROUNDS} rounds", "train_cbst", ("--num-rounds", str(LONG_ROUNDS + 1))),
        ):
            every = (
                "--num-workers",
                "2",
                "--val-every",
                "100",
                "--save-pred-every",
                "500",
                "--save-state-every",
                "100",
                "--log-every",
                "10",
            )
            more = (*more, *(every if script == "train_adaptsegnet" else every[:2]))
            module, *arguments = runs.command(script, root / "data", root / script, *more)
            code = f"from tests.faults.injection import shrink_networks; import sys, {module} as script; shrink_networks(); "
            code += "script.main(script.get_arguments(sys.argv[1:]))"
            figures, problems = watch([sys.executable, "-c", code, *arguments])
            table.long[name] = figures
            table.add("long run", name, problems, script)
            table.save()
    finally:
        shutil.rmtree(root)


def watch(command: list[str]) -> tuple[dict[str, float], list[str]]:
    """A run's figures, sampled every second, and what is wrong with them."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+") as errors:
        began = time.monotonic()
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=errors)
        samples = list(_samples(process))
        errors.seek(0)
        problems = [f"status {process.returncode}: {errors.read()[-300:]}"] if process.returncode else []
    if len(samples) < 8:
        return {"samples": len(samples)}, [*problems, "it was too short for a sample in each quarter"]
    # Of each quarter; the first has the imports.
    quarters = [samples[len(samples) * i // 4 : len(samples) * (i + 1) // 4] for i in range(4)]
    memory = [max(memory for memory, _, _ in each) for each in quarters]
    handles = [statistics.median_low([handles for _, handles, _ in each]) for each in quarters]
    zombies = max(zombies for _, _, zombies in samples)
    if memory[3] > MORE_MEMORY * memory[1]:
        problems.append(f"memory grew from {memory[1]} to {memory[3]} bytes")
    if handles[3] > handles[1]:
        problems.append(f"open files grew from {handles[1]} to {handles[3]}")
    if samples[-1][2]:
        problems.append(f"{samples[-1][2]} dead children were not waited for")
    figures = {"minutes": round((time.monotonic() - began) / 60, 1), "samples": len(samples)}
    figures |= {f"MB in quarter {i + 1}": round(value / 2**20) for i, value in enumerate(memory)}
    return figures | {"open files in quarter 2": handles[1], "in quarter 4": handles[3], "zombies": zombies}, problems


def _samples(process: subprocess.Popen) -> Iterator[tuple[int, int, int]]:
    """(bytes of resident memory, open files, dead children) of a process while it runs."""
    while process.poll() is None:
        try:
            with open(f"/proc/{process.pid}/status") as file:
                memory = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS"))
            handles = len(os.listdir(f"/proc/{process.pid}/fd"))
            yield memory, handles, sum(map(_is_dead, lost_processes.children(process.pid)))
        except (OSError, StopIteration):
            pass  # it has just ended
        time.sleep(SAMPLE_EVERY)


def _is_dead(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False


if __name__ == "__main__":
    with exit_with_message():
        sys.exit(main(get_arguments()))
