"""Networks with unusual calling conventions: they are respected everywhere, or refused early."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import kd3
from kd3.config.records import Signature
from kd3.models.arch import build_arch
from kd3.models.calling import calling_of, copy_of
from kd3.models.student import own_head
from kd3.models.student_files import load_student, save_student
from kd3.runtime.compute import Compute, full_float32
from kd3.runtime.errors import KD3Error

CPU = Compute(torch.device("cpu"), "32")
SIDE = 12


class Net(nn.Module):
    """A small network, and what a user's code does around it."""

    def __init__(self, *, channels=3, classes=4, tail=lambda x: x, pool=lambda x: x.mean((2, 3))):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(channels, 6, 3), nn.Linear(6, classes)
        self.tail, self.pool = tail, pool

    def forward(self, x):
        return self.tail(self.last(self.pool(F.relu(self.first(x)))))


class Viewing(nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, 6, 3, 2), nn.Linear(6 * 25, classes)

    def forward(self, x):
        return self.last(self.first(x).view(-1, 6 * 25))


def teacher(network, **more):
    channels = more.pop("channels", 3)
    return kd3.Teacher(network, **{"mean": [0.5] * channels, "std": [0.25] * channels, "input_size": SIDE, **more})


def images(count, channels=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, channels, SIDE, SIDE, generator=generator).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("make", [Viewing, lambda: torch.jit.trace(Viewing().eval(), images(2).contiguous())])
def test_a_network_that_views_its_maps_runs_as_every_command_runs_it(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        found = CPU.place(teacher(make()))
    for count in (1, 2, 5):
        torch.testing.assert_close(found(images(count)), Viewing()(images(count).contiguous()))
    assert calling_of(found).contiguous


def test_others_keep_the_faster_format():
    found = CPU.place(teacher(Net()))
    assert found.module.first.weight.is_contiguous(memory_format=torch.channels_last)
    assert not found.module._forward_pre_hooks


def test_a_student_that_views_is_saved_with_the_way_it_is_called(tmp_path):
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\nclass Viewing(nn.Module):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__(); self.f, self.l = nn.Conv2d(3, 6, 3, 2), nn.Linear(150, num_classes)\n"
        "    def forward(self, x): return self.l(self.f(x).view(-1, 150))\n"
    )
    arch = f"{tmp_path / 'net.py'}:Viewing"
    signature = Signature([0.5] * 3, [0.25] * 3, SIDE, ["a", "b", "c"])
    student = own_head(build_arch(arch, num_classes=3), signature, name="it").eval()
    save_student(student, tmp_path / "student", arch=arch, arch_args={}, about={})
    found = CPU.place(load_student(tmp_path / "student", trust_code=True))
    torch.testing.assert_close(found(images(3)), student(images(3)))


def test_copies_and_pickles_keep_the_way_a_network_is_called():
    found = teacher(Viewing()).module
    for other in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        CPU.place(other)
        torch.testing.assert_close(other(images(3)), found(images(3)))


def test_what_drops_the_batch_at_one_image_is_refused():
    network = Net(pool=lambda x: F.adaptive_avg_pool2d(x, 1).squeeze())
    with pytest.raises(KD3Error, match=r"not on a batch of one image: .*\.squeeze\(\) .*write \.flatten\(1\)"):
        teacher(network)


def test_what_judges_a_single_image_otherwise_is_refused():
    network = Net(pool=lambda x: x.mean((2, 3)) * (1 if len(x) > 1 else 2))
    with pytest.raises(KD3Error, match="something else of an image in a batch of one image than in one of 4"):
        teacher(network)


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weights_that_a_hook_computes_can_be_copied(norm):
    network = Net()
    network.last = norm(network.last)
    network(images(2))  # leaves the computed weight with its graph
    found = teacher(network.eval())
    torch.testing.assert_close(found(images(3)), network(images(3)))
    torch.testing.assert_close(copy_of(network)(images(3)), network(images(3)))


def test_double_precision_becomes_single():
    assert teacher(Net().double())(images(2)).dtype == torch.float32
    double_norm = nn.Sequential(Net(classes=6), nn.BatchNorm1d(6))
    double_norm[1].running_mean = double_norm[1].running_mean.double()
    assert {value.dtype for value in teacher(double_norm).buffers() if value.is_floating_point()} == {torch.float32}


def test_weights_of_five_dimensions_keep_their_format():
    network = nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv3d(1, 4, 3, padding=(0, 1, 1)), nn.Flatten())
    network.append(nn.Linear(4 * SIDE * SIDE, 4))
    assert CPU.place(teacher(network))(images(2)).shape == (2, 4)


@pytest.mark.parametrize("channels", [3, 1])
def test_lazy_layers_get_their_shapes_when_they_are_built(tmp_path, channels):
    (tmp_path / "lazy.py").write_text(
        "from torch import nn\ndef build(num_classes):\n"
        "    return nn.Sequential(nn.LazyConv2d(4, 3, 2), nn.Flatten(), nn.LazyLinear(num_classes))\n"
    )
    network = build_arch("lazy.py:build", num_classes=5, relative_to=tmp_path, input_size=9, channels=channels)
    assert network[0].weight.shape == (4, channels, 3, 3)
    assert network[2].weight.shape == (5, 4 * 4 * 4)
    with pytest.raises(KD3Error, match="lazy layers, which need to know the input size"):
        build_arch("lazy.py:build", num_classes=5, relative_to=tmp_path)


def test_a_network_that_fails_in_autocast_is_computed_in_float32(capsys):
    class Strict(Net):
        def forward(self, x):
            features = self.first(x).mean((2, 3))
            if features.dtype != torch.float32:
                raise RuntimeError("expected float32 here")
            return self.last(features)

    found = teacher(Strict())
    expected = Strict()(images(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(found(images(3)), expected)
        assert found.outputs(images(3)).logits.dtype == torch.float32
    assert "does not run in autocast and computes in float32: RuntimeError: expected float32" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tail", "chosen"),
    [
        (lambda x: (x[:, :2], x), 1),
        (lambda x: (x, x[:, :2]), 0),
        (lambda x: [x[:, :, None], x], 1),
        (lambda x: {"embedding": x[:, :3], "scores": x}, "scores"),
    ],
)
def test_of_several_outputs_the_one_with_a_value_for_each_class_is_taken(tail, chosen, capsys):
    found = teacher(Net(tail=tail), classes=["a", "b", "c", "d"])
    torch.testing.assert_close(found(images(2)), Net()(images(2)))
    assert calling_of(found.module).output == chosen
    assert capsys.readouterr().err == ""


def test_of_outputs_alike_the_first_is_taken_and_said_and_another_can_be_chosen(capsys):
    both = Net(tail=lambda x: (x, 2 * x))
    torch.testing.assert_close(teacher(both)(images(2)), Net()(images(2)))
    said = capsys.readouterr().err
    assert "returns 2 outputs for each image (0: 4 values, 1: 4 values); output 0 is taken for the logits" in said
    torch.testing.assert_close(teacher(both, output=1)(images(2)), 2 * Net()(images(2)))
    assert capsys.readouterr().err == ""
    with pytest.raises(KD3Error, match=r"has no output 7; it returns 2 outputs"):
        teacher(both, output=7)


def test_outputs_of_different_widths_are_not_guessed_at():
    network = Net(tail=lambda x: (x[:, :3], x))
    with pytest.raises(KD3Error, match=r"0: 3 values, 1: 4 values.*not known which .*output=1"):
        teacher(network)
    with pytest.raises(KD3Error, match="not known which"):
        teacher(network, num_classes=9)


@pytest.mark.parametrize("tail", [torch.sigmoid, lambda x: torch.sigmoid(9 * x), lambda x: (x > 0).float()])
def test_probabilities_of_each_class_for_itself_are_refused(tail):
    with pytest.raises(KD3Error, match=r"values from 0 to 1 for every image.*leave its last sigmoid out"):
        teacher(Net(tail=tail))


def test_the_probability_of_one_class_is_refused():
    with pytest.raises(KD3Error, match="leave its last sigmoid out"):
        teacher(Net(classes=1, tail=torch.sigmoid))


def test_small_logits_are_not_taken_for_probabilities():
    network = Net(tail=lambda x: 0.01 * x + 0.5)  # in [0, 1] for images as they are
    assert teacher(network).num_classes == 4
    nn.init.zeros_(network.last.weight)
    assert teacher(network).num_classes == 4  # all alike, as before any training


@pytest.mark.parametrize("tail", [lambda x: x, lambda x: x.squeeze(1), lambda x: x.squeeze()])
def test_one_logit_stands_for_zero_and_itself(tail):
    found = teacher(Net(classes=1, tail=tail), classes=["no", "yes"])
    z = Net(classes=1)(images(3))
    torch.testing.assert_close(found(images(3)), torch.cat([torch.zeros(3, 1), z], 1))
    torch.testing.assert_close(found(images(3)).softmax(1)[:, 1:], torch.sigmoid(z))
    assert found(images(1)).shape == (1, 2)
    # Its classifier can be shared: a layer that makes (0, z).
    features = found.outputs(images(3)).features.mean((2, 3))
    torch.testing.assert_close(found.classifier()(features), found(images(3)))
    with pytest.raises(KD3Error):
        teacher(Net(classes=1, tail=tail), classes=["a", "b", "c"])


def test_luma_is_what_a_grey_teacher_sees():
    found = teacher(Net(channels=1), channels=1)
    rgb = torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    luma = (0.299 * rgb[:, 0] + 0.587 * rgb[:, 1] + 0.114 * rgb[:, 2])[:, None]
    torch.testing.assert_close(found.normalise(rgb), (luma / 255 - 0.5) / 0.25, rtol=1e-5, atol=1e-5)
    grey = rgb[:, :1].expand(-1, 3, -1, -1)
    torch.testing.assert_close(found.normalise(grey), (rgb[:, :1] / 255 - 0.5) / 0.25, rtol=1e-5, atol=1e-5)
    assert found(found.normalise(rgb)).shape == (2, 4)


def test_a_network_of_three_channels_gets_a_grey_image_three_times():
    found = teacher(Net(), channels=1)
    x = images(2, channels=1)
    torch.testing.assert_close(found(x), Net()(x.expand(-1, 3, -1, -1)))
    assert calling_of(found.module).grey_thrice


def test_a_grey_network_under_three_means_is_told_what_to_write():
    with pytest.raises(KD3Error, match=r"does not run .* it takes grey images: .*one mean and one std \(mean: \[0.13"):
        teacher(Net(channels=1))


def rounded(tensor):
    """Ten bits of the mantissa, as TF32 leaves."""
    bits = tensor.detach().contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


@pytest.fixture
def hardware_with_tf32(monkeypatch):
    """Linear layers and convolutions that round as such hardware does where PyTorch lets it."""
    linear, convolution = F.linear, nn.Conv2d._conv_forward

    def rounding_linear(x, weight, bias=None):
        if torch.get_float32_matmul_precision() != "highest":
            x, weight = rounded(x), rounded(weight)
        return linear(x, weight, bias)

    def rounding_convolution(self, x, weight, bias):
        if torch.backends.cudnn.allow_tf32:
            x, weight = rounded(x), rounded(weight)
        return convolution(self, x, weight, bias)

    monkeypatch.setattr(F, "linear", rounding_linear)
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", rounding_convolution)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


def test_verdicts_are_the_same_on_hardware_with_tf32(hardware_with_tf32):
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 1))
    network.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)])
    with torch.no_grad():
        network[1].running_mean.uniform_(-3, 3)
        network[1].running_var.uniform_(0.01, 4)
    found = teacher(network)
    assert found.head.features is not None
    assert found.sharing_problem() is None
    assert isinstance(found.folded().module[1], nn.Identity)
    assert torch.get_float32_matmul_precision() == "high"
    assert torch.backends.cudnn.allow_tf32


def test_autocast_does_not_reach_into_a_check():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert teacher(Net()).head is not None
        with full_float32():
            assert F.linear(images(1).flatten(1), torch.ones(2, 3 * SIDE * SIDE)).dtype == torch.float32
