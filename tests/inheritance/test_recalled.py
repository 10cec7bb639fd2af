"""Recalled images: the objective is what it says, descent lowers it, and nothing about them is random."""

import math

import pytest
import torch
from torch import nn

import kd3
from kd3.inheritance.recalled import SMALLEST_BATCH, in_batches, recall_images, statistics_gap
from kd3.models.batch_norms import counted, mean_distance, remembered, set_statistics
from kd3.runtime.compute import resolve

CPU = resolve("cpu", "32")


class Net(nn.Module):
    """Two batch norms, and in the second a channel that never varies."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(6), nn.BatchNorm2d(4)])
        self.linear = nn.Linear(4, 3)
        self.second.weight.data[1] = 0

    def forward(self, images):
        hidden = torch.relu(self.norms[0](self.first(images)))
        return self.linear(torch.relu(self.norms[1](self.second(hidden))).mean((2, 3)))


def images_like(seed, *, count=24, level=128, spread=30):
    draw = torch.Generator().manual_seed(seed)
    return (level + spread * torch.randn(count, 3, 12, 12, generator=draw)).clamp(0, 255).to(torch.uint8)


def teacher_of(images):
    """A teacher whose batch norms remember these images."""
    teacher = kd3.Teacher(Net(), mean=[0.5] * 3, std=[0.25] * 3, input_size=12)
    for _ in range(2):  # the second layer's input changes with what the first normalises by
        seen = own_statistics(teacher.module, teacher.normalise(images))
        set_statistics(teacher.module, seen)
    return teacher


def own_statistics(network, images):
    """What enters each batch norm in evaluation, with the variance that divides by n."""
    seen = {}

    def note(name):
        def hook(_, inputs):
            places = inputs[0].double().transpose(0, 1).flatten(1)
            seen[name] = (places.mean(1).float(), places.var(1, unbiased=False).float())

        return hook

    from kd3.models.batch_norms import LayerStatistics, remembering_norms

    handles = [norm.register_forward_pre_hook(note(name)) for name, norm in remembering_norms(network).items()]
    with torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()
    return {name: LayerStatistics(*pair) for name, pair in seen.items()}


def test_the_objective_is_zero_where_the_statistics_are_the_remembered_ones():
    images = images_like(0)
    teacher = teacher_of(images)
    with torch.no_grad():
        assert float(statistics_gap(teacher.module, teacher.normalise(images))) == pytest.approx(0, abs=1e-6)
        assert float(statistics_gap(teacher.module, teacher.normalise(images_like(1, level=60)))) > 0.1


def test_the_objective_is_the_written_one():
    teacher = teacher_of(images_like(0))
    images = teacher.normalise(images_like(1, level=90, spread=50))
    parts = []
    for name, (mean, variance) in own_statistics(teacher.module, images).items():
        mu, s = remembered(teacher.module)[name]
        floor = 1e-5 + 1e-3 * s.mean()  # as the docs say, lest constant channels rule
        parts.append(
            ((mean - mu) ** 2 / (s + floor)).mean()
            + 0.25 * (((variance + floor).log() - (s + floor).log()) ** 2).mean()
        )
    with torch.no_grad():
        assert float(statistics_gap(teacher.module, images)) == pytest.approx(float(sum(parts) / 2), rel=1e-4)


def test_recalling_brings_the_statistics_back_and_leaves_the_teacher_alone():
    teacher = teacher_of(images_like(0))
    crawl = images_like(1, level=90, spread=60)
    state = {name: value.clone() for name, value in teacher.state_dict().items()}
    found = recall_images(teacher, crawl, CPU)
    assert found.after < found.before / 5
    assert found.images.shape == (24, 3, 12, 12)
    assert found.images.dtype == torch.float32
    lost = remembered(teacher.module)
    before = mean_distance(counted(teacher.module, [teacher.normalise(crawl)]), lost)
    assert mean_distance(counted(teacher.module, [found.images]), lost) < before
    assert all(torch.equal(value, state[name]) for name, value in teacher.state_dict().items())
    assert not any(module._forward_pre_hooks for module in teacher.module.modules())


def test_more_steps_come_closer():
    teacher, crawl = teacher_of(images_like(0)), images_like(1, level=60)
    gaps = [recall_images(teacher, crawl, CPU, steps=steps).after for steps in (1, 10, 60)]
    assert gaps == sorted(gaps, reverse=True)


def test_the_same_images_are_recalled_whatever_was_drawn_before():
    teacher, crawl = teacher_of(images_like(0)), images_like(1, level=60)
    first = recall_images(teacher, crawl, CPU, steps=5)
    torch.rand(7)
    assert torch.equal(first.images, recall_images(teacher, crawl, CPU, steps=5).images)


@pytest.mark.parametrize(("count", "side"), [(200, 32), (1000, 32), (100, 224), (17, 224), (2, 8)])
def test_batches_are_bounded_and_nearly_equal(count, side):
    sizes = [len(part) for part in in_batches(torch.empty(count, 1, side, side))]
    assert sum(sizes) == count
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) * side**2 <= max(200 * 32**2, SMALLEST_BATCH * side**2)
    assert min(sizes) >= min(count, SMALLEST_BATCH // 2)


def test_several_batches_give_finite_results(monkeypatch):
    monkeypatch.setattr("kd3.inheritance.recalled.BATCH_PIXELS", 1)
    teacher, crawl = teacher_of(images_like(0)), images_like(1, count=40, level=60)
    found = recall_images(teacher, crawl, CPU, steps=8)
    assert torch.isfinite(found.images).all()
    assert 0 < found.after < found.before < math.inf


def test_a_teacher_without_batch_norms_is_refused():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, images):
            return self.linear(images.mean((2, 3)))

    teacher = kd3.Teacher(Plain(), mean=[0.5] * 3, std=[0.25] * 3, input_size=12)
    with pytest.raises(kd3.KD3Error, match="keeps no batch-norm statistics"):
        recall_images(teacher, images_like(0), CPU)


def test_what_is_not_finite_is_reported():
    teacher = teacher_of(images_like(0))
    teacher.module.norms[1].running_mean[0] = math.inf
    with pytest.raises(kd3.KD3Error, match="not finite"):
        recall_images(teacher, images_like(1), CPU, steps=2)
