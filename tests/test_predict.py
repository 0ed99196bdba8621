"""scripts/predict.py, scripts/convert_checkpoint.py, and the example in the README."""

import contextlib
import re

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from dataset.catalogue import IGNORED
from model import WeightsError, build_model, load_model, load_weights, read_weights, to_fada
from model.mxnet import read_params
from scripts import convert_checkpoint, predict
from utils.pictures import colorize
from utils.sliding_window import predict_windows, starts


@pytest.fixture
def network(tmp_path):
    path = tmp_path / "weights.pth"
    torch.manual_seed(0)
    torch.save(build_model("ResNet18", heads="multi").state_dict(), path)
    return path


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, shape in (("a.png", (60, 100)), ("b.jpg", (70, 50))):
        Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(folder / name)
    return folder


def run(*arguments):
    predict.main(predict.get_arguments([*map(str, arguments), "--device", "cpu", "--num-workers", "0"]))


def test_images_and_folders_become_overlays(network, photos, tmp_path):
    out = tmp_path / "out"
    run(photos, "--restore-from", network, "--out", out, "--input-size", "96,48", "--ids")
    for name, shape in (("a", (60, 100)), ("b", (70, 50))):
        ids = np.array(Image.open(out / f"{name}.png"))
        picture = np.array(Image.open(out / f"{name}_overlay.png")).astype(int)
        assert ids.shape == shape and picture.shape == (*shape, 3) and ids.max() < 19
    image = np.array(Image.open(photos / "a.png")).astype(int)
    ids = np.array(Image.open(out / "a.png"))
    overlay = np.array(Image.open(out / "a_overlay.png")).astype(int)
    assert np.abs(overlay - (image + colorize(ids)) / 2).max() <= 0.5
    run(photos / "a.png", "--restore-from", network, "--out", tmp_path / "one", "--keep-size", "--opacity", "1", "--flip")
    assert sorted(entry.name for entry in (tmp_path / "one").iterdir()) == ["a_overlay.png"]


def test_what_is_wrong_with_images_is_told(network, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty: no images"):
        run(tmp_path / "empty", "--restore-from", network)
    with pytest.raises(FileNotFoundError, match="absent.png: no such image or folder"):
        run(tmp_path / "absent.png", "--restore-from", network)
    with pytest.raises(ValueError, match="a: two images have this name"):
        run(photos, photos / "a.png", "--restore-from", network)
    (photos / "c.png").write_bytes(b"no image")
    with pytest.raises(OSError, match="c.png: cannot be read"):
        run(photos / "c.png", "--restore-from", network, "--out", tmp_path / "out")


def convert(source, target, kind, *more):
    convert_checkpoint.main(convert_checkpoint.get_arguments([str(source), str(target), "--to", kind, *more]))


@pytest.mark.parametrize(
    "name, settings, kind",
    [
        ("deeplab_vgg16", {}, "fada"),
        ("ResNet18", {"heads": "single", "style": "torchvision"}, "fada"),
        ("MiniResNet18", {}, "maxsquare"),
        ("MiniResNet18Twin", {}, "plain"),
    ],
)
def test_checkpoints_go_there_and_back(name, settings, kind, tmp_path):
    network = build_model(name, 16, **settings)
    torch.save(network.state_dict(), tmp_path / "in.pth")
    if settings:  # a network that its keys do not tell
        torch.save(to_fada(network, 0), tmp_path / "out.pth")
    else:
        convert(tmp_path / "in.pth", tmp_path / "out.pth", kind, "--model", name)
    back = load_model(tmp_path / "out.pth", name, **settings)
    for key, value in network.state_dict().items():
        assert torch.equal(back.state_dict()[key], value) or key.endswith("tracked"), key


def test_resnet38_goes_to_mxnet_and_back(tmp_path):
    network = build_model("ResNet38", 16)
    torch.save(network.state_dict(), tmp_path / "in.pth")
    convert(tmp_path / "in.pth", tmp_path / "out.params", "mxnet")
    assert "arg:linear16_weight" in read_params(tmp_path / "out.params")
    convert(tmp_path / "out.params", tmp_path / "back.pth", "plain")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert all(torch.equal(back[key], value) for key, value in network.state_dict().items() if not key.endswith("tracked"))


def test_what_a_format_cannot_hold_is_refused(network, tmp_path):
    with pytest.raises(WeightsError, match="has 2 classifiers; FADA's format holds one"):
        convert(network, tmp_path / "x.pth", "fada")
    with pytest.raises(WeightsError, match="CBST's format is for ResNet-38 only"):
        convert(network, tmp_path / "x.params", "mxnet")
    with pytest.raises(WeightsError, match="exists already"):
        convert(network, network, "plain")


def test_torchvision_weights_by_name(monkeypatch):
    """Nothing is downloaded here: the name is looked up and the hash check asked for."""
    from torchvision.models import ResNet18_Weights, resnet18

    asked = {}

    def get_state_dict(self, **options):
        asked.update(options)
        return resnet18().state_dict()

    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", get_state_dict)
    state = read_weights("torchvision:ResNet18_Weights.IMAGENET1K_V1")
    report = load_weights(build_model("ResNet18"), state, "torchvision", fresh_heads=True)
    assert asked["check_hash"] and "layer5, layer6 stay random" in report
    with pytest.raises(WeightsError, match="torchvision:Nonsense"):
        read_weights("torchvision:Nonsense")


def test_the_readme_example_runs(network):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    code = code.replace("snapshots/multi/GTA5_150000.pth", str(network))
    names = {"images": torch.zeros(1, 3, 64, 128, dtype=torch.uint8)}
    exec(code, names)
    assert names["logits"].shape == (1, 19, 8, 16)


def other_network(path, seed, num_classes=19):
    torch.manual_seed(seed)
    model = build_model("MiniResNet18", num_classes)
    for parameter in model.heads()[-1].parameters():
        parameter.data *= 30  # so that it is more certain of some pixels than of others
    torch.save(model.state_dict(), path)
    return path


def test_windows_cover_the_image_and_end_with_it():
    assert starts(100, 100, 0.25) == [0] and starts(50, 100, 0.5) == [0]
    for length, window, overlap in ((101, 40, 0.25), (300, 64, 0.5), (65, 64, 0.0), (1000, 33, 0.9)):
        found = starts(length, window, overlap)
        assert found[0] == 0 and found[-1] == length - window
        steps = [b - a for a, b in zip(found, found[1:], strict=False)]
        assert max(steps) <= max(1, int(window * (1 - overlap))) and min(steps) > 0


def test_windows_blend_to_what_a_local_function_gives():
    """Of a function that looks at single pixels the windows give exactly what the whole image gives."""
    image = torch.randint(0, 256, (1, 3, 50, 70), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    seen = []

    def local(window):
        seen.append(tuple(window.shape[-2:]))
        return torch.cat([window.float(), -window.float()], dim=1)

    blended = predict_windows(local, image, (24, 32), 0.25, torch.device("cpu"))
    assert torch.allclose(blended, local(image)) and blended.shape == (1, 6, 50, 70)
    assert set(seen[:-1]) == {(24, 32)} and len(seen) == 3 * 3 + 1


def test_blending_leaves_no_seam():
    """Windows that disagree by 1 meet in steps far smaller than 1."""
    values = iter((0.0, 1.0))
    images = torch.zeros(1, 3, 8, 48, dtype=torch.uint8)
    blended = predict_windows(
        lambda window: torch.full((1, 1, *window.shape[-2:]), next(values)), images, (8, 32), 0.5, torch.device("cpu")
    )
    assert blended[0, 0, 0].diff().abs().max() < 0.1 and blended[0, 0, 0, 0] == 0 and blended[0, 0, 0, -1] == 1


def test_one_window_is_the_whole_image(network, photos, tmp_path):
    run(photos / "a.png", "--restore-from", network, "--out", tmp_path / "whole", "--keep-size", "--ids")
    run(photos / "a.png", "--restore-from", network, "--out", tmp_path / "window", "--window", "500,500", "--ids")
    run(photos / "a.png", "--restore-from", network, "--out", tmp_path / "small", "--window", "64,48", "--ids")
    whole, window, small = (np.array(Image.open(tmp_path / name / "a.png")) for name in ("whole", "window", "small"))
    assert (whole == window).mean() > 0.999 and small.shape == whole.shape


def test_several_checkpoints_are_averaged(photos, tmp_path):
    paths = [other_network(tmp_path / f"{seed}.pth", seed) for seed in (1, 2)]
    words = ("--restore-from", paths[0], "--restore-from", paths[1], "--input-size", "96,48", "--probabilities")
    run(photos / "a.png", *words, "--out", tmp_path / "both", "--ids")
    for number, path in enumerate(paths):
        run(photos / "a.png", "--restore-from", path, *words[4:], "--out", tmp_path / str(number))
    both, one, two = (np.load(tmp_path / name / "a_probabilities.npz")["probabilities"] for name in ("both", "0", "1"))
    assert both.shape == (19, 60, 100) and both.dtype == np.float16
    assert np.allclose(both, (one.astype(float) + two) / 2, atol=1e-3) and not np.allclose(one, two, atol=1e-3)
    assert np.allclose(both.astype(float).sum(0), 1, atol=0.01)
    highest = both.max(0).astype(float)
    threshold = float(np.median(highest))
    run(photos / "a.png", *words[:-1], "--out", tmp_path / "both", "--pseudo-labels", threshold)
    ids, labels = (np.array(Image.open(tmp_path / f"both/{name}.png")) for name in ("a", "pseudo_labels/a"))
    above, below = highest > threshold + 1e-3, highest < threshold - 1e-3  # half precision rounds around the threshold
    assert above.any() and (labels[above] == ids[above]).all() and below.any() and (labels[below] == IGNORED).all()
    other = other_network(tmp_path / "16.pth", 0, 16)
    with pytest.raises(ValueError, match="16.pth: has 16 classes, .*1.pth 19; only checkpoints of the same"):
        run(photos, *words[:2], "--restore-from", other, "--out", tmp_path / "no")


def test_the_page_is_one_file(network, photos, tmp_path):
    words = ("--restore-from", network, "--out", tmp_path / "out", "--input-size", "96,48", "--page")
    run(photos, *words)
    page = (tmp_path / "out/index.html").read_text()
    assert page.count('<img src="data:image/png;base64,') == 4 and "road" in page and "http" not in page
    run(photos, *words)  # our own page may be replaced
    (tmp_path / "out/index.html").write_text("mine")
    with pytest.raises(ValueError, match="index.html: exists already and was not written here"):
        run(photos, *words)
    np.savez(tmp_path / "out/a_probabilities.npz", mine=np.zeros(3))
    with pytest.raises(ValueError, match="a_probabilities.npz: exists already and was not written here"):
        run(photos, *words[:-1], "--probabilities")


def test_overlap_has_an_end(network, photos, capsys):
    with pytest.raises(SystemExit):
        run(photos, "--restore-from", network, "--window", "64,64", "--overlap", "1")
    assert "at most 0.9" in capsys.readouterr().err


class PretendVideo(list):
    """Frames where there is no FFmpeg."""

    path, rate = "drive.mp4", 10.0


def test_a_video_becomes_frames_or_a_video(network, tmp_path, monkeypatch):
    frames = PretendVideo(torch.randint(0, 256, (2, 3, 32, 64), dtype=torch.uint8))
    written = []

    @contextlib.contextmanager
    def writing(path, rate):
        assert (path, rate) == (str(tmp_path / "out/drive_overlay.mp4"), 10.0)
        yield written.append

    monkeypatch.setattr(predict, "is_video", lambda path: path.endswith(".mp4"))
    monkeypatch.setattr(predict, "Video", lambda path: frames)
    monkeypatch.setattr(predict, "writing_video", writing)
    words = ("drive.mp4", "--restore-from", network, "--out", tmp_path / "out", "--input-size", "64,32", "--ids")
    run(*words)
    assert [tuple(frame.shape) for frame in written] == [(3, 32, 64)] * 2
    run(*words, "--frames")
    names = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png"))
    assert names == [f"drive/00000{i}{end}.png" for i in (1, 2) for end in ("", "_overlay")]
    assert np.array_equal(np.array(Image.open(tmp_path / "out/drive/000001_overlay.png")), written[0].permute(1, 2, 0).numpy())


def has_ffmpeg():
    import torchcodec

    return bool(getattr(torchcodec, "ffmpeg_major_version", None))


@pytest.mark.skipif(not has_ffmpeg(), reason="needs FFmpeg's libraries")
def test_videos_with_ffmpeg(network, tmp_path):
    from utils.video import Video, VideoError, writing_video

    path = tmp_path / "drive.mp4"
    with writing_video(str(path), 10.0) as add:
        for brightness in (20, 120, 220):
            add(torch.full((3, 65, 97), brightness, dtype=torch.uint8))
    video = Video(str(path))
    frames = list(video)
    assert video.rate == 10 and [tuple(frame.shape) for frame in frames] == [(3, 64, 96)] * 3
    assert [abs(float(frame.float().mean()) - value) < 8 for frame, value in zip(frames, (20, 120, 220), strict=True)] == [
        True
    ] * 3
    words = (path, "--restore-from", network, "--out", tmp_path / "out", "--input-size", "96,64")
    run(*words)
    assert len(Video(str(tmp_path / "out/drive_overlay.mp4"))) == 3
    with pytest.raises(ValueError, match="drive_overlay.mp4: exists already"):
        run(*words)
    (tmp_path / "broken.mp4").write_bytes(path.read_bytes()[:200])
    with pytest.raises(VideoError, match="broken.mp4: cannot be read as a video"):
        run(tmp_path / "broken.mp4", *words[1:])


@pytest.mark.skipif(has_ffmpeg(), reason="with FFmpeg a broken video is another error")
def test_a_video_without_ffmpeg_is_told(network, tmp_path):
    (tmp_path / "drive.mp4").write_bytes(b"a video")
    with pytest.raises(ValueError, match="drive.mp4: videos need TorchCodec 0.17 and FFmpeg's libraries"):
        run(tmp_path / "drive.mp4", "--restore-from", network, "--out", tmp_path / "out")
