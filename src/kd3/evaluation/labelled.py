"""Labelled images for evaluation, and signs that an accuracy misleads: mixed-up labels, test images in the student's
pool.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import binom
from torch import Tensor, nn

from kd3.config.records import Preparation, some
from kd3.config.yaml_text import load_yaml
from kd3.evaluation.accuracy import Tally
from kd3.evaluation.lost import Answers
from kd3.models.head import evaluating
from kd3.models.preprocessing import Normalisation
from kd3.models.student import Student
from kd3.models.teacher import Teacher
from kd3.pool import Decoded, DecodeSettings, ImagePool, decode_records
from kd3.pool.changes import change_images, find_change
from kd3.pool.leaks import Found, KnownImages, overlap
from kd3.runtime import console
from kd3.runtime.compute import Compute
from kd3.runtime.errors import KD3Error, in_words
from kd3.runtime.run_folder import RunFolder, find
from kd3.sources.class_matching import Matching, match_classes
from kd3.sources.files import shown
from kd3.sources.labels import labelled_files
from kd3.sources.record import Record, counted

KEEP_BYTES = 1 << 30
FIRST = 16
BATCH = 256


class LabelledImages:
    """Images with the classes that their folders or labels name; `matching` maps these to the model's.

    `preparation` is the model's: of its input pictures. `change` is a name of `kd3.pool.CHANGES` and a
    strength, applied to the decoded pixels: what a shift of the test images costs. Its random numbers depend on the
    image's place in the source.

    Raises:
        KD3Error: there are no labels, they are not the model's classes, or there is no such change.
    """

    def __init__(
        self,
        source: str,
        *,
        preparation: Preparation,
        class_names: Sequence[str],
        workers: int | None = None,
        change: tuple[str, float] | None = None,
    ) -> None:
        if change is not None:
            find_change(*change)  # reports errors now
        self.source, self.preparation, self.workers = shown(source), preparation, workers
        self.change = change
        found = labelled_files(source)
        self.records, self.split, self._left_out = found.records, found.split, found.left_out
        self.skipped: Counter[str] = Counter(found.left_out)
        self.matching = match_classes(
            set(found.labels), class_names, where=self.source, label_origin=found.label_origin
        )
        self.labels = [self.matching.of(label) for label in found.labels]  # of each record
        self.names = self.matching.names()
        self._settings = DecodeSettings.to_see(preparation)
        self._kept: list[tuple[Tensor, Tensor]] | None = None
        self._known: KnownImages | None = None  # once all were decoded
        self._places: list[int] = []  # of the usable ones among the records, likewise
        self._check_first()

    @property
    def usable(self) -> int:
        """Number of decodable images; 0 before all were decoded."""
        return len(self._places)

    def batches(self, size: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield uint8 images (B, 3, S, S) and labels (B,); decoded once and cached if small."""
        if self._kept is not None:
            yield from self._kept
            return
        keep = len(self.records) * 3 * self.preparation.size**2 <= KEEP_BYTES
        kept = []
        for batch in self._decoded(size):
            if keep:
                kept.append(batch)
            yield batch
        if keep:
            self._kept = kept

    def known(self, preparation: Preparation | None = None) -> KnownImages:
        """Return fingerprints of the images, without the change, to detect copies.

        Copies are detected among pictures of equal preparation: `preparation` is that of the pictures to compare with.
        """
        if preparation is not None and preparation.fit != self.preparation.fit:
            other = copy.copy(self)
            other.preparation, other._settings = preparation, DecodeSettings.to_see(preparation)
            other.skipped, other._kept, other._known = Counter(self._left_out), None, None
            return other.known()
        if self._known is None:
            for _ in self._decoded(BATCH) if self._kept is None else ():
                pass
        assert self._known is not None
        return self._known

    def examples(self, rows: Sequence[int]) -> list[np.ndarray]:
        """Return the pixels (3, S, S) of images, by their place in all `batches`, which were read once."""
        records = [self.records[self._places[row]] for row in rows]
        outcomes = decode_records(records, self._settings, workers=0)
        return [one.result.pixels for one in outcomes if isinstance(one.result, Decoded)]

    def _check_first(self) -> None:
        """Refuse entirely unusable data at once."""
        outcomes = list(decode_records(self.records[:FIRST], self._settings, workers=0))
        if not any(isinstance(outcome.result, Decoded) for outcome in outcomes):
            reasons = Counter[str](o.result.reason for o in outcomes if not isinstance(o.result, Decoded))
            first = f"the first {len(outcomes)} files in {self.source}"
            raise KD3Error(f"{first} are no usable images: {counted(reasons)}")

    def _decoded(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        known = KnownImages()
        waiting: list[tuple[int, Record, Decoded]] = []
        self.skipped, places = Counter(self._left_out), list[int]()
        outcomes = decode_records(self.records, self._settings, workers=self.workers)
        for place, outcome in enumerate(outcomes):
            if not isinstance(outcome.result, Decoded):
                self.skipped[outcome.result.reason] += 1
                continue
            waiting.append((place, outcome.record, outcome.result))
            places.append(place)
            if len(waiting) == size:
                yield self._batch(waiting, known)
                waiting = []
        if waiting:
            yield self._batch(waiting, known)
        self._known, self._places = known, places

    def _batch(self, waiting: list[tuple[int, Record, Decoded]], known: KnownImages) -> tuple[Tensor, Tensor]:
        images = np.stack([decoded.pixels for _, _, decoded in waiting])
        known.add(
            [(record.source, record.key) for _, record, _ in waiting],
            [decoded.sha256 for _, _, decoded in waiting],
            images,
        )
        if self.change is not None:
            images = change_images(*self.change, images, np.array([place for place, _, _ in waiting]))
        return torch.from_numpy(images), torch.tensor([self.labels[place] for place, _, _ in waiting])

    def tally(
        self,
        model: nn.Module,
        normalise: Normalisation,
        compute: Compute,
        *,
        teacher: nn.Module | None = None,
        teacher_order: Sequence[int] | None = None,
        answers: Answers | None = None,
        size: int = 256,
        title: str | None = None,
    ) -> Tally:
        """Return a model's correct answers on these images (and its agreement with the teacher).

        `teacher_order` maps the model's classes to the teacher's (`config.records.places`); None: equal order.
        `answers` collects both networks' predictions.

        Raises:
            KD3Error: none of the images can be decoded, or the logits of some are not finite.
        """
        tally = Tally(len(self.names), temperature=model.temperature if isinstance(model, Student) else 1.0)
        hidden = title is None
        with evaluating(model), console.progress(title or "", len(self.records), "images", hidden=hidden) as bar:
            for images, labels in self.batches(size):
                images = images.to(compute.device).contiguous(memory_format=torch.channels_last)
                with torch.inference_mode(), compute.autocast():
                    logits = model(normalise(images)).float()
                    teachers = None
                    if teacher is not None:
                        teachers = teacher(teacher.normalise(images)).float()  # type: ignore[operator]
                        teachers = teachers if teacher_order is None else teachers[:, list(teacher_order)]
                tally.add(logits, labels, teachers)
                if answers is not None and teachers is not None:
                    answers.add(logits, labels, teachers)
                bar.advance(len(labels))
        if tally.count == 0:
            raise KD3Error(
                f"none of the {len(self.records)} files in {self.source} is a usable image: {counted(self.skipped)}"
            )
        return tally

    def accuracy(self, model: nn.Module, compute: Compute) -> float:
        """Return a student's top-1 accuracy, in percent."""
        assert isinstance(model.normalise, Normalisation)
        return self.tally(model, model.normalise, compute).top1_percent


def labelled_for(model: Student | Teacher, source: str) -> LabelledImages:
    """Return labelled images for a model, and print their number and which classes they are.

    Raises:
        KD3Error: there are no labels, or they are not the model's classes.
    """
    data = LabelledImages(source, preparation=model.preparation, class_names=model.classes)
    for line in [f"{data.source}: {len(data.records):,} labelled images", *data.matching.lines()]:
        console.info(line)
    return data


MOST_OF = 0.6  # of a class's images predicted as one other class, one-to-one
OWN = 0.25  # of these correct, at most
ENOUGH = 3  # images of each such class
FAR_BELOW = 0.5  # of what chance gives
BY_CHANCE = 0.01  # probability of an accuracy that low by chance
SHOWN = 4


def doubts(confusion: np.ndarray, matching: Matching) -> list[str]:
    """Return doubts about the order of the classes, in sentences.

    Args:
        confusion: counts (K, K), [label, prediction].
        matching: of the labels to the classes.
    """
    counts = confusion.sum(axis=1)
    total, right, classes = int(counts.sum()), int(np.trace(confusion)), len(counts)
    moved = _moved(confusion)
    if len(moved) > 1:
        return [_permuted(moved, confusion, matching)]
    if total and right / total < FAR_BELOW / classes and binom.cdf(right, total, 1 / classes) < BY_CHANCE:
        return [
            f"{100 * right / total:.1f}% right is far below chance ({100 / classes:.3g}%): are the classes in "
            f"another order than the labels, or is the preprocessing not the model's?"
        ]
    return []


def _moved(confusion: np.ndarray) -> dict[int, int]:
    """Return classes nearly always predicted as one other class, by the best one-to-one assignment."""
    labels, called = linear_sum_assignment(confusion, maximize=True)
    counts = confusion.sum(axis=1)
    moved = {
        int(label): int(other)
        for label, other in zip(labels, called, strict=True)
        if label != other
        and confusion[label, other] >= MOST_OF * counts[label]
        and confusion[label, label] <= OWN * confusion[label, other]
        and counts[label] > 0
    }
    images = sum(int(counts[label]) for label in moved)
    return moved if images >= ENOUGH * len(moved) else {}


def _permuted(moved: dict[int, int], confusion: np.ndarray, matching: Matching) -> str:
    label_of = {place: key for key, place in matching.labels.items()}
    pairs = [
        f"{label_of[label]!r} is called {matching.called(other)!r}"
        for label, other in list(moved.items())[:SHOWN]
        if label in label_of
    ]
    fit = {label: moved.get(label, label) for label in label_of if confusion[label].any()}
    total, hits = int(confusion.sum()), sum(int(confusion[label, other]) for label, other in fit.items())
    words = (
        f"the classes look as if they were in another order than the labels: {', '.join(pairs)}"
        f"{', ...' if len(moved) > SHOWN else ''}; in that order {100 * hits / total:.1f}% are right"
    )
    if pattern := _pattern(fit, matching):
        words += f" ({pattern})"
    order = {other: label_of[label] for label, other in fit.items()}
    if len(order) < len(matching.classes):
        return words + "; if so, name the model's classes in the order of its logits"
    names = [order[place] for place in range(len(matching.classes))]
    return words + f"; if so, the model's classes are [{some(names, most=12)}], in the order of its logits"


def _pattern(fit: dict[int, int], matching: Matching) -> str:
    """Return the known cause of this order, in words."""
    if {abs(other - label) for label, other in fit.items()} == {1} and len(fit) > 2:
        return "one counts from 0, the other from 1"
    label_of = {place: key for key, place in matching.labels.items()}
    by_text = sorted(fit, key=lambda label: label_of[label])
    if [fit[label] for label in by_text] == sorted(fit.values()):
        return "the order of their names as text, in which torchvision's ImageFolder numbers folders"
    return ""


SHOWN_LEAKS = 3


@dataclass(frozen=True)
class Leak:
    """Images that a pool and labelled data share."""

    pool: str
    images: int  # number of labelled images
    found: dict[int, Found]  # by position in the pool
    keys: dict[int, str]  # of the pool's images

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON: the pairs by name."""
        pairs = [
            {
                "position": position,
                "key": self.keys.get(position),
                "test_key": known.key,
                "bits": known.bits,
                "similarity": round(known.similarity, 4),
            }
            for position, known in self.found.items()
        ]
        return {"pool": self.pool, "images": self.images, "pairs": pairs}

    @property
    def warning(self) -> str | None:
        """Warning for the user; None if nothing leaked."""
        if not self.found:
            return None
        pairs = [
            f"{self.keys.get(position, f'image {position}')} is {known.key}"
            for position, known in list(self.found.items())[:SHOWN_LEAKS]
        ]
        count = len({(known.source, known.key) for known in self.found.values()})
        more = ", ..." if len(self.found) > SHOWN_LEAKS else ""
        return (
            f"{count:,} of the {self.images:,} labelled images are in the pool {self.pool}, too, or nearly ("
            f"{', '.join(pairs)}{more}): accuracy on them is too optimistic; kd3 ingest --keep-out drops them"
        )


def leak(pool: ImagePool, data: LabelledImages) -> Leak:
    """Return the labelled images in a pool, as the same file or a near copy."""
    known = data.known(pool.preparation)
    found = overlap(pool, known)
    keys: dict[int, str] = {}
    if found and pool.path is not None:
        keys = {place: key for place, (key,) in enumerate(pool.index_rows(("key",))) if place in found}
    return Leak(str(pool.path or "in memory"), len(known), found, keys)


def pool_of_student(model: str | Path) -> ImagePool | None:
    """Return the pool that the student in a run folder, or in its `student/`, learned from.

    None, with a message, if it no longer exists; None if the model is no run's student.
    """
    folder = Path(model)
    run = RunFolder(folder if (folder / "student").is_dir() else folder.parent)
    if not (run.config.is_file() and run.origin.is_file()):
        return None
    try:
        config = load_yaml(run.config, what="configuration of the run")
        pool = ImagePool.open(find(run.path, "pool", str(config["pool"])))
        run.check_origin(pool=pool.content_hash)
    except (OSError, KeyError, TypeError, KD3Error) as problem:
        console.info(f"it is unknown whether the student trained on these images: {in_words(problem)}")
        return None
    return pool
