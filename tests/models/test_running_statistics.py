"""Images that pass through in training and leave no trace in evaluation."""

import pytest
import torch
from torch import nn

from kd3.models.batch_norms import SyncedBatchNorm, running_statistics_kept
from kd3.runtime.ranks import ALONE


@pytest.fixture(params=[lambda norm: norm, lambda norm: SyncedBatchNorm(norm, ALONE)], ids=["local", "synced"])
def norm(request):
    return request.param(nn.BatchNorm2d(3))


@pytest.fixture
def images():
    return 3 + 2 * torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def test_no_statistic_changes_inside_and_all_do_after(norm, images):
    network = nn.Sequential(norm).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with running_statistics_kept(network):
        inside = network(images)
    assert torch.allclose(inside.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)  # by its own batch
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    network(images)
    assert not torch.equal(norm.running_mean, before["0.running_mean"])


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.SyncBatchNorm])  # the second runs in processes with GPUs alone
def test_torchs_own_norms_are_told_not_to_remember(kind):
    network = nn.Sequential(kind(3))
    with running_statistics_kept(network):
        assert not network[0].track_running_stats
    assert network[0].track_running_stats


def test_they_are_remembered_again_after_an_error(images):
    network = nn.Sequential(nn.BatchNorm2d(3))
    with pytest.raises(ZeroDivisionError), running_statistics_kept(network):
        raise ZeroDivisionError
    network(images)
    assert network[0].num_batches_tracked == 1


@pytest.mark.parametrize(
    "build", [nn.BatchNorm2d, nn.SyncBatchNorm, lambda n: SyncedBatchNorm(nn.BatchNorm2d(n), ALONE)]
)
def test_evaluation_inside_is_that_outside(build, images):
    network = nn.Sequential(build(3)).eval()
    with running_statistics_kept(network), torch.no_grad():
        inside = network(images)
    assert torch.equal(inside, network(images).detach())


def test_a_norm_without_statistics_stays_without(images):
    network = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False))
    with running_statistics_kept(network):
        network(images)
    assert not network[0].track_running_stats
    assert network[0].running_mean is None
