"""Reports: the numbers are those of the results, the page needs nothing else, and what does not fit is said in a line."""

import csv
import dataclasses
import importlib
import json
import re
import shutil
import statistics
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from dataset.catalogue import CITYSCAPES, LABEL_IDS
from model import FeatureDiscriminator, ModelError, OutputDiscriminator, build_model, to_fada
from scripts import report
from scripts.method_views import view_of
from utils.errors import RunError
from utils.pictures import errors, heat, prediction_panel
from utils.reporting import read_results, write_report
from utils.reporting.confusions import confusion_of, worst
from utils.reporting.glossary import ROWS, about_row
from utils.reporting.page import LARGEST, TITLES
from utils.reporting.results import gains, mean
from utils.reporting.runs import last_snapshot, read_run
from utils.reporting.tables import gain_columns, number, papers_order
from utils.reporting.walls import choose
from utils.run_log import RunLog
from utils.self_training.thresholds import ClassReport
from utils.state import save_tensors

pytest.importorskip("matplotlib", reason="the report's plots need it")

NAMES = list(CITYSCAPES.names)
ROW_NAMES = ("source-only", "AdaBN", "control", "A & <b>", "oracle")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def results(tmp_path):
    """results.json of five rows and two seeds, with three labelled images of 32x16 and everybody's predictions."""
    rng = np.random.default_rng(0)
    raw_ids, demo = list(LABEL_IDS), tmp_path / "demo"
    for name in ("a_000000", "a_000001", "b_000000"):
        truth = rng.integers(0, 19, (4, 8)).repeat(4, 0).repeat(4, 1).astype(np.uint8)
        save(demo / f"images/city/{name}_leftImg8bit.png", rng.integers(0, 255, (16, 32, 3)))
        save(demo / f"labels/city/{name}_gtFine_labelIds.png", np.array(raw_ids)[truth])
        for row in range(len(ROW_NAMES)):
            wrong = rng.random(truth.shape) < 0.5 - 0.08 * row
            save(demo / f"predictions{row}/{name}_leftImg8bit.png", np.where(wrong, 0, truth))
    rows = {}
    for position, row in enumerate(ROW_NAMES):
        iou = [{name: None if name == "train" else float(rng.random()) for name in NAMES} for _ in range(2)]
        miou = [100 * statistics.fmean(value for value in of_seed.values() if value is not None) for of_seed in iou]
        rows[row] = {
            "miou": miou[: 1 if row == "oracle" else 2],
            "iou": iou[: 1 if row == "oracle" else 2],
            "block": "b",
            "statistics": "target",
            "baseline": None if row == "source-only" else "source-only",
            "seconds": [61.25, 59.5],
            "peak_memory_gb": [0.75, 0.8],
            "runs": [None, None],
            "predictions": [f"predictions{position}", None],
        }
    rows["oracle"]["seconds"] = rows["oracle"]["peak_memory_gb"] = [90.0]
    rows["oracle"]["runs"] = rows["oracle"]["predictions"] = [None]
    record = {"title": "A <title> & more", "machine": "a machine", "seeds": [3, 4], "classes": NAMES, "target": "somewhere"}
    record |= {"rows": rows, "blocks": {"b": {"title": "Block b", "baselines": ["AdaBN", "control"]}}}
    record["validation"] = {"images": "images", "labels": "labels"}
    (demo / "results.json").write_text(json.dumps(record))
    return demo / "results.json"


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path)


@pytest.fixture
def written(results, tmp_path):
    """The folder of the report on `results`."""
    write_report(str(results), str(tmp_path / "out"))
    return tmp_path / "out"


class Page(HTMLParser):
    """The tags, addresses and text of a page; every tag that has to be closed is, in order."""

    VOID = {"meta", "img", "br", "link", "input"}

    def __init__(self, text):
        super().__init__()
        self.open, self.addresses, self.ids, self.words, self.tags = [], [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for key, value in attributes if key in ("src", "href", "data", "action", "srcset")]
        self.ids += [value for key, value in attributes if key == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for key, value in attributes if key in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_is_whole_and_needs_nothing_else(written):
    text = (written / "report.html").read_text()
    page = Page(text)
    assert page.addresses and all(address.startswith(("data:image/", "#")) for address in page.addresses)
    assert not re.search(r"(https?:)?//[a-z]|@import|url\((?!#)", re.sub(r"data:image/[^\"]*", "", text))
    assert len(text.encode()) < LARGEST
    assert set(TITLES) <= set(page.ids) and {f"#{anchor}" for anchor in TITLES} <= set(page.addresses)
    assert {"svg", "table", "img", "details"} - {"details"} <= set(page.tags)
    assert "prefers-color-scheme:dark" in text and "<b>" not in "".join(page.words).replace("A & <b>", "")


def test_names_from_the_results_are_text_not_markup(written):
    text = (written / "report.html").read_text()
    assert "A &lt;title&gt; &amp; more" in text and "A &amp; &lt;b&gt;" in text and "A & <b>" not in text


def cells(text):
    """Every table of a Markdown text as lists of cells."""
    return [[cell.strip() for cell in line.strip("| \n").split(" | ")] for line in text.splitlines() if line.startswith("|")]


def test_every_number_of_the_tables_is_that_of_the_results(written, results):
    record = json.loads(results.read_text())
    start = record["rows"]["source-only"]["miou"]
    lines = list(csv.DictReader((written / "results.csv").open(newline="")))
    assert len(lines) == 9  # five rows of two seeds, but the oracle has one
    for line in lines:
        row, position = record["rows"][line["row"]], record["seeds"].index(int(line["seed"]))
        assert float(line["mIoU"]) == row["miou"][position]
        assert float(line["seconds"]) == row["seconds"][position]
        for name, value in row["iou"][position].items():
            assert line[name] == "" if value is None else float(line[name]) == 100 * value
        if line["row"] not in ("source-only",):
            assert float(line["over source-only"]) == row["miou"][position] - start[position]
    tables = cells((written / "tables.md").read_text())
    headline = {line[0]: line for line in tables[2:7]}
    for name, row in record["rows"].items():
        assert headline[name][1] == number(tuple(row["miou"]))
    over = [own - other for own, other in zip(record["rows"]["A & <b>"]["miou"], start, strict=True)]
    assert headline["A & <b>"][2] == f"{statistics.mean(over):+.1f} ± {statistics.stdev(over):.1f}"
    assert headline["source-only"][2:5] == ["–", "–", "–"] and headline["oracle"][3:5] == ["–", "–"]
    of_class = {line[0]: line for line in tables[9:]}
    road = [100 * of_seed["road"] for of_seed in record["rows"]["AdaBN"]["iou"]]
    assert of_class["AdaBN"][1] == f"{statistics.mean(road):.1f} ± {statistics.stdev(road):.1f}"
    assert of_class["AdaBN"][1 + NAMES.index("train")] == "–"


def test_the_page_shows_the_numbers_of_the_tables(written):
    text = (written / "report.html").read_text()
    for line in cells((written / "tables.md").read_text())[2:7]:
        for cell in line[1:5]:
            assert cell == "–" or cell in text


def test_the_latex_table_has_the_papers_order_and_the_smaller_sets(written):
    text = (written / "tables.tex").read_text()
    header = next(line for line in text.splitlines() if line.startswith("method"))
    assert [header.index(word) for word in ("road", "side.", "pole", "light", "sky", "mbike", "bike", "mIoU$_{16}$")] == sorted(
        header.index(word) for word in ("road", "side.", "pole", "light", "sky", "mbike", "bike", "mIoU$_{16}$")
    )
    assert "mIoU$_{13}$" in header and r"A \& <b>" in text
    assert {line.count("&") - line.count(r"\&") for line in text.splitlines() if line.endswith(r"\\")} == {22}
    assert papers_order(["bicycle", "extra", "road"]) == ["road", "bicycle", "extra"]


def test_variants_are_held_against_their_own_kind(results):
    record = json.loads(results.read_text())
    for name, base in (("source-only, twin", None), ("AdaBN, twin", "source-only, twin"), ("CLAN", "source-only, twin")):
        record["rows"][name] = record["rows"]["control"] | {"baseline": base, "miou": [len(name), 2 * len(name)]}
    results.write_text(json.dumps(record))
    found = read_results(str(results))
    columns = gain_columns(found, "b")
    assert list(columns) == ["over source-only", "over AdaBN", "over control"]
    assert columns["over source-only"]["CLAN"] == (4 - 17, 8 - 34) and columns["over AdaBN"]["CLAN"] == (4 - 11, 8 - 22)
    assert columns["over control"]["CLAN"] == tuple(
        own - other for own, other in zip((4, 8), record["rows"]["control"]["miou"], strict=True)
    )
    assert "AdaBN, twin" not in columns["over AdaBN"] and found.best().name == "A & <b>"


def test_numbers_as_people_read_them():
    assert number((40.0, 42.0)) == "41.0 ± 1.4" and number((40.0, None)) == "40.0" and number((None,)) == "–"
    assert number((-0.01,), signed=True) == "+0.0" and number((1.25, 1.35), signed=True) == "+1.3 ± 0.1"


def test_the_best_is_a_method_and_gains_are_paired(results):
    found = read_results(str(results))
    best = found.best()
    assert best.name == "A & <b>"  # the only row that is no start, baseline or oracle
    paired = gains(best, found.rows["AdaBN"])
    assert mean(paired) == pytest.approx(mean(best.miou) - mean(found.rows["AdaBN"].miou))
    assert gains(found.rows["oracle"], best)[1] is None


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda record: record.pop("rows"), "no object 'rows'"),
        (lambda record: record.update(rows={}), "'rows' is empty"),
        (lambda record: record["rows"]["AdaBN"]["iou"][0].pop("road"), "row 'AdaBN': its 'iou' has other classes .* 'road'"),
        (lambda record: record["rows"]["AdaBN"].update(miou=["high"]), "row 'AdaBN': 'miou' holds 'high', which is no number"),
        (lambda record: record["rows"]["AdaBN"].update(miou=[1, 2, 3]), "'miou' is no list of at most 2 values"),
        (lambda record: record["rows"]["AdaBN"].update(miou=[]), "row 'AdaBN' has no 'miou'"),
        (lambda record: record["rows"]["AdaBN"].update(baseline="nobody"), "compared with 'nobody', which is no row"),
        (lambda record: record.update(classes="many"), "'classes' is no list of names"),
        (lambda record: record.update(classes=["road", "road"]), "two classes are called 'road'"),
        (lambda record: record["rows"].update(AdaBN=4), "row 'AdaBN' is no object"),
    ],
)
def test_results_that_contradict_themselves(change, message, results, tmp_path):
    record = json.loads(results.read_text())
    change(record)
    results.write_text(json.dumps(record))
    with pytest.raises(RunError, match=message) as caught:
        write_report(str(results), str(tmp_path / "out"))
    assert str(results) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"rows": 3}'])
def test_damaged_results(text, tmp_path):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(RunError, match="results.json: (damaged|holds no results)"):
        read_results(str(tmp_path / "results.json"))


@pytest.fixture
def runs(tmp_path, results):
    """Two run directories of one method with seeds 0 and 1, and the one that they started from."""
    scores = json.loads(results.read_text())["rows"]["AdaBN"]
    shutil.copytree(results.parent / "images", tmp_path / "cityscapes/leftImg8bit/val")
    shutil.copytree(results.parent / "labels", tmp_path / "cityscapes/gtFine/val")
    for position, (name, seed) in enumerate((("source", 0), ("method_seed0", 0), ("method_seed1", 1))):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        flags = {"random_seed": seed, "source": "gta5", "target": "cityscapes", "data_dir_target": str(tmp_path / "cityscapes")}
        flags |= {"command": ["train_clan.py"], "learning_rate": 0.5 if position else 0.1, "snapshot_dir": str(folder)}
        flags |= {"restore_from": str(tmp_path / "runs/source/GTA5_20.pth") if position else "none"}
        (folder / "args.json").write_text(json.dumps(flags))
        shutil.copytree(results.parent / f"predictions{position}", folder / "predictions")
        lines = [{"step": step, "loss_seg": 1 / (step + 1), "seconds": 2.5, "peak_memory_gb": 0.5} for step in (9, 19)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 29, "lo')
        figures = {
            "GTA5_10": {"miou": 0.9, "iou": scores["iou"][0]},
            "GTA5_20": {"miou": 0.25 * (position + 1), "iou": scores["iou"][1]},
        }
        figures["GTA5_best"] = figures["GTA5_10"]
        (folder / "figures.json").write_text(json.dumps(figures))
    return tmp_path / "runs"


def make(*words):
    return report.main(report.get_arguments([*map(str, words)]))


def test_run_directories_become_rows(runs, tmp_path, capsys):
    make(*sorted(runs.iterdir(), reverse=True), "--group-by", "seed", "--baselines", "source", "--out", tmp_path / "out")
    record = json.loads((tmp_path / "out/results.json").read_text())
    assert record["seeds"] == [0, 1] and set(record["rows"]) == {"source", "method"}
    method = record["rows"]["method"]
    assert method["miou"] == [50.0, 75.0] and method["baseline"] == "source"  # of the last step, not of the best
    assert method["seconds"] == [5.0, 5.0] and method["peak_memory_gb"] == [0.5, 0.5]
    assert record["rows"]["source"]["miou"] == [25.0, None]
    assert (record["source"], record["target"]) == ("GTA5", "Cityscapes")
    assert "report.html" in capsys.readouterr().out
    page = (tmp_path / "out/report.html").read_text()
    assert "prediction of method" in page and "Which classes are taken for which" in page
    assert "method: " in page and "no such file" in page  # no weights, so nothing to look at
    make(tmp_path / "out/results.json", "--out", tmp_path / "again")
    assert (tmp_path / "again/tables.md").read_text() == (tmp_path / "out/tables.md").read_text()


def test_rows_without_grouping_and_names(runs, tmp_path):
    make(f"First={runs}/method_seed0", f"{runs}/method_seed1", f"{runs}/source/figures.json", "--out", tmp_path / "out")
    rows = json.loads((tmp_path / "out/results.json").read_text())["rows"]
    assert list(rows) == ["First", "method_seed1", "GTA5_10", "GTA5_20", "GTA5_best"]


def test_a_run_as_it_is_read(runs):
    run = read_run(str(runs / "source"))
    assert run.script == "train_clan" and run.curves["loss_seg"] == [(10, 0.1), (20, 0.05)]
    assert run.seconds == 5.0 and last_snapshot(run.parts[0]) is None
    for name in ("GTA5_9.pth", "GTA5_10.pth", "GTA5_best.pth", "GTA5_10_D1.pth", "state.pth"):
        (runs / "source" / name).touch()
    assert last_snapshot(run.parts[0]).endswith("GTA5_10.pth")
    assert last_snapshot(run.parts[0], "_D1").endswith("GTA5_10_D1.pth") and last_snapshot(run.parts[0], "_D2") is None


def fault_nowhere(runs):
    return [runs / "nothing"], "no such file or folder"


def fault_damaged(runs):
    (runs / "source/args.json").write_text("{")
    return [runs / "source"], "args.json: damaged"


def fault_unscored(runs):
    (runs / "source/figures.json").unlink()
    return [runs / "source"], "no scores on the target; evaluate_cityscapes.py --restore-from"


def fault_damaged_scores(runs):
    (runs / "scores.json").write_text('{"a": ')
    return [runs / "scores.json"], "scores.json: damaged"


def fault_other_json(runs):
    (runs / "scores.json").write_text('{"a": 1}')
    return [runs / "scores.json"], "no scores of evaluate_cityscapes.py"


def fault_other_classes(runs):
    scores = {"GTA5_20": {"miou": 0.5, "iou": {"soil": 0.5, "plant": 0.5}}}
    (runs / "source/figures.json").write_text(json.dumps(scores))
    return [runs / "method_seed0", runs / "source"], "source: is scored on 2 classes and method_seed0 on 19"


def fault_baseline(runs):
    return [runs / "source", "--baselines", "AdaBN"], "--baselines AdaBN: is no row; the rows are source"


def fault_same_seed(runs):
    shutil.copytree(runs / "method_seed0", runs / "method_seed0_again")
    return [runs / "method_seed0", runs / "method_seed0_again", "--group-by", "seed"], "two runs with seed 0"


FAULTS = [fault_nowhere, fault_damaged, fault_unscored, fault_damaged_scores, fault_other_json, fault_other_classes]
FAULTS += [fault_baseline, fault_same_seed]


@pytest.mark.parametrize("fault", FAULTS)
def test_input_that_makes_no_report(fault, runs, tmp_path):
    words, message = fault(runs)
    with pytest.raises(RunError, match=re.escape(message)) as caught:
        make(*words, "--out", tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_nothing_foreign_is_overwritten(runs, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/results.json").write_text('{"mine": 1}')
    with pytest.raises(RunError, match="was not written here"):
        make(runs / "source", "--out", tmp_path / "out")
    assert (tmp_path / "out/results.json").read_text() == '{"mine": 1}'


def test_a_folder_with_other_files_of_these_names(results, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/tables.md").write_text("mine")
    for _ in range(2):
        with pytest.raises(RunError, match="tables.md: exists already and was not written here"):
            make(results, "--out", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tables.md"]
    (tmp_path / "out/tables.md").unlink()
    for _ in range(2):  # over its own report
        make(results, "--out", tmp_path / "out")


def test_without_matplotlib_one_line_says_what_to_do(results, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(RunError, match=r"pip install '\.\[report\]'"):
        make(results, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_are_chosen_for_their_rare_classes():
    shares = np.array([[1.0, 0, 0], [0.9, 0.1, 0], [0.9, 0, 0.1], [1.0, 0, 0], [0.88, 0.11, 0.01]])
    assert set(choose(shares, 2)) <= {1, 2, 4} and 2 in choose(shares, 2)
    assert len(set(choose(shares, 9))) == 5


def test_confusion_matrices(results):
    found = read_results(str(results))
    matrix = confusion_of(str(results.parent / "predictions0"), found.validation, 19)
    assert matrix.sum() == 3 * 16 * 32 and (matrix[:, 1:] == np.diag(np.diag(matrix))[:, 1:]).all()  # wrong ones say road
    assert all(said == 0 and true != 0 for true, said, _ in worst(matrix))
    assert confusion_of(str(results.parent / "nowhere"), found.validation, 19) is None


def test_heat_and_errors_are_told_apart_without_colours():
    grey = heat(np.linspace(0, 1, 9)[None], 0, 1)[0] @ (0.299, 0.587, 0.114)
    assert (np.diff(grey) > 5).all()
    assert (heat([[-3.0, 7.0]], 0, 1) == heat([[0.0, 1.0]], 0, 1)).all()
    image, truth = np.full((1, 3, 3), 255, np.uint8), np.array([[1, 1, 255]], np.uint8)
    right, wrong, void = errors(image, truth, np.array([[1, 0, 0]], np.uint8), 19)[0]
    assert len(set(right)) == 1 and (wrong != right).any() and not void.any()


def test_panels_with_maps():
    import torch

    batch = {"image": torch.zeros(2, 3, 8, 16, dtype=torch.uint8)}
    logits = torch.zeros(2, 19, 8, 16)
    plain = prediction_panel(batch, logits, 2, CITYSCAPES)
    more = prediction_panel(batch, logits, 2, CITYSCAPES, {"one": torch.rand(2, 1, 1, 2), "two": torch.rand(2, 4, 8)})
    assert more.shape[1] == 2 * plain.shape[1] + 4 and more.shape[0] == plain.shape[0] + 16
    assert prediction_panel(batch, logits, 0, CITYSCAPES, {"one": torch.rand(2, 1, 1, 2)}).shape == (16, 16, 3)


def test_methods_are_known_by_the_beginning_of_their_names():
    assert about_row("MaxSquare+IW") == ROWS["maxsquare"] and about_row("CBST-SP") == ROWS["cbst"]
    assert about_row("source-only, twin") == ROWS["source-only"] and about_row("my own") == ""


PROBE = """
<script>addEventListener('load',()=>{const wide=[...document.querySelectorAll('main *')].filter(e=>{
const scroller=e.closest('.scroll');return !scroller&&e.getBoundingClientRect().right>innerWidth+1}).length;
document.title=JSON.stringify({inner:innerWidth,page:document.documentElement.scrollWidth,wide})});</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
@pytest.mark.parametrize("width", [400, 1400])
def test_in_a_browser_nothing_overflows_and_nothing_is_wrong(width, written, tmp_path):
    page = tmp_path / "probe.html"
    page.write_text((written / "report.html").read_text().replace("</body>", PROBE + "</body>"))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900", "--enable-logging=stderr"]
    ran = subprocess.run([*command, "--dump-dom", f"file://{page}"], capture_output=True, text=True, timeout=120)
    title = re.search(r"<title>(\{.*?\})</title>", ran.stdout)
    assert title, ran.stderr[-2000:]
    seen = json.loads(title[1])
    assert seen["page"] <= seen["inner"] and seen["inner"] <= max(width, 500) and seen["wide"] == 0
    assert not re.findall(r"CONSOLE.*", ran.stderr)


def test_the_script_says_errors_in_a_line(tmp_path):
    command = [sys.executable, str(ROOT / "scripts/report.py"), str(tmp_path / "nothing"), "--out", str(tmp_path / "out")]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 1 and ran.stderr == f"report.py: error: {tmp_path}/nothing: no such file or folder\n"


def left_behind(folder, script, flags, model="MiniResNet18", level_names=(), thresholds=None):
    """A run directory as a training script leaves it, with random weights; `level_names` are suffixes of discriminators."""
    folder.mkdir(parents=True)
    heads = {"heads": "twin"} if script == "train_clan.py" else {}
    network = build_model(model, 19, **heads)
    network.classes = CITYSCAPES.to_json()
    weights = network.state_dict()
    if script == "train_fada.py":
        network = build_model(model, 19, heads="single")
        network.classes = CITYSCAPES.to_json()
        weights = to_fada(network, 3, FeatureDiscriminator(network.feature_channels, 19))
    save_tensors(weights, str(folder / "GTA5_3.pth"), for_originals=True)
    for suffix in level_names:
        save_tensors(OutputDiscriminator(19).state_dict(), str(folder / f"GTA5_3{suffix}.pth"), for_originals=True)
    notes = {"command": [script], "input_size_target": [64, 32], "classes": CITYSCAPES.to_json(), "network": network.settings}
    (folder / "args.json").write_text(json.dumps(flags | notes))
    if thresholds:
        ClassReport(0.2, thresholds, [1] * 19, [], []).write(str(folder / "thresholds.json"))


VIEWED = {
    "train_adaptsegnet.py": ("", {"gan": "Vanilla"}, {"level_names": ("_D1", "_D2")}, 2, (0, 1)),
    "train_clan.py": ("", {"epsilon": 0.4, "lambda_local": 40.0}, {"model": "MiniResNet18Twin"}, 1, (0.4, 40.4)),
    "train_maxsquare.py": ("", {"target_mode": "IW_maxsquare", "IW_ratio": 0.2}, {}, 2, (0, 2048)),
    "train_fada.py": ("adversarial", {"temperature": 1.8, "clip": 0.9}, {}, 1, (0, 0.9)),
    "train_cbst.py": ("round0", {"with_prior": False}, {"thresholds": [0.05] * 19}, 1, (0, 2)),
}


@pytest.mark.parametrize("script", VIEWED)
def test_what_each_method_looks_at(script, tmp_path):
    part, flags, more, maps, (low, high) = VIEWED[script]
    left_behind(tmp_path / "run" / part, script, flags, **more)
    save(tmp_path / "image.png", np.random.default_rng(0).integers(0, 255, (40, 80, 3)))
    view = view_of(read_run(str(tmp_path / "run")), [str(tmp_path / "image.png")] * 2)
    assert len(view.maps) == 2 and all(len(of_image) == maps for of_image in view.maps)
    for values in view.maps[0].values():
        assert values.shape == (32, 64) and values.min() >= low - 1e-5 and values.max() <= high + 1e-5
    assert list(view.per_class) == (["round 0"] if part == "round0" else [])


def test_a_run_without_weights_or_of_an_unknown_script_shows_nothing(tmp_path, runs):
    run = read_run(str(runs / "source"))
    with pytest.raises(ModelError, match=r"source/\*.pth"):
        view_of(run, ["image.png"])
    assert view_of(dataclasses.replace(run, flags={"command": ["train_mine.py"]}), ["image.png"]) is None


TRAINED = {
    "train_adaptsegnet": ("target", "source", 2),
    "train_clan": ("target", "source", 1),
    "train_maxsquare": ("target", "source", 2),
    "train_fada": ("target", "source", 1),
    "train_cbst": ("training", None, 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("script", TRAINED)
def test_tensorboard_shows_what_the_method_looks_at(script, mini_data, tmp_path, monkeypatch):
    domain, plain, maps = TRAINED[script]
    model = "MiniResNet18Twin" if script == "train_clan" else "MiniResNet18"
    weights = build_model(model, 19)
    weights.classes = CITYSCAPES.to_json()
    save_tensors(weights.state_dict(), str(tmp_path / "start_0.pth"), for_originals=True)
    words = f"--data-dir {mini_data}/GTA5 --source-split train --data-dir-target {mini_data}/Cityscapes --model {model}"
    words += f" --input-size 96,48 --input-size-target 96,48 --restore-from {tmp_path}/start_0.pth --val-every 0"
    words += f" --snapshot-dir {tmp_path}/run --save-num-images 1 --num-workers 0 --device cpu --batch-size 2"
    words += {
        "train_fada": " --stage adversarial --class-balanced False --num-steps 1 --num-steps-stop 1 --save-pred-every 1",
        "train_cbst": " --num-rounds 2 --epochs-per-round 1 --mine-port 0",
        "train_maxsquare": " --target-mode IW_maxsquare --num-steps 1 --num-steps-stop 1 --save-pred-every 1",
        "train_clan": " --num-steps 1 --num-steps-stop 1 --save-pred-every 1 --preheat-steps 0",
    }.get(script, " --num-steps 1 --num-steps-stop 1 --save-pred-every 1")
    shown = {}
    monkeypatch.setattr(RunLog, "picture", lambda self, step, title, picture: shown.setdefault(title, picture.shape[1]))
    module = importlib.import_module(script)
    module.main(module.get_arguments(words.split()))
    columns = {title: (width + 4) // 100 for title, width in shown.items()}  # pictures of 96 pixels and gaps of 4
    assert columns[domain] == maps + (2 if plain else 3) and (plain is None or columns[plain] == 3)
