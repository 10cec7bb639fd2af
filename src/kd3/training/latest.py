"""Latest prediction and round of each training image: a few bytes per image."""

from __future__ import annotations

import torch
from torch import Tensor

from kd3.selection.predictions import Predictions
from kd3.training.transfer import sent

NEVER = -1


class LatestPredictions:
    """Latest predictions, updated as images are scored, on the scoring device.

    Args:
        count: number of training images N.
        num_classes: number of classes K.
        device: of the predictions; noting them there needs no synchronisation.
    """

    def __init__(self, count: int, num_classes: int, device: torch.device) -> None:
        self.num_classes = num_classes
        self.round = 0  # the present one
        self.confidence = torch.zeros(count, device=device)
        self.label = torch.zeros(count, dtype=torch.int32, device=device)
        self.seen = torch.full((count,), NEVER, dtype=torch.int32, device=device)

    @property
    def is_empty(self) -> bool:
        """Whether some image has no prediction yet."""
        return bool((self.seen == NEVER).any())

    def note(self, index: Tensor, predictions: Predictions) -> None:
        """Store the predictions of the images at these positions. Shapes: index (n,) int64."""
        index = sent(index, self.seen.device)
        self.confidence[index] = sent(predictions.confidence, self.seen.device).to(self.confidence)
        self.label[index] = sent(predictions.label, self.seen.device).to(self.label)
        self.seen[index] = self.round

    def oldest(self, share: float) -> Tensor:
        """Return a share of the images not yet scored in the present round, the least recently scored.

        Shapes: -> (n,) int64, ascending, on the CPU; empty if all were scored.
        """
        seen = self.seen.cpu()
        unseen = (seen < self.round).nonzero().flatten()
        wanted = -int(-len(unseen) * share // 1)
        return unseen[torch.sort(seen[unseen], stable=True).indices[:wanted]].sort().values

    def predictions(self) -> Predictions:
        """Return the last prediction for each image, on the CPU."""
        return Predictions(self.confidence.cpu(), self.label.cpu(), self.num_classes)

    def state(self) -> dict[str, Tensor]:
        """Return the state for a checkpoint, without a copy."""
        return {"confidence": self.confidence, "label": self.label, "seen": self.seen}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over the state of a checkpoint."""
        for name, values in state.items():
            getattr(self, name).copy_(values)
