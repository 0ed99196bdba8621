"""scripts/browse_data.py: the samples are those of the training scripts, and the page tells the truth about them."""

import re

import numpy as np
import pytest
import torch

import train_clan
import train_fada
import train_maxsquare
from dataset.catalogue import CLASS_SETS, DATA_SETS, IGNORED, label_table
from dataset.reading import read_label
from dataset.transforms import Compose, RandomBlur, RandomMirror, Resize
from scripts import browse_data
from utils.domains import source_loader, target_loader
from utils.errors import RunError
from utils.pictures import save_ids


def flags_of(*words):
    return browse_data.get_arguments([*map(str, words)])


def browse(*words):
    browse_data.main(flags_of(*words))


def check_same(args, loader, number=5):
    """The page's samples are the loader's, one by one."""
    ours = browse_data.first_samples(args, browse_data.samples_of(args, CLASS_SETS[19]), number)
    theirs = [(batch, i) for batch in (next(loader) for _ in range(number)) for i in range(len(batch["name"]))][:number]
    for sample, (batch, i) in zip(ours, theirs, strict=True):
        assert sample["name"] == batch["name"][i] and torch.equal(sample["image"], batch["image"][i])
        assert ("label" in sample) == ("label" in batch)
        assert "label" not in sample or torch.equal(sample["label"], batch["label"][i])


def test_samples_are_those_of_the_training_scripts(mini_data):
    common = f"--data-dir {mini_data}/GTA5 --source-split train --input-size 64,32 --num-workers 0 --seed 5".split()
    gta5 = ("gta5", mini_data / "GTA5", "--split", "train", "--input-size", "64,32", "--random-seed", "5")
    args = train_maxsquare.get_arguments(common)
    chain = Compose([RandomMirror(), Resize(args.input_size), RandomBlur()])  # as train_maxsquare.py has it
    check_same(flags_of(*gta5, "--gaussian-blur"), source_loader(args, CLASS_SETS[19], chain))
    args = train_clan.get_arguments([*common, "--batch-size", "2"])
    loader = source_loader(args, CLASS_SETS[19], train_clan.augmentation(args, args.input_size))
    check_same(flags_of(*gta5, "--random-image-scale", "--batch-size", "2"), loader)
    words = ["--data-dir-target", str(mini_data / "Cityscapes"), "--input-size-target", "64,32"]
    args = train_fada.get_arguments([*common, *words])
    target = ("cityscapes", mini_data / "Cityscapes", "--split", "train", "--input-size", "64,32", "--unlabelled")
    words = ("--random-mirror", "False", "--random-seed", "6")  # the target's order has the next seed
    check_same(flags_of(*target, *words), target_loader(args, CLASS_SETS[19], Resize(args.input_size_target)))


def test_the_page_is_one_file_with_samples_and_shares(mini_data, tmp_path):
    out = tmp_path / "deep/page.html"
    words = ("gta5", mini_data / "GTA5", "--split", "train", "--out", out, "--input-size", "96,48", "--count", "4")
    browse(*words, "--statistics", "6", "--random-mirror", "False")
    page = out.read_text()
    assert page.count('src="data:image/png;base64,') == 3 * 4 and not re.search(r'(src|href)="(?!data:)', page)
    assert "Classes of 6 samples" in page and "input size (96, 48)" in page
    # The 6 samples are the 6 images once each, at their own size and not augmented.
    table = label_table(DATA_SETS["gta5"].ids, CLASS_SETS[19])
    labels = [table[read_label(str(path))] for path in sorted((mini_data / "GTA5/labels").glob("*.png"))]
    names = {path.name for path in (mini_data / "GTA5/images").glob("*.png")}
    dataset = browse_data.samples_of(flags_of(*words), CLASS_SETS[19])
    chosen = [labels[sorted(names).index(record.name)] for record in dataset.records]
    pixels = np.concatenate([label.ravel() for label in chosen])
    for number, name in enumerate(CLASS_SETS[19].names):
        share = 100 * (pixels == number).sum() / (pixels != IGNORED).sum()
        seen = 100 * np.mean([(label == number).any() for label in chosen])
        assert re.search(rf"</i>{name}</td><td>{share:.2f}</td><td>{seen:.0f}</td>", page), name
    assert f"Without a class: {100 * (pixels == IGNORED).mean():.1f} %" in page
    browse(*words)  # our own page may be replaced
    out.write_text("<html>mine</html>")
    with pytest.raises(RunError, match="page.html: exists already and was not written here"):
        browse(*words)


def test_every_augmentation_at_once(mini_data, tmp_path):
    words = ("--color-jitter", "0.2,0.2,0.2,0.1", "--scale-range", "0.5,1.5", "--crop", "40,40", "--gaussian-blur")
    browse(
        "gta5",
        mini_data / "GTA5",
        "--split",
        "train",
        "--out",
        tmp_path / "page.html",
        *words,
        "--count",
        "3",
        "--statistics",
        "3",
    )
    page = (tmp_path / "page.html").read_text()
    assert page.count("(40x40)</figcaption>") == 3 and "color jitter (0.2, 0.2, 0.2, 0.1)" in page


def test_pseudo_labels_take_the_place_of_labels(mini_data, tmp_path):
    images = sorted((mini_data / "Cityscapes/leftImg8bit/train").rglob("*.png"))
    (tmp_path / "labels").mkdir()
    target = (
        "cityscapes",
        mini_data / "Cityscapes",
        "--split",
        "train",
        "--out",
        tmp_path / "page.html",
        "--count",
        "2",
        "--statistics",
        "5",
    )
    for image in images[1:]:
        save_ids(str(tmp_path / "labels" / image.name), np.full((48, 96), 2))
    with pytest.raises(FileNotFoundError, match="no such pseudo-label \\(1 missing\\)"):
        browse(*target, "--pseudo-labels", tmp_path / "labels")
    save_ids(str(tmp_path / "labels" / images[0].name), np.full((48, 96), 2))
    browse(*target, "--pseudo-labels", tmp_path / "labels")
    page = (tmp_path / "page.html").read_text()
    assert "</i>building</td><td>100.00</td><td>100</td>" in page and "labels of" in page


def test_what_cannot_be_shown_is_told(mini_data, tmp_path, capsys):
    crosscity = (
        "crosscity",
        mini_data / "NTHU_Datasets",
        "--city-name",
        "Rome",
        "--split",
        "train",
        "--out",
        tmp_path / "p.html",
    )
    with pytest.raises(RunError, match="split train has no labels; show images alone with --unlabelled"):
        browse(*crosscity)
    browse(*crosscity, "--unlabelled", "--count", "2")
    assert (tmp_path / "p.html").read_text().count("<img") == 2
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        browse("gta5", tmp_path / "nowhere")
    with pytest.raises(RunError, match="nowhere: no such folder"):
        browse("cityscapes", mini_data / "Cityscapes", "--split", "train", "--pseudo-labels", tmp_path / "nowhere")
    for words in (("--color-jitter", "0.2"), ("--pseudo-labels", "x", "--unlabelled")):
        with pytest.raises(SystemExit):
            flags_of("gta5", "root", *words)
    assert "brightness, contrast, saturation and hue are needed" in capsys.readouterr().err


def test_mixed_samples(mini_data, tmp_path, capsys):
    """Half of the classes of a source sample, with their labels, in a target sample without labels."""
    target = ("cityscapes", mini_data / "Cityscapes", "--split", "train", "--unlabelled", "--input-size", "64,32")
    mix = ("--mix", "gta5", mini_data / "GTA5")
    args = flags_of(*target, *mix)
    samples, sources = (
        list(browse_data.first_samples(args, images, 3))
        for images in (browse_data.samples_of(args, CLASS_SETS[19]), browse_data.labelled_images(args, CLASS_SETS[19]))
    )
    for mixed, sample, source in zip(browse_data.mixed(iter(samples), iter(sources), 0), samples, sources, strict=True):
        pasted = mixed["label"] != IGNORED
        assert torch.equal(mixed["label"][pasted], source["label"][pasted])
        assert torch.equal(mixed["image"][:, pasted], source["image"][:, pasted])
        present = len(source["label"].unique())
        assert (present + 1) // 2 - 1 <= len(mixed["label"][pasted].unique()) <= (present + 1) // 2  # ignored may be pasted too
        untouched = (mixed["image"] == sample["image"]).all(0)
        assert (untouched | (mixed["image"] == source["image"]).all(0)).all() and untouched.any()
    browse(*target, *mix, "--out", tmp_path / "mixed.html", "--count", "2", "--statistics", "2")
    assert (tmp_path / "mixed.html").read_text().count('src="data:image/png;base64,') == 3 * 2
    with pytest.raises(SystemExit):
        flags_of(*target, "--mix", "gta6", mini_data)
    assert "--mix gta6: is no data set known here" in capsys.readouterr().err
