"""Classifiers for small images (32 and 64 px), by name. Free of torch, so help texts can list them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ZooEntry:
    """One network: its class, the arguments that select it, and a description."""

    builder: str  # "module:class", imported on use
    parameters: int  # with 10 classes and default arguments
    summary: str
    fixed: Mapping[str, Any] = field(default_factory=dict)  # fixed by the name; the user cannot change it
    is_for_any_channels: bool = False  # argument `channels` follows the images


def _resnet(depth: int, parameters: int) -> ZooEntry:
    summary = f"ResNet-{depth} with a 3x3 stem, 64 to 512 channels"
    return ZooEntry("kd3.models.zoo.resnets:ResNet", parameters, summary, {"depth": depth})


def _resnet_cifar(depth: int, parameters: int) -> ZooEntry:
    summary = f"ResNet-{depth} for CIFAR, 16 to 64 channels; shortcut A or B"
    return ZooEntry("kd3.models.zoo.resnets:ResNetCifar", parameters, summary, {"depth": depth})


def _resnet_x(depth: int, width: int, parameters: int) -> ZooEntry:
    summary = f"ResNet-{depth} for CIFAR, {width} times as wide, {16 * width} to {64 * width} channels"
    return ZooEntry("kd3.models.zoo.resnets:ResNetX4", parameters, summary, {"depth": depth, "width": width})


def _wide_resnet(depth: int, width: int, parameters: int) -> ZooEntry:
    summary = f"Wide ResNet-{depth}-{width}, pre-activation, 16 to {64 * width} channels"
    fixed = {"depth": depth, "width": width}
    return ZooEntry("kd3.models.zoo.resnets:WideResNet", parameters, summary, fixed)


def _vgg(depth: int, parameters: int) -> ZooEntry:
    summary = f"VGG-{depth} with batch norm and one linear layer, 64 to 512 channels"
    return ZooEntry("kd3.models.zoo.small:VGG", parameters, summary, {"depth": depth})


def _lenet(share: str, filters: tuple[int, ...], parameters: int) -> ZooEntry:
    summary = f"{share} for digits of 32 px, {filters[0]} to {filters[2]} channels; grey or RGB as its images are"
    fixed = {"filters": filters}
    return ZooEntry("kd3.models.zoo.small:LeNet5", parameters, summary, fixed, is_for_any_channels=True)


ZOO: Mapping[str, ZooEntry] = {
    "resnet8": _resnet_cifar(8, 75_290),
    "resnet14": _resnet_cifar(14, 172_506),
    "resnet20": _resnet_cifar(20, 269_722),
    "resnet32": _resnet_cifar(32, 464_154),
    "resnet38": _resnet_cifar(38, 561_370),
    "resnet44": _resnet_cifar(44, 658_586),
    "resnet56": _resnet_cifar(56, 853_018),
    "resnet110": _resnet_cifar(110, 1_727_962),
    "resnet116": _resnet_cifar(116, 1_825_178),
    "resnet18": _resnet(18, 11_173_962),
    "resnet34": _resnet(34, 21_282_122),
    "resnet50": _resnet(50, 23_520_842),
    "resnet8x4": _resnet_x(8, 4, 1_210_410),
    "resnet14x4": _resnet_x(14, 4, 2_760_490),
    "resnet20x4": _resnet_x(20, 4, 4_310_570),
    "resnet32x4": _resnet_x(32, 4, 7_410_730),
    "resnet38x4": _resnet_x(38, 4, 8_960_810),
    "resnet14x2": _resnet_x(14, 2, 692_122),
    "resnet38x2": _resnet_x(38, 2, 2_243_994),
    "resnet110x2": _resnet_x(110, 2, 6_899_610),
    "wrn_16_1": _wide_resnet(16, 1, 175_066),
    "wrn_16_2": _wide_resnet(16, 2, 691_674),
    "wrn_28_1": _wide_resnet(28, 1, 369_498),
    "wrn_28_2": _wide_resnet(28, 2, 1_467_610),
    "wrn_40_1": _wide_resnet(40, 1, 563_930),
    "wrn_40_2": _wide_resnet(40, 2, 2_243_546),
    "vgg8": _vgg(8, 3_918_858),
    "vgg11": _vgg(11, 9_231_114),
    "vgg13": _vgg(13, 9_416_010),
    "vgg16": _vgg(16, 14_728_266),
    "vgg19": _vgg(19, 20_040_522),
    "lenet5": _lenet("LeNet-5", (6, 16, 120, 84), 61_706),
    "lenet5_half": _lenet("half of LeNet-5", (3, 8, 60, 42), 15_738),
    "mobilenet_v2": ZooEntry(
        "kd3.models.zoo.small:MobileNetV2",
        2_296_922,
        "MobileNetV2 with strides for 32 px, 1280 channels",
    ),
    "shufflenet_v2": ZooEntry(
        "kd3.models.zoo.small:ShuffleNetV2",
        1_263_854,
        "ShuffleNetV2 with strides for 32 px, 1024 channels; width 0.5, 1, 1.5 or 2",
    ),
}
