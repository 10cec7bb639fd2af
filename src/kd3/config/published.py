"""Known by name: published data sets, tables of the paper, and the studies that come with kd3. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from kd3.config.settings import Count, Precision, Settings, split_commas, split_semicolons
from kd3.runtime.errors import unknown_name


def studies() -> list[str]:
    """Return the names of the studies that come with kd3."""
    folder = resources.files("kd3") / "studies"
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml"))


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
    classes: int = 10  # not of a crawl
    grey: bool = False
    flip: bool = True  # mirroring keeps the class
    layout: str = ""  # a key of `kd3.studies.published_files.LAYOUTS`
    unpacked: Mapping[str, str] = field(default_factory=dict)  # md5 by name: files that the unpacked archive must have

    @property
    def is_crawl(self) -> bool:
        """Whether it is a crawl: images whose labels are not used."""
        return self.test == 0


_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_CIFAR = "https://www.cs.toronto.edu/~kriz/"
_IMAGENET = "https://image-net.org/data/downsample/"

# Checksums: of MNIST and CIFAR as torchvision 0.28 has them; of CINIC-10, TinyImageNet and MNIST's unpacked files as a
# dozen public loaders agree; of the small ImageNets none was found.
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
        unpacked={
            "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
            "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
            "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
            "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
        },
    ),
    "cifar10": DataSet(
        "CIFAR-10",
        (Published(_CIFAR + "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),),
        side=32,
        train=50_000,
        test=10_000,
        layout="cifar10",
        unpacked={
            "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
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
        classes=100,
        layout="cifar100",
        unpacked={
            "meta": "7973b15100ade9c7d40fb424638fde48",
            "train": "16019d7e3df5f24257cddd939b257f8d",
            "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        },
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
        classes=200,
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


TableName = Literal["table1", "table2", "table4", "pairs"]
Budget = Literal["ours", "paper"]
CRAWLS = {32: "imagenet32", 64: "imagenet64"}  # by the side of the images


@dataclass(frozen=True)
class Pair:
    """A teacher and a student of the zoo on one data set."""

    dataset: str  # a key of `DATASETS`
    teacher: str
    student: str
    published: Mapping[str, float] = field(default_factory=dict)  # percent by kind; docs/paper.md has the sources

    @property
    def name(self) -> str:
        """Its folder, and its name for `--only`."""
        return f"{self.dataset}-{self.teacher}-{self.student}"


@dataclass(frozen=True)
class PaperTable:
    """One table."""

    title: str
    studies: Mapping[Budget, str]
    pairs: tuple[Pair, ...]


_METHODS: Mapping[Budget, str] = {"ours": "paper-short", "paper": "paper"}
_MAIN = Pair("cifar10", "resnet34", "resnet18", {"teacher": 95.70, "best other": 94.84, "KD3": 95.21})
_CMI = {  # its page on CIFAR-10 and CIFAR-100: of the teacher, of a student on the original data, of CMI
    ("cifar10", "vgg11", "resnet18"): (92.25, 95.20, 91.13),
    ("cifar10", "wrn_40_2", "wrn_16_1"): (94.87, 91.12, 90.01),
    ("cifar10", "wrn_40_2", "wrn_40_1"): (94.87, 93.94, 92.78),
    ("cifar10", "wrn_40_2", "wrn_16_2"): (94.87, 93.95, 92.52),
    ("cifar100", "vgg11", "resnet18"): (71.32, 77.01, 70.56),
    ("cifar100", "wrn_40_2", "wrn_16_1"): (75.83, 65.31, 57.91),
    ("cifar100", "wrn_40_2", "wrn_40_1"): (75.83, 72.19, 68.88),
    ("cifar100", "wrn_40_2", "wrn_16_2"): (75.83, 73.56, 68.75),
}


def _other_pair(dataset: str, teacher: str, student: str) -> Pair:
    figures = _CMI.get((dataset, teacher, student), ())
    return Pair(dataset, teacher, student, dict(zip(("teacher", "original labels", "CMI"), figures, strict=False)))


TABLES: Mapping[str, PaperTable] = {
    "table1": PaperTable(
        "Table 1: every data set",
        _METHODS,
        (
            Pair(
                "mnist",
                "lenet5",
                "lenet5_half",
                {"teacher": 98.91, "original labels": 98.65, "KD, original data": 98.91, "DAFL": 98.20},
            ),
            _MAIN,
            Pair("cifar100", "resnet34", "resnet18", {"teacher": 78.05, "best other": 77.04, "KD3": 78.44}),
            Pair("cinic10", "resnet34", "resnet18", {"best other": 82.96, "KD3": 86.55}),
            Pair("tinyimagenet", "resnet34", "resnet18"),
        ),
    ),
    "table2": PaperTable(
        "Table 2: KD3 without its parts", {"ours": "components", "paper": "paper-components"}, (_MAIN,)
    ),
    "table4": PaperTable("Table 4: the amount of web data", {"ours": "amount", "paper": "paper-amount"}, (_MAIN,)),
    "pairs": PaperTable(
        "Other pairs of networks",
        _METHODS,
        tuple(
            _other_pair(dataset, teacher, student)
            for dataset in ("cifar10", "cifar100")
            for teacher, student in (
                ("vgg16", "vgg13"),
                ("vgg19", "vgg13"),
                ("vgg11", "resnet18"),
                ("wrn_40_2", "wrn_16_1"),
                ("wrn_40_2", "wrn_40_1"),
                ("wrn_40_2", "wrn_16_2"),
            )
        ),
    ),
}


class ReproduceConfig(Settings):
    """Repeat a table of the paper: teachers, the study of every pair, and the published figures beside the result."""

    table: TableName = Field(
        description="table1: every data set; table2: KD3 without its parts; table4: the amount of web data; pairs: "
        "other networks"
    )
    out: str = Field(description="folder of the table; run again to go on")
    data: str = Field(
        "data", description="folder with what `kd3 dataset` has made, one folder for each data set's name"
    )
    crawl: str | None = Field(
        None,
        description="pool of another crawl (default: the paper's, DATA/imagenet32 or, of TinyImageNet, imagenet64)",
    )
    only: Annotated[list[str], BeforeValidator(split_commas)] = Field(
        [], description="only these data sets or pairs (cifar10, or cifar10-resnet34-resnet18), comma separated"
    )
    budget: Budget = Field(
        "ours", description="of each run: 'ours' is that of kd3's studies, 'paper' the 240 epochs of the paper's recipe"
    )
    images: Count | None = Field(None, ge=1, description="training images of each run instead (default: the study's)")
    teachers: str | None = Field(
        None,
        description="folder with descriptions of teachers, cifar10-resnet34.yaml and so on (default: they are trained)",
    )
    teacher_epochs: float | None = Field(
        None, gt=0, description="passes over the original data of a teacher that is trained (default: 60; paper: 240)"
    )
    seeds: Annotated[list[int], BeforeValidator(split_commas)] = Field(
        [], description="seeds of every row, comma separated (default: the study's)"
    )
    rows: Annotated[list[str], BeforeValidator(split_semicolons)] = Field(
        [], description="only these rows of the study, separated by semicolons"
    )
    jobs: int = Field(1, ge=1, description="runs at the same time")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    precision: Precision = Field("auto", description="as for kd3 distill")
    plan: bool = Field(
        False,
        description="run nothing: print runs, images, hours on this device by a few measured steps, and disk",
    )

    @property
    def epochs_of_teachers(self) -> float:
        """Passes over the original data of a teacher that is trained."""
        return self.teacher_epochs or (240 if self.budget == "paper" else 60)


def chosen(table: str, only: Sequence[str]) -> list[Pair]:
    """Return a table's pairs, or the named ones: by data set, or by `DATASET-TEACHER-STUDENT`.

    Raises:
        KD3Error: a name is neither.
    """
    pairs = TABLES[table].pairs
    known = {name for pair in pairs for name in (pair.dataset, pair.name)}
    for name in only:
        if name not in known:
            raise unknown_name(f"pair of {table}", name, known)
    return [pair for pair in pairs if not only or {pair.dataset, pair.name} & set(only)]
