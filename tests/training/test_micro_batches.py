"""A batch in parts: the same step where that is possible, and a refusal where it is not."""

import pytest
import torch
from torch import nn

from kd3.config.methods import METHODS
from kd3.config.training import TrainSettings
from kd3.methods import Parts, build_method
from kd3.models.teacher import Teacher
from kd3.runtime.compute import Compute
from kd3.runtime.errors import KD3Error
from kd3.training.learner import Learner, check_micro_batch

CPU = Compute(torch.device("cpu"), "32")


class Plain(nn.Module):
    """A network without batch norms, or with one."""

    def __init__(self, norm=False):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), *([nn.BatchNorm2d(6)] if norm else []), nn.ReLU())
        self.fc = nn.Linear(6, 4)

    def forward(self, images):
        return self.fc(self.body(images).mean((2, 3)))


def method_of(name="kd", norm=False, **options):
    torch.manual_seed(0)
    teacher = Teacher(Plain(), mean=[0.5] * 3, std=[0.25] * 3, input_size=8)
    made = METHODS[name].options(**options)
    return build_method(name, made, Parts(teacher, Plain(norm), "plain", torch.randn(4, 3, 8, 8)))


def after_steps(**settings):
    values = TrainSettings(images=640, batch_size=10, optimizer="sgd", lr=0.5, warmup_steps=0, **settings)
    method = method_of()
    learner = Learner(method, values, seed=0, total_steps=64, compute=CPU)
    images = torch.randint(0, 256, (10, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    losses = [float(learner.step(number, images).loss) for number in range(5)]
    return losses, method.student.state_dict()


def test_parts_of_a_batch_are_the_same_step_but_for_rounding():
    losses, weights = after_steps()
    in_parts, others = after_steps(micro_batch=4)  # 4, 4 and 2
    assert in_parts == pytest.approx(losses, rel=1e-3)
    assert all(torch.allclose(weights[name], others[name], atol=1e-4) for name in weights)


def test_parts_as_large_as_the_batch_are_the_batch_bit_for_bit():
    losses, weights = after_steps()
    same, others = after_steps(micro_batch=10)
    assert same == losses
    assert all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.mark.parametrize(
    ("name", "norm", "options", "reason"),
    [
        ("kd", True, {}, "batch norms"),
        ("simkd", False, {"projector": "none"}, "--simkd.alignment-scale raw"),
        ("kd3", False, {"projector": "none"}, "--kd3.alignment-scale raw"),
    ],
)
def test_what_would_train_another_student_is_refused_with_the_reason(name, norm, options, reason):
    with pytest.raises(KD3Error, match=reason):
        check_micro_batch(method_of(name, norm, **options), TrainSettings(micro_batch=8), 1)


def test_nothing_is_refused_where_a_part_is_the_batch():
    check_micro_batch(method_of("kd", norm=True), TrainSettings(batch_size=8, micro_batch=8), 1)
