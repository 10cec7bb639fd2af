"""A student's statistics: blended by agreement with the teacher, without a label, and only where it rises."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import kd3
from kd3.config.records import Preparation
from kd3.inheritance.adapt import Judged, adapt_by_recall, adapt_to_given, judge, logits_of, obstacle
from kd3.inheritance.at_end import adapt_student, check_recall
from kd3.inheritance.recalled import ChosenImages, Pairs, in_batches, known_images, of_pool, read_images
from kd3.models.arch import build_arch
from kd3.models.batch_norms import blended, counted, remembered, set_statistics
from kd3.models.student import own_head
from kd3.runtime.compute import resolve

CPU = resolve("cpu", "32")


def photos(seed, count=48):
    """Images whose colour says their class."""
    draw = np.random.default_rng(seed)
    kind = draw.integers(0, 3, count)
    images = draw.normal(100, 25, (count, 3, 16, 16))
    images[np.arange(count), kind] += 60
    return images.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def teacher():
    """A small network that tells the colours apart, trained for a moment."""
    torch.manual_seed(0)
    network = build_arch("kd3:resnet8", num_classes=3)
    images = torch.from_numpy(photos(0, 192))
    labels = images.float().mean((2, 3)).argmax(1)
    made = kd3.Teacher(network, mean=[0.5] * 3, std=[0.25] * 3, input_size=16)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    network.train()
    for _ in range(5):
        for part, said in zip(made.normalise(images).split(64), labels.split(64), strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(part), said).backward()
            optimizer.step()
    return kd3.Teacher(network, mean=[0.5] * 3, std=[0.25] * 3, input_size=16)


def student_of(teacher, shift=None):
    """The teacher's own network as a student; its statistics those of other images, where there are any."""
    network = copy.deepcopy(teacher.module)
    if shift is not None:
        set_statistics(network, counted(network, [teacher.normalise(torch.from_numpy(shift))]))
    return own_head(network, teacher.signature(), name="copy").eval()


def tinted(images):
    """A crawl in another light: mostly red, hardly any contrast."""
    tint = np.array([150, 70, 20]).reshape(3, 1, 1)
    return (images * 0.3 + tint).clip(0, 255).astype(np.uint8)


def chosen(images, positions=None):
    return ChosenImages(torch.from_numpy(images), [], positions, "here")


def test_a_student_that_was_shifted_takes_the_new_statistics(teacher):
    student = student_of(teacher, tinted(photos(3)))
    adaptation, _ = adapt_to_given(student, teacher, chosen(photos(7)), CPU)
    assert adaptation.share > 0
    assert adaptation.agreement_after > adaptation.agreement_before + 20
    assert adaptation.distance_after < adaptation.distance_before
    assert adaptation.agreement_by_share["0"] == round(adaptation.agreement_before, 2)
    divergences = adaptation.divergence_by_share
    assert min(divergences.values()) == divergences[f"{adaptation.share:g}"] < divergences["0"]
    taken = f"falls from {divergences['0']:.3f} to {min(divergences.values()):.3f}"
    assert taken in str(adaptation)


def test_a_student_that_needs_nothing_stays_bit_for_bit_as_trained(teacher):
    student = student_of(teacher)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    adaptation, _ = adapt_to_given(student, teacher, chosen(photos(7)), CPU)
    assert adaptation.share == 0
    assert not adaptation.changed
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert "stays as trained" in str(adaptation)


def test_the_whole_share_is_what_was_counted(teacher, monkeypatch):
    monkeypatch.setattr("kd3.inheritance.adapt.Judged.choose", lambda self: 1.0)
    student, given = student_of(teacher, tinted(photos(3))), photos(7)
    without_norms = teacher.folded()  # nothing can be recalled from it
    expected = counted(student, in_batches(teacher.normalise(torch.from_numpy(given))))
    adapt_to_given(student, without_norms, chosen(given), CPU)
    for name, layer in remembered(student).items():
        torch.testing.assert_close(layer.mean, expected[name].mean)  # memory formats may differ in the last digit
        torch.testing.assert_close(layer.variance, expected[name].variance)


def test_a_few_given_images_count_by_images_recalled_from_them_where_these_bring_it_closer(teacher):
    given = photos(7, 16)  # too few to have the statistics of all
    seen = teacher.normalise(torch.from_numpy(given))
    student = student_of(teacher, tinted(photos(3)))
    adaptation, pairs = adapt_to_given(student, teacher, chosen(given), CPU)
    assert adaptation.kind == "recalled from given"
    assert adaptation.images == 16
    assert adaptation.gap_after < adaptation.gap_before / 3
    assert "16 images recalled from the teacher (begun as unlabelled images of here)" in str(adaptation)
    assert np.array_equal(pairs.before, np.concatenate([given[::2], given[1::2]]))

    def distance(network):
        expected = logits_of(teacher, seen).log_softmax(1)
        return float((expected.exp() * (expected - logits_of(network, seen).log_softmax(1))).sum(1).mean())

    plain = student_of(teacher, tinted(photos(3)))
    set_statistics(plain, blended(remembered(plain), counted(plain, in_batches(seen)), adaptation.share))
    assert distance(student) < distance(plain)


def test_a_teacher_without_statistics_counts_the_given_images_only(teacher):
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3))
    other = kd3.Teacher(network, mean=[0.5] * 3, std=[0.25] * 3, input_size=16)
    adaptation, pairs = adapt_to_given(student_of(teacher, tinted(photos(3))), other, chosen(photos(7, 32)), CPU)
    assert (adaptation.kind, adaptation.gap_before, pairs) == ("given", None, None)


def test_recall_gives_back_what_a_tinted_crawl_took(teacher):
    student = student_of(teacher, tinted(photos(3)))
    right = logits_of(teacher, teacher.normalise(torch.from_numpy(photos(9, 200)))).argmax(1)

    def accuracy():
        seen = logits_of(student, student.normalise(torch.from_numpy(photos(9, 200)))).argmax(1)
        return float((seen == right).double().mean())

    before = accuracy()
    adaptation, pairs = adapt_by_recall(student, teacher, chosen(tinted(photos(5))), CPU)
    assert adaptation.gap_after < adaptation.gap_before / 3
    assert accuracy() > before + 0.2
    assert pairs.before.shape == pairs.after.shape == (16, 3, 16, 16)


def test_the_same_seed_gives_the_same_student(teacher):
    pool = kd3.ImagePool.from_array(tinted(photos(5, 80)))
    states = []
    for seed in (1, 1, 2):
        student = student_of(teacher, tinted(photos(3)))
        adapt_student(student, teacher, pool, np.arange(60), CPU, images=24, seed=seed)
        states.append(student.state_dict())
    name = "backbone.layer3.0.bn1.running_mean" if "backbone.layer3.0.bn1.running_mean" in states[0] else None
    name = name or next(key for key in states[0] if key.endswith("running_mean"))
    assert torch.equal(states[0][name], states[1][name])
    assert not torch.equal(states[0][name], states[2][name])


def test_judging_leaves_the_student_as_it_was_and_never_judges_by_what_was_counted(teacher):
    student = student_of(teacher, tinted(photos(3)))
    before = remembered(student)
    images = teacher.normalise(torch.from_numpy(photos(7)))
    judged = judge(student, images, logits_of(teacher, images), shares=(0.0, 1.0))
    assert all(torch.equal(layer.mean, before[name].mean) for name, layer in remembered(student).items())
    set_statistics(student, counted(student, in_batches(images[1::2])))
    own = logits_of(student, images[::2]).argmax(1) == logits_of(teacher, images[::2]).argmax(1)
    assert torch.equal(judged.same[1, ::2], own)


def with_distances(*distances):
    """Shares 0, 0.5 and 1, judged on noisy images with these mean distances."""
    noise = torch.rand(1, 100, generator=torch.Generator().manual_seed(0))
    same = torch.zeros(3, 100, dtype=torch.bool)
    return Judged((0.0, 0.5, 1.0), same, noise + torch.tensor(distances)[:, None])


def test_the_closest_share_is_taken_and_as_trained_where_none_is_closer():
    assert with_distances(1.0, 0.4, 0.0).choose() == 1
    assert with_distances(1.0, 0.98, 0.99).choose() == 0.5  # a small gain counts, if all images are the same
    assert with_distances(0.5, 0.5, 0.5).choose() == 0
    assert with_distances(0.1, 0.2, 0.3).choose() == 0
    assert with_distances(0.3, float("nan"), 0.2).choose() == 1


def test_networks_without_batch_norms_are_reported(teacher):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    plain = own_head(network, teacher.signature(), name="plain")
    assert "nothing to adapt" in obstacle(plain, teacher)
    assert obstacle(student_of(teacher), teacher) is None
    bare = kd3.Teacher(copy.deepcopy(network), mean=[0.5] * 3, std=[0.25] * 3, input_size=16)
    assert "nothing to recall images from" in obstacle(student_of(teacher), bare)
    pool = kd3.ImagePool.from_array(photos(1))
    assert adapt_student(plain, teacher, pool, np.arange(40), CPU) is None


def test_too_few_pool_images_are_refused_before_a_training_and_lose_none_after_it(teacher, capsys):
    pool, student = kd3.ImagePool.from_array(photos(1)), student_of(teacher)
    with pytest.raises(kd3.KD3Error, match="leaves 15 images to recall from; at least 16"):
        check_recall(32, student, teacher, np.arange(15), None)
    check_recall("auto", student, teacher, np.arange(15), None)
    check_recall(32, student, teacher, np.arange(16), None)
    assert adapt_student(student, teacher, pool, np.arange(15), CPU, images=32) is None
    assert "15 usable images; at least 16" in capsys.readouterr().err


def test_images_like_those_kept_out_are_not_drawn(pool_folder, crawl, tmp_path):
    import shutil

    for number in range(0, 120, 2):
        shutil.copy(crawl / f"{number:03d}.png", tmp_path)
    known = known_images([str(tmp_path)], Preparation(16), workers=0)
    pool = kd3.ImagePool.open(pool_folder)
    found = of_pool(pool, np.arange(len(pool)), count=40, seed=0, known=known)
    assert len(found.positions) == 40
    assert all(int(key.removesuffix(".png")) % 2 for key in found.keys)
    given = read_images(str(crawl), Preparation(16), limit=1000, seed=0, known=known, workers=0)
    assert given.kept_out >= 60
    assert all(int(key.removesuffix(".png")) % 2 for key in given.keys)


def test_a_draw_of_given_images_is_the_same_again_and_another_by_another_seed(crawl):
    one, again, other = (read_images(str(crawl), Preparation(16), limit=20, seed=seed, workers=0) for seed in (0, 0, 1))
    assert one.keys == again.keys != other.keys
    assert torch.equal(one.images, again.images)
    assert len(one.keys) == 20


def test_the_picture_shows_both(tmp_path):
    from PIL import Image

    pairs = Pairs(photos(1, 5), photos(2, 5))
    pairs.write(tmp_path / "pairs.png")
    with Image.open(tmp_path / "pairs.png") as sheet:
        assert sheet.size == (5 * 18 - 2, 34)
        pixels = np.asarray(sheet).transpose(2, 0, 1)
    assert np.array_equal(pixels[:, :16, 18:34], pairs.before[1])
    assert np.array_equal(pixels[:, 18:, :16], pairs.after[0])
