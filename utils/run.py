"""A run: its directory, log, pictures, snapshots, and exact resume. Every training script uses it in the same way."""

import json
import math
import os
import subprocess
import sys
import time

import torch
from torch import distributed
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from .device import autocast
from .distributed import is_main, rank, wait_for_all, world_size
from .iou import iou_per_class, mean_iou
from .state import StateError, load_state, random_state, save_atomically, save_state, set_random_state, write_json

# Flags that may change when a run is resumed: they alter neither weights nor data order.
FREE_ON_RESUME = {
    "resume",
    "device",
    "gpu",
    "num_workers",
    "log_every",
    "val_every",
    "save_state_every",
    "save_num_images",
    "snapshot_dir",
    "num_steps_stop",
    "batch_size",  # of one process; the loaders compare the whole batch
    "save_pred_every",
    "network",
}


class NotFiniteError(RuntimeError):
    """A loss became NaN or infinite."""


class Snapshots:
    """How AdaptSegNet's and CLAN's snapshots are named and what is in them: `<name>_<step><suffix>.pth`, plain state dicts.

    Methods with files of their own pass an object with the same two methods to `Run`.
    """

    def __init__(self, name):
        self.name = name

    def tag(self, step, every):
        """What the snapshot after the update of `step` (counted from 0) is called, or None if none is due.

        As in the originals the snapshot named i follows the update of step i, so it has seen i + 1.
        """
        return step if step > 0 and step % every == 0 else None

    def files(self, tag, networks):
        """{file name: content} of the snapshot with this tag: a number of steps, or a word such as `best`."""
        return {f"{self.name}_{tag}{suffix}.pth": network.state_dict() for suffix, network in networks.items()}


def fixed_flags(args):
    """The flags that must stay the same when a run is resumed, as JSON gives them back."""
    return json.loads(json.dumps({key: value for key, value in vars(args).items() if key not in FREE_ON_RESUME}))


class Run:
    """What surrounds a training loop.

    Args:
        args: the script's flags.
        device: where the networks are.
        snapshots: names and contents of the snapshots; a name stands for `Snapshots(name)`.
        networks: {suffix: network}, unwrapped; the first is the segmentation network, whose suffix is "".
        optimizers: {name: optimizer}.
        loaders: {name: EndlessLoader}.

    A script calls `start()` once, iterates over `steps(stop)`, and in each step calls `next(loader)`, `log(...)`, `save(step)`.
    """

    def __init__(self, args, device, snapshots, networks, optimizers, loaders):
        self.args, self.device = args, device
        self.snapshots = Snapshots(snapshots) if isinstance(snapshots, str) else snapshots
        self.networks, self.optimizers, self.loaders = networks, optimizers, loaders
        self.directory = args.snapshot_dir
        self.scaler = torch.amp.GradScaler(device.type, enabled=args.amp == "fp16")
        self.first_step = 0
        self.best, self.last = {}, {}  # of validations: {domain: {"miou", "step"}}
        self.pending = None
        self.batch_files = []
        self.writer = None
        self._restart_clock(0)

    # Start and resume

    def start(self):
        """Prepare the run directory, or with --resume restore everything from it; return the first step.

        Raises:
            StateError: the directory holds another run (without --resume), or no readable or matching state (with it).
        """
        if self.args.resume:
            self._restore()
        elif os.path.exists(self._path("state.pth")):
            raise StateError(
                f"{self.directory} holds a run already: continue it with --resume, or choose another --snapshot-dir"
            )
        if is_main():
            os.makedirs(self.directory, exist_ok=True)
            self._write_args()
            self._drop_metrics_from(self.first_step)
            self.metrics = open(self._path("metrics.jsonl"), "a", buffering=1)
            self.writer = SummaryWriter(self.directory, purge_step=self.first_step if self.args.resume else None)
        wait_for_all()
        return self.first_step

    def _restore(self):
        state, problems = load_state(self._path("state.pth"))
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
        self.best, self.last = state["best"], state["last"]
        self.first_step = state["next_step"]
        if len(state["random"]) == world_size():
            set_random_state(state["random"][rank()])

    def _check_same_run(self, saved):
        current = fixed_flags(self.args)
        changed = [key for key in current if key in saved and saved[key] != current[key]]
        if changed:
            changes = ", ".join(f"--{key.replace('_', '-')} {saved[key]} (now {current[key]})" for key in changed)
            raise StateError(f"{self.directory} was started with other flags: {changes}; resume with the same ones")

    def _write_args(self):
        record = {
            **vars(self.args),
            "network": getattr(self.networks[""], "settings", None),
            "versions": _versions(),
            "command": sys.argv,
        }
        write_json(record, self._path("args.json"))

    def _drop_metrics_from(self, step):
        path = self._path("metrics.jsonl")
        if not os.path.exists(path):
            return
        with open(path) as file:
            rows = [line for line in file if _step_of(line) < step]
        with open(f"{path}.tmp", "w") as file:
            file.writelines(rows)
        os.replace(f"{path}.tmp", path)

    # The loop

    def steps(self, stop):
        """Iterate over the steps that are left, with a progress bar; afterwards write the last snapshot and the state."""
        if self.first_step > stop:
            raise StateError(f"{self.directory} has trained {self.first_step} steps already, beyond --num-steps-stop {stop}")
        self._restart_clock(self.first_step)
        self.bar = tqdm(
            range(self.first_step, stop),
            initial=self.first_step,
            total=stop,
            disable=not is_main(),
            dynamic_ncols=True,
            mininterval=1.0,
        )
        for step in self.bar:
            self.batch_files = []
            yield step
        self._check_pending()
        if is_main():
            self._save_networks(stop)
        self._save_state(stop)
        self._close()

    def next(self, loader):
        """The loader's next batch with `image` and `label` on the device; the wait for it is accounted for."""
        began = time.perf_counter()
        batch = next(loader)
        self.wait += time.perf_counter() - began
        self.images += len(batch["image"]) * world_size()
        self.batch_files += batch["path"]
        for key in ("image", "label"):
            if key in batch:
                batch[key] = batch[key].to(self.device, non_blocking=True)
        return batch

    def autocast(self):
        """The context of mixed precision chosen by --amp."""
        return autocast(self.args, self.device)

    def backward(self, loss):
        self.scaler.scale(loss).backward()

    def update(self, *optimizers):
        """Step the optimizers in this order."""
        for optimizer in optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()

    def log(self, step, losses, rates):
        """Guard against losses that are not finite, and write a line every --log-every steps.

        The values of a step are looked at one step later, when the device has long computed them, so that nothing waits.

        Args:
            losses: {name: scalar tensor}, detached or not.
            rates: {name: learning rate}.

        Raises:
            NotFiniteError: a loss of the previous step is NaN or infinite; no state with its consequences is ever written.
        """
        self._check_pending()
        values = torch.stack([loss.detach().float().reshape(()) for loss in losses.values()])
        values = values.to("cpu", non_blocking=True)
        copied = torch.cuda.Event() if self.device.type == "cuda" else None
        if copied:
            copied.record()
        self.pending = (step, list(losses), values, copied, rates, self.batch_files)

    def _check_pending(self):
        if self.pending is None:
            return
        step, names, values, copied, rates, files = self.pending
        self.pending = None
        if copied:
            copied.synchronize()
        losses = dict(zip(names, values.tolist(), strict=True))
        bad = [name for name, value in losses.items() if not math.isfinite(value)]
        if bad:
            raise NotFiniteError(
                f"step {step}: {', '.join(f'{name} is {losses[name]}' for name in bad)}; batch: "
                f"{', '.join(files)}. The last good state is in {self.directory}; a lower learning rate, or "
                "--amp bf16 instead of fp16, usually helps"
            )
        if is_main() and (step + 1) % self.args.log_every == 0:
            self._write_line(step, losses, rates)

    def _write_line(self, step, losses, rates):
        elapsed = max(time.perf_counter() - self.clock, 1e-9)
        speed = {
            "images_per_second": self.images / elapsed,
            "data_wait": self.wait / elapsed,
            "peak_memory_gb": peak_memory(self.device) / 2**30,
        }
        self.metrics.write(json.dumps({"step": step, **rates, **losses, **speed}) + "\n")
        for group, values in (("loss", losses), ("learning rate", rates), ("speed", speed)):
            for name, value in values.items():
                self.writer.add_scalar(f"{group}/{name}", value, step)
        shown = {name: f"{value:.3f}" for name, value in losses.items()}
        self.bar.set_postfix(
            {
                **shown,
                "img/s": f"{speed['images_per_second']:.1f}",
                "wait": f"{speed['data_wait']:.0%}",
                "GB": f"{speed['peak_memory_gb']:.1f}",
            },
            refresh=False,
        )
        self._restart_clock(step)

    def _restart_clock(self, step):
        self.clock, self.wait, self.images = time.perf_counter(), 0.0, 0

    # Validation and pictures

    def due(self, step, every):
        """True after every `every` steps (never for 0)."""
        return every > 0 and (step + 1) % every == 0

    def record_validation(self, step, confusion, class_names, domain=""):
        """Log the IoU of a validation and keep the best snapshot (`<name>_best.pth`) apart from the last.

        A method that scores a second domain gives its name, which sets figures and best snapshot apart
        (`<name>_<domain>_best.pth`).
        """
        self._check_pending()
        iou = iou_per_class(confusion.matrix.cpu())
        miou = mean_iou(confusion.matrix.cpu())
        self.last[domain] = {"miou": miou, "step": step}
        better = miou > self.best.get(domain, {"miou": -1.0})["miou"]
        if better:
            self.best[domain] = dict(self.last[domain])
        if not is_main():
            return
        per_class = {name: None if math.isnan(value) else value for name, value in zip(class_names, iou.tolist(), strict=True)}
        prefix = f"{domain}_" if domain else ""
        self.metrics.write(json.dumps({"step": step, f"{prefix}val_miou": miou, f"{prefix}val_iou": per_class}) + "\n")
        self.writer.add_scalar(f"{prefix}validation/mIoU", miou, step)
        for name, value in per_class.items():
            if value is not None:
                self.writer.add_scalar(f"{prefix}validation IoU/{name}", value, step)
        if better:
            self._save_networks(f"{prefix}best")
        tqdm.write(f"step {step + 1}: {self._score_line(domain)}")
        self._restart_clock(step)

    def _score_line(self, domain):
        last, best = self.last[domain], self.best.get(domain, self.last[domain])
        title = f"{domain} mIoU" if domain else "mIoU"
        return f"{title} {100 * last['miou']:.2f} (best {100 * best['miou']:.2f} after step {best['step'] + 1})"

    def add_picture(self, step, title, picture):
        """Show an (H,W,3) uint8 array in TensorBoard."""
        if is_main():
            self.writer.add_image(title, picture, step, dataformats="HWC")

    # Files

    def save(self, step):
        """After the update of `step`: a snapshot every --save-pred-every steps, the state every --save-state-every steps."""
        tag = self.snapshots.tag(step, self.args.save_pred_every)
        if tag is not None:
            self._check_pending()
            if is_main():
                self._save_networks(tag)
        if tag is not None or self.due(step, self.args.save_state_every):
            self._save_state(step + 1)

    def _save_networks(self, tag):
        for name, content in self.snapshots.files(tag, self.networks).items():
            save_atomically(content, self._path(name), for_originals=True)

    def _save_state(self, next_step):
        self._check_pending()
        states = [random_state()]
        if world_size() > 1:
            states = [None] * world_size()
            distributed.all_gather_object(states, random_state())
        if is_main():
            save_state(
                {
                    "next_step": next_step,
                    "args": json.loads(json.dumps(vars(self.args))),
                    "networks": {key: network.state_dict() for key, network in self.networks.items()},
                    "optimizers": {key: optimizer.state_dict() for key, optimizer in self.optimizers.items()},
                    "loaders": {key: loader.state_dict() for key, loader in self.loaders.items()},
                    "scaler": self.scaler.state_dict(),
                    "random": states,
                    "best": self.best,
                    "last": self.last,
                },
                self._path("state.pth"),
            )
        wait_for_all()

    def _close(self):
        for loader in self.loaders.values():
            loader.close()
        if not is_main():
            return
        self.metrics.close()
        self.writer.close()
        for domain in self.last:
            print(f"last validation, after step {self.last[domain]['step'] + 1}: {self._score_line(domain)}")
        name = next(iter(self.snapshots.files(self.args.num_steps_stop, self.networks)))
        print(f"weights: {self._path(name)}")

    def _path(self, name):
        return os.path.join(self.directory, name)


def _step_of(line):
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return math.inf  # the last line of a killed process may be cut off


def peak_memory(device):
    """The most memory so far in bytes: allocated on the GPU, or resident in this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _versions():
    revision = subprocess.run(
        ["git", "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
    )
    return {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "git": revision.stdout.strip() or None,
    }
