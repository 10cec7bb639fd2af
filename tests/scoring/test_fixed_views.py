"""Fixed views and the teacher's features of them: right, computed once, never stale."""

import errno
import os
import shutil

import numpy as np
import pytest
import torch

import kd3
from kd3.config.training import TrainSettings
from kd3.runtime.compute import resolve
from kd3.scoring.views import FixedViews, TeacherFeatures, fixed_views

COMPUTE = resolve("cpu", "32")


@pytest.fixture
def pool(pool_folder, tmp_path):
    left_out = shutil.ignore_patterns("teacher_*")
    return kd3.ImagePool.open(shutil.copytree(pool_folder, tmp_path / "pool", ignore=left_out))


@pytest.fixture
def teacher(teacher_file):
    return kd3.load_teacher(teacher_file)


@pytest.fixture
def views(pool):
    return FixedViews(len(pool), 2, side=16, flip=True)


def normalised(teacher, pool, views, rows):
    return teacher.normalise(views.of(torch.from_numpy(pool.read((rows // 2).numpy())), rows))


@pytest.fixture
def runs(monkeypatch):
    """How many images the teacher was run on, each time."""
    seen = []
    real = kd3.Teacher.outputs
    monkeypatch.setattr(kd3.Teacher, "outputs", lambda self, images: seen.append(len(images)) or real(self, images))
    return seen


def test_an_image_has_so_many_views_and_no_more(pool, views):
    images = torch.from_numpy(pool.read(np.zeros(200, dtype=np.int64)))
    generator = torch.Generator().manual_seed(0)
    rows = views.choose(torch.zeros(200, dtype=torch.int64), generator)
    seen = {view.numpy().tobytes() for view in views.of(images, rows)}
    assert len(seen) == 2
    again = FixedViews(len(pool), 2, side=16, flip=True)
    assert torch.equal(again.of(images, rows), views.of(images, rows))


def test_without_flip_nothing_is_mirrored():
    views = FixedViews(50, 3, side=16, flip=False)
    ramp = (torch.arange(16, dtype=torch.uint8) * 16).expand(150, 3, 16, 16)
    seen = views.of(ramp, torch.arange(150))
    assert (seen[:, 0, 8, 12].int() > seen[:, 0, 8, 4].int()).all()


def test_the_features_are_the_teachers_and_are_computed_once(teacher, pool, views, runs):
    kept = TeacherFeatures(teacher, pool, views, COMPUTE)
    rows = torch.tensor([4, 9, 200, 31])
    images = normalised(teacher, pool, views, rows)
    expected = teacher.outputs(images)
    runs.clear()
    for _ in range(2):
        found = kept.outputs(rows, images)
        torch.testing.assert_close(found.features, expected.features, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
    assert runs == [4]
    more = torch.tensor([9, 10])
    kept.outputs(more, normalised(teacher, pool, views, more))
    assert runs == [4, 1]


def test_another_run_finds_what_is_there(teacher, pool, views, runs):
    rows = torch.arange(40)
    images = normalised(teacher, pool, views, rows)
    first = TeacherFeatures(teacher, pool, views, COMPUTE).outputs(rows, images)
    other = TeacherFeatures(teacher, pool, views, COMPUTE)
    runs.clear()
    assert torch.equal(other.outputs(rows, images).features, first.features)
    assert runs == []


def test_a_changed_teacher_or_other_views_never_get_the_old_features(teacher, pool, views, runs):
    rows = torch.arange(6)
    images = normalised(teacher, pool, views, rows)
    before = TeacherFeatures(teacher, pool, views, COMPUTE).outputs(rows, images).features
    with torch.no_grad():
        teacher.module.conv1.weight *= 1.5
    kept = TeacherFeatures(teacher, pool, views, COMPUTE)
    assert not torch.allclose(kept.outputs(rows, images).features, before)
    other = FixedViews(len(pool), 3, side=16, flip=True)
    fresh = TeacherFeatures(teacher, pool, other, COMPUTE)
    runs.clear()
    fresh.outputs(rows, images)
    assert runs == [6]


@pytest.mark.parametrize("what", ["zeros", "short"])
def test_damaged_features_are_computed_again(what, teacher, pool, views, capsys):
    rows = torch.arange(40)
    images = normalised(teacher, pool, views, rows)
    first = TeacherFeatures(teacher, pool, views, COMPUTE).outputs(rows, images).features
    file = next((pool.path / "teacher_features").glob("*.features"))
    file.write_bytes(bytes(file.stat().st_size) if what == "zeros" else b"short")
    again = TeacherFeatures(teacher, pool, views, COMPUTE)
    assert "does not match this teacher's features" in capsys.readouterr().err
    torch.testing.assert_close(again.outputs(rows, images).features, first)


def test_a_disk_without_room_costs_the_features_and_not_the_run(teacher, pool, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    views, kept = fixed_views(TrainSettings(fixed_views=2), teacher, pool, COMPUTE)
    assert kept is None
    assert views.views == 2
    assert "No space left on device; the teacher runs at every step" in capsys.readouterr().err
    assert list((pool.path / "teacher_features").iterdir()) == []


def test_they_are_off_unless_asked_for(teacher, pool):
    assert fixed_views(TrainSettings(), teacher, pool, COMPUTE) is None


def test_a_pool_in_memory_has_no_place_for_them(teacher):
    pool = kd3.ImagePool.from_array(np.zeros((30, 3, 16, 16), np.uint8))
    with pytest.raises(kd3.KD3Error, match="a pool in memory has no place"):
        fixed_views(TrainSettings(fixed_views=2), teacher, pool, COMPUTE)


def test_they_go_with_shifts_alone():
    with pytest.raises(ValueError, match="fixed_views goes with augmentation crop, not resized-crop"):
        TrainSettings(fixed_views=2, augmentation="resized-crop")


@pytest.mark.parametrize("method", ["kd3", "kd"])
def test_a_run_with_them_repeats_and_runs_the_teacher_less(method, teacher_file, pool, tmp_path, runs, monkeypatch):
    asked = []
    real = kd3.Teacher.forward
    monkeypatch.setattr(kd3.Teacher, "forward", lambda self, images: asked.append(len(images)) or real(self, images))
    options = {"images": 320, "batch_size": 16, "holdout": 12, "precision": "32", "device": "cpu", "warmup_steps": 2}
    one, two = (
        kd3.distill(teacher_file, "kd3:resnet8", pool, tmp_path / name, method=method, fixed_views=2, **options)
        for name in ("one", "two")
    )
    assert one.agreement == two.agreement
    weights = [run.student.state_dict() for run in (one, two)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    trained = [count for count in runs if count <= 16]
    assert sum(trained) < 640
