"""Batch-norm statistics and opinions: streamed as in one batch, and equal to torch's own."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kd3.evaluation.shift_statistics import BatchNormWatch, OpinionWatch, kept_by_selection, summed_up
from kd3.models.batch_norms import moments_of


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.floats(-1e4, 1e4))
def test_moments_in_a_stream_are_those_of_one_batch(seed, step, offset):
    values = torch.randn(64, 3, 2, 2, generator=torch.Generator().manual_seed(seed)) + offset
    merged = None
    for part in values.split(step):
        merged = moments_of(part) if merged is None else merged.merge(moments_of(part))
    rows = values.double().movedim(1, -1).reshape(-1, 3)
    assert merged.count == len(rows)
    assert torch.allclose(merged.mean, rows.mean(0), rtol=1e-6, atol=1e-5)
    assert torch.allclose(merged.variance, rows.var(0), rtol=2e-3)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=None), nn.ReLU(), nn.Flatten(),
        nn.Linear(4 * 36, 5), nn.BatchNorm1d(5, momentum=None), nn.Linear(5, 2),
    )  # fmt: skip


def watched(model, *batches):
    watch = BatchNormWatch(model)
    with watch.watching(), torch.no_grad():
        for images in batches:
            model.eval()(images)
    return watch.layers()


def test_statistics_of_the_training_data_itself_are_no_distance_away():
    images = torch.randn(200, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    model = network()
    # The first layer's statistics first, since the second's input in evaluation depends on them.
    model.train()(images)
    model[5].reset_running_stats()
    model.eval()
    model[5].train()
    model(images)
    layers = watched(model, *images.split(33))
    assert [layer.layer for layer in layers] == ["1", "5"]
    assert [layer.channels for layer in layers] == [4, 5]
    assert all(layer.distance < 1e-8 for layer in layers)
    far = watched(model, images + 1)
    assert far[0].distance > 0.1
    assert far[0].mean_part <= far[0].distance


def test_a_mean_off_by_one_deviation_is_a_distance_of_one():
    norm = nn.BatchNorm1d(2, eps=0)
    norm.running_mean, norm.running_var = torch.tensor([1.0, 2.0]), torch.tensor([4.0, 9.0])
    values = torch.randn(100, 2, generator=torch.Generator().manual_seed(0)).double()
    values = (values - values.mean(0)) / values.std(0)
    values = values * torch.tensor([2.0, 3.0]) + torch.tensor([3.0, 5.0])
    (layer,) = watched(norm, values.float())
    assert layer.distance == pytest.approx(1, rel=1e-5)
    assert layer.mean_part == pytest.approx(1, rel=1e-5)


def test_a_network_without_running_statistics_has_no_layers():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten())
    assert summed_up(watched(model, torch.randn(4, 3, 8, 8))) is None


@pytest.mark.parametrize("kind", [nn.SyncBatchNorm, nn.BatchNorm3d])
def test_norms_of_every_kind_are_watched(kind):
    norm = kind(3).eval()
    watch = BatchNormWatch(nn.Sequential(norm))
    with watch.watching():
        norm(2 + torch.randn(4, 3, 5, 5, 5))
    (layer,) = watch.layers()
    assert layer.channels == 3
    assert layer.mean_part == pytest.approx(4, rel=0.2)


def test_hooks_are_gone_afterwards():
    model = network()
    watched(model, torch.randn(4, 3, 8, 8))
    assert not any(module._forward_pre_hooks for module in model.modules())


def opinions_of(logits, step=7):
    watch = OpinionWatch(["a", "b", "c", "d"])
    for part in logits.split(step):
        watch.add(part)
    return watch


def test_opinions_of_even_and_of_certain_logits():
    even = opinions_of(torch.zeros(10, 4)).opinions()
    assert even.mean_entropy == pytest.approx(math.log(4))
    assert even.entropy_share == pytest.approx(1)
    assert even.mean_confidence == pytest.approx(0.25)
    assert even.effective_classes == pytest.approx(1)  # the first class wins every tie
    sure = opinions_of(50 * torch.eye(4).repeat(5, 1)).opinions()
    assert sure.confident == [5, 5, 5, 5]
    assert sure.confident_share == 1
    assert sure.mean_entropy == pytest.approx(0, abs=1e-6)
    assert sure.effective_classes == pytest.approx(4)


def test_opinions_in_a_stream_are_those_of_one_batch():
    logits = 4 * torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    assert opinions_of(logits, 9).opinions() == opinions_of(logits, 100).opinions()


def test_what_the_selection_keeps_and_whom_it_rescues():
    logits = torch.zeros(40, 4)
    logits[:30, 0] = torch.linspace(1, 20, 30)
    logits[30:, 1] = 3.0
    asked = []
    said = opinions_of(logits).predictions()
    kept = kept_by_selection(said, ["a", "b", "c", "d"], lambda: asked.append(1) or [logits])
    assert asked == [1]
    assert kept.rescued == ["c", "d"]
    assert 0 < kept.share < 1
    assert kept.per_class[1] == 10


def test_how_sure_a_teacher_is_of_each_class():
    sure = torch.tensor([0.6, 0.94, 0.951, 0.97, 0.7])
    rows = torch.stack([sure, 1 - sure, torch.zeros(5), torch.zeros(5)], dim=1).clamp_min(1e-30).log()
    rows[3] = rows[3].roll(2)
    found = opinions_of(rows).opinions()
    assert (found.predicted, found.confident) == ([4, 0, 1, 0], [1, 0, 1, 0])
    assert found.confident_share == pytest.approx(0.4)


def test_quantiles_of_the_confidence_are_those_of_the_images():
    sure = torch.linspace(0.5, 0.9, 21)
    rows = torch.stack([sure, 1 - sure], dim=1).log()
    watch = OpinionWatch(["a", "b"])
    watch.add(rows[torch.randperm(21, generator=torch.Generator().manual_seed(0))])
    found = watch.opinions().confidence_quantiles
    places = {"0.05": 1, "0.25": 5, "0.5": 10, "0.75": 15, "0.95": 19}
    assert found == pytest.approx({name: float(sure[place]) for name, place in places.items()}, abs=1e-6)
