"""Students without class names: messages, and naming for all later outputs."""

import errno
import json
import os
import shutil

import pytest

import kd3
from in_process import here
from kd3.exports.card import Card
from kd3.models.costs import Cost
from kd3.reports.page import _times_less
from kd3.reports.run_records import read_run, verdict
from kd3.runtime.files import exclusive
from named_colours import network, picture, pictures, teacher

SMALL = {"images": 64, "batch_size": 16, "holdout": 12, "precision": "32", "device": "cpu", "warmup_steps": 2}
HINT = "the classes have only numbers, 0 to 3; if they have names, list them as 'classes: [...]'"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A teacher without names, labelled pictures, and a run with both."""
    folder = tmp_path_factory.mktemp("names")
    teacher(folder / "model", [0, 1, 2, 3])
    pictures(folder / "crawl", {"x": 0, "y": 1, "z": 2, "w": 3}, count=1)
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    for number in range(60):
        noise = draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.blend(Image.fromarray(noise), picture(number % 4), 0.8).save(folder / "crawl" / f"{number}.png")
    pictures(folder / "test", {"ash": 0, "elm": 1, "oak": 2, "yew": 3}, count=2)
    kd3.ingest(folder / "crawl", folder / "pool", image_size=16, workers=0)
    kd3.distill(
        folder / "model/teacher.yaml", "kd3:resnet8", folder / "pool", folder / "run", method="kd",
        eval_data=str(folder / "test"), **SMALL,
    )  # fmt: skip
    return folder


@pytest.fixture
def run(place, tmp_path):
    return shutil.copytree(place / "run", tmp_path / "run")


def test_commands_say_how_to_name_classes_that_have_numbers_only(place):
    model = place / "model" / "teacher.yaml"
    assert HINT in here("predict", model, place / "test/ash/0.png").stderr
    assert HINT in here("evaluate", model, "--data", place / "test").stderr
    assert HINT in here("inspect", "--teacher", model).stdout
    assert HINT not in here("predict", model, place / "test/ash/0.png", "--quiet").stderr
    assert "kd3 classes RUN --names NAMES" in here("evaluate", place / "run", "--data", place / "test").stderr


def test_numbers_that_a_description_gives_as_names_need_no_others(place, tmp_path):
    model = teacher(tmp_path / "digits", [0, 1, 2, 3], "['0', '1', '2', '3']")
    assert HINT not in here("predict", model, place / "test/ash/0.png").stderr
    assert HINT not in here("inspect", "--teacher", model).stdout
    digits = pictures(tmp_path / "test", {str(kind): kind for kind in range(4)}, count=1)
    assert HINT not in here("evaluate", model, "--data", digits).stderr
    of_the_run = here("evaluate", place / "run", "--data", digits, "--teacher", model)
    assert (of_the_run.returncode, HINT in of_the_run.stderr) == (0, False), of_the_run.stderr
    again = here(
        "distill", "--teacher", model, "--student", "kd3:resnet8", "--pool", place / "pool", "--out", tmp_path / "run",
        "--method", "kd", "--images", 16, "--batch-size", 16, "--holdout", 12, "--precision", "32",
    )  # fmt: skip
    assert (again.returncode, HINT in again.stderr) == (0, False), again.stderr


@pytest.mark.parametrize("form", ["commas", "text", "description"])
def test_names_reach_a_finished_student_by_one_command(form, place, run, tmp_path):
    names = ["no", "010", "caf\u00e9", "two words"]
    given = "no,010,cafe\u0301,two words"
    if form == "text":
        (tmp_path / "names.txt").write_text("\n".join(given.split(",")) + "\n", encoding="utf-8")
        given = tmp_path / "names.txt"
    elif form == "description":
        given = teacher(tmp_path / "named", [0, 1, 2, 3], f"[{given}]")
    done = here("classes", run, "--names", given)
    assert done.returncode == 0, done.stderr
    assert "    0  no  (was 0)" in done.stdout
    assert "earlier exports keep the old names" in done.stdout
    again = here("classes", run, "--names", given)
    assert (again.returncode, "have these names already" in again.stdout) == (0, True)
    assert "(was" not in again.stdout
    assert "exports" not in again.stdout
    assert kd3.load_student(run).classes == names
    assert read_run(run).classes == names
    assert json.loads((run / "summary.json").read_text())["classes"] == names
    assert json.loads(here("classes", run, "--json").stdout)["classes"] == names
    seen = here("predict", run, place / "test/ash/0.png", "--top", 4).stdout
    assert all(name in seen for name in names)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("a,b", "gives 2 names but the student"),
        ("a,b,a,c", "gives 'a' more than once"),
        ("gone.yaml", "does not exist"),
    ],
)
def test_names_that_do_not_fit_change_nothing(names, message, run):
    before = (run / "student/config.json").read_bytes()
    done = here("classes", run, "--names", names)
    assert (done.returncode, message in done.stderr) == (2, True)
    assert (run / "student/config.json").read_bytes() == before


def test_names_wait_for_nobody_who_is_at_work_on_the_run(run):
    before = (run / "student/config.json").read_bytes()
    with exclusive(run / ".lock", what="it"):
        done = here("classes", run, "--names", "ash, elm, oak, yew")
    assert done.returncode == 2
    assert done.stderr == f"kd3: another process is at work on run {run}; wait for it\n"  # `kd3 classes` has no --out
    assert (run / "student/config.json").read_bytes() == before


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_place_that_cannot_be_written_is_named_in_a_sentence(number, run, monkeypatch):
    before = (run / "student/config.json").read_bytes()

    def refuse(path, *_, **__):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("kd3.commands.classes.write_json", refuse)
    done = here("classes", run, "--names", "ash, elm, oak, yew")
    assert (done.returncode, done.stderr) == (2, f"kd3: {os.strerror(number)}: {run}/student/config.json\n")
    assert (run / "student/config.json").read_bytes() == before


def test_a_live_teacher_of_two_classes_of_one_name_is_refused():
    for names in (["ash", "elm", "ash", "yew"], ["\u00e9lan", "elm", "oak", "e\u0301lan"]):
        with pytest.raises(kd3.KD3Error, match="more than once"):
            kd3.Teacher(network([0, 1, 2, 3]), mean=[0] * 3, std=[1] * 3, input_size=16, classes=names)


def test_a_student_of_two_classes_of_one_name_is_refused_in_any_form_of_unicode(run):
    path = run / "student/config.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps({**about, "classes": ["\u00e9lan", "elm", "oak", "e\u0301lan"]}))
    assert "more than once" in here("classes", run).stderr


def test_a_named_student_still_goes_with_its_nameless_teacher(place, run):
    here("classes", run, "--names", "ash,elm,oak,yew")
    model = place / "model" / "teacher.yaml"
    figures = json.loads(here("evaluate", run, "--data", place / "test", "--teacher", model, "--json").stdout)
    assert (figures["teacher_top1"], list(figures["per_class"])) == (100, ["ash", "elm", "oak", "yew"])
    done = here("report", run, "--images", 20, "--latency", "false", "--pool", place / "pool", "--trust-code")
    assert done.returncode == 0, done.stderr
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Not shown" not in page
    assert "student: " in page
    assert not any(f">{number} {share}" in page for number in range(4) for share in range(101))


def test_a_teacher_whose_names_were_turned_since_is_not_reported_under_them(place, run):
    here("classes", run, "--names", "ash,elm,oak,yew")
    turned = teacher(place / "model", [0, 1, 2, 3], "[elm, ash, oak, yew]", name="turned")
    done = here("report", run, "--images", 20, "--latency", "false", "--teacher", turned)
    assert done.returncode == 0, done.stderr
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "lists the classes in another order than the student has them" in page


def test_the_teachers_accuracy_and_the_difference_stand_in_summary_report_and_card(place):
    summary = json.loads((place / "run/summary.json").read_text())
    accuracy = summary["accuracy"]
    assert summary["teacher_accuracy"] == 100
    assert summary["difference"] == accuracy - 100
    assert f"(the teacher on 100.0%: {accuracy - 100:+.1f} points)" in verdict(read_run(place / "run")).sentence
    about = json.loads((place / "run/student/config.json").read_text())
    card = Card(
        student=about, written=[], preprocessing="inside", images=1, where="images", threads=1, machine="m", date="d"
    ).text()
    assert f"| difference | {accuracy - 100:+.1f} points |" in card
    assert f"| the teacher's accuracy on them | 100.0% of {summary['accuracy_images']} (95% interval " in card


def test_labels_that_do_not_fit_the_teacher_are_warned_of_before_training(place, tmp_path, capsys):
    shutil.copytree(place / "test", tmp_path / "test")
    for old, new in (("ash", "x"), ("elm", "ash"), ("x", "elm")):
        (tmp_path / "test" / old).rename(tmp_path / "test" / new)
    pictures(tmp_path / "test", {"ash": 1, "elm": 0, "oak": 2, "yew": 3})
    options = {**SMALL, "images": 16, "method": "kd", "eval_data": str(tmp_path / "test")}
    kd3.distill(place / "model/teacher.yaml", "kd3:resnet8", place / "pool", tmp_path / "run", **options)
    predicted = capsys.readouterr().err
    assert "  ash  is class 0" in predicted
    assert predicted.index("'ash' is called 'class 1'") < predicted.index(
        "16 of 16" if "16 of 16" in predicted else "agreement"
    )


@pytest.mark.parametrize(
    ("teachers", "students", "words"),
    [
        ((4_000, 80, 8.0, 64.0), (1_000, 40, 4.0, 80.0), "4.0 x smaller, 2.0 x less, 2.0 x faster, 1.2 x slower"),
        ((1_000, 40, 3.0, 64.0), (2_000, 60, 3.03, 64.0), "2.0 x larger, 1.5 x more, the same, the same"),
    ],
)
def test_a_slowdown_is_never_called_faster(teachers, students, words):
    teacher, student = (Cost(*figures[:2], 0, 0, *figures[2:], batch=64) for figures in (teachers, students))
    assert ", ".join(_times_less(teacher, student)[1:]) == words
