"""The live display of a run, on wide and narrow terminals, and without one."""

import io
import os
import pty
import re
import select
import subprocess
import sys

import pytest
from rich.console import Console

from kd3.training.history import Panel, shown

TRAIN = {
    "step": 20,
    "images": 1280,
    "seconds": 1.0,
    "loss": 31.25,
    "soft_targets": 0.36,
    "lr": 0.07,
    "images_per_second": 9,
}
LOOK = {"step": 20, "images": 1280, "agreement": 61.5, "accuracy": 71.25}


def picture(classes, kept, width=100, *, thresholds=True):
    panel = Panel(10_000, 0, classes)
    panel.advance(1280)
    panel("train", TRAIN)
    panel(
        "selection",
        {
            "round": 2,
            "kept": sum(kept),
            "of": 1000,
            "kept_per_class": kept,
            "thresholds": [0.5] * len(kept) if thresholds else None,
        },
    )
    panel("evaluation", LOOK)
    text = io.StringIO()
    Console(file=text, width=width, force_terminal=True, color_system=None, legacy_windows=False).print(panel)
    return text.getvalue()


def test_it_tells_how_far_what_losses_which_agreement_and_what_is_kept():
    text = picture(["cat", "dog", "ship"], [300, 0, 150])
    for part in (
        "1,280/10,000 images",
        "left",
        "loss 31.2, soft targets 0.36, lr 0.07",
        "agreement 61.5%",
        "accuracy 71.25%",
    ):
        assert part in text
    assert "round 2: 450 of 1,000 images kept (45%)" in text
    bars = {line.split()[0]: line.count("━") for line in text.splitlines() if "> 0.50" in line}
    assert bars["cat"] == 2 * bars["ship"] > bars["dog"] == 0


def test_a_selection_without_thresholds_is_shown_without_them():
    text = picture(["cat", "dog", "ship"], [300, 0, 150], thresholds=False)
    assert [line.split()[0] for line in text.splitlines() if "━" in line][-2:] == ["cat", "ship"]
    assert ">" not in text


def test_of_many_classes_the_scarcest_are_shown():
    text = picture([f"class{n}" for n in range(1000)], list(range(1000)))
    assert "class9 " in text
    assert "class10 " not in text
    assert "990 with more" in text


def test_names_with_markup_or_control_characters_do_no_harm():
    text = picture(["[red]cat[/red]", "\x1b[2Jdog", "ship"], [1, 2, 3])
    assert "[red]cat[/red]" in text
    assert "\x1b[2J" not in text


@pytest.mark.parametrize("width", [20, 40, 59])
def test_narrow_terminals_get_no_bars_and_no_broken_lines(width):
    lines = picture(["cat", "dog", "ship"], [300, 200, 150], width).splitlines()
    assert all(len(line) <= width for line in lines)
    assert not any("> 0.50" in line for line in lines)


def test_without_a_terminal_there_are_plain_lines(capsys):
    with shown(1000, 0, ["cat"]) as display:
        display("train", TRAIN)
        display.advance(10, "loss 1")
    assert "\x1b" not in capsys.readouterr().err


PROGRAM = """
import time
from kd3.runtime import console
from kd3.training.history import shown
with shown(1000, 0, ["cat", "dog"]) as display:
    for step in range(4):
        display.advance(100)
        display("selection", dict(round=1, kept=2, of=3, kept_per_class=[1, 1], thresholds=[0.5, 0.5]))
        console.warn(f"mind step {step}")
        time.sleep(0.2)
    raise KeyboardInterrupt
"""


@pytest.mark.parametrize("terminal", ["xterm", "dumb"])
def test_on_a_real_terminal_warnings_stay_and_the_cursor_comes_back(terminal):
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": terminal, "COLUMNS": "80", "LINES": "30"}
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stderr=slave, stdout=slave, env=environment)
    os.close(slave)
    data = b""
    while select.select([master], [], [], 60)[0]:
        try:
            part = os.read(master, 65536)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        data += part
    process.wait(timeout=60)
    os.close(master)
    text = data.decode()
    for step in range(4):
        assert len(re.findall(f"warning: mind step {step}", text)) == 1
    if terminal == "xterm":
        assert "400/1,000 images" in text
        assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is shown again"
    else:
        assert "\x1b[" not in text.replace("\x1b[?25h", "")
