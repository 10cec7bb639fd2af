"""A full disk gives one sentence, and leaves complete files unchanged."""

import errno
import gc
import shutil
import subprocess

import pytest
import torch

import kd3
from kd3.cli import main
from kd3.runtime.errors import KD3Error
from kd3.runtime.files import full_disk_as_error, is_full, replacing
from kd3.training.budget import load_checkpoint


@pytest.fixture
def small_disk(tmp_path):
    """A filesystem of its own, with a function that sets its size in kilobytes."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(*options):
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(place)]
        return subprocess.run(command, capture_output=True).returncode == 0

    if not shutil.which("mount") or not mount("size=4096k"):
        pytest.skip("a filesystem of its own cannot be mounted here")
    yield place, lambda kilobytes: mount("remount", f"size={kilobytes}k")
    gc.collect()  # a cycle may still hold a mapped file
    subprocess.run(["umount", "--lazy", str(place)], check=True)  # a process that a test began may end a little later


def arguments(teacher_file, pool_folder, out):
    flags = ["--teacher", teacher_file, "--student", "kd3:resnet8", "--pool", pool_folder, "--out", out]
    flags += ["--images", 640, "--batch-size", 16, "--holdout", 12, "--precision", 32, "--device", "cpu"]
    return ["distill", *(str(flag) for flag in [*flags, "--track", "none", "--checkpoint-steps", 4])]


def test_a_run_on_a_full_disk_goes_on_from_its_checkpoint_once_there_is_room(
    small_disk, teacher_file, pool_folder, tmp_path, capsys
):
    disk, resize = small_disk
    assert main(arguments(teacher_file, pool_folder, tmp_path / "whole")) == 0
    for kilobytes in (100, 700, 1400):  # no room for the first student, the first checkpoint, the second one
        run = disk / "run"
        shutil.rmtree(run, ignore_errors=True)
        resize(kilobytes)
        capsys.readouterr()
        assert main(arguments(teacher_file, pool_folder, run)) == 2
        errors = capsys.readouterr().err
        assert f"kd3: no space is left on the disk of {run}" in errors
        assert f"continue with: kd3 distill --resume --out {run}" in errors
        assert "Traceback" not in errors
        assert not list(run.rglob("*.tmp"))
        if (run / "checkpoints" / "last.pt").exists():
            load_checkpoint(run / "checkpoints" / "last.pt")
    resize(8192)
    assert main(["distill", "--resume", "--out", str(run)]) == 0
    one, other = (kd3.load_student(place).state_dict() for place in (tmp_path / "whole", run))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_ingest_on_a_full_disk_goes_on(small_disk, crawl, tmp_path, capsys):
    disk, resize = small_disk
    resize(300)
    ingest = ["ingest", str(crawl), "--out", str(disk / "pool"), "--image-size", "64", "--workers", "0"]
    assert main(ingest) == 2
    assert "the same command goes on from here" in capsys.readouterr().err
    resize(8192)
    assert main(ingest) == 0
    whole = kd3.ingest(crawl, tmp_path / "pool", image_size=64, workers=0)
    assert kd3.ImagePool.open(disk / "pool").content_hash == whole.content_hash
    assert kd3.ImagePool.open(disk / "pool").verify() == []


def test_an_export_on_a_full_disk_leaves_nothing(small_disk, teacher_file, pool_folder, tmp_path, capsys):
    disk, resize = small_disk
    assert main(arguments(teacher_file, pool_folder, tmp_path / "run")) == 0
    resize(100)
    for name in ("safetensors", "torchscript", "torch-export", "onnx"):
        export = ["export", str(tmp_path / "run"), "--out", str(disk / "shipped"), "--format", name]
        assert main(export) == 2
        assert "cannot be written: No space left on device" in capsys.readouterr().err
        assert list(disk.iterdir()) == []


def test_what_a_library_says_of_a_full_disk_is_understood(tmp_path):
    assert is_full(OSError(errno.ENOSPC, "full"), tmp_path)
    assert is_full(ValueError("I/O error: No space left on device (os error 28)"), tmp_path)
    assert not is_full(OSError(errno.EACCES, "forbidden"), tmp_path)
    assert not is_full(RuntimeError("shapes differ"), tmp_path)
    told = pytest.raises(KD3Error, match=r"no space is left on the disk of .*; try later")
    with told, full_disk_as_error(tmp_path, kept="try later"):
        raise OSError(errno.ENOSPC, "full")
    with pytest.raises(RuntimeError), full_disk_as_error(tmp_path, kept=""):
        raise RuntimeError("shapes differ")
    with pytest.raises(OSError, match="No space left on device"), replacing(tmp_path / "file"):
        raise ValueError("database or disk is full")
    assert list(tmp_path.iterdir()) == []
