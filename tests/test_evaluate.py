"""evaluate_cityscapes.py against the original's predictions, and what users do with it."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from filled import filled, filled_state
from PIL import Image

import compute_iou
import evaluate_cityscapes
from dataset import segmentation
from dataset.catalogue import CITYSCAPES, DATA_SETS, class_set, label_table, to_label_ids
from dataset.loader import sequential_loader
from dataset.segmentation import build_dataset
from dataset.transforms import Resize
from model import build_model, upsample
from model.normalization import Normalize
from utils.coarse_prediction import FitLongerSide, predict_coarsely
from utils.confusion import ConfusionMatrix
from utils.evaluation import evaluate as score
from utils.evaluation import predict
from utils.iou import iou_scores as scores_of

LABEL_TABLE = label_table(DATA_SETS["cityscapes"].ids, CITYSCAPES)

EVALUATE = GOLDEN / "adaptsegnet/evaluate"
NAMES = ("city_000000_000019_leftImg8bit", "city_000001_000019_leftImg8bit")


@pytest.mark.parametrize(
    "recorded_name, name", [("DeeplabMulti", "DeeplabMulti"), ("Oracle", "Oracle"), ("DeeplabVGG", "DeeplabVGG")]
)
def test_scores_and_predictions_of_the_original(recorded_name, name, golden):
    recorded = golden("adaptsegnet/evaluate.npz")
    network = filled(build_model(name)).eval()
    dataset = build_dataset("cityscapes", str(EVALUATE / "Cityscapes"), "val", transform=Resize((256, 128)), labels=False)
    for i, batch in enumerate(sequential_loader(dataset)):
        with torch.inference_mode():
            result = predict(network, batch["image"], (256, 512))[0]
        largest = recorded[f"{recorded_name}/{i}/scores_mean_std_absmax"][2]
        # The image was resized by torchvision instead of Pillow: some of its values are 1 grey level off.
        difference = np.abs(result[:, ::16, ::16].numpy() - recorded[f"{recorded_name}/{i}/scores_sub"]).max()
        assert difference < 2e-3 * largest
        expected = np.array(Image.open(EVALUATE / f"result_{recorded_name}/{NAMES[i]}.png"))
        different = (result.argmax(0).numpy() != expected).sum()
        assert different <= 0.002 * expected.size, different


def test_exact_pixels_give_the_exact_prediction(golden, tmp_path):
    """With the image resized by Pillow beforehand, as in the original, what remains is rounding."""
    recorded = golden("adaptsegnet/evaluate.npz")
    image = Image.open(next(EVALUATE.glob(f"Cityscapes/leftImg8bit/val/city/{NAMES[0]}.png"))).convert("RGB")
    image = torch.from_numpy(np.array(image.resize((256, 128), Image.BICUBIC))).permute(2, 0, 1)[None]
    with torch.inference_mode():
        result = predict(filled(build_model("DeeplabMulti")).eval(), image, (256, 512))[0]
    largest = recorded["DeeplabMulti/0/scores_mean_std_absmax"][2]
    np.testing.assert_allclose(
        result[:, ::16, ::16].numpy(), recorded["DeeplabMulti/0/scores_sub"], rtol=0, atol=1e-4 * largest
    )
    expected = np.array(Image.open(EVALUATE / f"result_DeeplabMulti/{NAMES[0]}.png"))
    close = int(recorded["DeeplabMulti/0/pixels_with_margin_below_1e-3_of_absmax"])
    assert (result.argmax(0).numpy() != expected).sum() <= close


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A folder as a training run leaves it."""
    folder = tmp_path_factory.mktemp("run")
    for step in (2, 10):
        network = build_model("MiniResNet18")
        torch.save(filled_state(network, seed=step), folder / f"GTA5_{step}.pth")
    (folder / "args.json").write_text(json.dumps({"network": network.settings}))
    for other in ("GTA5_2_D1.pth", "GTA5_2_D.pth", "state.pth", "state.previous.pth"):
        (folder / other).write_bytes(b"not a network")
    return folder


def evaluate(*arguments):
    common = ("--input-size", "96,48", "--num-workers", "0", "--device", "cpu")
    return evaluate_cityscapes.main(evaluate_cityscapes.get_arguments([*common, *map(str, arguments)]))


def test_files_figures_and_compute_iou_agree(checkpoints, mini_data, tmp_path, capsys):
    results = evaluate(
        *("--restore-from", checkpoints / "GTA5_2.pth", "--data-dir", mini_data / "Cityscapes", "--save", tmp_path / "pred"),
        *("--save-label-ids", tmp_path / "server", "--json", tmp_path / "figures.json"),
    )
    printed = capsys.readouterr().out
    again = compute_iou.compute_iou(compute_iou.find_pairs(str(mini_data / "Cityscapes/gtFine/val"), str(tmp_path / "pred")))
    assert results["GTA5_2"] == again == json.loads((tmp_path / "figures.json").read_text())["GTA5_2"]
    assert f"===> mIoU: {round(100 * again['miou'], 2)}" in printed and "tensors loaded" in printed
    ids = {path.name: np.array(Image.open(path)) for path in (tmp_path / "pred").iterdir() if "_color" not in path.name}
    assert len(ids) == 3
    for name, prediction in ids.items():
        assert prediction.shape == (48, 96)
        colours = Image.open(tmp_path / "pred" / name.replace(".png", "_color.png"))
        np.testing.assert_array_equal(np.array(colours.convert("RGB")), CITYSCAPES.palette[prediction])
        server = np.array(Image.open(tmp_path / "server" / name))
        np.testing.assert_array_equal(server, to_label_ids(prediction, CITYSCAPES))
        np.testing.assert_array_equal(LABEL_TABLE[server], prediction)


def test_a_folder_of_checkpoints_gives_one_row_each_in_order(checkpoints, mini_data, tmp_path, capsys):
    results = evaluate(
        *(
            "--restore-from",
            checkpoints,
            "--data-dir",
            mini_data / "Cityscapes",
            "--save",
            tmp_path,
            "--csv",
            tmp_path / "a.csv",
            "--plot",
            tmp_path / "a.png",
        )
    )
    assert list(results) == ["GTA5_2", "GTA5_10"]
    with Image.open(tmp_path / "a.png") as plot:
        assert plot.size == (720, 360) and len(np.unique(np.array(plot))) > 3
    rows = (tmp_path / "a.csv").read_text().splitlines()
    assert rows[0].startswith("checkpoint,mIoU,road") and [row.split(",")[0] for row in rows[1:]] == ["GTA5_2", "GTA5_10"]
    assert "last: GTA5_10" in capsys.readouterr().out
    assert len(list((tmp_path / "GTA5_10").glob("*.png"))) == 6


def test_flip_scales_and_heads(checkpoints, mini_data):
    network = build_model("MiniResNet18", heads="twin")
    network.load_state_dict(filled_state(network))
    network.eval()
    image = torch.randint(0, 256, (1, 3, 48, 96), dtype=torch.uint8)
    with torch.inference_mode():
        total = predict(network, image, (48, 96))
        torch.testing.assert_close(total, predict(network, image, (48, 96), heads="sum"))
        assert not torch.allclose(total, predict(network, image, (48, 96), heads="last"))
        flipped = predict(network, image, (48, 96), flip=True)
        torch.testing.assert_close(flipped, predict(network, image.flip(-1), (48, 96), flip=True).flip(-1))
        torch.testing.assert_close(flipped.sum(1), torch.ones(1, 48, 96))
        several = predict(network, image, (48, 96), scales=(0.5, 1.0))
        single = predict(network, image, (48, 96)).softmax(1)
        assert not torch.allclose(several, single) and several.shape == single.shape
    results = evaluate(
        *("--restore-from", checkpoints / "GTA5_2.pth", "--data-dir", mini_data / "Cityscapes", "--save", "none"),
        *("--flip", "True", "--scales", "0.75,1.0", "--amp", "bf16"),
    )
    assert results["GTA5_2"]["miou"] is not None


def test_half_precision_ends_before_the_upsampling():
    """Else neighbouring classes tie, and the lower id wins."""
    network = filled(build_model("MiniResNet18")).eval()
    image = torch.randint(0, 256, (1, 3, 48, 96), dtype=torch.uint8)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        low = network(image)[-1]
        assert low.dtype == torch.bfloat16
        torch.testing.assert_close(predict(network, image, (48, 96)), upsample(low.float(), (48, 96)), rtol=0, atol=0)


def test_predictions_that_the_number_of_classes_does_not_have_are_refused(mini_data):
    dataset = build_dataset("cityscapes", str(mini_data / "Cityscapes"), "val", classes=class_set(13))
    with pytest.raises(ValueError, match="no class"):
        score(filled(build_model("MiniResNet18")), sequential_loader(dataset), 13, "cpu")


def test_scoring_restores_the_training_mode(mini_data):
    dataset = build_dataset("cityscapes", str(mini_data / "Cityscapes"), "val")
    for training in (True, False):
        network = filled(build_model("MiniResNet18")).train(training)
        statistics = network.bn1.running_mean.clone()
        matrix = score(network, sequential_loader(dataset), 19, "cpu").matrix
        assert network.training is training and torch.equal(network.bn1.running_mean, statistics)
        assert matrix.sum() == sum((sample["label"] < 19).sum() for sample in dataset)


def test_a_checkpoint_that_cannot_be_read_leaves_the_rows_before_it(checkpoints, mini_data, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(checkpoints, folder)
    (folder / "GTA5_20.pth").write_bytes(b"broken")
    with pytest.raises(ValueError, match="GTA5_20.pth"):
        evaluate(
            *("--restore-from", folder, "--data-dir", mini_data / "Cityscapes", "--save", "none"),
            *("--csv", tmp_path / "tables/a.csv"),
        )
    rows = (tmp_path / "tables/a.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["checkpoint", "GTA5_2", "GTA5_10"]


def test_files_are_listed_once_whatever_the_number_of_checkpoints(checkpoints, mini_data, monkeypatch):
    listed, real = [], evaluate_cityscapes.find_records

    def find_records(*arguments):
        listed.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(evaluate_cityscapes, "find_records", find_records)
    monkeypatch.setattr(segmentation, "find_records", find_records)
    evaluate("--restore-from", checkpoints, "--data-dir", mini_data / "Cityscapes", "--save", "none")
    assert len(listed) == 1


def test_a_picture_that_cannot_be_written_is_an_error_that_names_it(checkpoints, mini_data, tmp_path):
    """Whichever thread it is in; the folder where a prediction belongs is a file."""
    (tmp_path / "ids").mkdir()
    name = sorted((mini_data / "Cityscapes/leftImg8bit/val").rglob("*.png"))[-1].name
    (tmp_path / "ids" / name).mkdir()
    with pytest.raises(OSError, match=name):
        evaluate(
            *("--restore-from", checkpoints / "GTA5_2.pth", "--data-dir", mini_data / "Cityscapes"),
            *("--save", "none", "--save-label-ids", tmp_path / "ids"),
        )


def test_cpu_is_a_device():
    assert evaluate_cityscapes.get_arguments(["--restore-from", "x", "--cpu"]).device == "cpu"
    assert evaluate_cityscapes.get_arguments(["--restore-from", "x"]).device == "auto"


def test_without_labels_it_predicts_at_the_images_own_size(checkpoints, mini_data, tmp_path, capsys):
    (tmp_path / "data/leftImg8bit").mkdir(parents=True)
    (tmp_path / "data/leftImg8bit/test").symlink_to(mini_data / "Cityscapes/leftImg8bit/val")
    results = evaluate(
        *("--restore-from", checkpoints / "GTA5_2.pth", "--data-dir", tmp_path / "data", "--set", "test"),
        *("--save", tmp_path / "pred", "--input-size", "64,32"),
    )
    assert results == {} and "no labels for split test" in capsys.readouterr().out
    assert {Image.open(path).size for path in (tmp_path / "pred").iterdir()} == {(96, 48)}


def test_crosscity_and_synthia(checkpoints, mini_data, tmp_path):
    common = ("--restore-from", checkpoints / "GTA5_2.pth", "--save", "none")
    rome = evaluate(*common, "--dataset", "crosscity", "--city-name", "Rome", "--data-dir", mini_data / "NTHU_Datasets")
    synthia = evaluate(*common, "--dataset", "synthia", "--data-dir", mini_data / "SYNTHIA")
    assert rome["GTA5_2"]["miou"] != synthia["GTA5_2"]["miou"]


def test_wrong_number_of_classes(checkpoints, mini_data):
    with pytest.raises(ValueError, match="is for 19 classes, not --num-classes 16"):
        evaluate("--restore-from", checkpoints / "GTA5_2.pth", "--num-classes", "16", "--data-dir", mini_data / "Cityscapes")
    with pytest.raises(ValueError, match="no checkpoints"):
        evaluate("--restore-from", mini_data)


# The originals' protocols


def test_crst_protocol(golden):
    """Three scales and the mirror image, logits averaged, on the recorded images."""
    recorded, images = golden("crst/test_protocol.npz"), golden("crst/loaders.npz")
    model = filled(build_model("DeeplabRes")).eval()
    for i in range(2):
        image = torch.from_numpy(images[f"tgt_image{i}"]).permute(2, 0, 1)[None]
        with torch.no_grad():
            scores = predict(model, image, (64, 128), flip=True, scales=(0.9, 1.0, 1.2), average="logits")
        expected = recorded["avg_logits_sub"][i]
        np.testing.assert_allclose(
            scores[0].permute(1, 2, 0)[::4, ::4], expected, rtol=0, atol=1e-4 * np.abs(recorded["avg_logits_stats"][2])
        )
        assert (scores.argmax(1)[0].numpy() != recorded["pred"][i]).mean() < 1e-3
    figures = scores_of(recorded["hist"], absent=0.0)
    np.testing.assert_allclose(list(figures["iou"].values()), np.nan_to_num(recorded["iou"]), rtol=1e-6)


@pytest.mark.parametrize("run, flip, steps", [("a", True, 1), ("b", True, 2), ("c", False, 1)])
def test_cbst_protocol(run, flip, steps, golden):
    """Probabilities at 1/8 (or, from shifted passes, 1/4) and bicubic weights, with the recorded network outputs; and the
    score, in which absent classes count 0."""
    recorded, inputs = golden("cbst/evaluation.npz"), golden("cbst/thresholds.npz")

    class Stub(torch.nn.Module):
        def __init__(self, outputs):
            super().__init__()
            self.outputs, self.inputs = list(outputs), []
            self.normalize = Normalize("imagenet")

        def forward(self, images):
            self.inputs.append(images[0])
            return [torch.from_numpy(np.log(self.outputs.pop(0)))[None]]

    confusion = ConfusionMatrix(19)
    for i in range(3):
        image = torch.from_numpy(inputs["image"][i]).permute(2, 0, 1)
        image = FitLongerSide(58 if flip else 64)(image, None, None, None)[0]
        passes = np.concatenate([inputs["net19"][(i + shift) % 3] for shift in (0, 2, 1, 3)[: steps**2]])  # rows first
        model = Stub(passes if flip else [recorded["c_net"][i]])
        scores = predict_coarsely(model, image[None], (32, 64), flip, steps)[0]
        if steps == 2 and i == 0:
            given = recorded["b_input_image0"][[0, 1, 4, 5, 2, 3, 6, 7]]
            np.testing.assert_allclose(torch.stack(model.inputs), given, atol=1e-5)
        np.testing.assert_allclose(scores[:, ::5, ::3], recorded[f"{run}_interp_sub"][i], atol=1e-5)
        assert (scores.argmax(0).numpy() == recorded[f"{run}_pred_trainid"][i]).mean() > 0.999
        truth = LABEL_TABLE[recorded["gt_labelid"][i]]
        confusion.add(torch.from_numpy(truth), torch.from_numpy(recorded[f"{run}_pred_trainid"][i].astype(np.uint8)))
    np.testing.assert_array_equal(confusion.matrix, recorded[f"{run}_conf"])
    figures = scores_of(confusion.matrix, absent=0.0)
    np.testing.assert_allclose(list(figures["iou"].values()), recorded[f"{run}_iou"], rtol=1e-6)
    assert figures["miou"] == pytest.approx(recorded[f"{run}_iou"].mean())


@pytest.mark.parametrize(
    "name, flags, expected",
    [
        ("DeeplabMulti", [], {"input_size": (1024, 512), "resize_labels": False, "flip": False}),
        ("DeeplabMulti", ["--protocol", "maxsquare", "--flip"], {"resize_labels": True, "flip": True}),
        ("DeeplabMulti", ["--protocol", "fada", "--input-size", "2048,1024"], {"input_size": (2048, 1024), "flip": False}),
        ("ResNet38", [], {"input_size": None, "flip": True}),
        ("DeeplabRes", [], {"input_size": None, "flip": True}),
        ("DeeplabRes", ["--protocol", "adaptsegnet"], {"input_size": (1024, 512), "flip": False}),
        ("deeplab_resnet101", [], {"input_size": (1024, 512), "flip": False, "absent": 0.0}),
        ("deeplab_resnet101", ["-cfg", "configs/deeplabv2_r101_tgt_self_distill.yaml"], {"input_size": (2048, 1024)}),
        ("deeplab_resnet101", ["-cfg", "configs/deeplabv2_r101_adv.yaml"], {"input_size": (1024, 512), "absent": 0.0}),
    ],
)
def test_protocols(name, flags, expected):
    args = evaluate_cityscapes.get_arguments(["--restore-from", "x", *flags])
    chosen = evaluate_cityscapes.protocol_of(args, SimpleNamespace(settings={"name": name}, checkpoint_format=""), [])
    assert {key: getattr(chosen, key) for key in expected} == expected
    if name == "DeeplabRes" and not flags:
        assert (chosen.heads, chosen.scales, chosen.average) == ("last", (0.9, 1.0, 1.2), "logits")
    with pytest.raises(ValueError, match="neither --scales nor --heads"):
        evaluate_cityscapes.protocol_of(
            evaluate_cityscapes.get_arguments(["--restore-from", "x", "--protocol", "cbst", "--scales", "1,2"]),
            SimpleNamespace(settings={"name": name}, checkpoint_format=""),
            [],
        )
    refused = {"DeeplabRes": (["--resize-labels"], "images keep their size"),
               "ResNet38": (["--input-size", "9,9", "--test-scales", "9"], "give one")}  # fmt: skip
    if name in refused and not flags:
        args = evaluate_cityscapes.get_arguments(["--restore-from", "x", *refused[name][0]])
        with pytest.raises(ValueError, match=refused[name][1]):
            evaluate_cityscapes.protocol_of(args, SimpleNamespace(settings={"name": name}, checkpoint_format=""), [])
    if name == "DeeplabMulti":
        args = evaluate_cityscapes.get_arguments(["--restore-from", "x", *flags, "--test-steps", "2"])
        with pytest.raises(ValueError, match="--test-steps belong to --protocol cbst"):
            evaluate_cityscapes.protocol_of(args, SimpleNamespace(settings={"name": name}, checkpoint_format=""), [])


def test_fada_s_own_options(capsys):
    words = "-cfg configs/deeplabv2_r101_adv.yaml --saveres resume a.pth OUTPUT_DIR out DATASETS.TEST cityscapes_train"
    args = evaluate_cityscapes.get_arguments(words.split())
    assert (args.restore_from, args.set, args.save) == ("a.pth", "train", "out/inference/cityscapes_train")
    assert evaluate_cityscapes.get_arguments(["-cfg", "x.yaml", "resume", "a.pth"]).save == "none"
    args = evaluate_cityscapes.get_arguments("resume a.pth OUTPUT_DIR out DATASETS.TEST cityscapes_train".split())
    assert (args.protocol, args.set, args.save) == (None, "train", "out/inference/cityscapes_train")
    args = evaluate_cityscapes.get_arguments("-cfg x.yaml resume a.pth --set test --dataset gta --save mine".split())
    assert (args.set, args.dataset, args.save) == ("test", "gta5", "mine")
    for words, message in (
        (["-cfg", "x.yaml"], "which checkpoint"),
        (["resume"], "resume: of FADA's settings only"),
        (["resume", "a.pth", "DATASETS.TEST", "foo_val"], "DATASETS.TEST foo_val: not a data set and a split"),
        (["resume", "a.pth", "DATASETS.TEST", "cityscapes"], "DATASETS.TEST cityscapes: not a data set and a split"),
        (["--restore-from", "x", "SOLVER.BASE_LR", "1"], "SOLVER.BASE_LR: of FADA's settings only"),
    ):
        with pytest.raises(SystemExit):
            evaluate_cityscapes.get_arguments(words)
        assert message in capsys.readouterr().err


def test_a_folder_of_mxnet_files_and_steps_that_repeat(tmp_path):
    for name in ("gta_ep-0010.params", "gta_ep-0002.params", "x_D1.pth"):
        (tmp_path / name).write_bytes(b"")
    found = [path.rsplit("/", 1)[-1] for path in evaluate_cityscapes.find_checkpoints(str(tmp_path))]
    assert found == ["gta_ep-0002.params", "gta_ep-0010.params"]
    results = {f"round{r}_epoch{e}": {"miou": 0.1 * r + 0.01 * e} for r in range(2) for e in (1, 2)}
    assert [place for place, _ in evaluate_cityscapes.points_over_steps(results)] == [1, 2, 3, 4]
