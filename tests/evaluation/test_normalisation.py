"""A wrong mean, std or order of colours is noticed; a right one gives no warning."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import kd3
from kd3.commands.inspect import inspect
from kd3.evaluation.compatibility import (
    COLOURS,
    NormalisationCheck,
    Reading,
    check_normalisation,
    evenly_spaced,
    normalisation_on,
)
from kd3.models.teacher import Teacher
from kd3.runtime.compute import Compute

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
WRONG = {
    "half": {"mean": (0.5,) * 3, "std": (0.5,) * 3},
    "from 0 to 1": {"mean": (0.0,) * 3, "std": (1.0,) * 3},
    "from 0 to 255": {"mean": (0.0,) * 3, "std": (1 / 255,) * 3},
}


@pytest.fixture(scope="module")
def images():
    """Pictures like photographs: warm colours, large forms. (B, 3, S, S) uint8."""
    generator = torch.Generator().manual_seed(0)
    forms = torch.rand(96, 3, 4, 4, generator=generator) * torch.tensor([0.9, 0.8, 0.6])[:, None, None]
    smooth = nn.functional.interpolate(forms, size=16, mode="bilinear")
    grain = 0.05 * torch.randn(96, 3, 16, 16, generator=generator)
    return (255 * (smooth + grain + 0.05).clamp(0, 1)).to(torch.uint8)


def network(images, normalisation, *, norms=True):
    """An untrained network whose batch norms remember these images under a normalisation."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        layers = [
            nn.Conv2d(3, 16, 3),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3),
            nn.BatchNorm2d(16),
            nn.ReLU(),
        ]
        net = nn.Sequential(*(one for one in layers if norms or not isinstance(one, nn.BatchNorm2d)))
        net.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)])
    net.train()
    mean, std = (torch.tensor(normalisation[name])[:, None, None] for name in ("mean", "std"))
    with torch.no_grad():
        for _ in range(60):
            net((images / 255 - mean) / std)
    return net.eval()


def check(images, *, trained=IMAGENET, given=IMAGENET, shown=None, norms=True):
    teacher = Teacher(network(images, trained, norms=norms), **given, input_size=16)
    return check_normalisation(teacher, images if shown is None else shown)


def test_the_right_setting_is_not_spoken_of(images):
    found = check(images)
    assert found.warning is None
    assert found.given.distance < min(other.distance for other in found.others)
    for one in (found.given, *found.others):
        assert 1 <= one.effective_classes <= 5
        assert 1 / 5 < one.confidence <= 1


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_setting_is_named_with_the_one_that_fits(wrong, images):
    warning = check(images, given=WRONG[wrong]).warning
    assert "times as well with ImageNet's mean and std" in warning or "CIFAR's" in warning


def test_a_network_of_another_setting_is_told_so_the_other_way_round(images):
    assert "mean and std 0.5" in check(images, trained=WRONG["half"]).warning


def test_the_order_of_colours_is_noticed(images):
    found = check(images, shown=images.flip(1))
    assert COLOURS in found.warning


def test_grey_pictures_have_no_order_of_colours(images):
    grey = images.float().mean(1, keepdim=True).expand(-1, 3, -1, -1).to(torch.uint8)
    assert check(grey).warning is None


def test_without_batch_norms_only_what_is_beyond_all_measure_is_noticed(images):
    assert check(images, norms=False, given=WRONG["half"]).warning is None
    assert check(images, norms=False).given.distance is None
    collapsed = Reading("as given", None, confidence=0.998, effective_classes=1.1)
    assert "sees one class in nearly all images and is 100% sure" in NormalisationCheck(collapsed, []).warning
    for confidence, classes in ((0.9, 1.1), (0.998, 4.0)):
        assert NormalisationCheck(Reading("as given", None, confidence, classes), []).warning is None


@pytest.mark.parametrize(
    ("given", "half", "swapped", "words"),
    [
        (2.4, 1.0, 9.0, None),
        (2.6, 1.0, 9.0, "fit these images 2.6 times as well with mean and std 0.5"),
        (1.1, 2.0, 1.0, None),
        (1.3, 2.0, 1.0, f"fit these images 1.30 times as well with {COLOURS}"),
        (3.0, 2.0, 1.0, f"fit these images 3.00 times as well with {COLOURS}"),
        (2.6, 1.0, 2.0, "2.6 times as well with mean and std 0.5"),  # the scale matters more than the order
    ],
)
def test_how_much_better_another_setting_must_fit(given, half, swapped, words):
    readings = [Reading(COLOURS, swapped, 0.5, 4.0), Reading("mean and std 0.5", half, 0.5, 4.0)]
    warning = NormalisationCheck(Reading("as given", given, 0.5, 4.0), readings).warning
    assert warning is None if words is None else words in warning


def described(folder, images, **given):
    folder.mkdir()
    torch.save(network(images, IMAGENET).state_dict(), folder / "w.pt")
    (folder / "net.py").write_text(
        "from torch import nn\ndef build(num_classes):\n    return nn.Sequential(nn.Conv2d(3, 16, 3), "
        "nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), "
        "nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))\n"
    )
    values = {"arch": "net.py:build", "weights": "w.pt", "num_classes": 5, "input_size": 16}
    path = folder / "teacher.yaml"
    path.write_text(json.dumps({**values, **{name: list(value) for name, value in given.items()}}))
    return path


@pytest.fixture(scope="module")
def pool(images, tmp_path_factory):
    from PIL import Image

    crawl = tmp_path_factory.mktemp("crawl")
    for place, image in enumerate(images.numpy()):
        Image.fromarray(image.transpose(1, 2, 0)).save(crawl / f"{place:03d}.png")
    out = tmp_path_factory.mktemp("pool") / "pool"
    kd3.ingest(crawl, out, image_size=16, workers=0)
    return out


def test_inspect_shows_the_readings_on_a_pool(images, pool, tmp_path):
    wrong = inspect(str(described(tmp_path / "a", images, **WRONG["half"])), pool=pool)
    assert "warning: the teacher's batch norms fit these images" in str(wrong)
    assert wrong.to_dict()["normalisation"]["given"]["setting"] == "as given"
    right = inspect(str(described(tmp_path / "b", images, **IMAGENET)), pool=pool)
    assert "nothing speaks against mean, std and colour order" in str(right)
    assert json.loads(json.dumps(right.to_dict()))["normalisation"]["warning"] is None


@pytest.mark.parametrize(("given", "warned"), [(IMAGENET, False), (WRONG["from 0 to 1"], True)])
def test_distill_warns_before_it_begins(given, warned, images, pool, tmp_path, capsys):
    settings = {"images": 32, "batch_size": 16, "holdout": 12, "precision": "32", "device": "cpu", "method": "kd"}
    kd3.distill(described(tmp_path / "t", images, **given), "kd3:resnet8", pool, tmp_path / "run", **settings)
    said = capsys.readouterr().err
    assert ("warning: the teacher's batch norms fit these images" in said) is warned


def test_images_are_left_as_they_were(images):
    before = images.clone()
    check(images)
    assert torch.equal(before, images)


@pytest.mark.parametrize("count", [256, 1500])
def test_a_pool_that_begins_with_images_of_one_class_is_judged_by_all_of_it(count, images, tmp_path):
    # The network remembers warm pictures and cold ones; a pool made of class folders has the cold ones first.
    both = torch.cat([images.flip(1), images])
    net = network(both, IMAGENET)
    warm = both[-len(images) :]
    first = np.concatenate([warm.flip(1).numpy()] * 8)[: count // 2]
    last = np.concatenate([warm.numpy()] * 8)[: count - count // 2]
    pool = kd3.ImagePool.from_array(np.concatenate([first, last]))
    teacher = Teacher(net, **IMAGENET, input_size=16)
    found = normalisation_on(teacher, pool, Compute(torch.device("cpu"), "32"), np.arange(count))
    assert found.given.distance < 0.5 * check_normalisation(teacher, torch.from_numpy(first[:256])).given.distance


def test_places_are_spread_over_all_of_them():
    places = np.arange(10, 1010)
    assert evenly_spaced(places, 4).tolist() == [10, 260, 510, 760]
    assert evenly_spaced(places[:3], 4).tolist() == [10, 11, 12]
    assert evenly_spaced(np.arange(7), 3).tolist() == [0, 2, 4]
