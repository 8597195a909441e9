"""How far a run is: the one object that knows it. It changes here alone, is saved in checkpoints and restored."""

import logging
import math
from collections import deque
from dataclasses import replace

from torch import Tensor

from pipeline.config import Recipe
from pipeline.training.checkpoint import State
from pipeline.training.faults import REMEMBERED, LossScale
from pipeline.training.telemetry import interval_means

log = logging.getLogger(__name__)


class Progress:
    """Steps done and skipped, the usual loss, the loss scale, and the values not yet logged. The same on every rank."""

    def __init__(self, recipe: Recipe, start: State, loss_scale: LossScale) -> None:
        """Begin where `start` is: a run's first state, or that of a checkpoint. The task's loss scale is set to it."""
        self.recipe, self.start, self.loss_scale = recipe, start, loss_scale
        self.step, self.skipped, self.skipped_in_a_row = start.step, start.skipped, start.skipped_in_a_row
        self.recent_losses = deque(start.recent_losses, maxlen=REMEMBERED)
        self.validation_loss = start.validation_loss
        self._interval: list[dict[str, Tensor]] = []
        if start.step and loss_scale.dynamic:
            loss_scale.value, loss_scale.good_steps = start.loss_scale

    @property
    def samples(self) -> int:
        """Samples trained on."""
        return self.step * self.recipe.batch.global_size

    def is_due(self, every_steps: int) -> bool:
        """Whether something that happens every so many steps (0: an epoch's) and after the last one happens now."""
        run = self.recipe.run
        return self.step % (every_steps or run.steps_per_epoch) == 0 or self.step == run.steps

    def advance(self, values: dict[str, Tensor] | None) -> None:
        """One more step is done. `values` are this rank's means of it, None when the step was skipped.

        Raises ValueError when too many steps in a row were skipped.
        """
        self.step += 1
        self.validation_loss = None
        self.loss_scale.update(skipped=values is None)
        if values is not None:
            self.skipped_in_a_row = 0
            self._interval.append(values)
            return
        self.skipped += 1
        self.skipped_in_a_row += 1
        log.warning("step %d skipped: its loss or gradient is not finite, or its loss is a spike", self.step - 1)
        if self.skipped_in_a_row >= self.recipe.faults.stop_after:
            raise ValueError(
                f"faults.stop_after {self.recipe.faults.stop_after}: {self.skipped_in_a_row} steps in a row were "
                f"skipped, the last is step {self.step - 1}; a loss or gradient was not finite, or a loss was a spike. "
                "Nothing was saved. Lower optimizer.peak_learning_rate, or check the data"
            )

    def end_interval(self) -> dict[str, float]:
        """Means of the steps since the last call, over all ranks; the loss counts as a recent one. Collective."""
        means, self._interval = interval_means(self._interval), []
        loss = means.get("loss", math.nan)
        if math.isfinite(loss):
            self.recent_losses.append(loss)
        return means

    def validated(self, loss: float) -> None:
        """The held-out loss was measured after this very step."""
        self.validation_loss = loss

    def state(self) -> State:
        """What a checkpoint of this step keeps."""
        return replace(
            self.start,
            step=self.step,
            consumed=self.samples,
            skipped=self.skipped,
            loss_scale=(self.loss_scale.value, self.loss_scale.good_steps),
            skipped_in_a_row=self.skipped_in_a_row,
            recent_losses=tuple(self.recent_losses),
            validation_loss=self.validation_loss,
        )
