"""`kd3 report`: contents of the page, its inputs, and notes about missing parts."""

import html
import json
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import kd3
from kd3.reports.charts import Line, line_chart
from kd3.reports.page import RunFindings
from kd3.reports.page import page as page_of
from kd3.reports.run_records import read_run, verdict
from kd3.reports.sections import how_to_repeat, selection
from kd3.runtime.errors import KD3Error
from kd3.runtime.run_folder import RunFolder

HOSTILE = '<script>alert("x")</script> & co'


@pytest.fixture(scope="module")
def opinionated(teacher_file, pool_folder, tmp_path_factory):
    """The untrained teacher with opinions of all kinds: no class is likelier than another on the pool."""
    folder = tmp_path_factory.mktemp("opinionated")
    teacher = kd3.load_teacher(teacher_file)
    images = torch.from_numpy(kd3.ImagePool.open(pool_folder).read(slice(None)))
    with torch.inference_mode():
        logits = teacher(teacher.normalise(images))
    weights = torch.load(teacher_file.parent / "weights.pt", weights_only=True)
    weights["linear.bias"] -= logits.mean(dim=0)
    torch.save(weights, folder / "weights.pt")
    shutil.copy(teacher_file, folder / "teacher.yaml")
    return folder / "teacher.yaml"


@pytest.fixture(scope="module")
def runs(opinionated, pool_folder, labelled, tmp_path_factory):
    """A run with selections and accuracy, and another of plain KD."""
    folder = tmp_path_factory.mktemp("reported")
    common = {"batch_size": 16, "holdout": 12, "warmup_steps": 5, "device": "cpu", "precision": "32"}
    selecting = {"images": 640, "eval_data": str(labelled), "kd3": {"selection": "dynamic", "threshold": 0.6}}
    for name, more in {"a": selecting, "b": {"method": "kd", "seed": 1, "images": 160}}.items():
        kd3.distill(opinionated, "kd3:resnet8", pool_folder, folder / name, **common, **more)
    return folder


@pytest.fixture(scope="module")
def page(runs):
    return text_of(kd3.report(runs / "a", out=runs / "a.html", images=60).path)


def text_of(path):
    return Path(path).read_text(encoding="utf-8").replace("\u00a0", " ")


def test_a_selection_without_thresholds_is_told_without_them():
    rounds = [
        {"images": 96 * number, "kept": 3, "of": 9, "predicted_per_class": [6, 3], "kept_per_class": [2, 1],
         "thresholds": None}
        for number in range(2)
    ]  # fmt: skip
    section = selection(SimpleNamespace(selections=rounds, classes=["cat", "dog"]))
    assert [row[-2:] for row in section["rows"]] == [["–", "–"]] * 2
    assert len(section["charts"]) == 1


class References(HTMLParser):
    """Collects what a page would fetch, and its tags."""

    def __init__(self):
        super().__init__()
        self.found, self.tags = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.found += [value for name, value in attributes if name in ("src", "href", "srcset", "action", "data")]


def references(text):
    parser = References()
    parser.feed(text)
    return parser


def test_the_page_needs_nothing_beside_it(page):
    found = references(page)
    assert found.found, "there are images"
    assert all(value.startswith("data:image/") for value in found.found)
    assert not {"script", "link", "iframe", "object"} & set(found.tags)
    assert "@import" not in page
    assert "url(" not in page


def test_the_verdict_comes_first_with_the_figures_of_the_run(runs, page):
    summary = json.loads((runs / "a" / "summary.json").read_text())
    assert f"on {summary['agreement']:.1f}% of the held-out web images" in page
    assert page.index("of the held-out web images") < page.index("<h2>Training</h2>")
    for part in ("multiply-adds", "one image", "the student is", "<h2>Selection</h2>", "Most disagreed on"):
        assert part in page
    assert "kd3.load_student(" in page
    assert "kd3 distill --config" in page
    assert summary["teacher"] in page


def test_commands_of_the_page_run_in_a_shell_whatever_the_folder_is_called(runs):
    run = read_run(runs / "b")
    run = replace(run, folder=RunFolder(Path("my runs; of today/b")))
    again, export = map(shlex.split, how_to_repeat(run).splitlines())
    assert again[2:] == ["--config", "my runs; of today/b/config.yaml", "--out", "my runs; of today/b-again"]
    assert export[2] == "my runs; of today/b"


def test_the_shift_names_the_images_that_it_was_measured_on(runs, page, pool_folder):
    training = len(kd3.ImagePool.open(pool_folder)) - 12
    assert f"By {min(60, training):,} images of the pool, drawn at random" in page


def test_the_same_run_gives_the_same_page_but_for_the_clock(runs):
    pages = [
        text_of(kd3.report(runs / "a", out=runs / f"again{n}.html", images=40, latency=False).path) for n in range(2)
    ]
    assert pages[0] == pages[1]
    assert "one image" not in pages[0]


def test_records_alone_are_enough(runs, tmp_path):
    """Teacher and pool may be gone; missing parts are named."""
    shutil.copytree(runs / "a", tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    (tmp_path / "run" / "summary.json").write_text(
        json.dumps({**summary, "teacher": str(tmp_path / "gone.yaml"), "pool": str(tmp_path / "nowhere")})
    )
    origin = tmp_path / "run" / "origin.json"  # holds where they were, seen from the run
    origin.write_text(json.dumps({**json.loads(origin.read_text()), "places": {}}))
    done = kd3.report(tmp_path / "run", latency=False)
    text = text_of(tmp_path / "run" / "report.html")
    assert done.path == tmp_path / "run" / "report.html"
    assert "Not shown, since its teacher cannot be had" in text
    assert "<h2>Training</h2>" in text
    assert "Most disagreed on" not in text
    given = kd3.report(tmp_path / "run", teacher=summary["teacher"], pool=summary["pool"], images=40, latency=False)
    assert "Most disagreed on" in text_of(given.path)


def test_another_teacher_is_not_taken_for_the_runs_own(runs, opinionated, tmp_path):
    shutil.copytree(runs / "a", tmp_path / "run")
    origin = json.loads((tmp_path / "run" / "origin.json").read_text())
    (tmp_path / "run" / "origin.json").write_text(json.dumps({**origin, "teacher": "0" * 64, "pool": "0" * 64}))
    text = html.unescape(text_of(kd3.report(tmp_path / "run", images=40, latency=False).path))
    assert f"{opinionated} is not the teacher that the run had" in text


def test_several_runs_are_compared(runs):
    done = kd3.report([runs / "a", runs / "b"], out=runs / "both.html", latency=False)
    text = text_of(done.path)
    assert set(done.verdicts) == {str(runs / "a"), str(runs / "b")}
    assert text.index("Comparison") < text.index("<h2>Training</h2>")
    assert "agrees most with its teacher" in text
    differing = re.findall(r"<td><code>([^<]+)</code></td>", text)
    assert {"method", "seed"} <= set(differing)
    assert not {"out", "pool", "train.batch_size"} & set(differing)


def test_names_from_outside_stay_text(runs, tmp_path):
    shutil.copytree(runs / "a", tmp_path / "run")
    path = tmp_path / "run" / "summary.json"
    summary = json.loads(path.read_text())
    path.write_text(json.dumps({**summary, "classes": [HOSTILE, "dog", "ship"], "student": HOSTILE}))
    student = tmp_path / "run" / "student" / "config.json"
    student.write_text(json.dumps({**json.loads(student.read_text()), "classes": [HOSTILE, "dog", "ship"]}))
    text = text_of(kd3.report(tmp_path / "run", images=0, latency=False).path)
    assert "<script" not in text
    assert html.escape(HOSTILE, quote=False).replace('"', "&#34;") in text


@pytest.mark.parametrize("what", ["absent", "interrupted", "damaged", "a folder as out"])
def test_bad_input_is_told_in_a_sentence(runs, tmp_path, what):
    run, more, words = tmp_path / "run", {}, "is no run folder"
    if what == "interrupted":
        shutil.copytree(runs / "a", run)
        (run / "summary.json").unlink()
        words = "is not finished; finish it with: kd3 distill --resume"
    elif what == "damaged":
        shutil.copytree(runs / "a", run)
        (run / "metrics.jsonl").write_text("{nonsense\n")
        words = "is damaged"
    elif what == "a folder as out":
        run, more, words = runs / "a", {"out": tmp_path}, "is a folder; give the name of a file"
    with pytest.raises(KD3Error, match=words):
        kd3.report(run, **more)
    assert not (run / "report.html").exists()


def test_the_verdict_names_the_student_and_the_teacher_that_were_compared(runs):
    run = read_run(runs / "a")
    run.summary.update(agreement=41.0, agreement_with_own_teacher=41.0, accuracy=70.0)
    plain = replace(run, adaptation=None)
    assert verdict(plain).sentence.startswith("The student agrees with the teacher on 41.0%")
    assert ", and is right on " in verdict(plain).sentence
    run.summary["agreement_with_own_teacher"] = 39.5
    adapted = replace(run, adaptation={"share": 0.4, "accuracy_after": 72.0})
    assert verdict(adapted).sentence.startswith("The student as trained agrees with the fitted teacher on 41.0%")
    assert ", with yours on 39.5%, and is with adapted batch norms right on 72.0%" in verdict(adapted).sentence
    left = replace(run, adaptation={"share": 0.0, "accuracy_after": 72.0})
    assert verdict(left).sentence.startswith("The student agrees with the fitted teacher on 41.0%")


def test_notes_name_what_is_wrong(runs):
    run = read_run(runs / "a")
    look, chosen = run.evaluations[-1], run.selections[-1]
    bad = read_run(runs / "a")
    bad.summary["agreement"] = 20.0
    bad.events[:] = [
        {**look, "agreement": 60.0},
        {**look, "agreement": 55.0},
        {**chosen, "kept_per_class": [500, 3, 0]},
    ]
    notes = " ".join(verdict(bad).notes)
    assert "no more than chance" in notes
    assert "fell by 5.0 points" in notes
    assert "1 of 3 classes receive no image: ship." in notes
    assert "1 of 3 classes receive hardly any: dog." in notes


@pytest.mark.parametrize(
    ("kind", "words"),
    [("recalled", "Above: images of the crawl."), ("recalled from given", "Above: your images."), ("given", None)],
)
def test_recalled_images_stand_below_those_that_they_were_begun_from(kind, words, runs, tmp_path):
    shutil.copytree(runs / "b", tmp_path / "b")
    record = {
        "kind": kind, "images": 20, "where": "somewhere", "share": 0.4, "kept_out": 0,
        "agreement_before": 40.0, "agreement_after": 50.0, "divergence_by_share": {"0": 1.5, "0.4": 1.2},
        "distance_before": 0.2, "distance_after": 0.1, "gap_before": 0.2, "gap_after": 0.1,
        "accuracy_before": None, "accuracy_after": None,
    }  # fmt: skip
    Image.new("RGB", (4, 4)).save(tmp_path / "b" / "recalled.png")
    found = page_of([RunFindings(replace(read_run(tmp_path / "b"), adaptation=record))])
    assert re.findall(r"Above: [a-z ]+\.", found) == ([words] if words else [])


def test_a_chart_holds_its_points_and_leaves_out_what_is_no_number():
    drawn = line_chart("t", [Line("a", [(0, 1.0), (1, float("nan")), (2, 100.0), (3, -1)])], x="x", y="y", log=True)
    places = re.search(r'points="([^"]+)"', drawn).group(1).split()
    assert len(places) == 2
    heights = [float(place.split(",")[1]) for place in places]
    assert 0 <= heights[1] < heights[0] <= 270
    assert line_chart("t", [Line("a", [])], x="x", y="y") == ""
    many = line_chart("t", [Line("a", [(n, n) for n in range(10_000)])], x="x", y="y")
    assert len(re.search(r'points="([^"]+)"', many).group(1).split()) <= 242


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MEASURE = """<!doctype html><body><script>
const widths = [360, 390, 820, 1280], found = {};
let left = widths.length;
for (const width of widths) {
  const frame = document.createElement("iframe");
  frame.width = width; frame.height = 900; frame.srcdoc = PAGE;
  frame.onload = () => {
    const page = frame.contentDocument, root = page.documentElement;
    found[width] = {
      wide: root.scrollWidth - root.clientWidth,
      broken: [...page.images].filter(image => !image.complete || !image.naturalWidth).length,
      images: page.images.length,
      small: [...page.querySelectorAll("p, li, td, dd")].filter(
        part => parseFloat(getComputedStyle(part).fontSize) < 11).length,
      charts: [...page.querySelectorAll(".chart svg")].map(svg => svg.getBoundingClientRect().width),
    };
    if (!--left) document.title = JSON.stringify(found);
  };
  document.body.append(frame);
}
</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_shows_it_at_any_width(page, tmp_path):
    """No sideways scrolling on a phone, every image decodes, every chart fills its place."""
    eager = page.replace('loading="lazy"', "")
    wrapper = tmp_path / "measure.html"
    wrapper.write_text(MEASURE.replace("PAGE", json.dumps(eager).replace("</", "<\\/")), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
    done = subprocess.run(
        [
            CHROMIUM,
            *flags,
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=20000",
            "--dump-dom",
            wrapper,
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title, done.stderr[-2000:]
    measured = json.loads(html.unescape(title.group(1)))
    assert set(measured) == {"360", "390", "820", "1280"}
    for width, found in measured.items():
        assert found["wide"] <= 0, f"scrolls sideways at {width} pixels"
        assert found["images"] > 10
        assert (found["broken"], found["small"]) == (0, 0)
        assert all(290 <= chart <= 720 for chart in found["charts"])
