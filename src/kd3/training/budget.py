"""Length of a run, position of a step in it, and length of a round: in steps, or in passes over a selection."""

from __future__ import annotations

from kd3.config.training import TrainSettings
from kd3.training.checkpoint import Progress
from kd3.training.schedule import selected_epochs, total_steps

SLACK = 1e-9  # parts of a budget are sums of floats
LEAST_OF_A_BATCH = 2  # images per process: batch norms need more than one


class Budget:
    """The budget of a run.

    Args:
        settings: images or epochs, and what an epoch is.
        training_images: of the pool, N.
        processes: that share a batch equally.
    """

    def __init__(self, settings: TrainSettings, training_images: int, processes: int = 1) -> None:
        self.settings, self.processes = settings, processes
        self.steps = total_steps(settings, training_images)  # the maximum if `epochs` sets the length
        self.epochs = selected_epochs(settings)  # passes over the selected images; None: steps decide

    @property
    def images(self) -> int:
        """Training images in all, at most."""
        return self.steps * self.settings.batch

    def progress(self, at: Progress) -> float:
        """Return the used part of the budget, in [0, 1]."""
        if self.epochs is None:
            return at.step / self.steps
        steps = at.round_end - at.round_start
        part = (at.step - at.round_start) / steps if steps else 0.0
        return (at.epochs + at.round_epochs * part) / self.epochs

    def is_used_up(self, at: Progress) -> bool:
        """Return whether the budget is used up."""
        return self.progress(at) >= 1 - SLACK

    def may_look(self, at: Progress) -> bool:
        """Return whether an evaluation on the held-out images is due; it always is at the end."""
        since = self.progress(at) - at.evaluated
        return self.is_used_up(at) or since * self.settings.looks >= 1 - SLACK

    def open_round(self, at: Progress, kept: int, passes: float) -> None:
        """Set the length of the round that begins here: passes over the selected images, or the rest of the budget.

        At least one step. If epochs are passes, the last images form a smaller batch, of as many as the processes can
        share; otherwise incomplete batches are left out.
        """
        batch, rest = self.settings.batch, 0
        if self.epochs is None:
            steps = min(max(1, int(kept * passes) // batch), self.steps - at.step)
        else:
            at.epochs += at.round_epochs
            at.round_epochs = min(passes, self.epochs - at.epochs)
            steps, rest = divmod(round(kept * at.round_epochs), batch)
            rest -= rest % self.processes
            rest = rest if rest >= LEAST_OF_A_BATCH * self.processes else 0
            steps = max(steps, int(rest == 0))
        at.round_start, at.round_end = at.step, at.step + steps + (rest > 0)
        at.round_images = steps * batch + rest
