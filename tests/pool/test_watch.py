"""Changed pixels are detected by all work on a pool."""

import json
import shutil

import numpy as np
import pytest

import kd3
from in_process import here
from kd3.evaluation.compatibility import check_several_classes, one_class
from kd3.pool import checks as watching
from kd3.pool.checks import watched
from kd3.pool.ingestion import ingest_with
from kd3.pool.pool_files import PackedImages, sha256_of
from kd3.runtime.compute import resolve


@pytest.fixture
def damaged(pool_folder, tmp_path):
    """A copy of the pool of which one byte, far from the first, is another."""
    folder = tmp_path / "damaged"
    shutil.copytree(pool_folder, folder)
    part = folder / "images-00000.bin"
    with part.open("r+b") as handle:
        handle.seek(part.stat().st_size // 2)
        byte = handle.read(1)
        handle.seek(-1, 1)
        handle.write(bytes([byte[0] ^ 1]))
    return folder


def digests(folder):
    files = json.loads((folder / "manifest.json").read_text())["files"]
    return {name: digest for name, digest in files.items() if name.endswith(".bin")}


def test_every_pool_has_the_digests_of_its_parts(crawl, pool_folder, tmp_path):
    from kd3.config.pool_commands import IngestConfig

    config = IngestConfig(sources=[str(crawl)], out=str(tmp_path / "many"), image_size=16, workers=0)
    ingest_with(config, part_bytes=3 * 16 * 16 * 50)
    kd3.pool.derive_pool(pool_folder, tmp_path / "half", share=0.5)
    for name in ("many", "half"):
        found = digests(tmp_path / name)
        parts = sorted((tmp_path / name).glob("images-*.bin"))
        assert len(parts) == {"many": 3, "half": 1}[name]
        assert found == {part.name: sha256_of(part) for part in parts}
        assert kd3.ImagePool.open(tmp_path / name).verify() == []


def test_a_part_that_was_gone_on_with_has_the_digest_of_the_whole(tmp_path):
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (9, 3, 8, 8), dtype=np.uint8)
    for done in range(8):
        folder = tmp_path / str(done)
        folder.mkdir()
        first = PackedImages(folder, 8, images_per_part=4)
        for image in images[: done + 1]:  # one more than was recorded
            first.append(image)
        first.close()
        packed = PackedImages(folder, 8, images_per_part=4, images=done)
        for image in images[done:]:
            packed.append(image)
        packed.sync()
        found = packed.digests()
        packed.close()
        assert found == {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
        assert len(found) == 3


@pytest.mark.parametrize("command", ["distill", "select", "shift", "inspect", "sample", "reference", "deployment"])
def test_commands_that_read_damaged_pixels_say_so(command, damaged, pool_folder, teacher_file, tmp_path):
    out = tmp_path / "out"
    small = ("--student", "kd3:resnet8", "--images", 32, "--batch-size", 16, "--holdout", 12, "--track", "none")
    sound = ("--teacher", teacher_file, "--pool", pool_folder, "--device", "cpu")
    words = {
        "reference": ("shift", *sound, "--reference", damaged),
        "deployment": ("distill", *sound, "--out", out, *small, "--deployment", damaged),
        "distill": ("distill", "--teacher", teacher_file, "--pool", damaged, "--out", out, *small, "--device", "cpu"),
        "select": ("select", "--teacher", teacher_file, "--pool", damaged, "--out", out, "--device", "cpu"),
        "shift": ("shift", "--teacher", teacher_file, "--pool", damaged, "--device", "cpu"),
        "inspect": ("inspect", "--teacher", teacher_file, "--pool", damaged),
        "sample": ("pool", "sample", damaged, "--share", 0.5, "--out", out),
    }[command]
    done = here(*words)
    assert done.returncode == 2, done.stderr
    assert f"pool {damaged} is damaged: images-00000.bin is not what was written" in done.stderr
    assert f"kd3 pool verify {damaged} names the images" in done.stderr
    assert not (out / "manifest.json").exists()
    assert not (out / "summary.json").exists()
    assert command != "select" or not out.exists()


@pytest.mark.parametrize("more", [{}, {"fixed_views": 2, "flip": False}], ids=["logits", "features"])
def test_a_mended_pool_is_not_remembered_as_it_was(more, pool_folder, teacher_file, tmp_path, monkeypatch):
    pool, run, other = (tmp_path / name for name in ("pool", "run", "other"))
    shutil.copytree(pool_folder, pool, ignore=shutil.ignore_patterns("teacher_*"))
    part = pool / "images-00000.bin"
    sound = part.read_bytes()
    small = {"images": 64, "batch_size": 16, "holdout": 12, "device": "cpu", "track": "none", "recall": "off"}
    small |= {"teacher_statistics": "auto", "checkpoint_steps": 1, **more}
    digest = watching._digest

    def found_late(path, stop):
        while not (run / "checkpoints" / "last.pt").exists() and not stop.wait(0.01):
            pass
        return digest(path, stop)

    # Not the first images, by which stored outputs are compared with the teacher's.
    part.write_bytes(sound[: 3 * 16 * 16 * 100] + bytes(3 * 16 * 16 * 20))
    with monkeypatch.context() as patch:
        patch.setattr(watching, "_digest", found_late)
        with pytest.raises(kd3.KD3Error, match="is damaged: images-00000"):
            kd3.distill(teacher_file, "kd3:resnet8", pool, run, **small)
    part.write_bytes(sound)
    kd3.distill(teacher_file, "kd3:resnet8", pool, run, resume=True, **small)
    kd3.distill(teacher_file, "kd3:resnet8", pool_folder, other, **small)
    weights = [(folder / "student" / "model.safetensors").read_bytes() for folder in (run, other)]
    assert weights[0] == weights[1]


def test_evaluate_does_not_clear_test_images_by_a_damaged_pool(damaged, teacher_file, labelled, tmp_path):
    small = {"images": 32, "batch_size": 16, "holdout": 12, "device": "cpu", "track": "none"}
    part = damaged / "images-00000.bin"
    changed = bytearray(part.read_bytes())
    changed[len(changed) // 2] ^= 1
    part.write_bytes(changed)  # sound again, while the student learns
    kd3.distill(teacher_file, "kd3:resnet8", damaged, tmp_path / "run", **small)
    part.write_bytes(bytes(len(changed)))
    done = here("evaluate", tmp_path / "run", "--data", labelled, "--json")
    assert done.returncode == 0, done.stderr
    assert "it is unknown whether the student trained on these images: pool" in done.stderr
    assert "is damaged: images-00000.bin" in done.stderr
    assert json.loads(done.stdout)["leak"] is None
    refused = here("report", tmp_path / "run", "--data", labelled, "--images", 0, "--latency", "false")
    assert refused.returncode == 2
    assert "is damaged: images-00000.bin" in refused.stderr


def test_a_sound_pool_and_one_without_digests_are_silent(pool_folder, damaged, capsys):
    with watched(kd3.ImagePool.open(pool_folder)) as watch:
        watch.finish(None)
    manifest = json.loads((damaged / "manifest.json").read_text())
    manifest["files"] = {name: digest for name, digest in manifest["files"].items() if not name.endswith(".bin")}
    (damaged / "manifest.json").write_text(json.dumps(manifest))
    with watched(kd3.ImagePool.open(damaged)):
        pass
    with watched(kd3.ImagePool.from_array(np.zeros((1, 3, 8, 8), np.uint8))):
        pass
    assert capsys.readouterr().err == ""


def test_work_that_ends_early_does_not_wait_and_an_error_of_its_own_is_reported(damaged, monkeypatch):
    with pytest.raises(ZeroDivisionError), watched(kd3.ImagePool.open(damaged)):
        raise ZeroDivisionError
    monkeypatch.setattr(watching, "PATIENCE", 0.0)
    monkeypatch.setattr(watching, "_digest", lambda path, stop: stop.wait(60) and "")
    with watched(kd3.ImagePool.open(damaged)):
        pass


def test_lost_pixels_are_not_taken_for_images_of_one_class(damaged, teacher_file):
    part = damaged / "images-00000.bin"
    part.write_bytes(bytes(part.stat().st_size))
    teacher, pool, compute = kd3.load_teacher(teacher_file), kd3.ImagePool.open(damaged), resolve("cpu", "32")
    assert one_class(teacher, pool, compute, np.arange(len(pool))) is not None
    with pytest.raises(kd3.KD3Error, match="is damaged: images-00000"):
        check_several_classes(teacher, pool, compute)
    grey = kd3.ImagePool.from_array(np.full((20, 3, 16, 16), 7, np.uint8))
    with pytest.raises(kd3.KD3Error, match=r"all 20 images of the pool .* for one class"):
        check_several_classes(teacher, grey, compute)
