"""Detection of a network with the names and shapes of the weights, but other layers in between."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import kd3
from kd3.commands.inspect import inspect
from kd3.evaluation.compatibility import LAYERS, check_normalisation, first_layers
from kd3.models.teacher import Teacher
from kd3.pool.changes import change_images

EXPECTS = {"mean": (0.45, 0.45, 0.4), "std": (0.25, 0.25, 0.25), "input_size": 16}


class Net(nn.Module):
    """A small residual network with what may differ between two of the same names."""

    def __init__(self, *, stem=lambda x: x, activation=F.relu):
        super().__init__()
        torch.manual_seed(2)
        self.stem, self.activation = stem, activation
        self.convolutions = nn.ModuleList([nn.Conv2d(3 if n == 0 else 12, 12, 3, padding=1) for n in range(6)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(12) for _ in range(6)])
        self.last = nn.Linear(12, 4)

    def forward(self, x):
        for n, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            y = self.activation(norm(convolution(x)))
            x = self.stem(y) if n == 0 else y + x
        return self.last(x.mean((2, 3)))


@pytest.fixture(scope="module")
def images():
    """Pictures like photographs: large forms and some grain. (B, 3, S, S) uint8."""
    generator = torch.Generator().manual_seed(0)
    forms = F.interpolate(torch.rand(96, 3, 5, 5, generator=generator), size=16, mode="bilinear")
    grain = 0.06 * torch.randn(96, 3, 16, 16, generator=generator)
    return (255 * (forms + grain).clamp(0, 1)).to(torch.uint8)


@pytest.fixture(scope="module")
def trained(images):
    network = Net().train()
    mean, std = (torch.tensor(EXPECTS[name])[:, None, None] for name in ("mean", "std"))
    with torch.no_grad():
        for _ in range(60):
            network((images / 255 - mean) / std)
    return network.state_dict()


def teacher_of(network, state):
    network.load_state_dict(state)
    return Teacher(network.eval(), **EXPECTS)


def check(network, state, images):
    return check_normalisation(teacher_of(network, state), images)


@pytest.mark.parametrize(
    "wrong",
    [
        {"stem": lambda x: F.max_pool2d(x, 3, 2, 1)},
        {"activation": lambda x: x},
    ],
)
def test_another_network_of_the_same_names_is_noticed(wrong, trained, images):
    warning = check(Net(**wrong), trained, images).warning
    assert "remember other inputs than this network gives them, from the first layers on (" in warning
    assert "probably trained in another one" in warning
    assert "\n" not in warning


@pytest.mark.parametrize(
    ("name", "strength"), [("blur", 0.1), ("noise", 0.2), ("greyscale", 1.0), ("edges", 1.0), ("posterise", 0.9)]
)
def test_images_unlike_the_lost_ones_are_no_other_network(name, strength, trained, images):
    shifted = torch.from_numpy(change_images(name, strength, images.numpy(), np.arange(len(images))))
    found = check(Net(), trained, shifted).network
    assert found.warning is None
    assert check(Net(), trained, images).network.warning is None
    # What the images are like is seen at the first layer, and there only.
    first, *later = found.distances.values()
    assert first > max(later)
    assert len(later) == 5


def test_the_network_is_left_as_it_was(trained, images):
    teacher = teacher_of(Net(), trained)
    before = copy.deepcopy(teacher.module.state_dict())
    first_layers(teacher, teacher.normalise(images))
    assert all(torch.equal(value, before[name]) for name, value in teacher.module.state_dict().items())
    assert not any(part._forward_pre_hooks for part in teacher.module.modules())


def test_batch_norms_that_have_seen_nothing_and_networks_without_any_tell_nothing(images):
    untrained = Teacher(Net().eval(), **EXPECTS)
    assert first_layers(untrained, untrained.normalise(images)).distances == {}
    plain = Teacher(nn.Sequential(nn.Flatten(), nn.Linear(768, 3)), **EXPECTS)
    assert first_layers(plain, plain.normalise(images)).warning is None


def test_of_deep_networks_the_first_layers_are_run(images):
    deep = nn.Sequential(*(part for _ in range(14) for part in (nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))))
    deep.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)])
    for part in deep.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean += 1
    teacher = Teacher(deep.eval(), **EXPECTS)
    ran = []
    teacher.module[-1].register_forward_hook(lambda *_: ran.append(True))
    assert len(first_layers(teacher, teacher.normalise(images)).distances) == LAYERS
    assert not ran


@pytest.fixture(scope="module")
def files(trained, images, tmp_path_factory):
    """A teacher in a network with a pooling too many, and a pool."""
    folder = tmp_path_factory.mktemp("wrong")
    torch.save(trained, folder / "w.pt")
    (folder / "net.py").write_text(
        "import torch\nfrom torch import nn\nfrom torch.nn import functional as F\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.convolutions = nn.ModuleList([nn.Conv2d(12 if n else 3, 12, 3, padding=1) for n in range(6)])\n"
        "        self.norms = nn.ModuleList([nn.BatchNorm2d(12) for _ in range(6)])\n"
        "        self.last = nn.Linear(12, 4)\n"
        "    def forward(self, x):\n"
        "        for n in range(6):\n"
        "            y = F.relu(self.norms[n](self.convolutions[n](x)))\n"
        "            x = y + x if n else F.max_pool2d(y, 3, 2, 1)\n"
        "        return self.last(x.mean((2, 3)))\n"
    )
    (folder / "t.yaml").write_text(
        "arch: net.py:Net\nweights: w.pt\nnum_classes: 4\ninput_size: 16\n"
        "mean: [0.45, 0.45, 0.4]\nstd: [0.25, 0.25, 0.25]\n"
    )
    return folder / "t.yaml", kd3.ImagePool.from_array(images.numpy())


def test_inspect_distill_and_shift_say_so(files, tmp_path, capsys):
    path, pool = files
    assert "warning: the teacher's batch norms remember other inputs" in str(inspect(path, pool=pool))
    kd3.shift(kd3.load_teacher(path), pool)
    assert "remember other inputs than this network gives them" in capsys.readouterr().err
    small = {"images": 32, "batch_size": 16, "holdout": 12, "precision": "32", "device": "cpu", "warmup_steps": 1}
    kd3.distill(kd3.load_teacher(path), "kd3:resnet8", pool, tmp_path / "run", method="kd", **small)
    assert "remember other inputs than this network gives them" in capsys.readouterr().err
