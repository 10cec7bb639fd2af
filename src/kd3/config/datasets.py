"""The data sets that `kd3 dataset` knows: their published files, checksums and sizes. Free of torch and numpy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Published:
    """A file as its authors publish it."""

    url: str
    md5: str | None = None  # None: no reliable checksum is known

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class DataSet:
    """One data set."""

    title: str
    files: tuple[Published, ...]
    side: int  # pixels, for the paper's networks
    train: int  # images; all, for a crawl
    test: int = 0  # images; 0: a crawl, without a test set
    grey: bool = False
    flip: bool = True  # mirroring keeps the class
    layout: str = ""  # a key of `kd3.datasets.layouts.LAYOUTS`
    unpacked: Mapping[str, str] = field(default_factory=dict)  # md5 of files of the unpacked archive, by name

    @property
    def is_crawl(self) -> bool:
        """Whether it is a crawl: images whose labels are not used."""
        return self.test == 0


_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_CIFAR = "https://www.cs.toronto.edu/~kriz/"
_IMAGENET = "https://image-net.org/data/downsample/"

# Checksums: of MNIST and CIFAR as torchvision 0.28 has them; of CINIC-10 and TinyImageNet as a dozen public loaders
# agree; of the small ImageNets none was found.
DATASETS: Mapping[str, DataSet] = {
    "mnist": DataSet(
        "MNIST",
        (
            Published(_MNIST + "train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
            Published(_MNIST + "train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432"),
            Published(_MNIST + "t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3"),
            Published(_MNIST + "t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c"),
        ),
        side=32,
        train=60_000,
        test=10_000,
        grey=True,
        flip=False,
        layout="idx",
    ),
    "cifar10": DataSet(
        "CIFAR-10",
        (Published(_CIFAR + "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),),
        side=32,
        train=50_000,
        test=10_000,
        layout="cifar",
        unpacked={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
        },
    ),
    "cifar100": DataSet(
        "CIFAR-100",
        (Published(_CIFAR + "cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"),),
        side=32,
        train=50_000,
        test=10_000,
        layout="cifar",
        unpacked={"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    ),
    "cinic10": DataSet(
        "CINIC-10",
        (
            Published(
                "https://datashare.ed.ac.uk/bitstream/handle/10283/3192/CINIC-10.tar.gz",
                "6ee4d0c996905fe93221de577967a372",
            ),
        ),
        side=32,
        train=90_000,
        test=90_000,
        layout="folders",
    ),
    "tinyimagenet": DataSet(
        "TinyImageNet",
        (Published("https://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de"),),
        side=64,
        train=100_000,
        test=10_000,
        layout="tinyimagenet",
    ),
    "imagenet32": DataSet(
        "ImageNet in 32 pixels", (Published(_IMAGENET + "Imagenet32_train.zip"),), side=32, train=1_281_167
    ),
    "imagenet64": DataSet(
        "ImageNet in 64 pixels",
        (Published(_IMAGENET + "Imagenet64_train_part1.zip"), Published(_IMAGENET + "Imagenet64_train_part2.zip")),
        side=64,
        train=1_281_167,
    ),
}
