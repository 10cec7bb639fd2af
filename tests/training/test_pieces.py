"""Schedule, augmentation, seeds."""

import pytest
import torch
from torch.nn import functional as F

from kd3.config.training import TrainSettings
from kd3.scoring.batches import seed_for
from kd3.scoring.scan import divergence
from kd3.scoring.views import augment, crop_boxes, mixed_up, resampled, resized_crop, shift
from kd3.training.budget import learning_rate


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_cosine_rises_then_falls_to_nothing():
    settings = TrainSettings(lr=0.4, warmup_steps=10)
    rates = [learning_rate(step, 200, settings) for step in range(200)]
    assert rates[:10] == pytest.approx([0.04 * n for n in range(1, 11)])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert max(rates) == pytest.approx(0.4)
    assert rates[-1] < 0.001


def test_the_papers_steps_divide_by_ten_at_its_epochs():
    settings = TrainSettings(lr=0.05, schedule="step", warmup_steps=0)
    rates = {epoch: learning_rate(epoch, 240, settings) for epoch in (0, 149, 150, 179, 180, 209, 210, 239)}
    expected = {0: 5e-2, 149: 5e-2, 150: 5e-3, 179: 5e-3, 180: 5e-4, 209: 5e-4, 210: 5e-5, 239: 5e-5}
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_where_epochs_are_passes_over_a_selection_the_rate_follows_the_epochs(schedule):
    settings = TrainSettings(lr=0.05, schedule=schedule, warmup_steps=0)
    for epoch in range(240):  # of a third as many steps as there could be
        expected = learning_rate(3 * epoch, 720, settings)
        assert learning_rate(epoch, 720, settings, epoch / 240) == pytest.approx(expected)


def test_a_warm_up_never_eats_a_short_budget():
    assert learning_rate(3, 10, TrainSettings(lr=1.0, warmup_steps=50)) > 0.5


@pytest.mark.parametrize("kind", ["crop", "resized-crop", "none"])
def test_views_have_the_shape_and_layout_that_networks_want(kind):
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    views = augment(images, kind, flip=True, generator=generator())
    assert views.shape == images.shape
    assert views.dtype == torch.uint8
    assert views.is_contiguous(memory_format=torch.channels_last)


def test_a_shift_moves_by_at_most_an_eighth_and_mirrors_half():
    ramp = torch.arange(16, dtype=torch.uint8).expand(400, 3, 16, 16)
    views = shift(ramp, generator=generator())
    middle = views[:, 0, 8, 4:12].int()
    steps = middle[:, 1:] - middle[:, :-1]
    mirrored = (steps == -1).all(1)
    assert ((steps == 1).all(1) | mirrored).all()
    assert 0.4 < mirrored.float().mean() < 0.6
    left = torch.where(mirrored, middle.flip(1)[:, 0], middle[:, 0])
    assert set((left - 4).tolist()) == {-2, -1, 0, 1, 2}


@pytest.mark.parametrize("kind", ["crop", "resized-crop", "none"])
def test_nothing_is_mirrored_without_flip(kind):
    ramp = (torch.arange(16, dtype=torch.uint8) * 16).expand(100, 3, 16, 16)
    views = augment(ramp, kind, flip=False, generator=generator())
    assert (views[:, 0, 8, 12].int() > views[:, 0, 8, 4].int()).all()


def test_each_image_gets_its_own_view_and_all_channels_the_same():
    images = torch.randint(0, 256, (1, 1, 16, 16), dtype=torch.uint8).expand(8, 3, 16, 16)
    views = shift(images, generator=generator())
    assert torch.equal(views[:, 0], views[:, 2])
    assert any(not torch.equal(views[0], view) for view in views[1:])


def test_a_resized_crop_of_everything_is_the_image_or_its_mirror():
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    views = resized_crop(images, generator=generator(), scale=(1, 1), ratio=(1, 1))
    for image, view in zip(images.int(), views.int(), strict=True):
        assert min((view - image).abs().max(), (view - image.flip(2)).abs().max()) <= 1


def test_a_resized_crop_zooms_in():
    ramp = (torch.arange(16, dtype=torch.uint8) * 16).expand(200, 3, 16, 16)
    views = resized_crop(ramp, generator=generator(), scale=(0.08, 0.2)).float()
    spread = views[:, 0, 8].amax(1) - views[:, 0, 8].amin(1)
    assert spread.max() < 160
    assert spread.min() > 20


def boxes(count, side, seed=0):
    return crop_boxes(count, side, scale=(0.08, 1), ratio=(3 / 4, 4 / 3), generator=generator(seed))


def test_parts_that_do_not_fit_are_drawn_again():
    top, left, height, width = boxes(100_000, 32).double().T
    assert (torch.stack([top, left]) >= 0).all()
    assert (top + height <= 32).all()
    assert (left + width <= 32).all()
    share = height * width / 32**2
    assert float(share.mean()) == pytest.approx(0.491, abs=0.003)  # trimmed to fit it would be 0.53
    assert share.min() == pytest.approx(0.08, abs=0.012)
    trimmed = (height == 32) | (width == 32)
    assert float(trimmed.double().mean()) < 0.13
    aspect = width / height
    assert aspect.median() == pytest.approx(1, abs=0.01)
    assert ((aspect > 0.65) & (aspect < 1.5)).all()
    whole = (height == 32) & (width == 32)
    assert float(whole.double().mean()) < 0.005


def test_places_are_as_likely_at_either_border_as_in_the_middle():
    top, _, height, _ = boxes(50_000, 16, seed=1).T
    half = top[height == 8]
    counts = torch.bincount(half, minlength=9).double()
    assert len(counts) == 9
    assert counts.min() > 0.8 * counts.mean()
    assert counts.max() < 1.2 * counts.mean()


@pytest.mark.parametrize("size", [5, 8, 16, 24])
def test_a_part_becomes_an_image_as_torchs_antialiased_interpolation_makes_it(size):
    images = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8, generator=generator(2))
    parts = boxes(6, 16, seed=3)
    views = resampled(images, parts, size, torch.tensor([False, True] * 3))
    for number, (top, left, height, width) in enumerate(parts.tolist()):
        part = images[number : number + 1, :, top : top + height, left : left + width].float()
        expected = F.interpolate(part, size=(size, size), mode="bilinear", antialias=True)[0]
        expected = expected.flip(2) if number % 2 else expected
        assert (views[number].float() - expected).abs().max() <= 0.51


def test_mixtures_are_of_two_images_and_evenly_distributed():
    images = torch.eye(500)[:, :, None, None].expand(500, 500, 1, 1)
    mixed = mixed_up(images, generator=generator())[:, :, 0, 0]
    assert torch.allclose(mixed.sum(1), torch.ones(500))
    assert ((mixed > 0).sum(1) <= 2).all()
    own = mixed.diagonal()
    assert torch.histc(own, 4, 0, 1).min() > 90  # of 125 expected
    assert not torch.equal(mixed, mixed_up(images, generator=generator(1))[:, :, 0, 0])


def test_views_repeat_with_the_generator():
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    for kind in ("crop", "resized-crop"):
        one, two, three = (augment(images, kind, flip=True, generator=generator(s)) for s in (1, 1, 2))
        assert torch.equal(one, two)
        assert not torch.equal(one, three)


def test_seeds_differ_by_place_and_stay_the_same_for_ever():
    assert seed_for(0, "step", 1) != seed_for(0, "step", 2) != seed_for(1, "step", 2)
    assert seed_for(0, "step", 1) == 4238720567276977853


def test_the_divergence_is_the_mean_of_what_torch_says_of_each_image():
    draw = torch.Generator().manual_seed(3)
    student, teacher = torch.randn(40, 7, generator=draw), 3 * torch.randn(40, 7, generator=draw)
    expected = F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="batchmean", log_target=True)
    assert divergence(student, teacher) == pytest.approx(float(expected), rel=1e-5)
    assert divergence(teacher + 5, teacher) == pytest.approx(0, abs=1e-6)
