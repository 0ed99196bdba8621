"""Every reader of foreign bytes, fed with whole files that were damaged: it may raise our own errors and nothing else, takes a
bounded share of memory and time, and runs nothing that a file holds."""

import io
import json
import os
import pickle
import signal
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from random import Random
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from dataset.catalogue import CITYSCAPES, LABEL_IDS, read_classes
from dataset.class_statistics import read_statistics, write_statistics
from dataset.errors import DataError
from dataset.layouts import find_records
from dataset.reading import image_size, read_gta5_colours, read_image, read_label, read_synthia_label
from dataset.spatial_prior import load_prior, save_prior
from dataset.splits import by_official_split
from model import ModelError, build_model, read_weights
from model.checkpoint_formats import to_fada, to_maxsquare, to_paddle
from model.mxnet import read_params, write_params
from model.paddle import read_pdparams, write_pdparams
from model.recognition import settings_of
from utils.errors import RunError
from utils.outputs import is_json_of_scores, is_our_picture, is_table_of_scores
from utils.run_log import drop_lines_from
from utils.self_training.claims import read_claim
from utils.self_training.score_maps import load_maps, save_maps
from utils.self_training.thresholds import ClassReport
from utils.state import KEYS, load_state, save_state, save_tensors

OUR_ERRORS = (DataError, ModelError, RunError)
# Beside ten times the file: tables, decoders, and what the allocator keeps.
MEMORY_FACTOR, MEMORY_CONSTANT = 10, 64 * 2**20
# A picture that is compressed well takes as much as one that is not; Pillow refuses more than 179 million pixels.
BYTES_A_PIXEL = 12
SECONDS, WAITING = 20, 30
# What no reader may do, by the names of Python's audit events.
FORBIDDEN = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen", "socket.connect", "os.putenv"}
PAYLOAD = "fuzzed_code_was_run = 1"


class Reader(NamedTuple):
    """A reader and whole files for it.

    Attributes:
        name: for tables.
        file_name: what a file is called.
        read: called with the file's path.
        files: the bytes of whole files.
        kind: how they can be damaged beyond bytes: json, png, zip, or nothing.
    """

    name: str
    file_name: str
    read: Callable[[str], Any]
    files: list[bytes]
    kind: str = ""


@dataclass
class Report:
    """How many files a reader was given, how many of them it read, and what went wrong: {problem: how often}."""

    inputs: int = 0
    read: int = 0
    largest_memory: int = 0
    problems: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


# Whole files


@cache
def readers() -> dict[str, Reader]:
    """All readers by name."""
    found = [*_of_pictures(), *_of_texts(), *_of_weights(), *_of_arrays()]
    return {reader.name: reader for reader in found}


def _of_pictures() -> Iterator[Reader]:
    values = np.random.default_rng(0).integers(0, 34, (20, 30), np.uint8)
    colours = np.repeat(values[..., None], 3, 2) * 7
    smooth = Image.fromarray(colours).resize((60, 40))
    pictures = [_picture(smooth, name) for name in ("PNG", "JPEG", "WEBP", "TIFF")]
    pictures += [_picture(Image.fromarray(values.astype(np.uint16) * 900), "PNG"), _picture(smooth.convert("P"), "PNG")]
    yield Reader("images", "a.png", read_image, pictures, "png")
    palette = Image.fromarray(values, "P")
    palette.putpalette(list(range(256)) * 3)
    yield Reader("labels", "a.png", read_label, [_picture(Image.fromarray(values), "PNG"), _picture(palette, "PNG")], "png")
    yield Reader("SYNTHIA's labels", "a.png", read_synthia_label, [_png_of_16_bits(values % 23)], "png")
    yield Reader("headers of images", "a.png", image_size, pictures, "png")
    yield Reader("marks of our pictures", "a.png", is_our_picture, pictures)


def _of_texts() -> Iterator[Reader]:
    classes = [{"name": "soil", "ids": [0]}, {"name": "plant", "ids": [3], "color": [0, 200, 0]}, "stone"]
    yield Reader("classes.json", "classes.json", read_classes, [json.dumps(classes).encode()], "json")
    lists = [b"00001.png\n00002.png\n", b"images/00001.png\tlabels/00001.png\n", b"1\n2\n"]
    yield Reader("lists", "list.txt", _read_list, lists)
    yield Reader(
        "split.mat",
        "split.mat",
        _read_split,
        [_matlab({"trainIds": [[1, 2]]}), _matlab({"valIds": [[3]], "trainIds": [[1]]}, True)],
    )
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "a")
        by_name = {f"{i:05d}.png": [i % 19, 3] for i in range(20)}
        write_statistics(path, by_name, CITYSCAPES)
        statistics = open(path, "rb").read()
    label_to_file = [[name for name, ids in by_name.items() if c in ids] for c in range(19)]
    pickles = [pickle.dumps((label_to_file, by_name), protocol) for protocol in (0, 2, 4)]
    pickles += [b"".join([each, *_payloads()]) for each in (b"", pickles[1][:40])]
    read = partial(read_statistics, classes=CITYSCAPES)
    yield Reader("class statistics (JSON)", "statistics.json", read, [statistics], "json")
    yield Reader("class statistics (pickle)", "statistics.p", read, pickles)
    rows = b"".join(json.dumps({"step": i, "loss_seg": 1.5, "val_iou": {"road": None}}).encode() + b"\n" for i in range(9))
    yield Reader("metrics.jsonl", "metrics.jsonl", partial(drop_lines_from, step=5), [rows])
    yield Reader(
        "made_from.json",
        "made_from.json",
        lambda path: read_claim(os.path.dirname(path)),
        [b'{"a": 1, "classes": ["x"]}'],
        "json",
    )
    report = {"portion": 0.2, "thresholds": [0.5] * 3, "pixels_predicted": [1, 2, 3], "rare": [1], "priority": []}
    yield Reader("thresholds.json", "thresholds.json", ClassReport.read, [json.dumps(report).encode()], "json")
    scores = json.dumps({"": {"miou": 0.5}}).encode()
    yield Reader(
        "tables of scores",
        "a.json",
        lambda path: (is_json_of_scores(path), is_table_of_scores(path)),
        [scores, b",mIoU\nx,3\n"],
    )


def _of_weights() -> Iterator[Reader]:
    network = build_model("MiniResNet18", heads="single", width=2)
    network.classes = CITYSCAPES.to_json()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "a")

        def written(value: Any, for_originals: bool = True) -> bytes:
            save_tensors(value, path, for_originals)
            with open(path, "rb") as file:
                return file.read().split(b"SegAdapt SHA-256")[0]  # or it would find the damage before all else

        plain = network.state_dict()
        bare = written(dict(plain))  # without the note that says which network it is
        contents = [plain, to_maxsquare(network), to_fada(network, 3), {"model": plain}]
        files = [written(each) for each in contents]
        today = [written(each, for_originals=False) for each in contents[:2]]
        write_pdparams(path, {key: np.zeros((2, 3), np.float32) for key in ("conv1.weight", "layer1.0.bn1._mean")})
        paddle = [open(path, "rb").read()]
        write_pdparams(path, to_paddle(network))
        paddle.append(open(path, "rb").read())
        write_params(path, {"arg:conv0_weight": np.ones((3, 4), np.float32), "aux:bn_moving_mean": np.ones(4, np.float32)})
        params = [open(path, "rb").read()]
        state = {**dict.fromkeys(KEYS, 1), "networks": {"": plain}, "best": {}, "random": [{"torch": torch.get_rng_state()}]}
        save_state(state, path)
        states = [open(path, "rb").read()]
    payloads = [b"".join(_payloads()), *_payloads()]
    yield Reader("weights (PyTorch before 1.6)", "a.pth", _recognise, [*files, *payloads])
    yield Reader("weights (PyTorch)", "a.pth", _recognise, [*today, *map(_zipped, payloads)], "zip")
    yield Reader(".pdparams", "a.pdparams", read_pdparams, [*paddle, *payloads])
    yield Reader(".params", "a.params", read_params, params)
    yield Reader("weights, any of them", "a.pth", _recognise, [*files[:1], *today[:1], *paddle[1:], *params])
    yield Reader("state.pth", "state.pth", load_state, [*states, *map(_zipped, payloads)], "zip")
    yield Reader(
        "args.json",
        "args.json",
        _Recognise(bare),
        [json.dumps({"network": network.settings, "classes": network.classes}).encode()],
        "json",
    )


def _of_arrays() -> Iterator[Reader]:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "a.npz")
        save_maps(path, torch.randn(2, 5, 4, 6), (32, 48))
        yield Reader("score maps", "a.npz", load_maps, [open(path, "rb").read()], "zip")
        prior = np.random.default_rng(0).random((3, 8, 12)).astype(np.float32)
        for ending, kind in (("npz", "zip"), ("mat", "")):
            save_prior(os.path.join(folder, f"a.{ending}"), prior)
            whole = open(os.path.join(folder, f"a.{ending}"), "rb").read()
            yield Reader(
                f"spatial prior (.{ending})", f"a.{ending}", partial(load_prior, num_classes=3, size=(12, 8)), [whole], kind
            )
    colours = {"other": [[1, 2]], "cityscapesMap": np.random.default_rng(1).integers(0, 256, (35, 3)) / 255}
    mappings = [_matlab(colours), _matlab(colours, compressed=True)]
    yield Reader("mapping.mat", "mapping.mat", partial(read_gta5_colours, class_ids=LABEL_IDS), mappings)


def _matlab(variables: dict[str, Any], compressed: bool = False) -> bytes:
    from scipy.io import savemat

    file = io.BytesIO()
    savemat(file, variables, do_compression=compressed)
    return file.getvalue()


def _picture(image: Image.Image, name: str, **more: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, name, **more)
    return file.getvalue()


def _png_of_16_bits(ids: np.ndarray) -> bytes:
    height, width = ids.shape
    pixels = np.zeros((height, width, 3), ">u2")
    pixels[..., 0] = ids
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([16, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(_chunk, (b"IHDR", b"IDAT", b"IEND"), (header, zlib.compress(rows), b"")))


def _chunk(name: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")


def _payloads() -> list[bytes]:
    """Pickles that run code where they are loaded without care."""

    class System:
        def __reduce__(self) -> Any:
            return os.system, (f"echo {PAYLOAD}",)

    class Exec:
        def __reduce__(self) -> Any:
            return exec, (PAYLOAD,)

    return [pickle.dumps(each(), protocol) for each in (System, Exec) for protocol in (0, 2, 4)]


def _zipped(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", b"3\n")
    return file.getvalue()


def _recognise(path: str) -> Any:
    return settings_of(read_weights(path), path)


class _Recognise:
    """Recognise whole weights beside an args.json."""

    def __init__(self, weights: bytes) -> None:
        self.weights = weights

    def __call__(self, path: str) -> Any:
        beside = os.path.join(os.path.dirname(path), "weights.pth")
        with open(beside, "wb") as file:
            file.write(self.weights)
        return _recognise(beside)


def _read_list(path: str) -> Any:
    folder = os.path.dirname(path)
    for name in ("images", "labels"):
        os.makedirs(os.path.join(folder, name), exist_ok=True)
        for number in (1, 2):
            open(os.path.join(folder, name, f"{number:05d}.png"), "wb").close()
    return find_records("gta5", folder, "all", path)


def _read_split(path: str) -> Any:
    return by_official_split(os.path.dirname(path), "train", ["00001.png"])


# Damage


NUMBERS = (0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)
WORDS = [
    b"\xff\xfe",
    b"\0",
    b"[" * 2000,
    b'{"a":' * 500,
    b"../",
    b"NaN",
    b"1e999",
    b"-1",
    b"\n",
    b"9" * 5000,
    b"c",
    b"R",
    b"\x80",
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=6,
)


@st.composite
def inputs(draw: st.DrawFn, reader: Reader) -> bytes:
    """A file of the reader's, damaged in one to four places, sometimes nothing but noise."""
    rng = draw(st.randoms(use_true_random=True))  # seeded by hypothesis; drawing each byte from it would take the most time
    how = rng.randrange(20)
    if how == 0:
        return rng.randbytes(rng.randrange(200))
    whole = rng.choice(reader.files)
    if reader.kind == "json" and how > 8:
        return _json_with_another_value(rng, whole, draw(JSON))
    if reader.kind == "zip" and how > 10 and whole.startswith(b"PK"):
        return _zip_with_damaged_entry(rng, whole)
    damaged = whole
    for _ in range(rng.randint(1, 4)):
        damaged = _damage(rng, damaged)
    return _with_checksums(damaged) if reader.kind == "png" and how > 10 else damaged


def _damage(rng: Random, content: bytes) -> bytes:
    at = rng.randint(0, max(len(content) - 1, 0))
    if rng.random() < 0.5:
        at = min(at, rng.randint(0, 200))  # beginnings say what the rest is
    length = rng.choice([1, 1, 2, 4, 8, 16, 64, 1000])
    how = rng.choice(["flip", "byte", "number", "cut", "remove", "zero", "repeat", "insert", "noise"])
    before, part, after = content[:at], content[at : at + length], content[at + length :]
    if how == "flip" and content:
        return before + bytes([content[at] ^ 1 << rng.randint(0, 7)]) + content[at + 1 :]
    if how == "byte":
        return before + bytes([rng.randint(0, 255)]) + content[at + 1 :]
    if how == "number":
        size = rng.choice([2, 4, 8])
        number = rng.choice(NUMBERS) % 2 ** (8 * size)
        return before + number.to_bytes(size, rng.choice(["little", "big"])) + content[at + size :]
    if how == "cut":
        return before
    replacements = {"remove": b"", "zero": bytes(len(part)), "repeat": part * 2, "noise": rng.randbytes(rng.randint(0, 8))}
    return before + (rng.choice(WORDS) + part if how == "insert" else replacements.get(how, b"")) + after


def _json_with_another_value(rng: Random, whole: bytes, value: Any) -> bytes:
    found = json.loads(whole)
    places = list(_places(found))
    holder, key = rng.choice(places)
    how = rng.randint(0, 3)
    if how == 0 and isinstance(holder, dict):
        del holder[key]
    elif how == 1 and isinstance(holder, list):
        holder += holder
    elif holder is None:
        found = value
    else:
        holder[key] = value
    return json.dumps(found).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    yield None, None
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from list(_places(inner))[1:]


def _zip_with_damaged_entry(rng: Random, whole: bytes) -> bytes:
    """The archive with one entry damaged (mostly that which says what the others are), and right checksums again."""
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    pickles = [name for name in entries if name.endswith((".pkl", ".npy"))]
    name = rng.choice(pickles if pickles and rng.randint(0, 3) else list(entries))
    entries[name] = _damage(rng, entries[name])
    if rng.randint(0, 9) == 0:
        del entries[name]
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file.getvalue()


def _with_checksums(content: bytes) -> bytes:
    """A PNG with the checksums of its chunks put right, so that damage gets past them."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return content
    fixed, at = bytearray(content), 8
    while at + 12 <= len(fixed):
        size = int.from_bytes(fixed[at : at + 4], "big")
        end = at + 8 + size
        if end + 4 > len(fixed):
            break
        fixed[end : end + 4] = zlib.crc32(fixed[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(fixed)


# The trial


def fuzz(reader: Reader, count: int, number: int, folder: str) -> Report:
    """Give a reader `count` damaged files, chosen by the seed `number`, which lie in `folder` one after the other."""
    report, path = Report(), os.path.join(folder, reader.file_name)

    @seed(number)
    @settings(
        max_examples=count, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(inputs(reader))
    def one(content: bytes) -> None:
        report.inputs += 1
        _written(f"{path}.now", content)  # a crash leaves it behind
        problem = _problem_of(reader, _written(path, content), len(content), report)
        if problem:
            if problem not in report.problems:
                _keep(folder, reader, content, len(report.problems))
            report.problems[problem] = report.problems.get(problem, 0) + 1

    for content in reader.files:
        _problem_of(reader, _written(path, content), len(content), Report())  # loads what is only loaded when it is needed
    one()
    return report


def _written(path: str, content: bytes) -> str:
    with open(path, "wb") as file:
        file.write(content)
    return path


def _keep(folder: str, reader: Reader, content: bytes, number: int) -> None:
    place = os.path.join(folder, "problems")
    os.makedirs(place, exist_ok=True)
    with open(os.path.join(place, f"{reader.name.replace('/', '_')}-{number}"), "wb") as file:
        file.write(content)


def _problem_of(reader: Reader, path: str, size: int, report: Report) -> str | None:
    """What a reader did with a file that it must not do. Counts a file that was read, and the memory that it took."""
    problem, was_read, taken = _read(reader, path)
    limit = MEMORY_FACTOR * size + MEMORY_CONSTANT + (BYTES_A_PIXEL * _pixels(path) if reader.kind == "png" else 0)
    if taken > limit and problem is None:
        # The first time may have brought a library's pages back that the system had put out.
        problem, was_read, again = _read(reader, path)
        taken = min(taken, again)
    report.read += was_read
    report.largest_memory = max(report.largest_memory, taken)
    return problem or (f"{reader.name}: took {MEMORY_FACTOR} times the file and more" if taken > limit else None)


def _read(reader: Reader, path: str) -> tuple[str | None, bool, int]:
    """(problem, whether the file was read, bytes of memory that it took meanwhile)."""
    problem, was_read, before = None, False, _memory("VmRSS")
    with _without_side_effects() as done:
        try:
            with _limited(SECONDS):
                reader.read(path)
            was_read = True
        except OUR_ERRORS as error:
            if "\n" in str(error):
                problem = f"an error of several lines: {str(error)[:80]!r}"
            elif os.path.dirname(path) not in str(error) and reader.name != "lists":  # whose errors quote a line
                problem = f"{type(error).__name__} names no file: {str(error)[:60]}"
        except TookTooLong:
            problem = f"took more than {SECONDS} s"
        except BaseException as error:
            problem = f"{type(error).__name__}: {str(error)[:60]}"
    taken = _memory("VmHWM") - before
    if done:
        problem = f"it did {done[0]}"
    return problem and f"{reader.name}: {problem}", was_read, taken


class TookTooLong(BaseException):
    pass


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise TookTooLong

    before = {number: signal.signal(number, stop) for number in (signal.SIGPROF, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_PROF, seconds)  # of the processor, so that a busy machine is no hang
    signal.setitimer(signal.ITIMER_REAL, WAITING * seconds)
    _reset_peak()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


_done: list[str] | None = None


@contextmanager
def _without_side_effects() -> Iterator[list[str]]:
    global _done
    _watch_events()
    _done = []
    try:
        yield _done
    finally:
        _done = None


@cache
def _watch_events() -> None:
    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if _done is None:
            return
        if event in FORBIDDEN or (event == "compile" and PAYLOAD.encode() in bytes(str(arguments[0]), "utf8", "replace")):
            _done.append(event)

    sys.addaudithook(hook)


def _pixels(path: str) -> int:
    """As many as a picture says that it has, 0 for other files."""
    with suppress(Exception), Image.open(path) as image:
        return image.width * image.height
    return 0


def _reset_peak() -> None:
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass  # then the peak is that of the whole process, and the test is stricter than it says


def _memory(name: str) -> int:
    """Bytes of resident memory: VmRSS now, VmHWM at most since `_reset_peak`."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
