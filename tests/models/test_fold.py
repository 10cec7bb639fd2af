"""Folding: the same function with fewer layers, or the network as it was."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import kd3
from kd3.models.arch import build_arch
from kd3.models.fold import fold, foldable
from kd3.models.head import evaluating
from kd3.models.zoo import ZOO


def worn(network):
    """A network whose batch norms have seen something."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.uniform_(-0.5, 0.5, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            module.weight.data.uniform_(0.5, 2, generator=generator)
            module.bias.data.uniform_(-0.5, 0.5, generator=generator)
    return network


def folded(network, size):
    return fold(network, foldable(network, size))


def norms(network):
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.fixture
def images():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_network_of_the_zoo_says_the_same_folded(name, images):
    torch.manual_seed(0)
    network = worn(build_arch(f"kd3:{name}", num_classes=5)).eval()
    other = folded(network, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            other(images), network(images), rtol=1e-3, atol=1e-3 * float(network(images).abs().max())
        )
    assert norms(other) < max(1, norms(network))


def test_the_original_stays_as_it_is(images):
    network = worn(build_arch("kd3:resnet8", num_classes=5)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    other = folded(network, 32)
    assert norms(other) == 0
    assert network.training
    assert not other.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(parameter.requires_grad for parameter in other.parameters())


class Twice(nn.Module):
    """One convolution that is used at two places, one of them without the batch norm."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, 2)

    def forward(self, x):
        x = self.convolution(x)
        return self.linear((x + F.relu(self.norm(x))).mean((2, 3)))


class InPlace(Twice):
    """A convolution whose output is changed on the way to the batch norm."""

    def forward(self, x):
        return self.linear(self.norm(F.relu(self.convolution(x), inplace=True)).mean((2, 3)))


class ByBatch(Twice):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x):
        return self.linear(self.norm(self.convolution(x)).mean((2, 3)))


class OneOfTwo(Twice):
    """Two pairs of which one cannot be merged."""

    def __init__(self):
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        return super().forward(self.stem_norm(self.stem(x)))


class Shared(Twice):
    """The pair runs twice, on other input."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 3, padding=1)
        self.norm, self.linear = nn.BatchNorm2d(3), nn.Linear(3, 2)

    def forward(self, x):
        return self.linear(self.norm(self.convolution(self.norm(self.convolution(x)))).mean((2, 3)))


@pytest.mark.parametrize("kind", [Twice, InPlace, ByBatch, OneOfTwo, Shared])
def test_what_cannot_be_folded_runs_as_it_is(kind, images):
    torch.manual_seed(0)
    network = worn(kind()).eval()
    other = folded(network, 32)
    with torch.no_grad():
        torch.testing.assert_close(other(images), network(images))
    assert norms(other) == 1


def test_a_network_without_batch_norms_is_not_copied():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    assert folded(network, 32) is network


def test_a_folded_teacher_has_the_same_features_and_logits_and_name(teacher_file):
    teacher = kd3.load_teacher(teacher_file)
    worn(teacher.module)
    other = teacher.folded()
    assert norms(other) == 0
    assert norms(teacher) > 0
    assert other.fingerprint() == teacher.fingerprint()
    images = torch.randn(4, 3, 16, 16)
    one, two = teacher.outputs(images), other.outputs(images)
    torch.testing.assert_close(two.logits, one.logits, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(two.features, one.features, rtol=1e-3, atol=1e-4)
    assert other.folded().fingerprint() == teacher.fingerprint()
    assert copy.deepcopy(other).fingerprint() == teacher.fingerprint()


def test_a_teacher_whose_features_would_change_is_not_folded():
    class FeaturesBeforeTheNorm(nn.Module):
        """Its feature map is a convolution's output, and its logits do not tell: the norm's way is cut off."""

        def __init__(self):
            super().__init__()
            self.convolution, self.norm, self.linear = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

        def forward(self, x):
            x = self.convolution(x)
            return self.linear(x.mean((2, 3))) + 0 * self.norm(x).sum()

    torch.manual_seed(0)
    teacher = kd3.Teacher(worn(FeaturesBeforeTheNorm()), mean=[0.5] * 3, std=[0.25] * 3, input_size=16)
    assert norms(teacher.folded()) == 1


def test_evaluating_puts_every_module_back():
    network = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(3))
    network[1].eval()
    with evaluating(network):
        assert not network[0].training
    assert network[0].training
    assert not network[1].training
