"""Mixtures of images in training: their share of batches, and the teacher's view of them."""

import pytest
import torch

import kd3
from kd3.config.methods import KDOptions
from kd3.config.training import TrainSettings
from kd3.methods import Parts, build_method
from kd3.models.arch import build_arch
from kd3.runtime.compute import Compute
from kd3.runtime.errors import KD3Error
from kd3.training.learner import Learner

SMALL = {"images": 96, "batch_size": 16, "holdout": 12, "precision": "32", "device": "cpu", "warmup_steps": 2}


def learner(mixup):
    torch.manual_seed(0)
    teacher = kd3.Teacher(build_arch("kd3:resnet8", num_classes=3), mean=[0.5] * 3, std=[0.25] * 3, input_size=16)
    student = build_arch("kd3:resnet8", num_classes=3)
    sample = torch.randn(4, 3, 16, 16)
    method = build_method("kd", KDOptions(), Parts(teacher, student, "resnet8", sample))
    settings = TrainSettings(mixup=mixup, augmentation="none", flip=False)
    return Learner(method, settings, seed=0, total_steps=400, compute=Compute(torch.device("cpu"), "32"))


def mixed_steps(mixup, steps):
    made = learner(mixup)
    images = torch.randint(0, 256, (10, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    plain = made.method.student.normalise(images)
    seen = {"teacher": [], "student": []}
    made.method.teacher.register_forward_pre_hook(lambda _, args: seen["teacher"].append(args[0]))
    made.method.student.register_forward_pre_hook(lambda _, args: seen["student"].append(args[0]))
    for number in range(steps):
        made.step(number, images)
    assert all(torch.equal(one, other) for one, other in zip(seen["teacher"], seen["student"], strict=True))
    return [not torch.allclose(views, plain, atol=1e-4) for views in seen["student"]]


@pytest.mark.parametrize(("mixup", "least", "most"), [(0, 0, 0), (0.5, 8, 22), (1, 30, 30)])
def test_so_many_batches_are_mixed_and_the_teacher_sees_the_same(mixup, least, most):
    assert least <= sum(mixed_steps(mixup, 30)) <= most


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixup": 0.5, "fixed_views": 2}, "of which fixed_views keeps nothing; leave one out"),
        ({"mixup": 1.5}, r"mixup .*less than or equal to 1; got 1\.5"),
        ({"mixup": 0.5, "method": "labels"}, "method labels has no teacher"),
        ({"mixup": 0.5, "kd3": {"selection": "dynamic", "scoring": "training"}}, "mixup goes with kd3.scoring fresh"),
    ],
)
def test_mixtures_that_nobody_could_learn_from_are_refused(options, message, teacher_file, pool_folder, tmp_path):
    with pytest.raises(KD3Error, match=message) as problem:
        kd3.distill(teacher_file, "kd3:resnet8", pool_folder, tmp_path / "r", **SMALL, **options)
    assert "\n" not in str(problem.value)
    assert not (tmp_path / "r").exists()
