"""The training loop: select, train, evaluate the student's agreement with the teacher, repeat."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kd3.config.training import TrainSettings
from kd3.methods import Method
from kd3.models.fold import foldable
from kd3.runtime import console
from kd3.runtime.compute import Compute
from kd3.runtime.errors import KD3Error, in_words
from kd3.runtime.interruption import Stopped, StopRequest, stopping_between_steps
from kd3.runtime.run_folder import Listener, RunFolder
from kd3.scoring.batches import PoolBatches, PoolSplit, generator_for
from kd3.scoring.scan import (
    CachedLogits,
    LatestPredictions,
    PoolScan,
    agreement,
    commonest_class,
    divergence,
    is_as_good,
    score,
)
from kd3.scoring.views import fixed_views
from kd3.selection import Predictions, Selection
from kd3.selection.rules import weighted_order
from kd3.training import history
from kd3.training.budget import Budget, Progress, learning_rate, load_checkpoint
from kd3.training.learner import Learner
from kd3.training.run_logger import RunLogger

LOG_STEPS = 20

Evaluate = Callable[[Method], dict[str, float]]


@dataclass(frozen=True)
class FitResult:
    """Result of a finished training."""

    steps: int
    images: int
    rounds: int
    seconds: float  # of training and selection, labelled evaluation left out
    best_agreement: float  # percent of held-out pool images, of the kept student
    best_step: int  # of the kept student
    last_agreement: float  # percent


class Fit:
    """One training of one method on one pool; `run` continues it to the end."""

    def __init__(
        self,
        method: Method,
        *,
        batches: PoolBatches,
        split: PoolSplit,
        teacher_logits: Callable[[], CachedLogits],
        settings: TrainSettings,
        seed: int,
        compute: Compute,
        folder: RunFolder,
        evaluate: Evaluate | None = None,
        labels: Tensor | None = None,
        typicality: Callable[[], Tensor] | None = None,
        outliers: Callable[[], Tensor] | None = None,
        listeners: Callable[[int], Sequence[Listener]] = lambda images: (),
    ) -> None:
        self.method, self.batches, self.split = method, batches, split
        # Parts of images have more detail where the pool is stored larger.
        is_larger = settings.augmentation == "resized-crop" and batches.pool.stored is not batches.pool
        self.raw = PoolBatches(batches.pool.stored, compute) if is_larger else batches
        self.teacher_logits, self.typicality, self.outliers = teacher_logits, typicality, outliers
        self.settings, self.seed, self.compute, self.folder = settings, seed, compute, folder
        self.evaluate, self.listeners, self.ranks = evaluate, listeners, compute.ranks
        self.budget = Budget(settings, len(split.train), compute.ranks.count)
        teacher = compute.place(method.teacher)
        self.learner = Learner(
            method,
            settings,
            seed=seed,
            total_steps=self.budget.steps,
            compute=compute,
            fixed=fixed_views(settings, method.teacher, batches.pool, compute),
            labels=labels,
        )
        self.latest = LatestPredictions(len(split.train), method.teacher.num_classes, compute.device)
        student = method.student
        self.foldable = foldable(student, student.input_size) if settings.fold_batch_norms else []
        self.holdout_logits = score(teacher, batches, split.holdout, method.teacher.normalise, compute)
        self.at = Progress()
        self.logger: RunLogger

    def run(self, *, resume: bool) -> FitResult:
        """Train to the end of the budget.

        Raises:
            KD3Error: the loss is not finite, or the checkpoint to resume from is damaged.
            KeyboardInterrupt: interrupted; the checkpoint is written first.
        """
        if resume and self.folder.last.is_file():
            self.at, method, learner = load_checkpoint(self.folder.last)
            try:
                self.method.load_state_dict(method)
                self.learner.load(learner)
                self.latest.load(self.at.latest)
            except (RuntimeError, ValueError, KeyError) as problem:
                raise KD3Error(
                    f"the checkpoint {self.folder.last} does not fit this student; was its code changed since the "
                    f"run began? ({in_words(problem).splitlines()[0]})"
                ) from problem
        self.latest.round = self.at.round
        classes, budget = self.method.teacher.classes, self.budget.images
        self.method.train()
        with (
            history.shown(budget, self.at.images, classes) as bar,
            torch.random.fork_rng(devices=[self.compute.device] if self.compute.device.type == "cuda" else []),
            stopping_between_steps() as stop,
            self.ranks.connected(),
        ):
            self.logger = RunLogger(
                self.folder,
                self.ranks,
                self.at,
                budget=budget,
                classes=classes,
                listeners=lambda: [bar, *self.listeners(self.at.images)],
            )
            try:
                while not self.budget.is_used_up(self.at):
                    if self.at.step >= self.at.round_end:
                        self._select()
                        self._heed(stop)
                    self._round(bar, stop)
                    self._evaluate_student()
                    self._heed(stop, save=self._is_save_due(end_of_round=True))
            except Stopped:
                self._save()
                raise stop.interruption("") from None
            finally:
                self.logger.close()
            # A second signal interrupts inside a step: the previous checkpoint is valid.
        return FitResult(
            steps=self.at.step,
            images=self.at.images,
            rounds=self.at.round,
            seconds=self.at.seconds,
            best_agreement=self.at.best_agreement,
            best_step=self.at.best_step,
            last_agreement=self.at.agreement,
        )

    def _select(self) -> None:
        """Ask the method for the next training images, and open a round of them."""
        with self._timed():
            self.learner.agree_on_buffers()
            progress, batch = self.budget.progress(self.at), self.settings.batch
            selection = self.method.select(self._scan(), progress, at_least=batch)
            selection = self._agreed(selection)
            self.method.train()
            self.at.round += 1
            self.latest.round = self.at.round
            self.at.selected, self.at.weights = selection.index, selection.weights
            self.budget.open_round(self.at, len(selection.index), self.method.passes_per_selection)
        self.logger.selection(selection, self.split.train[selection.index.numpy()], of=len(self.split.train))

    def _agreed(self, selection: Selection) -> Selection:
        """Return the first rank's selection: ranks may differ by rounding."""
        if self.ranks.count == 1:
            return selection
        digests = self.ranks.from_each(hashlib.sha256(selection.index.numpy().tobytes()).digest())
        return selection if len(set(digests)) == 1 else self.ranks.from_first(selection)

    def _scan(self) -> PoolScan:
        return PoolScan(
            self.method.student,
            self.batches,
            self.split.train,
            self.teacher_logits,
            self.compute,
            self.latest,
            self.foldable,
            typicality=self.typicality,
            outliers=self.outliers,
        )

    def _round(self, bar: history.Display, stop: StopRequest) -> None:
        """Take the remaining steps of the current round."""
        batch = self.settings.batch
        order = self._order()[(self.at.step - self.at.round_start) * batch :]
        taken, since = 0, time.monotonic()  # since the last report of the losses
        positions = self.split.train[order]
        whole = [positions[start : start + batch] for start in range(0, len(positions), batch)]  # the last: smaller
        mine = [places[self.ranks.part(len(places))] for places in whole]
        own = positions if self.ranks.count == 1 else np.concatenate(mine)
        with closing(self.raw.iterate(own, len(mine[0]))) as images:
            for number, places in enumerate(mine):
                start = number * batch
                progress = None if self.budget.epochs is None else self.budget.progress(self.at)
                with self._timed():
                    result = self.learner.step(self.at.step, next(images), torch.from_numpy(places), progress)
                    if result.predictions is not None:
                        self._note(order[start : start + batch], result.predictions)
                for name, value in {"loss": result.loss, **result.terms}.items():
                    before = self.at.sums.get(name)
                    self.at.sums[name] = value if before is None else before.to(value.device) + value
                self.at.summed += 1
                taken += 1
                self.at.step += 1
                self.at.images += len(whole[number])
                if self.at.step % LOG_STEPS == 0 or self.at.step == self.at.round_end:
                    self._share_sums()
                    sums = torch.stack(list(self.at.sums.values())).cpu().tolist()  # one copy from the device
                    means = {name: value / self.at.summed for name, value in zip(self.at.sums, sums, strict=True)}
                    unreported = whole[number + 1 - taken : number + 1]
                    seen = sum(map(len, unreported))
                    if not math.isfinite(means["loss"]):
                        raise self.logger.not_finite(
                            seed=self.seed, lr=self.settings.peak, means=means, batches=unreported
                        )
                    self.logger.train(
                        means,
                        lr=learning_rate(self.at.step - 1, self.budget.steps, self.settings, progress),
                        rate=seen / (time.monotonic() - since),
                    )
                    kept = len(self.at.selected)
                    status = f"loss {means['loss']:.3f}, {kept:,} kept{self._agreement_words()}"
                    bar.advance(seen, status)
                    self.at.sums, self.at.summed = {}, 0
                    taken, since = 0, time.monotonic()
                if self.at.step == self.at.round_end:
                    return  # the caller evaluates and saves
                self._heed(stop, save=self._is_save_due())

    def _note(self, index: np.ndarray, predictions: Predictions) -> None:
        """Keep a step's predictions for its images, of all ranks."""
        confidence = self.ranks.gather(predictions.confidence)
        label = self.ranks.gather(predictions.label)
        self.latest.note(torch.from_numpy(index), predictions._replace(confidence=confidence, label=label))

    def _is_save_due(self, *, end_of_round: bool = False) -> bool:
        # Save the end of the first round, however short it was.
        if end_of_round and (self.at.round == 1 or self.budget.is_used_up(self.at)):
            return True
        steps = self.settings.checkpoint_steps
        due = time.monotonic() - self.logger.saved_at > 60 * self.settings.checkpoint_minutes
        return due or (steps is not None and self.at.step - self.logger.saved_step >= steps)

    def _heed(self, stop: StopRequest, *, save: bool = False) -> None:
        """Save a checkpoint if the first rank finds it due; stop all ranks if any was asked to."""
        stopping, by_machine, saving = self.ranks.any(stop.requested, stop.by_machine, save and self.ranks.is_first)
        if saving:
            self._save()
        if stopping:  # as agreed; later signals are handled by all after the next step
            stop.requested, stop.by_machine = True, by_machine
            stop.check()

    def _share_sums(self) -> None:
        """Convert the loss sums to those of whole batches."""
        self.at.sums = {name: self.ranks.mean(value) for name, value in self.at.sums.items()}

    def _order(self) -> np.ndarray:
        """Return the training images of the whole round, in the order of their use, as positions in the split."""
        need = self.at.round_images
        generator = generator_for(torch.device("cpu"), self.seed, "order", self.at.round)
        if self.at.weights is not None:
            drawn: np.ndarray = self.at.selected[weighted_order(self.at.weights, need, generator=generator)].numpy()
            return drawn
        count = len(self.at.selected)
        passes = [torch.randperm(count, generator=generator) for _ in range(math.ceil(need / count))]
        order: np.ndarray = self.at.selected[torch.cat(passes)[:need]].numpy()
        return order

    def _evaluate_student(self) -> None:
        """Measure the agreement on held-out images; keep this student unless an earlier one was clearly better."""
        if not self.budget.evaluation_is_due(self.at):
            return
        self.at.evaluated = self.budget.progress(self.at)
        student = self.method.student
        self.learner.agree_on_buffers()
        with self._timed():
            logits = score(student, self.batches, self.split.holdout, student.normalise, self.compute)
            self.at.agreement = agreement(logits, self.holdout_logits)
            self.method.train()
        self.at.highest_agreement = max(self.at.highest_agreement, self.at.best_agreement, self.at.agreement)
        if is_as_good(self.at.agreement, self.at.highest_agreement, images=len(logits)):
            self.at.best_agreement, self.at.best_step = self.at.agreement, self.at.step
            self.logger.best(student)
        labelled = self.evaluate(self.method) if self.evaluate and self.ranks.is_first else {}
        self.method.train()
        commonest = commonest_class(logits, self.holdout_logits)
        apart = round(divergence(logits, self.holdout_logits), 4)
        self.logger.evaluation(divergence=apart, **commonest, **labelled)
        shown = "".join(f", {name} {value:.2f}%" for name, value in labelled.items())
        console.info(
            f"round {self.at.round}: {self.at.images:,} images, "
            f"{len(self.at.selected):,} of {len(self.split.train):,} kept{self._agreement_words()}{shown}"
        )

    def _save(self) -> None:
        self._share_sums()
        self.logger.checkpoint(self.method, self.learner.state(), self.latest.state())

    def _agreement_words(self) -> str:
        return f", agreement {self.at.agreement:.1f}%" if self.at.agreement >= 0 else ""

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.at.seconds += time.monotonic() - start
