"""A student that runs but cannot be trained is refused before anything is written."""

import pytest
import torch
from torch import nn

import kd3
from kd3.config.records import Signature
from kd3.evaluation.compatibility import check_trains
from kd3.models.student import own_head
from kd3.runtime.compute import Compute
from kd3.runtime.errors import KD3Error

SIGNATURE = Signature([0.5] * 3, [0.25] * 3, 16, ["cat", "dog", "ship"])


class Net(nn.Module):
    def __init__(self, change=lambda x: x):
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 3)
        self.change = change

    def forward(self, x):
        return self.last(self.change(self.norm(self.first(x))).mean((2, 3)))


def in_place(x):
    return x.sigmoid().add_(0).mul_(2)  # what the sigmoid needs for its gradient is overwritten


def in_float32_only(x):
    if x.dtype != torch.float32:
        raise TypeError("float32 only")
    return x


def compute(precision="32"):
    return Compute(torch.device("cpu"), precision)


def test_a_gradient_that_cannot_be_taken_is_told_and_nothing_is_written(teacher_file, pool_folder, tmp_path):
    small = {"images": 32, "batch_size": 16, "device": "cpu", "precision": "32", "method": "kd"}
    with pytest.raises(KD3Error, match=r"student live:Net cannot be trained \(CPU, float32\): RuntimeError: .*inplace"):
        kd3.distill(teacher_file, Net(in_place), pool_folder, tmp_path / "run", **small)
    assert not (tmp_path / "run").exists()


def test_a_precision_in_which_it_fails_is_reported():
    student = own_head(Net(in_float32_only), SIGNATURE, name="it")
    check_trains(student, compute(), name="it")
    with pytest.raises(KD3Error, match=r"bf16 autocast.*float32 only; try --precision 32"):
        check_trains(student, compute("bf16"), name="it")


def test_the_trial_leaves_no_trace():
    student = own_head(Net(), SIGNATURE, name="it").train()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    state = torch.get_rng_state()
    check_trains(student, compute(), name="it")
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert all(parameter.grad is None for parameter in student.parameters())
    assert torch.equal(torch.get_rng_state(), state)
