"""Context of every group: device, material and time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import kd3
from benchmarks.material import Material, find, make_pool
from kd3.runtime.compute import Compute


@dataclass(frozen=True)
class Pair:
    """Teacher, student and batch size."""

    teacher: str
    student: str
    batch: int


ON_CPU = Pair("resnet56", "resnet20", 128)
ON_GPU = Pair("resnet34", "resnet18", 1024)


@dataclass
class Context:
    """Device, material and time of the measurements."""

    work: Path  # an empty folder
    data: Path | None
    compute: Compute
    quick: bool

    @property
    def rounds(self) -> int:
        """Turns of each side."""
        return 3 if self.quick else 5

    @property
    def seconds(self) -> float:
        """Length of a turn."""
        return 0.5 if self.quick else 3.0

    @property
    def pair(self) -> Pair:
        """Networks of a suitable size for the device."""
        return ON_GPU if self.compute.device.type == "cuda" else ON_CPU

    @cached_property
    def material(self) -> Material:
        """The crawl and the teacher."""
        found = find(self.data, self.work, images=5_000 if self.quick else 20_000, teacher=self.pair.teacher)
        return replace(found, shards=found.shards[:4]) if self.quick else found

    @cached_property
    def pool(self) -> kd3.ImagePool:
        """The crawl, ingested."""
        return make_pool(self.material, self.work)
