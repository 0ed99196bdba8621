"""What docs/reliability.md shows and names."""

import os
import re
import shlex
import subprocess

import pytest
from conftest import ROOT

import train_adaptsegnet

PAGE = (ROOT / "docs/reliability.md").read_text()
SCRIPT = re.search(r"```bash\n(.*?)```", PAGE, re.DOTALL)[1]


def test_every_named_test_is_there():
    names = set(re.findall(r"`((?:faults/)?test_\w+\.py)`", PAGE))
    assert names and all((ROOT / "tests" / name).exists() for name in names)


def test_the_job_script_asks_slurm_for_what_it_needs():
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(\S*)$", SCRIPT, re.MULTILINE))
    assert "requeue" in options and options["open-mode"] == "append" and re.fullmatch(r"USR1@\d+", options["signal"])
    assert SCRIPT.count("#SBATCH") == len(options)
    (command,) = re.findall(r"^srun python train_adaptsegnet.py (.*)$", SCRIPT, re.MULTILINE)
    args = train_adaptsegnet.get_arguments(shlex.split(command))
    assert args.resume == "auto" and args.snapshot_dir == "snapshots/multi"


@pytest.mark.parametrize("status, requeued", [(0, False), (1, False), (75, True)])
def test_the_job_script_comes_again_after_a_stop_only(status, requeued, tmp_path):
    for name, body in (("srun", f"exit {status}"), ("scontrol", f'echo "$@" > {tmp_path}/asked')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"}
    result = subprocess.run(["bash", "-c", SCRIPT], env=environment, capture_output=True, text=True)
    assert result.returncode == status and not result.stderr
    asked = tmp_path / "asked"
    assert asked.exists() == requeued and (not requeued or asked.read_text() == "requeue 17\n")
