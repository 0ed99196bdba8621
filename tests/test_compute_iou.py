"""compute_iou.py against the original's figures, cityscapesScripts, and everything that can be wrong with predictions."""

import csv
import json
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
from conftest import GOLDEN, ROOT
from PIL import Image

from compute_iou import PredictionError, compute_iou, find_pairs, get_arguments, main, note_unscored
from dataset.catalogue import CITYSCAPES, CROSSCITY_13, LABEL_IDS, SYNTHIA_16, ClassSet, class_set, label_table
from utils.confusion import ConfusionMatrix
from utils.iou import OTHERS_REMOVED, SUBSET_OF_MATRIX, count_pairs, iou_per_class, iou_scores, iou_table, mean_iou

IOU = GOLDEN / "adaptsegnet/iou"
WRONG_SIZE = 4  # the pair that the original skips with a message


@pytest.fixture
def devkit(tmp_path):
    """The recorded lists without the pair of different sizes."""
    for name in ("label.txt", "val.txt"):
        lines = (IOU / "devkit" / name).read_text().split()
        (tmp_path / name).write_text("\n".join(line for i, line in enumerate(lines) if i != WRONG_SIZE))
    return tmp_path


def test_figures_and_lines_of_the_original(devkit, golden):
    recorded = golden("adaptsegnet/iou.npz")
    lines = []
    pairs = find_pairs(str(IOU / "gt"), str(IOU / "pred"), str(devkit))
    note_unscored(pairs, str(IOU / "pred"), lines.append)
    with ProcessPoolExecutor(2) as pool:
        result = compute_iou(pairs, parallel_map=pool.map, report=lines.append)
    iou = [np.nan if value is None else value for value in result["iou"].values()]
    np.testing.assert_array_equal(iou, recorded["iou"])
    assert result["miou"] == recorded["miou"]
    original = [line for line in str(recorded["stdout"]).splitlines() if line.startswith("===>")]
    assert iou_table(result).splitlines()[:20] == original
    assert lines[0].startswith("note: 1 predictions without ground truth") and "aaa_000004" in lines[0]
    assert len(lines) == 2 and lines[1].startswith("10 / 11: ")


def test_a_pair_of_different_sizes_is_an_error_and_not_skipped():
    with pytest.raises(PredictionError, match=r"pred/aaa_000004.*its size does not fit.*gt/aaa/aaa_000004"):
        compute_iou(find_pairs(str(IOU / "gt"), str(IOU / "pred"), str(IOU / "devkit")))


def test_pairs_are_found_without_lists(devkit):
    listed = find_pairs(str(IOU / "gt"), str(IOU / "pred"), str(IOU / "devkit"))
    assert sorted(listed) == find_pairs(str(IOU / "gt"), str(IOU / "pred"))


@pytest.fixture
def folders(tmp_path):
    """One ground truth with all classes and a right prediction of it."""
    rng = np.random.default_rng(0)
    train_ids = rng.integers(0, 19, (24, 40)).astype(np.uint8)
    (tmp_path / "gt/city").mkdir(parents=True)
    (tmp_path / "pred").mkdir()
    label_ids = np.array(list(LABEL_IDS), np.uint8)[train_ids]
    label_ids[:2] = 0
    Image.fromarray(label_ids).save(tmp_path / "gt/city/city_000000_000019_gtFine_labelIds.png")
    Image.fromarray(train_ids).save(tmp_path / "pred/city_000000_000019_leftImg8bit.png")
    return tmp_path


def score(folders, classes=CITYSCAPES, **options):
    return compute_iou(find_pairs(str(folders / "gt"), str(folders / "pred"), **options), classes)


def test_a_right_prediction_scores_one(folders):
    assert score(folders)["miou"] == 1


def save(path, ids):
    Image.fromarray(ids.astype(np.uint8)).save(path)


def replace_prediction(folders, change):
    path = folders / "pred/city_000000_000019_leftImg8bit.png"
    change(path, np.array(Image.open(path)))


@pytest.mark.parametrize(
    "change, error, message",
    [
        (lambda path, ids: path.unlink(), FileNotFoundError, "no such file .1 of 1 pairs"),
        (lambda path, ids: save(path, ids[:, :-1]), PredictionError, r"39x24 against 40x24"),
        (lambda path, ids: save(path, np.stack([ids] * 3, -1)), OSError, "an RGB picture"),
        (lambda path, ids: save(path, np.where(ids == 3, 255, ids)), PredictionError, "holds the id 255"),
        (lambda path, ids: save(path, np.array(list(LABEL_IDS))[ids]), PredictionError, "33, .*label ids"),
        (lambda path, ids: save(path, np.stack([ids] * 2, -1)), OSError, "2 channels"),
        (lambda path, ids: Image.fromarray(ids > 0).save(path), OSError, "a 1-bit grey PNG"),
        (lambda path, ids: Image.fromarray(ids.astype(np.uint16)).save(path), OSError, "a 16-bit grey PNG"),
        (lambda path, ids: path.write_bytes(path.read_bytes()[:200]), OSError, "truncated"),
        (lambda path, ids: path.write_text("no picture at all, just some text"), OSError, "not a PNG"),
    ],
)  # fmt: skip
def test_bad_predictions_are_errors_that_name_the_file(change, error, message, folders):
    replace_prediction(folders, change)
    with pytest.raises(error, match=f"city_000000_000019_leftImg8bit.png: .*{message}"):
        score(folders)


def test_a_prediction_of_more_classes(folders):
    with pytest.raises(PredictionError, match="holds the id 18.*--num-classes"):
        score(folders, SYNTHIA_16)


def test_predictions_in_city_folders_and_odd_folder_names(folders):
    (folders / "pred").rename(folders / "city")
    (folders / "gt").rename(folders / "gt [1]")
    (folders / "pred").mkdir()
    (folders / "city").rename(folders / "pred/city")
    assert compute_iou(find_pairs(str(folders / "gt [1]"), str(folders / "pred")))["miou"] == 1


def test_a_mapping_that_is_not_cityscapes_own_is_refused(folders):
    (folders / "label.txt").write_text("city/city_000000_000019_gtFine_labelIds.png")
    (folders / "val.txt").write_text("city/city_000000_000019_leftImg8bit.png")
    pairs = [[label_id, int(train_id)] for label_id, train_id in enumerate(label_table(LABEL_IDS, CITYSCAPES)[:34])]
    for label_to_train, other in (([*pairs, [-1, 255]], False), ([[29, 13], *pairs], True)):
        (folders / "info.json").write_text(json.dumps({"label2train": label_to_train}))
        if other:
            with pytest.raises(ValueError, match="info.json: maps label id 29 to 13"):
                score(folders, devkit_dir=str(folders))
        else:
            assert score(folders, devkit_dir=str(folders))["miou"] == 1
    (folders / "info.json").write_text("{}")
    with pytest.raises(ValueError, match="info.json: not the devkit's"):
        score(folders, devkit_dir=str(folders))


def test_missing_folders_and_ground_truth(folders):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        find_pairs(str(folders / "gt"), str(folders / "nowhere"))
    with pytest.raises(FileNotFoundError, match="pred: no ground truth"):
        find_pairs(str(folders / "pred"), str(folders / "pred"))


def test_command_line_with_several_folders(folders):
    second = folders / "half"
    second.mkdir()
    ids = np.array(Image.open(folders / "pred/city_000000_000019_leftImg8bit.png"))
    ids[:12] = 0
    Image.fromarray(ids).save(second / "city_000000_000019_leftImg8bit.png")
    command = [sys.executable, str(ROOT / "compute_iou.py"), "gt", "pred", "half", "--json", "a.json", "--csv", "new/a.csv"]
    done = subprocess.run(command, cwd=folders, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Num classes 19") == 2 and "===>motocycle:\t100.0" in done.stdout
    figures = json.loads((folders / "a.json").read_text())
    assert figures["pred"]["miou"] == 1 and 0.3 < figures["half"]["miou"] < 0.7
    with open(folders / "new/a.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["predictions"] for row in rows] == ["pred", "half"]
    assert float(rows[1]["mIoU"]) == figures["half"]["miou"]
    assert float(rows[1]["motorcycle"]) == figures["half"]["iou"]["motorcycle"]
    for protocol, value in figures["half"]["subsets"]["13"].items():
        assert float(rows[1][f"mIoU of 13 classes ({protocol})"]) == value
    (second / "city_000000_000019_leftImg8bit.png").unlink()
    done = subprocess.run(command, cwd=folders, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("compute_iou.py: error: half/city_000000")


def random_pair(seed=0, absent=(3, 16)):
    rng = np.random.default_rng(seed)
    label_ids = rng.integers(0, 34, (64, 96)).astype(np.uint8)
    prediction = label_table(LABEL_IDS, CITYSCAPES)[label_ids]
    wrong = (rng.random(prediction.shape) < 0.4) | (prediction == 255)
    prediction[wrong] = rng.integers(0, 19, wrong.sum())
    for train_id in absent:
        label_ids[label_ids == list(LABEL_IDS)[train_id]] = 0
        prediction[prediction == train_id] = 0
    return label_ids, prediction


def confusion_of(label_ids, prediction, num_classes=19):
    confusion = ConfusionMatrix(num_classes)
    label = torch.from_numpy(label_table(LABEL_IDS, class_set(num_classes))[label_ids])
    confusion.add(label, torch.from_numpy(prediction))
    return confusion.matrix


def test_iou_equals_cityscapesscripts():
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official

    label_ids, prediction = random_pair(absent=())
    official.args.evalLabels = list(range(-1, 34))
    matrix = np.zeros((34, 34), np.ulonglong)
    predicted_ids = np.array(list(LABEL_IDS), np.uint8)[prediction]
    np.add.at(matrix, (label_ids, predicted_ids), 1)
    expected = [official.getIouScoreForLabel(label_id, matrix, official.args) for label_id in LABEL_IDS]
    ours = iou_per_class(confusion_of(label_ids, prediction))
    np.testing.assert_allclose(ours, expected, rtol=1e-12)


def test_absent_classes_do_not_count():
    iou = iou_per_class(confusion_of(*random_pair()))
    assert np.isnan(iou[[3, 16]]).all() and np.isnan(iou).sum() == 2
    assert mean_iou(confusion_of(*random_pair())) == pytest.approx(np.nanmean(iou))
    assert iou_scores(confusion_of(*random_pair()))["iou"]["wall"] is None


def test_the_two_protocols_of_13_classes_differ_as_described():
    label_ids, prediction = random_pair(absent=())
    matrix = confusion_of(label_ids, prediction)
    by_protocol = iou_scores(matrix)["subsets"]["13"]
    members = [CITYSCAPES.names.index(name) for name in CROSSCITY_13.names]
    assert by_protocol[SUBSET_OF_MATRIX] == pytest.approx(iou_per_class(matrix)[members].mean())
    # Removing the other classes' pixels means: pixels labelled or predicted as one of them are not there at all.
    label = label_table(LABEL_IDS, CITYSCAPES)[label_ids]
    kept = np.isin(label, members) & np.isin(prediction, members)
    ious = [
        (kept & (label == c) & (prediction == c)).sum() / (kept & ((label == c) | (prediction == c))).sum() for c in members
    ]
    assert by_protocol[OTHERS_REMOVED] == pytest.approx(np.mean(ious))
    assert by_protocol[OTHERS_REMOVED] > by_protocol[SUBSET_OF_MATRIX] + 0.01


def test_16_class_scores_have_the_right_names():
    matrix = torch.diag(torch.arange(1, 17))
    result = iou_scores(matrix)
    assert list(result["iou"])[9] == "sky" and list(result["subsets"]) == ["13"]


def test_confusion_matrix_refuses_what_is_no_class():
    confusion = ConfusionMatrix(19)
    with pytest.raises(ValueError, match="1 predicted pixels are no class"):
        confusion.add(torch.tensor([1, 255]), torch.tensor([255, 255]))
    with pytest.raises(ValueError, match="shape"):
        confusion.add(torch.zeros(2, 2), torch.zeros(2, 3))
    for label, prediction in ((0, -1), (1, -2), (3, 19), (3, 255), (18, 1000)):
        with pytest.raises(ValueError, match="no class"):
            confusion.add(torch.tensor([label]), torch.tensor([prediction]))
    assert confusion.matrix.sum() == 0


@pytest.mark.parametrize("dtype", (torch.uint8, torch.int64))
def test_confusion_matrix_counts_every_pixel_once(dtype):
    label_ids, prediction = random_pair()
    label = label_table(LABEL_IDS, CITYSCAPES)[label_ids]
    expected = np.zeros((19, 19), np.int64)
    np.add.at(expected, (label[label < 19], prediction[label < 19]), 1)
    label, prediction = torch.from_numpy(label).to(dtype), torch.from_numpy(prediction).to(dtype)
    if dtype == torch.int64:
        label[label == 255] = -1
    confusion = ConfusionMatrix(19)
    confusion.add(label, prediction)
    confusion.add(label, prediction)
    np.testing.assert_array_equal(confusion.matrix.numpy(), 2 * expected)


@pytest.mark.parametrize("ids", (1, 2, 256))
@pytest.mark.parametrize("shape", ((1, 1), (1, 7), (40, 30)))
def test_runs_count_as_their_pixels_do(ids, shape):
    """Long runs, short ones, and ids up to 255."""
    rng = np.random.default_rng(0)
    label, prediction = (rng.integers(256 - ids, 256, shape).astype(np.uint8) for _ in range(2))
    expected = np.zeros((256, 256), np.int64)
    np.add.at(expected, (label, prediction), 1)
    np.testing.assert_array_equal(count_pairs(label, prediction), expected)


def test_no_class_at_all(folders, capsys):
    save(folders / "gt/city/city_000000_000019_gtFine_labelIds.png", np.zeros((24, 40)))
    (folders / "other").symlink_to(folders / "pred")
    command = [str(folders / name) for name in ("gt", "pred", "other")]
    main(get_arguments([*command, "--workers", "1", "--csv", str(folders / "a.csv")]))
    assert "===> mIoU: nan" in capsys.readouterr().out
    assert (folders / "a.csv").read_text().splitlines()[1].endswith("pred" + "," * 24)


# Plain folders


@pytest.fixture
def field(tmp_path):
    """Two labels of the same name in different folders, raw ids 1 (soil), 2 and 5 (plant); one pixel in six is wrong."""
    (tmp_path / "classes.json").write_text(json.dumps([{"name": "soil", "ids": [1]}, {"name": "plant", "ids": [2, 5]}]))
    for name in ("a/1.png", "b/1.png"):
        for folder, ids in (("gt", [[1, 2, 5], [9, 255, 2]]), ("pred", [[0, 1, 1], [0, 1, 0 if name[0] == "a" else 1]])):
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            save(tmp_path / folder / name, np.array(ids))
        save(tmp_path / "pred" / name.replace(".png", "_color.png"), np.zeros((2, 3)))
    return tmp_path


def test_a_plain_folder_is_scored_by_its_classes(field, capsys):
    command = [str(field / name) for name in ("gt", "pred")] + ["--classes", str(field / "classes.json"), "--workers", "2"]
    result = main(get_arguments(command))[str(field / "pred")]
    assert result["iou"] == {"soil": 2 / 3, "plant": 5 / 6} and result["num_classes"] == 2 and result["subsets"] == {}
    assert "note" not in capsys.readouterr().out
    (field / "pred/b/1.png").unlink()
    with pytest.raises(FileNotFoundError, match="pred/b/1.png: no such file .1 of 2 pairs"):
        main(get_arguments(command))


def test_flags_that_say_the_classes_twice(field, capsys):
    for flags in (["--num-classes", "16"], ["--devkit-dir", str(field)]):
        with pytest.raises(SystemExit):
            get_arguments(["gt", "pred", "--classes", "classes.json", *flags])
        assert "--classes does not go with --devkit-dir or --num-classes" in capsys.readouterr().err


def test_tensors_and_any_classes_are_scored():
    matrix = torch.tensor([[3, 1, 0], [0, 2, 0], [0, 0, 0]])
    result = iou_scores(matrix, ClassSet(("a", "b", "c"), ((0, 0, 1),) * 3))
    assert result["iou"] == {"a": 0.75, "b": 2 / 3, "c": None} and result["miou"] == pytest.approx((0.75 + 2 / 3) / 2)
    assert iou_scores(matrix, absent=0.0)["iou"]["2"] == 0 and mean_iou(matrix, 0.0) == pytest.approx((0.75 + 2 / 3) / 3)
