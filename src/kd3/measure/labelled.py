"""Labelled images for evaluation: class folders, or data with labels, read by `pool/labelled_files`."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from kd3 import console
from kd3.compute import Compute
from kd3.errors import KD3Error
from kd3.measure.accuracy import Tally
from kd3.measure.lost import Answers
from kd3.models.preprocessing import Normalisation
from kd3.models.student import Student
from kd3.pool import Decoded, DecodeSettings, decode_records
from kd3.pool.changes import change_images, find_change
from kd3.pool.class_matching import match_classes
from kd3.pool.kept_out import KnownImages
from kd3.pool.labelled_files import labelled_files
from kd3.pool.reasons import counted
from kd3.pool.record import Record
from kd3.pool.sources.names import shown
from kd3.preparation import Preparation

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
        num_classes: int,
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
        self.matching = match_classes(set(found.labels), class_names, where=self.source, told_by=found.told_by)
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

        `teacher_order` maps the model's classes to the teacher's (`class_names.places`); None: equal order. `answers`
        collects both networks' predictions.

        Raises:
            KD3Error: none of the images can be decoded.
        """
        tally = Tally(len(self.names), temperature=model.temperature if isinstance(model, Student) else 1.0)
        training = model.training
        model.eval()
        with console.progress(title or "", len(self.records), "images", hidden=title is None) as bar:
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
        model.train(training)
        if tally.count == 0:
            raise KD3Error(
                f"none of the {len(self.records)} files in {self.source} is a usable image: {counted(self.skipped)}"
            )
        return tally

    def accuracy(self, model: nn.Module, compute: Compute) -> float:
        """Return a student's top-1 accuracy, in percent."""
        assert isinstance(model.normalise, Normalisation)
        return self.tally(model, model.normalise, compute).top1_percent
