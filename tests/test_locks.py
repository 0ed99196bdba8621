"""Locks of directories: one process at a time, dead owners recognised, others told."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from utils import locks
from utils.locks import NAME, InUseError, Lock, locked

HOLD = "import sys; from utils.locks import Lock; lock = Lock(sys.argv[1]); print('held', flush=True); sys.stdin.readline()"


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the directory until it reads a line, ends or is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def rewrite(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_living_owner_is_named(holder, tmp_path):
    with pytest.raises(InUseError, match=rf"{tmp_path}: is in use by process {holder.pid} on \S+, since \d+-.*; wait for it"):
        Lock(str(tmp_path))
    holder.communicate("\n")  # it ends, and gives the directory free
    assert os.listdir(tmp_path) == []
    Lock(str(tmp_path)).release()
    assert os.listdir(tmp_path) == []


def test_a_dead_owner_is_succeeded(holder, tmp_path):
    holder.kill()
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
    Lock(str(tmp_path))
    assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    assert os.listdir(tmp_path) == [NAME]


def test_a_process_id_that_came_again_is_no_owner(holder, tmp_path):
    rewrite(tmp_path / NAME, started="1")
    Lock(str(tmp_path)).release()


@pytest.mark.parametrize("change", ({"host": "elsewhere"}, {"machine": "restarted"}))
def test_of_another_machine_only_the_user_can_know(change, holder, tmp_path):
    holder.kill()
    rewrite(tmp_path / NAME, **change)
    with pytest.raises(InUseError, match=f"if that process is gone for certain, remove {tmp_path / NAME}"):
        Lock(str(tmp_path))


@pytest.mark.parametrize("content", (b"", b"\xff\0", b"[]", b'{"pid": "x"}', b"[" * 100000))
def test_a_damaged_lock_is_no_free_directory(content, tmp_path):
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(InUseError, match=f"remove {tmp_path / NAME}"):
        Lock(str(tmp_path))


def test_this_process_does_not_disturb_itself(tmp_path):
    first = Lock(str(tmp_path))
    second = Lock(str(tmp_path))
    first.release()  # no longer its own
    assert (tmp_path / NAME).exists()
    second.release()
    assert not (tmp_path / NAME).exists()


def test_without_links(tmp_path, monkeypatch, holder):
    def link(*_):
        raise PermissionError("no links on this file system")

    monkeypatch.setattr(locks.os, "link", link)
    with pytest.raises(InUseError):
        Lock(str(tmp_path))
    with locked(str(tmp_path / "a"), None, str(tmp_path / "a")):
        assert (tmp_path / "a" / NAME).exists()
    assert os.listdir(tmp_path / "a") == []


def test_one_of_many_gets_it(tmp_path):
    """Eight processes at once, over and over, each after a dead owner: never two inside."""
    code = """
import os, sys
from utils.locks import InUseError, Lock, NAME
from utils import locks
folder, rounds = sys.argv[1], 40
for _ in range(rounds):
    try:
        lock = Lock(folder)
    except InUseError:
        continue
    os.close(os.open(folder + "/inside", os.O_CREAT | os.O_EXCL))
    os.remove(folder + "/inside")
    lock.owner = {**lock.owner, "started": "1"}  # leave the lock of a process that is gone
    with open(lock.path + ".dead", "w") as file:
        file.write(__import__("json").dumps(lock.owner))
    os.replace(lock.path + ".dead", lock.path)
"""
    processes = [subprocess.Popen([sys.executable, "-c", code, tmp_path], cwd=ROOT, stderr=subprocess.PIPE) for _ in range(8)]
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()
