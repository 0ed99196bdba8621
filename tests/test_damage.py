"""Damaged files, full disks, and what a killed process leaves behind."""

import errno
import json
import os
import random
import resource
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from filled import filled
from test_run import Killed, adapt, assert_same_run, flags

from dataset.catalogue import CITYSCAPES
from dataset.class_statistics import StatisticsError, read_statistics
from model import WeightsError, build_model, load_model, read_weights
from model.checkpoint_formats import to_fada, to_maxsquare
from utils import files, locks, plan, state
from utils.errors import RunError
from utils.files import CHECKSUM, fits_checksum, replacing, sweep
from utils.run_log import RunLog
from utils.self_training.claims import outcome_of, read_claim
from utils.self_training.thresholds import ClassReport
from utils.state import StateError, discard_damaged, load_state, predecessor, save_state, save_tensors

FLIPS = 60


@pytest.fixture(scope="module")
def finished(mini_data, tmp_path_factory):
    directory = tmp_path_factory.mktemp("finished")
    adapt(mini_data, directory)
    return directory


def flip(path, position, bit):
    with open(path, "r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1 << bit]))


def flips(path, count=FLIPS):
    """Flip one bit after the other, each time of a whole file."""
    draw = random.Random(0)
    for _ in range(count):
        position, bit = draw.randrange(os.path.getsize(path)), draw.randrange(8)
        flip(path, position, bit)
        yield position
        flip(path, position, bit)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_a_flipped_bit_in_a_state_is_found(finished, tmp_path):
    """Or it fell on a byte that means nothing, such as a filler: then the state is the same."""
    path = str(tmp_path / "state.pth")
    shutil.copy(finished / "state.pth", path)
    whole, found = load_state(path)[0], 0
    for _ in flips(path):
        try:
            assert same(load_state(path)[0], whole)
        except StateError as error:
            assert f"{path}: " in str(error)
            found += 1
    assert found > FLIPS * 0.9


@pytest.mark.parametrize("content", ("plain", "maxsquare", "fada"))
def test_a_flipped_bit_in_a_snapshot_is_found(content, tmp_path):
    network = filled(build_model("MiniResNet18", heads="single"))
    write = {"plain": lambda network: network.state_dict(), "maxsquare": to_maxsquare, "fada": lambda net: to_fada(net, 1)}
    path = str(tmp_path / "snapshot.pth")
    save_tensors(write[content](network), path, for_originals=True)
    load_model(path)
    end = os.path.getsize(path) - len(CHECKSUM) - 32
    for position in flips(path):
        if end <= position < end + len(CHECKSUM):
            continue  # then the file counts as one without a checksum, which it does not need: the weights are whole
        with pytest.raises(WeightsError, match=path):
            read_weights(path)


def test_a_snapshot_with_a_checksum_reads_like_one_without(tmp_path):
    """Old PyTorch reads on from tensor to tensor and never sees the file's end."""
    tensors = build_model("MiniResNet18").state_dict()
    with_checksum, without = tmp_path / "a.pth", tmp_path / "b.pth"
    save_tensors(tensors, str(with_checksum), for_originals=True)
    torch.save(tensors, without, _use_new_zipfile_serialization=False)
    assert with_checksum.read_bytes()[: -len(CHECKSUM) - 32] == without.read_bytes()
    assert same(torch.load(with_checksum, weights_only=True), torch.load(without, weights_only=True))
    assert fits_checksum(with_checksum) and fits_checksum(without)


def test_a_damaged_state_never_replaces_the_one_before(finished, mini_data, tmp_path, monkeypatch, capsys):
    """Flipped, resumed from the predecessor, and killed inside each rename of the next save: a whole state is always left."""
    for rename in (0, 1, 2):
        directory = tmp_path / str(rename)
        shutil.copytree(finished, directory)
        path = str(directory / "state.pth")
        flip(path, os.path.getsize(path) // 2, 3)
        renames = []

        def replace(source, destination, renames=renames, limit=rename):
            if "state" in str(destination):
                renames.append(destination)
                if len(renames) == limit + 2:  # the first one puts the predecessor in the damaged state's place
                    raise Killed
            return os.rename(source, destination)

        monkeypatch.setattr(state.os, "replace", replace)
        with pytest.raises(Killed):
            adapt(mini_data, directory, "--resume")
        monkeypatch.undo()
        assert "does not fit its checksum" in capsys.readouterr().err
        _, problems = load_state(path)
        assert not any("checksum" in problem for problem in problems)
        adapt(mini_data, directory, "--resume")
        assert_same_run(directory, finished)


def test_a_state_that_lacks_a_key_is_passed_over(tmp_path):
    path = str(tmp_path / "state.pth")
    whole = dict.fromkeys(state.KEYS, 1)
    for key in state.KEYS:
        save_state(whole, path)
        save_state({name: value for name, value in whole.items() if name != key}, path)
        found, problems = load_state(path)
        assert found == whole and f"{path}: " in problems[0]
        os.remove(predecessor(path))
        with pytest.raises(StateError, match=f"{path}: .*(lacks {key}|not the state of a run)"):
            load_state(path)
        save_state(whole, path)
        discard_damaged(path)
        os.remove(path)


# Full disks


class FullDisk:
    """A file on a disk that takes so many bytes more."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        size = len(data) if isinstance(data, str) else memoryview(data).nbytes
        if size > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= size
        return self.file.write(data)

    def __getattr__(self, name):
        if name == "fileno":
            raise AttributeError(name)  # or PyTorch would write past us
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.file.close()


@pytest.mark.parametrize("for_originals", (False, True))
@pytest.mark.parametrize("room", (0, 100, 30000))
def test_a_full_disk_is_told_with_the_path_and_the_bytes(for_originals, room, tmp_path, monkeypatch):
    path = str(tmp_path / "state.pth")
    save_tensors({"weight": torch.ones(10000)}, path, for_originals)
    before = open(path, "rb").read()
    monkeypatch.setattr(files, "open", lambda *args: FullDisk(open(*args), room), raising=False)
    with pytest.raises(OSError, match=r"No space left on device; it needs more than \d+ bytes, \d+ are free") as caught:
        save_tensors({"weight": torch.zeros(10000)}, path, for_originals)
    assert caught.value.filename == path and open(path, "rb").read() == before and os.listdir(tmp_path) == ["state.pth"]


@pytest.mark.parametrize("limit", (1000, 200000, 20000000))
def test_a_run_on_a_full_disk_ends_in_one_line(limit, mini_data, finished, tmp_path):
    """The operating system itself refuses files beyond a size; the run before is intact."""
    shutil.copytree(finished, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.pth")}
    command = [sys.executable, "train_adaptsegnet.py", *flags(mini_data, tmp_path / "run", "--num-steps-stop", "6")]
    state.save_state({**load_state(str(finished / "state.pth"))[0], "next_step": 5}, str(tmp_path / "run/state.pth"))
    before |= {path: path.read_bytes() for path in (tmp_path / "run").glob("state*.pth")}
    result = subprocess.run(
        [*command, "--resume"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert str(tmp_path / "run") in result.stderr.splitlines()[-1] and "are free" in result.stderr.splitlines()[-1]
    assert {path: path.read_bytes() for path in before} == before


def test_space_is_checked_before_the_first_step(mini_data, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "_free", lambda directory: 1000)
    with pytest.raises(RunError, match=rf"{tmp_path}: the disk is too full: .* need \d{{8,}} bytes, 1000 are free"):
        adapt(mini_data, tmp_path)
    assert not list(tmp_path.glob("*.pth")) and not (tmp_path / "metrics.jsonl").exists()


# Litter


def test_what_a_killed_process_left_is_swept(mini_data, tmp_path):
    adapt(mini_data, tmp_path, steps=2)
    ours = ("state.pth.new", "state.pth.new.123.tmp", "GTA5_2.pth.99.tmp", "metrics.jsonl.1.tmp", "args.json.77.tmp")
    others = ("notes.txt.123.tmp", "mine.tmp", "state.pth.tmp")
    for name in (*ours, *others):
        (tmp_path / name).write_text("x")
    adapt(mini_data, tmp_path, "--resume", steps=2)
    assert not [name for name in ours if (tmp_path / name).exists()]
    assert all((tmp_path / name).exists() for name in others)


def test_sweep_asks_for_the_name(tmp_path):
    with pytest.raises(Killed), replacing(tmp_path / "a.json"):
        raise Killed
    assert os.listdir(tmp_path) == []
    (tmp_path / "a.json.5.tmp").write_text("")
    sweep(str(tmp_path), lambda name: name == "b.json")
    assert os.listdir(tmp_path) == ["a.json.5.tmp"]
    sweep(str(tmp_path), lambda name: name == "a.json")
    assert os.listdir(tmp_path) == []


# Logs and notes


@pytest.mark.parametrize(
    "line", (b"[1]", b"3", b'{"step": null}', b'{"step": [1]}', b"\xff\xfe", b"[" * 100000, b'{"step": 1e999}', b"null")
)
def test_foreign_lines_in_the_metrics(line, mini_data, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    path = tmp_path / "run/metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + line + b"\n")
    adapt(mini_data, tmp_path / "run", "--resume")
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "content",
    (
        *(b"", b"\xff\xfe", b"[]", b"null", b"[" * 100000, b'{"network": 3}', b'{"network": {"name": 1}}'),
        *(
            b'{"network": {"name": "MiniResNet18", "num_classes": %b}}' % value
            for value in (b"true", b"1e9", b'"x"', b"-1", b"0", b"[]", b"1" * 30)
        ),
        b'{"network": {"name": "MiniResNet18", "num_classes": 19, "aspp_rates": ["x"]}}',
    ),
)
def test_a_damaged_args_json(content, finished, mini_data, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run/args.json").write_bytes(content)
    torch.save(dict(torch.load(finished / "GTA5_6.pth", weights_only=True)), tmp_path / "run/plain.pth")
    try:
        load_model(tmp_path / "run/plain.pth")
    except WeightsError as error:
        assert "args.json" in str(error) and "\n" not in str(error)
    try:
        adapt(mini_data, tmp_path / "run", "--resume")
    except RunError as error:
        assert "args.json" in str(error)
    else:
        assert "network" in json.loads((tmp_path / "run/args.json").read_text())


def test_a_log_on_a_full_disk_is_named(tmp_path):
    log = RunLog(str(tmp_path), 0, True)
    log.metrics = FullDisk(log.metrics, 10)
    with pytest.raises(OSError, match="No space left on device; it needs more than 0 bytes") as caught:
        log.line(0, {"loss": {"loss_seg": 1.0}})
    assert caught.value.filename == str(tmp_path / "metrics.jsonl")


# Files from elsewhere that damage made dangerous


def test_a_pickle_that_numbers_more_objects_than_it_holds(tmp_path):
    """Python's own reader would make room for four billion, 32 GB."""
    path = tmp_path / "statistics.p"
    path.write_bytes(b"\x80\x02]r" + (2**32 - 1).to_bytes(4, "little") + b".")
    with pytest.raises(StatisticsError, match=f"{path}: damaged, it counts more objects than it can hold"):
        read_statistics(str(path), CITYSCAPES)


@pytest.mark.parametrize("content", (b"", b"\xff", b"[" * 100000, b"[1]", b"{}", b'{"weights": 1}', b'{"portion": 1}'))
def test_damaged_notes_of_a_round(content, tmp_path):
    for name, read in (
        ("made_from.json", lambda path: read_claim(os.path.dirname(path))),
        ("thresholds.json", ClassReport.read),
    ):
        (tmp_path / name).write_bytes(content)
        if name == "made_from.json" and content.startswith(b"{"):
            continue
        with pytest.raises(StateError, match=str(tmp_path / name)):
            read(str(tmp_path / name))
    (tmp_path / "finished.json").write_bytes(content)
    if content != b'{"weights": 1}':
        with pytest.raises(StateError, match=str(tmp_path / "finished.json")):
            outcome_of(str(tmp_path), "weights")


def test_what_a_killed_process_left_beside_the_lock_is_swept(tmp_path):
    """Its attempts to take it; those of living processes stay."""
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    lock = locks.Lock(str(tmp_path))
    attempts = {name: tmp_path / f"in_use.json.{name * 16}" for name in "abc"}
    attempts["a"].write_text(json.dumps({**lock.owner, "pid": int(dead.stdout)}))
    attempts["b"].write_text(json.dumps({**lock.owner, "pid": os.getppid(), "started": locks._start_of(os.getppid())}))
    attempts["c"].write_text("")
    lock.release()
    locks.Lock(str(tmp_path)).release()
    assert [name for name, path in attempts.items() if path.exists()] == ["b"]


@pytest.mark.parametrize(
    "error",
    (OSError(errno.ENOSPC, "No space left on device"), RuntimeError("write(): fd 7 failed with No space left on device")),
)
def test_a_full_disk_that_pytorch_tells_in_its_own_words(error, tmp_path):
    with pytest.raises(OSError, match="No space left on device; it needs more than 3 bytes, .* are free") as caught:
        with replacing(tmp_path / "a.pth") as file:
            file.write(b"abc")
            file.flush()
            raise error
    assert caught.value.filename == str(tmp_path / "a.pth") and not os.listdir(tmp_path)
