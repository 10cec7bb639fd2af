"""Tables of the paper that can be repeated: their pairs, data sets and studies. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from kd3.config.kinds import Precision, split_commas, split_semicolons
from kd3.config.settings import Count, Settings
from kd3.errors import unknown_name

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
