"""Very small runs of every training script, and what a run leaves behind."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

# Beside times: which command it was, and whether it was resumed.
NOT_COMPARED = {"images_per_second", "data_wait", "seconds", "peak_memory_gb"}
NOT_COMPARED_ARGS = {"resume", "versions", "command", "snapshot_dir"}
SPEED = "speed"

SIZE = "64,32"
COMMON = (
    *("--input-size", SIZE, "--model", "MiniResNet18", "--restore-from", "none", "--device", "cpu", "--num-workers", "0"),
    *("--log-every", "1", "--save-state-every", "1", "--learning-rate", "1e-3", "--save-num-images", "1"),
)
STEPS = ("--num-steps", "3", "--num-steps-stop", "3", "--save-pred-every", "2", "--val-every", "2")
SEVERAL = ("--num-steps", "2", "--num-steps-stop", "2", "--save-pred-every", "1", "--val-every", "2")
MORE = {
    "train_source": STEPS,
    "train_adaptsegnet": STEPS,
    "train_clan": (*STEPS, "--preheat-steps", "1"),
    "train_maxsquare": (*STEPS, "--multi", "--target-mode", "IW_maxsquare"),
    "train_fada": (*SEVERAL, "--stage", "all", "--batch-size", "2", "--input-size-test", SIZE),
    "train_cbst": (
        "--num-rounds",
        "4",
        "--epochs-per-round",
        "1",
        "--batch-size",
        "2",
        "--init-src-port",
        "0.5",
        "--val-every",
        "1",
    ),
}


def make_data(root: Path) -> None:
    """The smallest pair of domains: two source and two target images of 64x32, and one of each to validate."""
    from scripts import make_mini_data

    counts = "--source-train 2 --source-val 1 --target-train 2 --target-val 1".split()
    arguments = [str(root), "--formats", "gta5,cityscapes", "--size", SIZE, "--workers", "1", *counts]
    make_mini_data.main(make_mini_data.get_arguments(arguments))


def command(script: str, data: Path, directory: Path, *more: str) -> list[str]:
    """A run of a script, as `Injector.run` wants it; it continues where it was."""
    target = () if script == "train_source" else ("--data-dir-target", f"{data}/Cityscapes", "--input-size-target", SIZE)
    place = ("--snapshot-dir", str(directory), "--resume", "auto")
    return [script, "--data-dir", f"{data}/GTA5", *target, *COMMON, *MORE[script], *place, *more]


def left_by(directory: Path) -> dict[str, Any]:
    """Everything in and below a run directory that must not depend on how often the run was interrupted: {relative path:
    content, or its digest}. All TensorBoard files of a folder are one entry."""
    found: dict[str, Any] = {}
    for folder, _, names in os.walk(directory):
        place = os.path.relpath(folder, directory)
        boards = [name for name in names if name.startswith("events.out")]
        if boards:
            found[os.path.join(place, "TensorBoard")] = board(folder)
        for name in set(names) - set(boards) - {"state.previous.pth"}:
            found[os.path.join(place, name)] = content(os.path.join(folder, name))
    return found


def files_below(directory: Path) -> dict[str, Any]:
    """{relative path: content, or its digest} of what a script wrote that trains nothing."""
    paths = [os.path.join(folder, name) for folder, _, names in os.walk(directory) for name in names]
    return {os.path.relpath(path, directory): _written(path) for path in paths}


def _written(path: str) -> Any:
    if path.endswith((".mat", ".npz")):
        return None  # with the time when it was written
    if path.endswith(".json"):
        return json.loads(Path(path).read_bytes().replace(os.path.dirname(path).encode(), b""))
    if path.endswith(".csv"):
        return Path(path).read_text().replace(os.path.dirname(path), "")
    return content(path)


def content(path: str) -> Any:
    """What a file says, without times."""
    if path.endswith("state.pth"):
        state = torch.load(path, weights_only=True)
        return digest({key: value for key, value in state.items() if key != "args"})
    if path.endswith(".pth"):
        return digest(torch.load(path, weights_only=True))
    if path.endswith(".jsonl"):
        rows = [json.loads(line) for line in open(path)]
        return [{key: value for key, value in row.items() if key not in NOT_COMPARED} for row in rows]
    if path.endswith("args.json"):
        return {key: value for key, value in json.loads(Path(path).read_bytes()).items() if key not in NOT_COMPARED_ARGS}
    if path.endswith(".json"):
        return {key: value for key, value in json.loads(Path(path).read_bytes()).items() if key not in NOT_COMPARED_ARGS}
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def board(folder: str) -> dict[str, list[Any]]:
    """TensorBoard's scalars {tag: [(step, value)]}, and the steps of its pictures, as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(folder, size_guidance={"scalars": 0, "images": 0})
    accumulator.Reload()
    tags = accumulator.Tags()
    scalars = {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in tags["scalars"] if SPEED not in tag
    }
    return {**scalars, **{tag: [event.step for event in accumulator.Images(tag)] for tag in tags["images"]}}


def digest(value: Any) -> str:
    """Of tensors in dicts and lists, bit by bit."""
    found = hashlib.sha256()
    for part in _parts(value):
        found.update(part)
    return found.hexdigest()


def _parts(value: Any) -> Iterator[bytes]:
    if isinstance(value, torch.Tensor):
        yield f"{value.dtype} {tuple(value.shape)}".encode()
        yield value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    elif isinstance(value, dict):
        for key in value:
            yield repr(key).encode()
            yield from _parts(value[key])
    elif isinstance(value, list | tuple):
        yield str(len(value)).encode()
        for each in value:
            yield from _parts(each)
    else:
        yield repr(value).encode()


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """What two runs left behind differently, a line each."""
    lines = [f"{name} is missing" for name in expected if name not in found]
    lines += [f"{name} is left over" for name in found if name not in expected]
    for name in found.keys() & expected.keys():
        if found[name] != expected[name]:
            lines.append(f"{name} differs{_where(found[name], expected[name])}")
    return sorted(lines)


def _where(found: Any, expected: Any) -> str:
    if isinstance(found, dict) and isinstance(expected, dict):
        keys = [key for key in {**found, **expected} if found.get(key) != expected.get(key)]
        return f" in {keys[0]}: {found.get(keys[0])} instead of {expected.get(keys[0])}"
    if isinstance(found, list) and isinstance(expected, list):
        return f": {len(found)} rows instead of {len(expected)}" if len(found) != len(expected) else " in a row"
    return ""


def writers(data: Path, weights: Path, out: Path) -> dict[str, list[str]]:
    """A run of each script that is no training and writes files, below `out`."""
    cityscapes = ("--data-dir-target", f"{data}/Cityscapes", "--device", "cpu", "--num-workers", "0")
    labels = ("--source", "gta5", "--data-dir", f"{data}/GTA5", "--num-classes", "19", "--workers", "1")
    scored = ("--data-dir", f"{data}/Cityscapes", "--device", "cpu", "--num-workers", "0", "--input-size", SIZE)
    images = f"{data}/Cityscapes/leftImg8bit/val"
    return {
        "convert_checkpoint --to maxsquare": ["scripts.convert_checkpoint", str(weights), f"{out}/a.pth", "--to", "maxsquare"],
        "adabn": ["scripts.adabn", "--restore-from", str(weights), "--save", f"{out}/a.pth", "--num-images", "2", *cityscapes],
        "predict": ["scripts.predict", images, "--restore-from", str(weights), "--out", str(out), "--ids", *scored[2:]],
        "evaluate_cityscapes": [
            *("evaluate_cityscapes", "--restore-from", str(weights), "--save", f"{out}/maps", "--json", f"{out}/a.json"),
            *("--csv", f"{out}/a.csv", "--save-label-ids", f"{out}/ids", *scored),
        ],
        "compute_iou": [
            *("compute_iou", f"{data}/Cityscapes/gtFine/val", f"{out.parent}/predictions/maps", "--workers", "1"),
            *("--json", f"{out}/a.json", "--csv", f"{out}/a.csv"),
        ],
        "class_statistics": ["scripts.class_statistics", *labels, "--output", f"{out}/a.json"],
        "spatial_prior (.mat)": ["scripts.spatial_prior", *labels, "--size", SIZE, "--output", f"{out}/a.mat"],
        "spatial_prior (.npz)": ["scripts.spatial_prior", *labels, "--size", SIZE, "--output", f"{out}/a.npz"],
    }
