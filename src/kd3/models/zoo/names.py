"""Contents of the zoo, by name. Free of torch, so help texts can list it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ZooEntry:
    """One network: where its class is, which arguments make it this network, and what it is."""

    builder: str  # "module:class", imported on use
    parameters: int  # with 10 classes and default arguments
    summary: str
    fixed: Mapping[str, Any] = field(default_factory=dict)  # what the name says; the user cannot change it


def _resnet(depth: int, parameters: int) -> ZooEntry:
    summary = f"ResNet-{depth} with a 3x3 stem, 64 to 512 channels"
    return ZooEntry("kd3.models.zoo.resnet:ResNet", parameters, summary, {"depth": depth})


def _resnet_cifar(depth: int, parameters: int) -> ZooEntry:
    summary = f"ResNet-{depth} for CIFAR, 16 to 64 channels; shortcut A or B"
    return ZooEntry("kd3.models.zoo.resnet_cifar:ResNetCifar", parameters, summary, {"depth": depth})


def _resnet_x4(depth: int, parameters: int) -> ZooEntry:
    summary = f"ResNet-{depth} for CIFAR, four times as wide, 32 to 256 channels"
    return ZooEntry("kd3.models.zoo.resnet_x4:ResNetX4", parameters, summary, {"depth": depth})


def _wide_resnet(depth: int, width: int, parameters: int) -> ZooEntry:
    summary = f"Wide ResNet-{depth}-{width}, pre-activation, 16 to {64 * width} channels"
    fixed = {"depth": depth, "width": width}
    return ZooEntry("kd3.models.zoo.wide_resnet:WideResNet", parameters, summary, fixed)


def _vgg(depth: int, parameters: int) -> ZooEntry:
    summary = f"VGG-{depth} with batch norm and one linear layer, 64 to 512 channels"
    return ZooEntry("kd3.models.zoo.vgg:VGG", parameters, summary, {"depth": depth})


ZOO: Mapping[str, ZooEntry] = {
    "resnet8": _resnet_cifar(8, 75_290),
    "resnet14": _resnet_cifar(14, 172_506),
    "resnet20": _resnet_cifar(20, 269_722),
    "resnet32": _resnet_cifar(32, 464_154),
    "resnet44": _resnet_cifar(44, 658_586),
    "resnet56": _resnet_cifar(56, 853_018),
    "resnet110": _resnet_cifar(110, 1_727_962),
    "resnet18": _resnet(18, 11_173_962),
    "resnet34": _resnet(34, 21_282_122),
    "resnet50": _resnet(50, 23_520_842),
    "resnet8x4": _resnet_x4(8, 1_210_410),
    "resnet32x4": _resnet_x4(32, 7_410_730),
    "wrn_16_1": _wide_resnet(16, 1, 175_066),
    "wrn_16_2": _wide_resnet(16, 2, 691_674),
    "wrn_40_1": _wide_resnet(40, 1, 563_930),
    "wrn_40_2": _wide_resnet(40, 2, 2_243_546),
    "vgg8": _vgg(8, 3_918_858),
    "vgg11": _vgg(11, 9_231_114),
    "vgg13": _vgg(13, 9_416_010),
    "vgg16": _vgg(16, 14_728_266),
    "mobilenet_v2": ZooEntry(
        "kd3.models.zoo.mobilenet_v2:MobileNetV2",
        2_296_922,
        "MobileNetV2 with strides for 32 px, 1280 channels",
    ),
    "shufflenet_v2": ZooEntry(
        "kd3.models.zoo.shufflenet_v2:ShuffleNetV2",
        1_263_854,
        "ShuffleNetV2 with strides for 32 px, 1024 channels; width 0.5, 1, 1.5 or 2",
    ),
}
