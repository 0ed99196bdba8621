"""The worked examples of CONTRIBUTING.md: a method and a data set, taken from the page and trained."""

import re
import subprocess
import sys

import numpy as np
import torch
from conftest import ROOT
from PIL import Image

import train_source
from dataset import catalogue


def example(title):
    text = (ROOT / "CONTRIBUTING.md").read_text()
    return re.search(rf'```python title="{title}"\n(.*?)```', text, re.DOTALL)[1]


def test_the_method_trains_and_resumes_exactly(mini_data, tmp_path):
    script = tmp_path / "train_entropy.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n" + example("train_entropy.py"))
    words = f"--data-dir {mini_data}/GTA5 --data-dir-target {mini_data}/Cityscapes --model MiniResNet18 --restore-from none"
    words += " --input-size 64,32 --input-size-target 64,32 --device cpu --num-workers 0 --num-steps 4"
    words += " --val-every 2 --log-every 1"

    def train(directory, *more):
        command = [sys.executable, str(script), *words.split(), "--snapshot-dir", str(tmp_path / directory), *more]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr

    train("whole")
    train("parts", "--num-steps-stop", "2")
    train("parts", "--resume")
    whole, parts = (torch.load(tmp_path / name / "GTA5_4.pth", weights_only=True) for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert "loss_target" in (tmp_path / "whole/metrics.jsonl").read_text() and (tmp_path / "whole/GTA5_best.pth").exists()


def test_the_data_set_is_known_everywhere(tmp_path, monkeypatch):
    record = eval(example("record"), {"ClassSet": catalogue.ClassSet, "DataSet": catalogue.DataSet, "Layout": catalogue.Layout})
    monkeypatch.setitem(catalogue.DATA_SETS, "toycity", record)
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for folder, pixels in (("pictures", (40, 72, 3)), ("truth", (40, 72))):
            (tmp_path / "ToyCity" / folder / split).mkdir(parents=True)
            for number in range(2):
                values = rng.choice(np.array([0, 1, 4], np.uint8), pixels)
                Image.fromarray(values).save(tmp_path / "ToyCity" / folder / split / f"{number}.png")
    words = f"--source toycity --data-dir {tmp_path}/ToyCity --model MiniResNet18 --restore-from none --device cpu"
    words += f" --num-workers 0 --num-steps 2 --val-every 1 --snapshot-dir {tmp_path}/run"
    args = train_source.get_arguments(words.split())
    assert args.input_size == (64, 32)
    train_source.main(args)
    assert (tmp_path / "run/TOYCITY_2.pth").exists() and (tmp_path / "run/TOYCITY_best.pth").exists()
