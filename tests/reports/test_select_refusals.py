"""Bad input to `kd3 select`: one sentence, status 2, and nothing left behind; a kill leaves no output folder."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from coloured_pools import colour_student, colour_teacher, colours, pool_of

import kd3
from kd3.cli import main

CPU = {"device": "cpu", "precision": "32"}


@pytest.fixture
def refused(teacher_file, pool_folder, tmp_path, capsys):
    """Run the command with some flags changed; return the one sentence that it is refused with."""

    def run(*more, status=2, **changes):
        flags = {"teacher": teacher_file, "pool": pool_folder, "out": tmp_path / "new" / "out", **changes}
        before = sorted(tmp_path.rglob("*"))
        words = [str(word) for name, value in flags.items() for word in ("--" + name.replace("_", "-"), value)]
        assert main(["select", *words, "--device", "cpu", "--precision", "32", *more]) == status
        assert sorted(tmp_path.rglob("*")) == before
        said = capsys.readouterr()
        assert said.out == ""
        return said.err.strip().splitlines()[-1]

    return run


def copied(pool_folder, tmp_path):
    return shutil.copytree(pool_folder, tmp_path / "copy")


def test_a_weight_for_a_student_that_is_not_there(refused):
    assert "leaves a share to a student" in refused(teacher_weight="0.5")
    assert "--teacher-weight" in refused(teacher_weight="1.5")


def test_what_is_missing_is_named(refused, labelled):
    assert "pool gone does not exist" in refused(pool="gone")
    assert "gone.yaml does not exist" in refused(teacher="gone.yaml")
    assert "model gone does not exist" in refused(student="gone")
    assert "holds neither a run, nor a student" in refused(student=labelled)


def test_a_teacher_is_no_student(refused, teacher_file):
    assert "is a teacher description" in refused(student=teacher_file)


def test_a_damaged_pool(refused, pool_folder, tmp_path):
    copy = copied(pool_folder, tmp_path)
    (copy / "index.parquet").write_bytes(b"PAR1 nonsense PAR1")
    assert "index.parquet cannot be read" in refused(pool=copy)
    (copy / "index.parquet").unlink()
    assert "is damaged: index.parquet cannot be read" in refused(pool=copy)
    (copy / "images-00000.bin").write_bytes(b"short")
    assert "is damaged" in refused(pool=copy)


def test_an_index_of_another_length(refused, pool_folder, tmp_path):
    import pyarrow.parquet as parquet

    copy = copied(pool_folder, tmp_path)
    table = parquet.read_table(copy / "index.parquet")
    parquet.write_table(table.slice(0, 100), copy / "index.parquet")
    assert "lists 100 images, the manifest 120" in refused(pool=copy)


def test_an_empty_pool(refused, pool_folder, tmp_path):
    copy = copied(pool_folder, tmp_path)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "images": 0, "parts": []}))
    assert "is empty" in refused(pool=copy)


@pytest.mark.parametrize("content", ["file", "foreign", "damaged"])
def test_an_output_folder_that_is_taken(refused, tmp_path, content):
    out = tmp_path / "taken"
    if content == "file":
        out.write_text("mine")
        assert "is a file" in refused(out=out)
        return
    out.mkdir()
    (out / ("selection.json" if content == "damaged" else "mine.txt")).write_text("{}")
    words = "is not of the format kd3-selection" if content == "damaged" else "is not empty and holds no selection"
    assert words in refused(out=out)


@pytest.mark.parametrize("value", [[0.9], {"red": 0.9}, "0.9", None])
def test_a_selection_whose_record_holds_another_kind_of_value(refused, tmp_path, value):
    out = tmp_path / "taken"
    out.mkdir()
    record = {"format": "kd3-selection", "version": 1, "settings": {"teacher_weight": 1.0, "threshold": value}}
    (out / "selection.json").write_text(json.dumps(record))
    assert "holds a selection made with another threshold (" in refused(out=out)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_that_cannot_be_written(refused, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "cannot be written" in refused(out=tmp_path / "locked" / "out")


def test_a_place_below_a_file(refused, tmp_path):
    (tmp_path / "plain").write_text("x")
    assert "cannot be" in refused(out=tmp_path / "plain" / "out")


def test_images_of_another_size(tmp_path):
    with pytest.raises(kd3.KD3Error, match="images of 12 pixels but the teacher takes 16"):
        kd3.select(colour_teacher(), pool_of(colours(9, size=12)), tmp_path / "out", **CPU)
    with pytest.raises(kd3.KD3Error, match="takes images of 24 pixels but the pool has them of 16"):
        kd3.select(colour_teacher(), pool_of(colours(9)), tmp_path / "out", student=colour_student(size=24), **CPU)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("classes", "words"),
    [(["red", "blue", "green/ish"], "calls class 1 'blue' but the teacher 'green"), (["a"] * 4, "knows 4 classes")],
)
def test_a_student_of_other_classes(tmp_path, classes, words):
    with pytest.raises(kd3.KD3Error, match=words):
        kd3.select(
            colour_teacher(), pool_of(colours(9)), tmp_path / "out", student=colour_student(classes=classes), **CPU
        )
    assert not list(tmp_path.iterdir())


def test_what_goes_wrong_late_leaves_nothing(tmp_path, monkeypatch):
    from kd3.commands import select

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(select, "write_grids", full)
    with pytest.raises(kd3.KD3Error, match="cannot be written: No space left on device"):
        kd3.select(colour_teacher(), pool_of(colours(9)), tmp_path / "new" / "out", **CPU)
    assert not list(tmp_path.iterdir())


def test_logits_that_are_not_finite_leave_nothing(tmp_path):
    broken = colour_student(shift=(float("nan"), 0.0, 0.0))
    with pytest.raises(kd3.KD3Error, match="not finite"):
        kd3.select(colour_teacher(), pool_of(colours(9)), tmp_path / "out", student=broken, **CPU)
    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys
from kd3.cli import main
from kd3.commands import select
real = select.write_grids
def killed(*a, **k):
    real(*a, **k)
    os.kill(os.getpid(), signal.SIGKILL)
select.write_grids = killed
main(sys.argv[1:])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL")
def test_a_kill_leaves_no_output_folder_and_the_next_run_clears_up(teacher_file, pool_folder, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["select", "--teacher", teacher_file, "--pool", pool_folder, "--out", out, "--device", "cpu"]
    words = [*map(str, words), "--images-per-grid", "4"]
    done = subprocess.run([sys.executable, "-c", KILLED, *words], timeout=200)
    assert done.returncode == -signal.SIGKILL
    assert not out.exists()
    assert [path.name for path in tmp_path.iterdir()] == [".out.unfinished"]
    (tmp_path / ".out.unfinished" / "leftover").write_text("x")
    assert main(words) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert sorted(path.name for path in out.iterdir()) == ["grids", "kept.jsonl", "selection.json", "selection.parquet"]
    assert main([*words, "--json"]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed[printed.index("{") :])["totals"]["images"] == 120


def test_an_empty_folder_may_be_the_output(tmp_path):
    (tmp_path / "out").mkdir()
    found = kd3.select(colour_teacher(), pool_of(colours(9)), tmp_path / "out", **CPU)
    assert (found.folder / "kept.jsonl").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_at_once_in_one_place(tmp_path):
    from kd3.runtime.files import whole_folder

    out = tmp_path / "out"
    with whole_folder(out, what="selection out") as folder:
        (folder / "mine").write_text("x")
        with pytest.raises(kd3.KD3Error, match="another process is at work on selection"):
            kd3.select(colour_teacher(), pool_of(colours(9)), out, **CPU)
    assert [path.name for path in out.iterdir()] == ["mine"]
