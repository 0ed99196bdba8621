"""The spatial prior: counted, smoothed, written, read, drawn."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from dataset.catalogue import CITYSCAPES, LABEL_IDS, label_table
from dataset.layouts import Record
from dataset.segmentation import SegmentationDataset, build_dataset
from dataset.spatial_prior import PriorError, compute_prior, load_prior, save_prior
from scripts import class_statistics, spatial_prior


def test_a_known_prior(tmp_path):
    """Road (7) on the right half of one of two images, sky (23) everywhere else."""
    first, second = np.full((4, 8), 23, np.uint8), np.full((4, 8), 23, np.uint8)
    first[:, 4:] = 7
    for name, label in (("a", first), ("b", second)):
        Image.fromarray(label).save(tmp_path / f"{name}.png")
    records = [Record("-", str(tmp_path / f"{name}.png"), name) for name in "ab"]
    dataset = SegmentationDataset(records, label_table(LABEL_IDS, CITYSCAPES))
    prior = compute_prior(dataset, 19, (8, 4), sigma=0, progress=False)
    np.testing.assert_allclose(prior[0], np.repeat([[0, 0, 0, 0, 2, 2, 2, 2]], 4, 0))
    np.testing.assert_allclose(prior[10], np.repeat([[2, 2, 2, 2, 1, 1, 1, 1]], 4, 0) / 1.5)
    assert (prior[1] == 1).all()  # no image has pavement: no opinion
    smooth = compute_prior(dataset, 19, (8, 4), sigma=2, progress=False)
    np.testing.assert_allclose(smooth.mean((1, 2)), 1, rtol=1e-5)
    assert 0 < smooth[0, 0, 2] < smooth[0, 0, 5] and (compute_prior(dataset, 19, (8, 4), progress=False) >= 0).all()


@pytest.fixture
def prior():
    values = np.random.default_rng(0).random((19, 8, 16)).astype(np.float32)
    return values / values.mean()


@pytest.mark.parametrize("ending", (".mat", ".npz"))
def test_round_trip(ending, prior, tmp_path, capsys):
    path = str(tmp_path / f"prior{ending}")
    save_prior(path, prior)
    np.testing.assert_allclose(load_prior(path, 19, (16, 8)), prior, rtol=1e-5)
    assert not capsys.readouterr().out
    assert load_prior(path, 19, (32, 16)).shape == (19, 16, 32)
    assert "is resized from 16x8 to 32x16" in capsys.readouterr().out
    assert [entry.name for entry in tmp_path.iterdir()] == [f"prior{ending}"]


def test_the_authors_scale_and_negatives_do_not_matter(prior, tmp_path):
    savemat(tmp_path / "a.mat", {"prior_array": prior.astype(np.float64) * 1e-6})
    np.testing.assert_allclose(load_prior(str(tmp_path / "a.mat"), 19, (16, 8)), prior, rtol=1e-4)
    prior[0, 0, 0] = -1e-3
    savemat(tmp_path / "b.mat", {"prior_array": prior})
    assert load_prior(str(tmp_path / "b.mat"), 19, (16, 8)).min() == 0


def test_bad_files(prior, tmp_path):
    def path(name):
        return str(tmp_path / name)

    save_prior(path("good.npz"), prior)
    np.savez(path("other.npz"), something=prior)
    savemat(path("nan.mat"), {"prior_array": prior * np.nan})
    (tmp_path / "cut.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:100])
    (tmp_path / "text.mat").write_text("hello")
    np.savez(path("words.npz"), prior_array=np.full(prior.shape, "a"))
    np.savez(path("complex.npz"), prior_array=prior * 1j)
    np.savez(path("empty.npz"), prior_array=np.zeros((19, 0, 0)))
    for name, classes, message in (
        ("absent.mat", 19, "no such file; scripts/spatial_prior.py makes one"),
        ("good.npz", 16, r"has shape \(19, 8, 16\), not \(16"),
        ("other.npz", 19, "holds no variable prior_array"),
        ("nan.mat", 19, "not finite"),
        ("words.npz", 19, "holds no positive numbers"),
        ("complex.npz", 19, "holds no positive numbers"),
        ("empty.npz", 19, "holds no positive numbers"),
        ("cut.npz", 19, "cannot be read as a prior"),
        ("text.mat", 19, "cannot be read as a prior"),
    ):
        with pytest.raises(PriorError, match=f"{name}: .*{message}"):
            load_prior(path(name), classes, (16, 8))
    with pytest.raises(PriorError, match="written as .mat or .npz"):
        save_prior(path("prior.png"), prior)


def test_script(mini_data, tmp_path, capsys):
    output, picture = tmp_path / "prior.mat", tmp_path / "prior.png"
    flags = ["--data-dir", f"{mini_data}/GTA5", "--size", "96,48", "--output", str(output), "--draw", str(picture)]
    spatial_prior.main(spatial_prior.get_arguments([*flags, "--workers", "2"]))
    dataset = build_dataset("gta5", f"{mini_data}/GTA5", "all")
    alone = compute_prior(dataset, 19, (96, 48), workers=1, progress=False)
    np.testing.assert_allclose(load_prior(str(output), 19, (96, 48)), alone, rtol=1e-4, atol=1e-6)
    with Image.open(picture) as drawn:
        assert drawn.size == (5 * (96 + 4) - 4, 4 * (48 + 16)) and len(np.unique(np.array(drawn))) > 50
    assert "written to" in capsys.readouterr().out


def test_scripts_on_a_plain_folder(tmp_path, capsys):
    for folder, mode, value in (("images", "RGB", (9, 9, 9)), ("labels", "L", 3)):
        (tmp_path / folder).mkdir()
        Image.new(mode, (32, 16), value).save(tmp_path / folder / "1.png")
    (tmp_path / "classes.json").write_text('["soil", "sky", {"name": "plant", "ids": [3, 9]}]')
    flags = ["--source", "folder", "--data-dir", str(tmp_path), "--workers", "1"]
    spatial_prior.main(spatial_prior.get_arguments([*flags, "--size", "32,16"]))
    prior = load_prior(str(tmp_path / "spatial_prior_3.mat"), 3)
    np.testing.assert_allclose(prior, 1, rtol=1e-5)
    assert "no image has soil" in capsys.readouterr().out
    class_statistics.main(class_statistics.get_arguments(flags))
    content = json.loads((tmp_path / "class_statistics_3.json").read_text())
    assert content == {
        "num_classes": 3,
        "classes": ["soil", "sky", "plant"],
        "file_to_label": {"1.png": [2]},
        "pixels": {"1.png": [0, 0, 512]},
    }
    assert "plant in 1 of 1 images" in capsys.readouterr().out
