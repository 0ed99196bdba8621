"""A run: its directory, log, pictures, validation, snapshots, and exact resume, the same for every training script."""

import itertools
import json
import math
import os
import re
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from tqdm import tqdm

from dataset.loader import EndlessLoader
from model.segmenter import Segmenter

from .device import autocast, peak_memory
from .distributed import any_process, averaging, gather, in_main, is_main, rank, wait_for_all, world_size
from .errors import RunError, Stopped
from .evaluation import evaluate
from .files import sweep
from .iou import iou_per_class, mean_iou
from .locks import Lock
from .optimizers import set_learning_rate
from .outputs import check_file, check_outside_data, is_json_with
from .pictures import prediction_panel
from .plan import Plan, check_space, describe
from .provenance import write_args
from .run_log import RunLog
from .seeding import random_state, set_random_state
from .snapshots import SnapshotFormat, Snapshots
from .state import StateError, discard_damaged, has_state, load_state, save_state, save_tensors
from .stop_signals import StopSignals
from .watchdog import announced, at, waiting_for, watching

# Flags that may change when a run is resumed: they alter neither weights nor data order.
FREE_ON_RESUME = {
    "resume",
    "estimate",
    "device",
    "gpu",
    "num_workers",
    "log_every",
    "val_every",
    "save_state_every",
    "save_num_images",
    "snapshot_dir",
    "num_steps_stop",
    "timeout",
    "on_bad_sample",
    "wandb",
    "batch_size",  # of one process; the loaders compare the whole batch
    "save_pred_every",
}
# Beside the weights; `replacing` may leave a temporary file of each behind.
OWN_FILES = ("args.json", "metrics.jsonl", "state.pth.new")
TENSORS_FOR_THE_LOOP = ("image", "label", "soft", "target")
# After so many halvings the scale of --amp fp16 is far below 1: it is not what makes the gradients infinite.
MOST_SKIPPED_STEPS = 40
# With --on-bad-sample skip a run ends when so many samples, and such a share of all so far, could not be read.
MOST_DAMAGED, MOST_DAMAGED_SHARE = 10, 0.01
MOST_SHOWN = 5  # of them, in an error
WAYS_OUT = "a lower learning rate, or --amp bf16 instead of fp16, usually helps"

Batch = dict[str, Any]
# What TensorBoard's pictures show of a domain: a batch, logits of it, and maybe a function that gives maps {title: (N,h,w)}
# of the batch; it is called only when pictures are due.
Shown = tuple[Batch, Tensor] | tuple[Batch, Tensor, Callable[[], Mapping[str, Tensor]]]


class NotFiniteError(RunError):
    """A loss became NaN or infinite, or with --amp fp16 the gradients did for many steps."""


class DamagedDataError(RunError):
    """More samples than --on-bad-sample skip accepts could not be read."""


def fixed_flags(args: Namespace) -> dict[str, Any]:
    """The flags that must stay the same when a run is resumed, as JSON gives them back."""
    return json.loads(json.dumps({key: value for key, value in vars(args).items() if key not in FREE_ON_RESUME}))


def check_damaged(errors: Sequence[str], damaged: int, samples: int) -> None:
    """See that few samples were damaged.

    Args:
        errors: what was wrong with them, once for each file.

    Raises:
        DamagedDataError: it was more than 10, and more than 1 % of the samples.
    """
    if damaged > max(MOST_DAMAGED, MOST_DAMAGED_SHARE * samples):
        shown = "; ".join(errors[:MOST_SHOWN]) + (f"; and {len(errors) - MOST_SHOWN} more" if len(errors) > MOST_SHOWN else "")
        raise DamagedDataError(
            f"{damaged} of {samples} samples could not be read, more than --on-bad-sample skip accepts "
            f"({MOST_DAMAGED_SHARE:.0%}): {shown}; scripts/check_data.py finds all"
        )


class Run:
    """What surrounds a training loop. It starts when it is made: it opens the run directory, or with --resume restores
    everything from it, and tells the plan.

        run = Run(args, plan, device, "GTA5", {"": G, "_D": D}, {"G": optimizer_G, "D": optimizer_D}, loaders)
        for step in run.steps():
            run.start_step(G=rate_G, D=rate_D)
            ...                                   # run.next(loader), run.autocast(), run.backward(loss), run.update(...)
            run.end_step(step, {"loss_seg": loss_seg}, source=(batch, logits))

    Args:
        args: the script's flags.
        plan: see `utils.plan`.
        device: where the networks are.
        snapshots: names and contents of the snapshots; a name stands for `Snapshots(name)`.
        networks: {suffix: network}, unwrapped; the first is the segmentation network, whose suffix is "".
        optimizers: {name: optimizer}.
        loaders: {domain: EndlessLoader}.
        validation: {domain: loader of labelled single samples, or None}; the main one's domain is "".

    Raises:
        StateError: the directory holds another run (without --resume), or no readable or matching state (with it).
        RunError: it is in use, belongs to a data set, or its disk is too full.
    """

    def __init__(
        self,
        args: Namespace,
        plan: Plan,
        device: torch.device,
        snapshots: SnapshotFormat | str,
        networks: Mapping[str, nn.Module],
        optimizers: Mapping[str, Optimizer],
        loaders: Mapping[str, EndlessLoader],
        validation: Mapping[str, DataLoader | None] | None = None,
    ) -> None:
        self.args, self.plan, self.device = args, plan, device
        self.snapshots: SnapshotFormat = Snapshots(snapshots) if isinstance(snapshots, str) else snapshots
        self.networks, self.optimizers, self.loaders = networks, optimizers, loaders
        self.validation = {domain: loader for domain, loader in (validation or {}).items() if loader is not None}
        self.directory = args.snapshot_dir
        self.scaler = torch.amp.GradScaler(device.type, enabled=args.amp == "fp16")
        self.network = cast(Segmenter, networks[""])
        self.network.classes = plan.classes.to_json()
        counted = optimizers.values() if self.scaler.is_enabled() else ()
        self.hooks = [optimizer.register_step_post_hook(self._count_update) for optimizer in counted]
        self.first_step = self.step = 0
        # For --amp fp16 only: whether an optimizer's update was made (1 or 0, perhaps still on the device), those skipped in
        # this step, and all that are known of.
        self.updated: dict[int, Tensor | float] = {}
        self.skipped_now: Tensor | float = 0.0
        self.skipped = {"updates": 0, "steps_in_a_row": 0}
        self.unfinished = False  # the step before it lacks its validation and what follows
        self.best: dict[str, dict] = {}  # validations, {domain: {"miou", "step"}}
        self.last: dict[str, dict] = {}
        self.rates: dict[str, float] = {}
        self.damaged: dict[str, int] = {}  # samples that --on-bad-sample skip has replaced, {error: how often}
        self.damaged_now: list[tuple[int, str]] = []  # (step, error), of this process, not yet counted
        self.pending: tuple | None = None
        self.batch_files: list[str] = []
        self._restart_clock()
        self._start()

    # Start and resume

    def _start(self) -> None:
        self.resumed = has_state(self.directory) if self.args.resume == "auto" else bool(self.args.resume)
        self._check_directory()
        in_main(self._claim_directory)
        if self.resumed:
            self._restore()
        if self.first_step > self.plan.steps:
            raise StateError(
                f"{self.directory} has trained {self.first_step} steps already, beyond --num-steps-stop {self.plan.steps}"
            )
        if is_main():
            self._write_args()
            print(describe(self.plan, self.args, self.device, self.networks, self.loaders))
        self.log = RunLog(self.directory, self.first_step, is_main(), self.args)
        self.signals = StopSignals()
        wait_for_all()

    def _check_directory(self) -> None:
        """Before anything is written: it is no data set's, and holds a run to continue, or none."""
        check_outside_data("--snapshot-dir", self.directory, self.args.data_dir, getattr(self.args, "data_dir_target", None))
        check_file("--snapshot-dir", self._path("args.json"), is_json_with("snapshot_dir"))
        if self.resumed:
            if not has_state(self.directory):
                load_state(self._path("state.pth"))  # says what is missing
            return
        if has_state(self.directory):
            raise StateError(
                f"{self.directory} holds a run already: continue it with --resume, or choose another --snapshot-dir"
            )
        old = self._old_snapshots()
        # With --resume auto a run that was killed before its first state starts again, over its own first snapshot.
        if old and not (self.args.resume == "auto" and self._was_started_with_these_flags()):
            raise StateError(
                f"{self.directory} holds snapshots of an earlier run, such as {old[0]}, but no state to resume from: choose "
                "another --snapshot-dir, or move them away"
            )

    def _old_snapshots(self) -> list[str]:
        """The files that are named like this run's snapshots, whatever their step."""
        names = [name for tag in (self.plan.steps, "best") for name in self.snapshots.files(tag, self.networks)]
        patterns = [re.sub(r"\d+", r"\\d+", re.escape(name)) for name in names]
        found = os.listdir(self.directory) if os.path.isdir(self.directory) else []
        return sorted(name for name in found if re.fullmatch("|".join(patterns), name))

    def _was_started_with_these_flags(self) -> bool:
        if not os.path.exists(self._path("args.json")):
            return False
        with open(self._path("args.json")) as file:
            noted = json.load(file)
        return all(noted.get(key) == value for key, value in fixed_flags(self.args).items())

    def _claim_directory(self) -> None:
        self.lock = Lock(self.directory)
        sweep(self.directory, lambda name: name in OWN_FILES or name.endswith((".pth", ".diff")))
        if os.path.exists(self._path("state.pth.new")):
            os.remove(self._path("state.pth.new"))
        check_space(self.directory, self.networks, self.optimizers)

    def _restore(self) -> None:
        path = self._path("state.pth")
        state, problems = load_state(path)
        for problem in problems if is_main() else ():
            print(f"warning: {problem}; continuing from the state before it", file=sys.stderr)
        self._check_same_run(state["args"])
        for suffix, network in self.networks.items():
            network.load_state_dict(state["networks"][suffix])
        for key, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][key])
        for key, loader in self.loaders.items():
            loader.load_state_dict(state["loaders"][key])
        self.scaler.load_state_dict(state["scaler"])
        self.skipped, self.damaged = state.get("skipped", self.skipped), state.get("damaged", {})
        self.best, self.last = state["best"], state["last"]
        self.first_step, self.unfinished = state["next_step"], state.get("unfinished", False)
        if len(state["random"]) == world_size():
            set_random_state(state["random"][rank()])
        wait_for_all()  # all have read
        if problems:
            in_main(lambda: discard_damaged(path))

    def _check_same_run(self, saved: dict[str, Any]) -> None:
        current = fixed_flags(self.args)
        changed = [key for key in current if key in saved and saved[key] != current[key]]
        if changed:
            changes = ", ".join(f"--{key.replace('_', '-')} {saved[key]} (now {current[key]})" for key in changed)
            raise StateError(f"{self.directory} was started with other flags: {changes}; resume with the same ones")

    def _write_args(self) -> None:
        notes = {"network": self.network.settings, "classes": self.network.classes}
        write_args(self._path("args.json"), self.args, self.device, self.resumed, **notes)

    # The loop

    def steps(self) -> Iterator[int]:
        """Iterate over the steps that are left, with a progress bar; afterwards write the last snapshot and the state.

        Meanwhile signals are listened to, and a step that makes no progress for --timeout seconds ends the process.
        """
        self.signals.listen()
        try:
            with watching(self.args.timeout):
                yield from self._steps()
        finally:
            self.signals.close()

    def _steps(self) -> Iterator[int]:
        stop = self.plan.steps
        self._restart_clock()
        todo = range(self.first_step, stop)
        self.bar = tqdm(todo, initial=self.first_step, total=stop, disable=not is_main(), dynamic_ncols=True, mininterval=1.0)
        if self.unfinished:
            self._finish_step(self.first_step - 1)
        for step in self.bar:
            at(f"step {step + 1}")
            self.step, self.batch_files = step, []
            yield step
        self._check_finite()
        if is_main():
            self._save_networks(stop)
        self._save_state(stop)
        self._close()
        if is_main():
            self._tell_end()

    def start_step(self, **rates: float) -> None:
        """Give each optimizer its learning rate and clear its gradients. `G=0.1` is for the optimizer named G; D1 and D2
        both have D's. In the first --warmup steps G has a growing part of it."""
        self.skipped_now = 0.0
        if self.step < self.args.warmup:
            rates["G"] *= (self.step + 1) / self.args.warmup
        self.rates = {f"lr_{name}": rate for name, rate in rates.items()}
        for name, optimizer in self.optimizers.items():
            set_learning_rate(optimizer, rates[name.rstrip("0123456789")])
            optimizer.zero_grad(set_to_none=True)

    def next(self, loader: EndlessLoader) -> Batch:
        """The loader's next batch with its tensors on the device; the wait for it is accounted for."""
        began, domain = time.perf_counter(), next(name for name, each in self.loaders.items() if each is loader)
        waiting_for(lambda: f"the next batch of {domain} ({', '.join(loader.next_files())})")
        batch = next(loader)
        waiting_for("the computation")
        self.wait += time.perf_counter() - began
        self.images += len(batch["image"]) * world_size()
        self.damaged_now += [(self.step, error) for errors in batch.pop("damaged", ()) for error in errors.splitlines()]
        self.batch_files += batch["path"]
        for key in TENSORS_FOR_THE_LOOP:
            if key in batch:
                batch[key] = batch[key].to(self.device, non_blocking=True)
        return batch

    def autocast(self) -> AbstractContextManager:
        """The context of mixed precision chosen by --amp."""
        return autocast(self.args, self.device)

    def backward(self, loss: Tensor, last: bool = True) -> None:
        """Add to the gradients. With several processes, `last=False` saves the averaging in a pass that is not the last one
        of the step through its networks."""
        if not loss.requires_grad:
            raise RunError("a loss depends on nothing that is trained; --freeze-encoder leaves this method nothing to adapt")
        waiting_for("the gradients" if world_size() == 1 else "the gradients of the other processes")
        with averaging(last):
            self.scaler.scale(loss).backward()
        waiting_for("the computation")

    def update(self, *optimizers: Optimizer) -> None:
        """Step the optimizers in this order, G with a gradient of at most --clip-grad.

        With --amp fp16 an optimizer whose gradients are infinite or NaN is left out of this step: the scale of the loss was
        too high, and is halved for the next one.
        """
        self.updated.clear()
        if self.args.clip_grad:
            self.scaler.unscale_(self.optimizers["G"])
            nn.utils.clip_grad_norm_(self.network.parameters(), self.args.clip_grad)
        for optimizer in optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        if self.scaler.is_enabled():
            self.skipped_now = self.skipped_now + len(optimizers) - sum(self.updated.values())

    def _count_update(self, optimizer: Optimizer, *_: Any) -> None:
        # By optimizer, for PyTorch may call the hook twice: for the step of EarlyEpsilonAdam and for that of Adam within it.
        # On a GPU the step is always called, with what tells it on the device to do nothing.
        self.updated[id(optimizer)] = 1 - getattr(optimizer, "found_inf", 0.0)

    def _note_skipped(self, count: int) -> None:
        self.skipped["updates"] += count
        self.skipped["steps_in_a_row"] = self.skipped["steps_in_a_row"] + 1 if count else 0
        if self.skipped["steps_in_a_row"] == MOST_SKIPPED_STEPS:
            raise NotFiniteError(
                f"the gradients of {MOST_SKIPPED_STEPS} steps in a row were not finite, whatever the scale of the loss. "
                f"{self._last_good_state()}; {WAYS_OUT}"
            )

    def end_step(
        self, step: int, losses: Mapping[str, Tensor], weights: Mapping[str, float] | None = None, **shown: Shown
    ) -> None:
        """Everything that follows an update, as far as it is due: the log, pictures, validation, snapshot and state.

        Args:
            losses: {name: scalar tensor}, unweighted, detached or not.
            weights: {name: weight of a loss}, where it changes while training.
            shown: {domain: (batch, logits of it)} for the pictures, or {domain: (batch, logits, maps)}; see `Shown`.

        Raises:
            NotFiniteError: a loss of the previous step is NaN or infinite; no state with its consequences is ever written.
                With --amp fp16 it may be, if the step was skipped for it and left no trace in the networks; but not if
                updates were skipped in many steps in a row, for then the scale of the loss is not the reason.
            DamagedDataError: too many samples were damaged.
            Stopped: a signal has asked for it; the state is saved.
        """
        self._look_at_losses()
        if world_size() == 1 or self.due(step, self.args.log_every):
            self._count_damaged()
        self._note_losses(step, losses, weights or {})
        if self.due(step, self.args.save_pred_every) and is_main():
            for domain, (batch, logits, *maps) in shown.items():
                with torch.no_grad():
                    found = maps[0]() if maps else None
                panel = prediction_panel(batch, logits, self.args.save_num_images, self.plan.classes, found)
                self.log.picture(step, domain, panel)
        self._finish_step(step)

    def _finish_step(self, step: int) -> None:
        """Validation, snapshot and state, and the end of the run if a signal asks for it."""
        validated = not self.due(step, self.plan.val_every) or self._validate(step)
        saved = validated and self._save(step)
        if not validated or self.signals.received_by_any():
            if not saved:
                self._save_state(step + 1, unfinished=not validated)
            self._close()
            raise Stopped(
                f"stopped by {self.signals.received or 'a signal'} after step {step + 1}; --resume continues {self.directory}"
            )

    def due(self, step: int, every: int) -> bool:
        """True after every `every` steps (never for 0)."""
        return every > 0 and (step + 1) % every == 0

    # Damaged samples

    def _count_damaged(self) -> None:
        """Count what all processes have found since the last time, in metrics.jsonl too."""
        if self.args.on_bad_sample == "error":
            return
        found = sorted(row for rows in gather(self.damaged_now) for row in rows)
        self.damaged_now = []
        for step, error in found:
            self.damaged[error] = self.damaged.get(error, 0) + 1
            self.log.damaged(step, error)
        damaged = sum(self.damaged.values())
        samples = sum(loader.position * loader.batch_size * loader.world_size for loader in self.loaders.values())
        if found:
            check_damaged(list(self.damaged), damaged, samples)

    # Losses

    def _note_losses(self, step: int, losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> None:
        """Copy the losses off the device; they are looked at one step later, when it has long computed them, so that nothing
        waits."""
        noted = [loss.detach().float().reshape(()) for loss in losses.values()]
        if self.scaler.is_enabled():
            noted.append(torch.zeros((), device=self.device) + self.skipped_now)
        values = torch.stack(noted).to("cpu", non_blocking=True)
        copied = torch.cuda.Event() if self.device.type == "cuda" else None
        if copied:
            copied.record()
        groups = {"learning rate": self.rates, "weight": dict(weights)}
        self.pending = (step, list(losses), values, copied, groups, self.batch_files)

    def _look_at_losses(self) -> None:
        if self.pending is None:
            return
        step, names, values, copied, groups, files = self.pending
        self.pending = None
        if copied:
            copied.synchronize()
        numbers = values.tolist()
        skipped = int(numbers.pop()) if self.scaler.is_enabled() else 0
        self._note_skipped(skipped)
        losses = dict(zip(names, numbers, strict=True))
        bad = [f"{name} is {value}" for name, value in losses.items() if not math.isfinite(value)]
        if bad and not (skipped and self._is_intact()):
            raise NotFiniteError(
                f"step {step}: {', '.join(bad)}; batch: {', '.join(files)}. {self._last_good_state()}; {WAYS_OUT}"
            )
        if is_main() and self.due(step, self.args.log_every):
            self._write_line(step, losses, groups)

    def _check_finite(self) -> None:
        """Before anything is written to go on from: a step whose loss was finite can have left weights that are not."""
        self._look_at_losses()
        if not self._is_intact():
            raise NotFiniteError(
                f"step {self.step}: the losses are finite, but the weights are no longer. {self._last_good_state()}; {WAYS_OUT}"
            )

    def _is_intact(self) -> bool:
        """True if everything in the networks is finite, also the statistics that BatchNorm took of a skipped step."""
        values = [value for network in self.networks.values() for value in network.state_dict().values()]
        return bool(torch.stack([value.isfinite().all() for value in values]).all())

    def _last_good_state(self) -> str:
        if has_state(self.directory):
            return f"The last good state is in {self.directory}"
        return f"There is no state in {self.directory} yet"

    def _write_line(self, step: int, losses: dict[str, float], groups: dict[str, dict[str, float]]) -> None:
        elapsed = max(time.perf_counter() - self.clock, 1e-9)
        speed = {
            "seconds": elapsed,
            "images_per_second": self.images / elapsed,
            "data_wait": self.wait / elapsed,
            "peak_memory_gb": peak_memory(self.device) / 2**30,
        }
        if self.scaler.is_enabled():
            speed["skipped_updates"] = self.skipped["updates"]
        self.log.line(step, {**groups, "loss": losses, "speed": speed})
        shown = {name: f"{value:.3f}" for name, value in losses.items()}
        shown["img/s"] = f"{speed['images_per_second']:.1f}"
        shown["wait"] = f"{speed['data_wait']:.0%}"
        shown["GB"] = f"{speed['peak_memory_gb']:.1f}"
        if self.skipped["updates"]:
            shown["skipped"] = str(self.skipped["updates"])
        self.bar.set_postfix(shown, refresh=False)
        self._restart_clock()

    def _restart_clock(self) -> None:
        self.clock, self.wait, self.images = time.perf_counter(), 0.0, 0

    # Validation

    def _validate(self, step: int) -> bool:
        """Score every validation domain, log it, and keep the best snapshot (`<name>_best.pth`) apart from the last; a second
        domain has a best of its own (`<name>_<domain>_best.pth`). False, with nothing logged or kept, if a signal came in."""
        self._check_finite()
        classes = self.plan.classes
        matrices = {}
        for domain, loader in self.validation.items():
            batches = itertools.takewhile(lambda _: self.signals.received is None, announced(loader, "the validation of image"))
            confusion = evaluate(self.network, batches, len(classes), self.device, autocast=self.autocast)
            matrices[domain] = confusion.matrix.cpu().numpy()
        if any_process(self.signals.received is not None):
            return False
        for domain, matrix in matrices.items():
            miou = mean_iou(matrix)
            self.last[domain] = {"miou": miou, "step": step}
            better = miou > self.best.get(domain, {"miou": -1.0})["miou"]
            if better:
                self.best[domain] = dict(self.last[domain])
            self.log.validation(step, domain, miou, dict(zip(classes.names, iou_per_class(matrix).tolist(), strict=True)))
            if is_main():
                self.bar.write(f"step {step + 1}: {self._score_line(domain)}")
                if better:
                    self._save_networks(f"{domain}_best" if domain else "best")
        self._restart_clock()
        return True

    def _score_line(self, domain: str) -> str:
        last, best = self.last[domain], self.best[domain]
        title = f"{domain} mIoU" if domain else "mIoU"
        return f"{title} {100 * last['miou']:.2f} (best {100 * best['miou']:.2f} after step {best['step'] + 1})"

    # Files

    def _save(self, step: int) -> bool:
        """A snapshot every --save-pred-every steps, the state every --save-state-every steps; true if the state was saved. It
        comes after the validation of the step, so that a state knows the best score so far."""
        tag = self.snapshots.tag(step, self.args.save_pred_every)
        if tag is not None:
            self._check_finite()
            if is_main():
                self._save_networks(tag)
        due = tag is not None or self.due(step, self.args.save_state_every)
        if due:
            self._save_state(step + 1)
        return due

    def _save_networks(self, tag: int | str) -> None:
        for name, content in self.snapshots.files(tag, self.networks).items():
            save_tensors(content, self._path(name), for_originals=True)

    def _save_state(self, next_step: int, unfinished: bool = False) -> None:
        self._check_finite()
        self._count_damaged()
        states = gather(random_state())
        self.log.flush()
        if is_main():
            save_state(
                {
                    "next_step": next_step,
                    "unfinished": unfinished,
                    "args": json.loads(json.dumps(vars(self.args))),
                    "networks": {key: network.state_dict() for key, network in self.networks.items()},
                    "optimizers": {key: optimizer.state_dict() for key, optimizer in self.optimizers.items()},
                    "loaders": {key: loader.state_dict() for key, loader in self.loaders.items()},
                    "scaler": self.scaler.state_dict(),
                    "skipped": self.skipped,
                    "damaged": self.damaged,
                    "random": states,
                    "best": self.best,
                    "last": self.last,
                },
                self._path("state.pth"),
            )
        wait_for_all()

    def _close(self) -> None:
        for hook in self.hooks:
            hook.remove()  # or optimizers and run would keep each other, and the next round would find less memory
        for loader in self.loaders.values():
            loader.close()
        self.log.close()
        if is_main():
            self.lock.release()

    def _tell_end(self) -> None:
        if self.damaged:
            print(f"{sum(self.damaged.values())} damaged samples were replaced:")
            for error, times in self.damaged.items():
                print(f"    {error}" + (f" ({times} times)" if times > 1 else ""))
        for domain in self.last:
            print(f"last validation, after step {self.last[domain]['step'] + 1}: {self._score_line(domain)}")
        print(f"weights: {self.last_weights()}")

    def last_weights(self) -> str:
        """The file of the segmentation network as it is at the end."""
        return self._path(next(iter(self.snapshots.files(self.plan.steps, self.networks))))

    def _path(self, name: str) -> str:
        return os.path.join(self.directory, name)
