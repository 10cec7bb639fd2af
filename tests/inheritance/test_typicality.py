"""Typicality of images for the teacher's training data."""

import numpy as np
import pytest
import torch
from torch import nn

import kd3
from kd3.inheritance.fitted_teacher import Distances, find_outliers, typicality
from kd3.runtime.compute import Compute
from kd3.runtime.errors import KD3Error
from kd3.scoring.batches import PoolBatches

CPU = Compute(torch.device("cpu"), "32")
SIZES = {"mean": [0.5] * 3, "std": [0.25] * 3, "input_size": 16}


def counted(network, images):
    """Return the network with the statistics of these images in its batch norms."""
    network.train()
    with torch.no_grad():
        for _ in range(60):
            network(images)
    return network.eval()


class Directly(nn.Module):
    """Its feature map is that of a batch norm, after a ReLU in place."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(torch.relu_(self.norm(self.conv(x))).mean((2, 3)))


def images(shift, count=40, seed=0):
    draws = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return (draws * 30 + 128 + shift).clamp(0, 255).to(torch.uint8)


@pytest.fixture(params=["directly", "resnet"])
def teacher(request):
    from kd3.models.arch import build_arch

    torch.manual_seed(0)
    network = Directly() if request.param == "directly" else build_arch("kd3:resnet8", num_classes=3)
    normalised = (images(0, seed=1).float() / 255 - 0.5) / 0.25
    return kd3.Teacher(counted(network, normalised), **SIZES)


def test_images_like_the_training_data_are_nearer(teacher):
    pool = kd3.ImagePool.from_array(torch.cat([images(0), images(60), images(0) * 0]).numpy())
    found = typicality(teacher, PoolBatches(pool, CPU), np.arange(120), CPU)
    alike, brighter, black = found.view(3, 40)
    assert alike.max() < brighter.min()
    assert alike.max() < black.min()
    subset = typicality(teacher, PoolBatches(pool, CPU), np.arange(30, 50), CPU)
    torch.testing.assert_close(subset, found[30:50], rtol=1e-4, atol=1e-5)


def test_of_a_map_that_a_batch_norm_makes_it_is_the_distance_of_the_pooled_features():
    torch.manual_seed(0)
    network = Directly().eval()
    network.norm.running_mean.normal_()
    network.norm.running_var.uniform_(0.5, 2)
    x = torch.randn(5, 3, 16, 16)
    pooled = network.conv(x).mean((2, 3))
    expected = ((pooled - network.norm.running_mean) ** 2 / (network.norm.running_var + 1e-5)).mean(1)
    torch.testing.assert_close(Distances(kd3.Teacher(network, **SIZES))(x)[:, 0], expected)


def test_else_all_batch_norms_count_with_the_deviations_too():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.Conv2d(5, 6, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    ).eval()  # fmt: skip
    x = torch.randn(4, 3, 16, 16)
    distances = []
    for norm, values in ((network[1], network[:1](x)), (network[3], network[:3](x))):
        gap = (values.mean((2, 3)) - norm.running_mean) ** 2
        gap = gap + (values.std((2, 3), unbiased=False) - norm.running_var.sqrt()) ** 2
        distances.append((gap / (norm.running_var + 1e-5)).mean(1))
    expected = torch.stack(distances).mean(0)
    torch.testing.assert_close(Distances(kd3.Teacher(network, **SIZES))(x)[:, 0], expected)


SMALL = {"images": 96, "batch_size": 16, "holdout": 12, "precision": "32", "device": "cpu", "warmup_steps": 2}


def test_a_run_can_select_by_it_and_without_the_surest(teacher_file, pool_folder, tmp_path):
    options = {"selection": "typical", "share": 0.5, "drop_surest": 0.2}
    done = kd3.distill(teacher_file, "kd3:resnet8", pool_folder, tmp_path / "r", kd3=options, **SMALL)
    kept = [set(np.load(path).tolist()) for path in sorted((done.folder / "selections").iterdir())]
    assert 40 <= len(kept[0]) <= 46  # four fifths of about a half of 108
    assert all(selection == kept[0] for selection in kept)


def test_a_teacher_without_batch_norms_cannot_tell(pool_folder, tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    with pytest.raises(KD3Error, match=r"no batch norms that remember .* use --kd3.selection dynamic or none"):
        kd3.distill(
            kd3.Teacher(network, **SIZES), "kd3:resnet8", pool_folder, tmp_path / "r", kd3={"selection": "typical"},
            **SMALL,
        )  # fmt: skip
    assert not (tmp_path / "r").exists()


def dirty_pool(clean=20, rubbish=100):
    flat = torch.arange(rubbish)[:, None, None, None].expand(-1, 3, 16, 16).to(torch.uint8)
    return kd3.ImagePool.from_array(torch.cat([images(0, clean), flat]).numpy())


@pytest.mark.parametrize("teacher", ["resnet"], indirect=True)
def test_flat_colours_are_outliers_and_a_darker_crawl_has_none(teacher):
    dirty = find_outliers(teacher, PoolBatches(dirty_pool(), CPU), np.arange(120), CPU)
    assert not dirty[:20].any()
    assert dirty[20:].all()
    darker = kd3.ImagePool.from_array(images(-60, 120).numpy())
    assert not find_outliers(teacher, PoolBatches(darker, CPU), np.arange(120), CPU).any()


def test_a_teacher_without_batch_norms_finds_no_outliers():
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    found = find_outliers(kd3.Teacher(network, **SIZES), PoolBatches(dirty_pool(), CPU), np.arange(120), CPU)
    assert found.shape == (120,)
    assert not found.any()


@pytest.mark.parametrize("teacher", ["resnet"], indirect=True)
def test_a_run_learns_from_the_images_of_a_dirty_pool_that_are_no_outliers(teacher, tmp_path):
    options = {**SMALL, "images": 64, "batch_size": 8, "holdout": 20}
    done = kd3.distill(teacher, "kd3:resnet8", dirty_pool(), tmp_path / "r", **options)
    kept = np.load(sorted((done.folder / "selections").iterdir())[-1])
    assert 8 <= len(kept) <= 20
    assert kept.max() < 20
    everything = kd3.distill(
        teacher, "kd3:resnet8", dirty_pool(), tmp_path / "all", kd3={"selection": "none"}, **options
    )
    assert len(np.load(sorted((everything.folder / "selections").iterdir())[-1])) == 108


@pytest.mark.parametrize(("side", "seen"), [(16, 300), (72, 256)])
def test_of_large_images_fewer_decide_whether_a_pool_is_a_mixture(side, seen):
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)
    )
    counts = []
    network[0].register_forward_hook(lambda module, inputs, output: counts.append(len(output)))
    teacher = kd3.Teacher(network.eval(), mean=[0.5] * 3, std=[0.25] * 3, input_size=side)
    draw = np.random.default_rng(0).integers(0, 256, (300, 3, side, side), dtype=np.uint8)
    counts.clear()
    find_outliers(teacher, PoolBatches(kd3.ImagePool.from_array(draw), CPU), np.arange(300), CPU)
    assert sum(counts) == seen
