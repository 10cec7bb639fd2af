"""Predictions on the pool: first from both networks, later mostly from training steps."""

import numpy as np
import pytest
import torch

import kd3
from kd3.models.arch import build_arch
from kd3.models.student import own_head
from kd3.runtime.compute import resolve
from kd3.scoring.batches import PoolBatches
from kd3.scoring.scan import LatestPredictions, PoolScan, score
from kd3.selection import Predictions

COMPUTE = resolve("cpu", "32")
COUNT = 90


@pytest.fixture
def scanned(monkeypatch):
    """The pool positions that the student was run on."""
    seen = []
    from kd3.scoring import scan as pool_scan

    real = pool_scan.scored
    monkeypatch.setattr(pool_scan, "scored", lambda *a, **k: seen.append(a[2].tolist()) or real(*a, **k))
    return seen


@pytest.fixture
def scan(teacher_file, pool_folder):
    teacher = kd3.load_teacher(teacher_file)
    torch.manual_seed(0)
    student = own_head(build_arch("kd3:resnet8", num_classes=3), teacher.signature(), name="resnet8")
    batches = PoolBatches(kd3.ImagePool.open(pool_folder), COMPUTE)
    everything = np.arange(len(batches.pool))
    logits = score(teacher, batches, everything, teacher.normalise, COMPUTE).numpy()
    latest = LatestPredictions(COUNT, 3, COMPUTE.device)
    return PoolScan(student, batches, everything[-COUNT:], lambda: logits, COMPUTE, latest)


def blended(scan, weight):
    student = score(scan.student, scan.batches, scan.positions, scan.student.normalise, COMPUTE)
    teacher = torch.cat(list(scan.teacher_logits()))
    return (weight * teacher + (1 - weight) * student).softmax(1).max(1)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_predictions_are_those_of_the_blend(scan, weight, scanned):
    expected = blended(scan, weight)
    scanned.clear()
    found = scan.predictions(weight)
    torch.testing.assert_close(found.confidence, expected.values, rtol=1e-4, atol=1e-5)
    assert found.label.tolist() == expected.indices.tolist()
    assert bool(scanned) == (weight < 1)


def test_the_teacher_is_not_asked_where_it_does_not_count(scan):
    scan._teacher_logits = None
    assert scan.predictions(0.0).images == COUNT


def test_the_first_opinions_are_fresh(scan, scanned):
    found = scan.latest_predictions(0.3, refreshed=0.0)
    assert scanned == [scan.positions.tolist()]
    torch.testing.assert_close(found.confidence, blended(scan, 0.3).values, rtol=1e-4, atol=1e-5)


def test_later_ones_are_the_steps_and_a_part_of_the_others_anew(scan, scanned):
    scan.latest_predictions(0.3, refreshed=0.25)
    scan.latest.round = 1
    trained = torch.arange(0, COUNT, 3)  # a third of them
    said = Predictions(torch.full((len(trained),), 0.5), torch.full((len(trained),), 2, dtype=torch.int32), 3)
    scan.latest.note(trained, said)
    found = scan.latest_predictions(0.3, refreshed=0.25)
    assert (found.confidence[trained] == 0.5).all()
    assert (found.label[trained] == 2).all()
    first = scanned[-1]
    assert len(first) == COUNT * 2 // 3 // 4
    assert not set(first) & set(scan.positions[trained.numpy()].tolist())

    scan.latest.round = 2
    scan.latest.note(trained, said)
    scan.latest_predictions(0.3, refreshed=0.25)
    assert not set(scanned[-1]) & set(first)  # those seen longest ago


def test_every_image_is_looked_at_again_in_the_end():
    latest = LatestPredictions(10, 2, torch.device("cpu"))
    assert latest.is_empty
    assert latest.oldest(1.0).tolist() == list(range(10))
    latest.note(torch.arange(10), Predictions(torch.rand(10), torch.zeros(10, dtype=torch.int32), 2))
    assert not latest.is_empty
    seen = set()
    for latest.round in range(1, 5):
        index = latest.oldest(0.25)
        assert len(index) == 3
        latest.note(index, Predictions(torch.rand(len(index)), torch.zeros(len(index), dtype=torch.int32), 2))
        seen |= set(index.tolist())
    assert seen == set(range(10))


def test_what_a_checkpoint_keeps_brings_everything_back():
    latest, other = (LatestPredictions(4, 3, torch.device("cpu")) for _ in range(2))
    latest.round = 5
    latest.note(torch.tensor([2, 0]), Predictions(torch.tensor([0.5, 0.75]), torch.tensor([1, 2]), 3))
    other.load(latest.state())
    assert other.confidence.tolist() == [0.75, 0.0, 0.5, 0.0]
    assert other.label.tolist() == [2, 0, 1, 0]
    assert other.seen.tolist() == [5, -1, 5, -1]


def test_scoring_gives_each_module_its_own_mode_back(scan):
    scan.student.train()
    frozen = next(part for part in scan.student.modules() if isinstance(part, torch.nn.BatchNorm2d)).eval()
    score(scan.student, scan.batches, scan.positions[:4], scan.student.normalise, COMPUTE)
    assert scan.student.training
    assert not frozen.training
