"""Names of any kind reach terminals and pages as plain text, and all output uses the one writer."""

import ast
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from in_process import here
from kd3.cli import main
from kd3.runtime import console
from kd3.runtime.text import clean, clean_json, code, escaped, one_line, table

SOURCES = Path(__file__).parents[2] / "src" / "kd3"
# Clear the screen, set the title of the window, one sign of C1 that begins a command, text from right to left.
EVIL = ("\x1b[2J", "\x1b]0;gone\x07", "\x9b31m", "\u202egnp.exe", "\u2066x", "\x7f", "\r", "\u2028")
UNSEEN = [*map(chr, range(9)), "\x0b", *map(chr, range(14, 32)), *map(chr, range(0x7F, 0xA0)), "\u202e", "\u2067", "\r"]


def is_seen(text):
    return not any(sign in text for sign in UNSEEN)


def called(node):
    """Return a call's name, such as sys.stderr.write."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([getattr(node, "id", "?"), *reversed(parts)])


# All output uses the writer.

WRITERS = {SOURCES / "runtime" / "console.py", SOURCES / "runtime" / "text.py"}
OUTPUT = ("print", "warnings.warn", "os.write", "logging.basicConfig")
METHODS = ("print_exc", "stderr.write", "stdout.write", "stdout.writelines")


def offences(source):
    """Return the lines that write to a terminal or make a table of Markdown."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and (called(node.func) in OUTPUT or called(node.func).endswith(METHODS)):
            found.append(node.lineno)
        if isinstance(node, ast.keyword) and node.arg == "file" and called(node.value) in ("sys.stderr", "sys.stdout"):
            found.append(node.value.lineno)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("| "):
            found.append(node.lineno)
    return found


@pytest.mark.parametrize(
    "path", sorted(set(SOURCES.rglob("*.py")) - WRITERS), ids=lambda path: str(path.relative_to(SOURCES))
)
def test_only_the_console_writes_to_a_terminal_and_only_markdown_makes_tables(path):
    assert offences(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "print(1)",
        "sys.stderr.write('x')",
        "stdout.writelines(['x'])",
        "traceback.print_exc()",
        "os.write(2, b'x')",
        "handler(file=sys.stdout)",
        "'| ' + ' | '.join(row)",
    ],
)
def test_this_test_would_notice(line):
    assert offences(f"a = 1\n{line}\n") == [2]


# Functions of the writer.


@pytest.mark.parametrize("sign", UNSEEN)
def test_each_sign_that_is_not_seen_becomes_an_escape(sign):
    assert is_seen(clean(f"a{sign}b"))
    assert is_seen(one_line(f"a{sign}b\nc"))
    assert clean("plain, ž 海 🙂 \u200d\n\tmore") == "plain, ž 海 🙂 \u200d\n\tmore"


def test_a_line_break_in_a_name_makes_no_line(capsys):
    for say in (console.info, console.warn, console.fail):
        say("cats\n\nkd3: all is well\t!")
    assert capsys.readouterr().err.splitlines() == [
        "cats kd3: all is well !",
        "warning: cats kd3: all is well !",
        "kd3: cats kd3: all is well !",
    ]


def test_json_keeps_its_values(capsys):
    values = {"".join(EVIL): ["".join(EVIL), 1.5, "é"]}
    console.json_result(values)
    printed = capsys.readouterr().out
    assert is_seen(printed)
    assert "é" in printed
    assert json.loads(printed) == values
    assert json.loads(clean_json('"\u009b"')) == "\x9b"


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), np.float64("nan")])
def test_json_holds_no_number_that_json_does_not_know(number, capsys):
    values = {"a": number, "b": [1, (number, 2.5)], "c": {"d": {"e": number, "f": True}}, 7: "NaN"}
    console.json_result(values)
    found = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert found == {"a": None, "b": [1, [None, 2.5]], "c": {"d": {"e": None, "f": True}}, "7": "NaN"}


def test_a_terminal_of_few_signs_and_halves_of_characters_end_nothing(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    console.result("海 \udcff")
    assert stream.buffer.getvalue() == b"\\u6d77 \\udcff\n"


def test_what_is_wrong_with_kd3_itself_is_told_without_control_signs(monkeypatch):
    def broken(*_):
        raise ValueError("".join(EVIL))

    monkeypatch.setattr("kd3.commands.about.list_methods", broken)
    done = here("methods")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert is_seen(done.stderr)


@pytest.mark.parametrize("live", [False, True])
def test_progress_shows_titles_and_notes_as_text(live, monkeypatch):
    class Screen(io.StringIO):
        def isatty(self):
            return live

    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(console, "LOG_EVERY_SECONDS", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    with console.progress("[red]\x1b]0;a\x07[/nothing]", 2, "files") as bar:
        bar.advance(1, "\x1b]0;b\x07[/x]")
    shown = screen.getvalue()
    assert "\x1b]0;" not in shown
    assert "[red]" in shown
    assert "[/x]" in shown


def test_the_last_line_of_progress_is_written_once(monkeypatch, capsys):
    monkeypatch.setattr(console, "LOG_EVERY_SECONDS", 0.0)
    with console.progress("work", 3, "files") as bar:
        bar.advance(1)
        bar.advance(2, "done")
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" files")[0] for line in lines] == ["work: 1 of 3", "work: 3 of 3"]


# Through the commands.


@pytest.fixture(scope="module")
def evil_teacher(teacher_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evil")
    (folder / "weights.pt").write_bytes((teacher_file.parent / "weights.pt").read_bytes())
    description = yaml.safe_load(teacher_file.read_text())
    description["classes"] = ["cat\x1b[2J", "<script>alert(1)</script>|\u202e", "ship\nkd3: done"]
    (folder / "teacher.yaml").write_text(yaml.safe_dump(description))
    return folder / "teacher.yaml"


@pytest.fixture(scope="module")
def evil_crawl(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crawl")
    for number, sign in enumerate(EVIL):
        Image.new("RGB", (20, 20), (9 * number, 30, 40)).save(folder / f"{number}{sign}.png")
        (folder / f"bad{number}{sign}.jpg").write_text("no image")
    return folder


def test_names_of_a_crawl_and_of_classes_reach_a_terminal_as_text(evil_teacher, evil_crawl, tmp_path):
    pool = tmp_path / "pool\x1b[2J"
    commands = [
        ("ingest", evil_crawl, "--out", pool, "--image-size", 16, "--workers", 0),
        ("ingest", evil_crawl / "bad0\x1b[2J.jpg", "--out", tmp_path / "none", "--image-size", 16, "--workers", 0),
        ("pool", "info", pool),
        ("inspect", "--teacher", evil_teacher),
        ("predict", evil_teacher, evil_crawl),
        ("predict", evil_teacher, evil_crawl, "--json"),
        ("select", "--teacher", evil_teacher, "--pool", pool, "--out", tmp_path / "kept", "--device", "cpu"),
        ("shift", "--teacher", evil_teacher, "--pool", pool, "--device", "cpu"),
        ("predict", evil_teacher, "gone\x1b[2J.png"),
        ("\x1b[2J",),
        ("ingest", "--\x9b1m", "x"),
    ]
    for words in commands:
        done = here(*words)
        assert done.returncode in (0, 2), done.stderr
        assert is_seen(done.stdout), words
        assert is_seen(done.stderr), words
        assert not any(line.startswith("kd3: done") for line in done.stdout.splitlines()), words


def test_markup_reaches_no_page(evil_teacher, evil_crawl, tmp_path):
    assert main(["ingest", str(evil_crawl), "--out", str(tmp_path / "pool"), "--image-size", "16"]) == 0
    flags = ("--teacher", evil_teacher, "--pool", tmp_path / "pool", "--out", tmp_path / "s")
    assert here("shift", *flags, "--device", "cpu").returncode == 0
    page = (tmp_path / "s" / "shift.md").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\|" in page
    assert "<script" not in page
    assert is_seen(page)
    rows = [line for line in page.splitlines() if line.startswith("|") and "script" in line]
    assert rows
    assert all(line.replace("\\|", "").count("|") == rows[0].replace("\\|", "").count("|") for line in rows)


def test_a_model_card_shows_names_as_text():
    from kd3.exports.card import Card

    evil = "<img src=x onerror=alert(1)>[a](javascript:b) `c`\n# d|e"
    about = {"method": evil, "teacher": evil, "agreement": 1.0}
    student = {"about": about, "classes": [evil, "b"], "arch": evil, "input_size": 8, "mean": [0.5], "std": [0.5]}
    pool = {"name": evil, "images": 3}
    text = Card(student, [], "inside", 3, evil, 1, evil, "2026-11-30", pool=pool, variants=[(evil, 1.0, 2.0)]).text()
    assert "<img" not in text
    assert "[a](" not in text
    assert "\n# d" not in text
    assert text.count("&lt;img src=x onerror=alert(1)&gt;\\[a\\](javascript:b) \\`c\\` \\# d\\|e") >= 5


def test_markdown_of_ordinary_values_stays_readable():
    assert escaped("kd3:resnet20, 32 x 32, 71.5%") == "kd3:resnet20, 32 x 32, 71.5%"
    assert escaped("- no list") == "\\- no list"
    assert escaped("1. none") == "&#49;. none"
    assert code("student.onnx") == "`student.onnx`"
    assert code("a`b|c") == "a\\`b\\|c"
    assert table([["a", "b"], ["1", "2"]], numbers=True) == "| a | b |\n| --- | ---: |\n| 1 | 2 |"


def test_ctrl_c_says_that_it_was_heard(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("kd3.commands.about.list_methods", interrupted)
    done = here("methods")
    assert (done.returncode, done.stderr) == (130, "kd3: interrupted\n")
