"""Muon with SGD: the update of each parameter."""

import pytest
import torch
from torch import nn

from kd3.config.training import TrainSettings
from kd3.training.optimizer import Muon, build_optimizer, is_matrix, orthogonalise, set_learning_rate


def muon(parameters, **more):
    values = {"lr": 0.1, "matrix_lr": 0.02, "momentum": 0.9, "matrix_momentum": 0.95, "weight_decay": 0.01}
    return Muon(parameters, **{**values, **more})


@pytest.mark.parametrize("shape", [(8, 8), (6, 40), (40, 6)])
def test_singular_values_come_near_one_and_directions_stay(shape):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    for matrix, step in zip(matrices, orthogonalise(list(matrices)), strict=True):
        step = step / max(1.0, shape[0] / shape[1]) ** 0.5
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        known = values > 0.02 * values.norm()
        found = torch.linalg.svdvals(step)[: known.sum()]
        assert found.min() > 0.6
        assert found.max() < 1.3
        nearest = left[:, known] @ right[known]
        assert torch.nn.functional.cosine_similarity(step.flatten(), nearest.flatten(), dim=0) > 0.9


def test_a_gradient_of_nothing_moves_nothing():
    (step,) = orthogonalise([torch.zeros(3, 4)])
    assert torch.equal(step, torch.zeros(3, 4))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon")
@pytest.mark.parametrize("shape", [(12, 30), (30, 12)])
def test_linear_weights_move_as_torchs_muon_moves_them(shape):
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(shape, generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizers = muon([ours]), torch.optim.Muon([theirs], lr=0.02, momentum=0.95, weight_decay=0.01)
    for _ in range(4):
        gradient = torch.randn(shape, generator=generator)
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    moved = (theirs - start).norm()
    assert moved > 0.1
    assert (ours - theirs).norm() < 0.05 * moved  # bfloat16


def test_a_convolution_moves_as_the_matrix_that_it_is():
    generator = torch.Generator().manual_seed(2)
    start, gradient = torch.randn(4, 3, 2, 2, generator=generator), torch.randn(4, 3, 2, 2, generator=generator)
    filters = nn.Parameter(start.clone().to(memory_format=torch.channels_last))
    matrix = nn.Parameter(start.flatten(1).clone())
    filters.grad, matrix.grad = gradient.to(memory_format=torch.channels_last), gradient.flatten(1)
    muon([filters]).step()
    muon([matrix]).step()
    assert torch.allclose(filters.flatten(1), matrix, atol=1e-6)
    assert not torch.allclose(filters, start, atol=1e-3)


def test_what_is_no_matrix_moves_as_by_sgd():
    # A bias, a batch norm, a depthwise convolution, a single output.
    shapes = [(5,), (6, 1, 3, 3), (1, 7)]
    generator = torch.Generator().manual_seed(3)
    starts = [torch.randn(shape, generator=generator) for shape in shapes]
    ours, theirs = ([nn.Parameter(start.clone()) for start in starts] for _ in range(2))
    assert not any(is_matrix(parameter) for parameter in ours)
    optimizers = muon(ours), torch.optim.SGD(theirs, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    for _ in range(3):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_it_goes_on_from_its_state_bit_for_bit():
    def network():
        torch.manual_seed(4)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))

    def steps(net, optimizer, numbers):
        for number in numbers:
            images = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(number))
            optimizer.zero_grad()
            net(images).square().mean().backward()
            optimizer.step()

    whole, first, second = network(), network(), network()
    steps(whole, muon(whole.parameters()), range(6))
    optimizer = muon(first.parameters())
    steps(first, optimizer, range(3))
    second.load_state_dict(first.state_dict())
    resumed = muon(second.parameters())
    resumed.load_state_dict(optimizer.state_dict())
    steps(second, resumed, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


def test_every_group_follows_the_schedule_from_its_own_peak():
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    settings = TrainSettings(optimizer="muon", lr=0.4, matrix_lr=0.02, warmup_steps=0)
    optimizer = build_optimizer(net.parameters(), settings)
    set_learning_rate(optimizer, 0, 100, settings)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.02, 0.4])
    set_learning_rate(optimizer, 50, 100, settings)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.2])


def test_sgd_is_torchs_own():
    parameters = [nn.Parameter(torch.zeros(3, 3))]
    assert isinstance(build_optimizer(parameters, TrainSettings(optimizer="sgd")), torch.optim.SGD)
