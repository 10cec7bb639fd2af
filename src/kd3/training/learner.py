"""One training step: a batch of raw images in, in parts if it must be, the method's optimizer moved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from kd3.config.training import TrainSettings
from kd3.methods import Batch, Method, StepResult
from kd3.models.batch_norms import SyncedBatchNorm, sync_batch_norms
from kd3.models.head import ModelOutput
from kd3.runtime.compute import Compute
from kd3.runtime.errors import KD3Error
from kd3.scoring.batches import generator_for, seed_for, sent
from kd3.scoring.views import FixedViews, TeacherFeatures, augment, mixed_up
from kd3.selection import Predictions
from kd3.training.optimizer import build_optimizer, hold_rates, set_learning_rate
from kd3.training.step_graph import CudaRecorder, StepGraph


def check_micro_batch(method: Method, settings: TrainSettings, processes: int) -> None:
    """Refuse micro-batches if their losses do not add up to the loss of the batch.

    Raises:
        KD3Error: they do not.
    """
    if settings.micro_batch is None or settings.micro_batch >= settings.batch:
        return
    norms = [name for name, part in method.named_modules() if isinstance(part, (_BatchNorm, SyncedBatchNorm))]
    if norms:
        raise KD3Error(
            f"--micro-batch {settings.micro_batch} would have {norms[0]} and {len(norms) - 1} other "
            f"batch norms normalise by a part of the batch, which trains another student; use a smaller --batch-size"
        )
    if (reason := method.compares_images()) is not None:
        raise KD3Error(f"--micro-batch {settings.micro_batch} divides a batch of which {reason}")
    if processes > 1:
        raise KD3Error("--micro-batch goes with one process; of several each has a part of the batch already")


def joined(results: Sequence[StepResult], shares: Sequence[float]) -> StepResult:
    """Combine the results of the parts, weighted by their shares of the images; without graphs."""
    if len(results) == 1:
        (only,) = results
        return StepResult(only.loss.detach(), {n: term.detach() for n, term in only.terms.items()}, only.predictions)
    terms = {
        name: torch.stack([r.terms[name].detach() * share for r, share in zip(results, shares, strict=True)]).sum()
        for name in results[0].terms
    }
    known = [result.predictions for result in results if result.predictions is not None]
    predictions = None
    if known:
        confidence, label = (torch.cat([getattr(part, field) for part in known]) for field in ("confidence", "label"))
        predictions = Predictions(confidence, label, known[0].num_classes)
    return StepResult(torch.stack(list(terms.values())).sum(), terms, predictions)


PROBE_IMAGES = 2


def make_ready(method: Method, settings: TrainSettings, compute: Compute) -> None:
    """Tell a method of its ranks, sync its batch norms if asked to, and freeze parameters outside its loss.

    DDP waits for every registered gradient; a missing one would stall the run.

    Raises:
        KD3Error: a batch norm cannot be synced.
    """
    method.ranks = compute.ranks
    if compute.ranks.count == 1:
        return
    if settings.batch_norm == "sync":
        sync_batch_norms(method, compute.ranks, compute.device)
    compute.place(method)
    buffers = [buffer.clone() for buffer in method.buffers()]
    side = method.student.input_size
    channels = method.student.normalise.channels
    images = torch.randn(PROBE_IMAGES, channels, side, side, generator=torch.Generator().manual_seed(0)).to(
        compute.device
    )
    labels = torch.zeros(PROBE_IMAGES, dtype=torch.int64, device=compute.device) if method.needs_labels else None
    with compute.autocast(), torch.random.fork_rng(devices=[]):
        method(Batch(images, torch.Generator(compute.device).manual_seed(0), labels=labels)).loss.backward()
    for parameter in method.parameters():
        if parameter.grad is None:
            parameter.requires_grad_(False)
        parameter.grad = None
    for buffer, before in zip(method.buffers(), buffers, strict=True):
        buffer.copy_(before)


def can_be_recorded(settings: TrainSettings, compute: Compute) -> bool:
    """Return whether steps may become CUDA graphs: one process, and not float16, whose loss scale each step reads."""
    alone, device = compute.ranks.count == 1, compute.device.type == "cuda"
    return device and alone and settings.cuda_graph == "auto" and compute.precision != "16"


class Learner:
    """Takes the steps of a training. Nothing in a step waits for the device.

    Args:
        method: the trained method; it and its teacher are placed on the device.
        settings: optimizer, schedule, augmentation.
        seed: of all random numbers; a step's draws depend on its number, not on earlier steps.
        total_steps: the budget, for the learning rate schedule.
        fixed: the fixed views, and the teacher's features of them; None: a new view each time.
        labels: of all images of the pool, (N,) int64, for methods that need them.
    """

    def __init__(
        self,
        method: Method,
        settings: TrainSettings,
        *,
        seed: int,
        total_steps: int,
        compute: Compute,
        fixed: tuple[FixedViews, TeacherFeatures | None] | None = None,
        labels: Tensor | None = None,
    ) -> None:
        self.labels = labels
        self.fixed = fixed
        self.method, self.settings, self.seed, self.total_steps = method, settings, seed, total_steps
        self.compute = compute
        self.ranks = compute.ranks
        compute.place(method)
        compute.place(method.teacher)
        make_ready(method, settings, compute)
        if settings.compile_teacher:
            # Scoring keeps the plain teacher: its batches have other sizes.
            method.learn_from(method.teacher.compiled())
        elif compute.precision != "32":
            method.learn_from(method.teacher.cast_for(compute))
        optimizer = build_optimizer(
            method.parameters(), settings, hidden=method.hidden_matrices(), by_adam=method.moved_by_adam()
        )
        self.fabric = compute.fabric()
        self.module, self.optimizer = self.fabric.setup(method, optimizer)
        self._generator: torch.Generator | None = None
        self._graph: StepGraph | None = None
        if can_be_recorded(settings, compute):
            generator = self._generator = torch.Generator(compute.device)
            self._graph = StepGraph(self._learn, lambda: CudaRecorder(generator))
            hold_rates(self.optimizer, compute.device)

    def step(
        self, number: int, images: Tensor, positions: Tensor | None = None, progress: float | None = None
    ) -> StepResult:
        """Train on a batch and return its loss, without a graph.

        Shapes: images (B, 3, S, S), uint8, on the device, larger than the student's if views are parts of them;
        positions (B,) int64 in the pool, on the CPU, needed for fixed views and labels. 0 <= number < total_steps. Of
        several ranks each has its part of the batch, and the loss is that of the part. `progress` is for
        `learning_rate`.
        """
        set_learning_rate(self.optimizer, number, self.total_steps, self.settings, progress)
        # Dropout and the like: other numbers on each rank.
        torch.manual_seed(seed_for(self.seed, "network", number, *([self.ranks.rank] if self.ranks.rank else [])))
        generator = self._drawing(number)
        views, teacher = self._views(number, images, positions, generator)
        labels = None
        if self.labels is not None:
            assert positions is not None
            labels = sent(self.labels[positions], self.compute.device)
        batch = Batch(views, generator, teacher, labels)
        result: StepResult = self._learn(batch) if self._graph is None else self._graph(batch)
        return result

    def _learn(self, batch: Batch) -> StepResult:
        """Forward, backward, and the optimizer's step: the same operations each time, without synchronisation."""
        self.optimizer.zero_grad(set_to_none=True)
        results, shares = [], []
        count = len(batch.images)
        for part in batch.split(self.settings.micro_batch or count):
            result: StepResult = self.module(part)
            share = len(part.images) / count
            self.fabric.backward(result.loss if share == 1 else result.loss * share)
            results.append(joined([result], [1.0]))
            shares.append(share)
        self.optimizer.step()
        return joined(results, shares)

    def _drawing(self, number: int) -> torch.Generator:
        """Return the generator of a step; recorded steps share one, which is seeded anew."""
        if self._generator is None:
            return generator_for(self.compute.device, self.seed, "step", number)
        return self._generator.manual_seed(seed_for(self.seed, "step", number))

    def state(self) -> dict[str, Any]:
        """Return the state of the optimizer, and with float16 the loss scale."""
        return {"optimizer": self.optimizer.state_dict(), "scale": self.fabric.strategy.precision.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Load a state.

        Raises:
            KeyError, ValueError: it is another optimizer's.
        """
        self.optimizer.load_state_dict(state["optimizer"])
        hold_rates(self.optimizer, None if self._graph is None else self.compute.device)
        if state.get("scale"):
            self.fabric.strategy.precision.load_state_dict(state["scale"])

    def agree_on_buffers(self) -> None:
        """Give all ranks the first one's batch-norm statistics, which differ where these are not synced."""
        if self.ranks.count > 1 and self.settings.batch_norm == "local":
            for buffer in self.method.buffers():
                torch.distributed.broadcast(buffer, 0)

    def _views(
        self, number: int, images: Tensor, positions: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, ModelOutput | None]:
        """Return normalised views, and the teacher's outputs on them if these are stored."""
        normalise = self.method.student.normalise
        if self.fixed is None:
            how, flip = self.settings.augmentation, self.settings.flip
            side = self.method.student.input_size
            views = normalise(augment(images, how, flip=flip, generator=generator, size=side, ranks=self.ranks))
            if self._mixes(number):
                draw = generator_for(self.compute.device, self.seed, "mixup", number)
                views = mixed_up(views, generator=draw, ranks=self.ranks)
            return views, None
        assert positions is not None
        fixed, kept = self.fixed
        rows = fixed.choose(positions, generator_for(torch.device("cpu"), self.seed, "views", number), self.ranks)
        normalised = normalise(fixed.of(images, rows))
        return normalised, None if kept is None else kept.outputs(rows, normalised)

    def _mixes(self, number: int) -> bool:
        """Return whether a step mixes its images; drawn on the CPU, so no step waits for the device."""
        if self.settings.mixup == 0:
            return False
        coin = generator_for(torch.device("cpu"), self.seed, "mixup or not", number)
        return float(torch.rand((), generator=coin)) < self.settings.mixup
