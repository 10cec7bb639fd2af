"""The zoo: its contents, equality with papers and public checkpoints, and execution."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from kd3.models.arch import build_arch
from kd3.models.checkpoint import load_weights
from kd3.models.head import find_head
from kd3.models.libraries.zoo import build_by_name
from kd3.models.soundness import sound_logits
from kd3.models.zoo import ZOO
from kd3.models.zoo.resnets import PaddedShortcut, convolution, initialise
from kd3.models.zoo.small import _interleave
from kd3.runtime.errors import KD3Error

# With the side of the pooled map at 32 and 64 px; VGG pools once more at 64 px.
ONE_OF_EACH_FAMILY = {
    "resnet8": (8, 16),
    "resnet18": (4, 8),
    "resnet8x4": (8, 16),
    "wrn_16_1": (8, 16),
    "vgg8": (4, 4),
    "mobilenet_v2": (4, 8),
    "shufflenet_v2": (4, 8),
}

# As printed in the papers or the repositories whose layout each family follows.
PUBLISHED_PARAMETERS = {
    ("resnet20", 10): 269_722,
    ("resnet56", 10): 853_018,
    ("resnet110", 10): 1_727_962,
    ("resnet18", 10): 11_173_962,
    ("resnet50", 10): 23_520_842,
    ("resnet8x4", 100): 1_233_540,
    ("resnet32x4", 100): 7_433_860,
    ("wrn_16_2", 100): 703_284,
    ("wrn_40_2", 100): 2_255_156,
    ("vgg8", 100): 3_965_028,
    ("vgg13", 100): 9_462_180,
    ("vgg19", 10): 20_040_522,
    ("lenet5", 10): 61_706,
    ("mobilenet_v2", 10): 2_296_922,
    ("shufflenet_v2", 10): 1_263_854,
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    # Tiny batches gain nothing from threads, and lose much where other tests run beside them.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def parameters(name: str, **arguments: Any) -> int:
    with torch.device("meta"):  # shapes without values
        return sum(parameter.numel() for parameter in build_by_name(name, **arguments).parameters())


def trace(network: nn.Module, images: Tensor) -> tuple[str, Tensor, Tensor, Tensor]:
    """The last module with a map and that map; what the linear layer takes; the logits."""
    maps: list[tuple[str, Tensor]] = []
    vectors: list[Tensor] = []

    def watch(name: str, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda _, inputs, __: vectors.append(inputs[0]))
        else:
            module.register_forward_hook(lambda _, __, output: maps.append((name, output)))

    for name, module in network.named_modules():
        if name:
            watch(name, module)
    with torch.no_grad():
        logits = network(images)
    return *maps[-1], vectors[-1], logits


LENETS = ("lenet5", "lenet5_half")  # which pool no map


@pytest.mark.parametrize("name", [name for name in ZOO if name not in LENETS])
def test_every_network_classifies_32_and_64_pixels_and_pools_a_map_that_a_module_puts_out(name: str) -> None:
    network = build_by_name(name, num_classes=7).eval()
    for size in (32, 64) if name in ONE_OF_EACH_FAMILY else (32,):  # 64 px of a deep one take four times as long
        module, feature_map, vector, logits = trace(network, torch.randn(1, 3, size, size))
        assert logits.shape == (1, 7)
        assert module in ("layer3", "layer4", "relu")
        assert feature_map.min() == 0, "the pooled map is after a ReLU"
        torch.testing.assert_close(feature_map.mean(dim=(2, 3)), vector)


@pytest.mark.parametrize("name", LENETS)
@pytest.mark.parametrize("channels", [1, 3])
def test_lenets_take_the_channels_of_their_images_and_share_the_vector_of_their_last_layer(
    name: str, channels: int
) -> None:
    network = build_arch(f"kd3:{name}", num_classes=7, input_size=32, channels=channels).eval()
    for size in (32, 64):
        assert network(torch.randn(2, channels, size, size)).shape == (2, 7)
    sound_logits(network, 32, what="it", channels=channels, num_classes=7)
    head = find_head(network, 32)
    assert (head.classifier, head.features, head.channels) == ("fc2", None, {"lenet5": 84, "lenet5_half": 42}[name])


def test_only_lenets_are_asked_for_channels() -> None:
    with pytest.raises(KD3Error, match="argument of kd3:resnet8 'channels'"):
        build_arch("kd3:resnet8", num_classes=3, arch_args={"channels": 1})
    with pytest.raises(KD3Error, match="channels must be 1 or 3; got 4"):
        build_by_name("lenet5", num_classes=3, channels=4)


@pytest.mark.parametrize("name", ONE_OF_EACH_FAMILY)
def test_pooled_map_has_the_size_of_the_public_code(name: str) -> None:
    network = build_by_name(name, num_classes=3).eval()
    maps = [trace(network, torch.randn(1, 3, size, size))[1] for size in (32, 64)]
    assert tuple(feature_map.shape[2] for feature_map in maps) == ONE_OF_EACH_FAMILY[name]


@pytest.mark.parametrize("name", ZOO)
def test_stated_number_of_parameters_is_true(name: str) -> None:
    assert parameters(name, num_classes=10) == ZOO[name].parameters


@pytest.mark.parametrize(("name", "num_classes"), PUBLISHED_PARAMETERS)
def test_number_of_parameters_is_the_published_one(name: str, num_classes: int) -> None:
    assert parameters(name, num_classes=num_classes) == PUBLISHED_PARAMETERS[name, num_classes]


@pytest.mark.parametrize("name", ONE_OF_EACH_FAMILY)
def test_every_family_trains_on_16_pixels_in_channels_last_and_bfloat16(name: str) -> None:
    network = build_by_name(name, num_classes=3).to(memory_format=torch.channels_last)
    images = torch.randn(4, 3, 16, 16).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(images)
    logits.float().logsumexp(dim=1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("name", ONE_OF_EACH_FAMILY)
def test_captured_maps_are_not_changed_afterwards(name: str) -> None:
    network = build_by_name(name, num_classes=3).eval()
    stages = [
        module
        for path, module in network.named_children()
        if path.startswith(("layer", "block", "relu")) or path == "conv1"
    ]
    captured: list[tuple[Tensor, Tensor]] = []
    for stage in stages:
        stage.register_forward_hook(lambda _, __, output: captured.append((output, output.clone())))
    with torch.no_grad():
        network(torch.randn(2, 3, 32, 32))
    assert captured
    assert all(torch.equal(held, at_the_time) for held, at_the_time in captured)


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_OF_EACH_FAMILY)
def test_every_family_is_one_graph_for_the_compiler(name: str) -> None:
    network = build_by_name(name, num_classes=3).eval()
    images = torch.randn(2, 3, 32, 32)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), network(images))


def test_listing_names_does_not_import_torch() -> None:
    code = "import sys, kd3.models.zoo; sys.exit(bool({'torch', 'numpy', 'PIL'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


# Golden names, as the public checkpoints have them. "x" is a layer with a weight, "x+" one with a bias too,
# "x*" a batch norm.
BASIC = "conv1 bn1* conv2 bn2*"
PRE_ACTIVATION = "bn1* conv1 bn2* conv2"
THREE = "conv1 bn1* conv2 bn2* conv3 bn3*"


def under(path: str, layers: str) -> str:
    return " ".join(f"{path}.{layer}" for layer in layers.split())


GOLDEN = {
    "resnet8": ["conv1 bn1*", *(under(f"layer{i}.0", BASIC) for i in (1, 2, 3)), "linear+"],
    "resnet18": [
        "conv1 bn1*",
        *(under(f"layer{i}.{j}", BASIC) for i in (1, 2, 3, 4) for j in (0, 1)),
        *(under(f"layer{i}.0.shortcut", "0 1*") for i in (2, 3, 4)),
        "linear+",
    ],
    "resnet8x4": [
        "conv1 bn1*",
        *(under(f"layer{i}.0", f"{BASIC} downsample.0 downsample.1*") for i in (1, 2, 3)),
        "fc+",
    ],
    "wrn_16_1": [
        "conv1",
        *(under(f"block{i}.layer.{j}", PRE_ACTIVATION) for i in (1, 2, 3) for j in (0, 1)),
        *(f"block{i}.layer.0.convShortcut" for i in (2, 3)),
        "bn1* fc+",
    ],
    "resnet14x2": [
        "conv1 bn1*",
        *(under(f"layer{i}.{j}", BASIC) for i in (1, 2, 3) for j in (0, 1)),
        *(under(f"layer{i}.0", "downsample.0 downsample.1*") for i in (1, 2, 3)),
        "fc+",
    ],
    "vgg13": [*(under(f"block{i}", "0+ 1* 3+ 4*") for i in range(5)), "classifier+"],
    "mobilenet_v2": [
        "conv1 bn1*",
        *(under(f"layers.{i}", THREE) for i in range(17)),
        *(under(f"layers.{i}.shortcut", "0 1*") for i in (0, 1, 10, 16)),
        "conv2 bn2* linear+",
    ],
    "shufflenet_v2": [
        "conv1 bn1*",
        *(under(f"layer{i}.{j}", THREE) for i, blocks in ((1, 4), (2, 8), (3, 4)) for j in range(blocks)),
        *(under(f"layer{i}.0", "conv4 bn4* conv5 bn5*") for i in (1, 2, 3)),
        "conv2 bn2* linear+",
    ],
}


def written_out(golden: list[str]) -> list[str]:
    kinds = {
        "+": ("weight", "bias"),
        "*": ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"),
    }
    layers = " ".join(golden).split()
    return [f"{x.rstrip('+*')}.{name}" for x in layers for name in kinds.get(x[-1], ("weight",))]


@pytest.mark.parametrize("name", GOLDEN)
def test_parameters_are_named_as_in_public_checkpoints(name: str) -> None:
    assert sorted(build_by_name(name, num_classes=10).state_dict()) == sorted(written_out(GOLDEN[name]))


def test_bottlenecks_are_named_as_in_public_checkpoints() -> None:
    names = {k for k in build_by_name("resnet50", num_classes=10).state_dict() if k.startswith("layer1.0.")}
    block = "conv1 bn1* conv2 bn2* conv3 bn3* shortcut.0 shortcut.1*"
    assert names == {f"layer1.0.{k}" for k in written_out([block])}


def test_shortcut_b_adds_a_convolution_and_a_batch_norm() -> None:
    a, b = (build_by_name("resnet20", num_classes=10, shortcut=kind) for kind in "AB")
    # 1x1 from 16 to 32 and from 32 to 64 channels, each with a batch norm of two values a channel.
    extra = parameters("resnet20", num_classes=10, shortcut="B") - parameters("resnet20", num_classes=10)
    assert extra == 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    added = set(b.state_dict()) - set(a.state_dict())
    shortcuts = [f"layer{i}.0.shortcut.0 layer{i}.0.shortcut.1*" for i in (2, 3)]
    assert added == set(written_out(shortcuts))


def test_shortcut_a_takes_every_second_pixel_between_zero_channels() -> None:
    image = torch.arange(1.0, 33.0).view(1, 2, 4, 4)
    padded = PaddedShortcut(2, stride=2)(image)
    expected = torch.tensor([[[0, 0], [0, 0]], [[1, 3], [9, 11]], [[17, 19], [25, 27]], [[0, 0], [0, 0]]])
    assert torch.equal(padded, expected[None].float())


def test_interleaving_takes_channels_in_turn() -> None:
    left, right = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1), torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    assert _interleave(left, right).flatten().tolist() == [1, 3, 2, 4]


def test_shufflenet_grows_with_its_width() -> None:
    sizes = [parameters("shufflenet_v2", num_classes=10, width=width) for width in (0.5, 1, 1.5, 2)]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize(("groups", "fan_out"), [(1, 9 * 64), (64, 9)])
def test_convolutions_start_with_variance_two_over_fan_out(groups: int, fan_out: int) -> None:
    torch.manual_seed(0)
    layer = convolution(64, 64, 3, groups=groups)
    initialise(layer)
    assert layer.weight.var().item() == pytest.approx(2 / fan_out, rel=0.15)


def test_public_checkpoint_classifies_real_images(shared_data: Path) -> None:
    network = build_by_name("resnet20", num_classes=10)
    load_weights(network, shared_data / "teacher" / "resnet20-12fca82f.th", where="test")
    with zipfile.ZipFile(shared_data / "original_test.zip") as archive:
        files = sorted(name for name in archive.namelist() if name.endswith(".jpg"))[::40]
        pixels = [torch.frombuffer(_rgb(archive.read(name)), dtype=torch.uint8) for name in files]
    folders = sorted({name.split("/")[-2] for name in files})
    labels = torch.tensor([folders.index(name.split("/")[-2]) for name in files])
    images = torch.stack(pixels).view(-1, 32, 32, 3).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 1, 3, 1, 1)
    with torch.no_grad():
        logits = network.eval()((images - mean) / std)
    # 81% on all 10,000 (DATA.md); a shortcut padded on one side only gives far less.
    assert (logits.argmax(dim=1) == labels).float().mean() > 0.7


def _rgb(file: bytes) -> bytearray:
    return bytearray(Image.open(io.BytesIO(file)).convert("RGB").tobytes())


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("resnet65", {}, "unknown network of the zoo 'resnet65'; did you mean 'resnet56'"),
        (
            "resnet20",
            {"shortcuts": "A"},
            "unknown argument of kd3:resnet20 'shortcuts'; did you mean 'shortcut'",
        ),
        ("resnet20", {"depth": 56}, "unknown argument of kd3:resnet20 'depth'"),
        ("vgg8", {"width": 2}, "kd3:vgg8 takes no arguments; got 'width'"),
        ("resnet20", {"shortcut": "C"}, "kd3:resnet20: shortcut must be 'A' or 'B'; got 'C'"),
        ("shufflenet_v2", {"width": [3]}, "kd3:shufflenet_v2: width must be one of 0.5, 1, 1.5, 2; got [3]"),
    ],
)
def test_wrong_names_and_arguments_are_refused(name: str, arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(KD3Error) as refused:
        build_by_name(name, num_classes=10, **arguments)
    assert sentence in str(refused.value)
