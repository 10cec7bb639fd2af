"""`--share`: only the part of the pool that a run trains on, and its held-out images, are read and scored."""

import shutil

import numpy as np
import pytest

import kd3
from kd3.models.teacher import Teacher
from kd3.pool import ImagePool
from kd3.scoring.batches import split_pool

SMALL = {"images": 64, "batch_size": 8, "holdout": 12, "device": "cpu", "precision": "32", "recall": 16}


@pytest.fixture
def pool(pool_folder, tmp_path):
    """A pool without stored outputs of teachers: of a whole pool's the first few are computed again."""
    stored = shutil.ignore_patterns("teacher_logits", "teacher_features")
    return shutil.copytree(pool_folder, tmp_path / "pool", ignore=stored)


@pytest.fixture
def read(monkeypatch):
    """Positions of the pool that are read."""
    places, before = set(), ImagePool.read

    def noted(pool, positions):
        places.update(np.arange(len(pool))[positions].ravel().tolist())
        return before(pool, positions)

    monkeypatch.setattr(ImagePool, "read", noted)
    return places


@pytest.mark.parametrize(
    "settings",
    [
        {"kd3": {"selection": "dynamic"}},
        {"kd3": {"selection": "typical"}, "fixed_views": 2},
        {"method": "kd"},
        {"teacher_statistics": "lost", "recall": "off", "kd3": {"selection": "dynamic"}},
    ],
)
def test_a_run_on_a_share_reads_no_other_images(settings, read, teacher_file, pool, tmp_path):
    split = split_pool(ImagePool.open(pool), 12, share=0.25)
    kd3.distill(teacher_file, "kd3:resnet8", pool, tmp_path / "run", share=0.25, quiet=True, **{**SMALL, **settings})
    shapes = {0, 1}  # fixed views look at the first two to know the shape of features
    assert read - shapes == {*split.train.tolist(), *split.holdout.tolist()} - shapes


def test_the_teacher_scores_the_share_once(read, teacher_file, pool, tmp_path, monkeypatch):
    seen, forward = [], Teacher.forward

    def counted(teacher, images):
        seen.append(len(images))
        return forward(teacher, images)

    monkeypatch.setattr(Teacher, "forward", counted)
    settings = {**SMALL, "teacher_statistics": "lost", "recall": "off", "kd3": {"selection": "dynamic"}, "quiet": True}

    def images_seen(out, share):
        seen.clear()
        kd3.distill(teacher_file, "kd3:resnet8", pool, tmp_path / out, share=share, **settings)
        return sum(seen)

    part, again = images_seen("part", 0.25), images_seen("again", 0.25)
    whole = images_seen("whole", 1.0)
    assert whole - part >= 60, "most of the pool is not scored"
    assert again <= part, "the share's scores are kept"
