"""Micro-batches: consecutive parts of a batch that does not fit on the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from kd3.config.training import TrainSettings
from kd3.errors import KD3Error
from kd3.methods.base import Method, StepResult
from kd3.models.head import ModelOutput
from kd3.models.synced_batch_norm import SyncedBatchNorm
from kd3.selection.predictions import Predictions

Part = tuple[Tensor, ModelOutput | None, Tensor | None]


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


def parts_of(views: Tensor, teacher: ModelOutput | None, labels: Tensor | None, size: int) -> Iterator[Part]:
    """Split a batch into parts of a size; the last may be smaller."""
    for start in range(0, len(views), size):
        here = slice(start, start + size)
        known = None if teacher is None else ModelOutput(teacher.features[here], teacher.logits[here])
        yield views[here], known, None if labels is None else labels[here]


def joined(results: Sequence[StepResult], shares: Sequence[float]) -> StepResult:
    """Combine the results of the parts, weighted by their shares of the images; without graphs."""
    if len(results) == 1:
        (only,) = results
        return StepResult(only.loss.detach(), {n: term.detach() for n, term in only.terms.items()}, only.predictions)
    terms = {
        name: torch.stack([r.terms[name].detach() * share for r, share in zip(results, shares, strict=True)]).sum()
        for name in results[0].terms
    }
    said = [result.predictions for result in results if result.predictions is not None]
    predictions = None
    if said:
        confidence, label = (torch.cat([getattr(part, field) for part in said]) for field in ("confidence", "label"))
        predictions = Predictions(confidence, label, said[0].num_classes)
    return StepResult(torch.stack(list(terms.values())).sum(), terms, predictions)
