"""What a run does about losses and gradients that are not finite or leap: skip the step, halve the scale, stop after N.

A loss far above the last ones is made NaN before its backward pass, and DeepSpeed skips a step whose gradient norm is
not finite: on every rank alike, whichever of them met it, without a synchronisation of its own.
"""

import logging
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from pipeline.config import Faults

log = logging.getLogger(__name__)
REMEMBERED = 20  # logged losses of which the median is the measure of a leap
INITIAL_SCALE, LARGEST_SCALE = 2.0**16, 2.0**24
STEPS_TO_GROW = 2000  # good steps after which the scale doubles (torch's and apex' value)


@dataclass
class LossScale:
    """What a loss is multiplied by on its way back through an fp16 tower, where small gradients would vanish."""

    value: float = 1.0
    dynamic: bool = False
    good_steps: int = 0

    def update(self, skipped: bool) -> None:
        if not self.dynamic:
            return
        self.good_steps = 0 if skipped else self.good_steps + 1
        if skipped:
            self.value = max(1.0, self.value / 2)
        elif self.good_steps % STEPS_TO_GROW == 0:
            self.value = min(LARGEST_SCALE, self.value * 2)


class FaultPolicy:
    """Counts skipped steps; says when there were too many. The same on every rank."""

    def __init__(self, settings: Faults, skipped: int, in_a_row: int, losses: Sequence[float]) -> None:
        self.settings, self.skipped, self.in_a_row = settings, skipped, in_a_row
        self.losses: deque[float] = deque(losses, maxlen=REMEMBERED)

    def remember(self, loss: float) -> None:
        """The mean loss of a logged interval, of all ranks."""
        if math.isfinite(loss):
            self.losses.append(loss)

    def spoil_leap(self, loss: Tensor) -> Tensor:
        """The loss, or NaN where it exceeds `spike_factor` times the median of the last logged ones."""
        factor = self.settings.spike_factor
        if factor is None or len(self.losses) < self.losses.maxlen // 4:  # type: ignore[operator]  # it has a maxlen
            return loss
        leapt = loss.detach() > factor * median(self.losses)
        return loss * torch.ones_like(loss).masked_fill(leapt, float("nan"))  # so that its gradient is NaN, too

    def after_step(self, step: int, skipped: bool) -> None:
        """Raises ValueError when `stop_after` steps in a row were skipped."""
        if not skipped:
            self.in_a_row = 0
            return
        self.skipped += 1
        self.in_a_row += 1
        log.warning("step %d skipped: loss or gradient is not finite, or leapt", step)
        if self.in_a_row >= self.settings.stop_after:
            raise ValueError(
                f"{self.in_a_row} steps in a row skipped, up to step {step}, for losses or gradients that are not "
                "finite or leapt (faults.stop_after); not saved. Lower optimizer.peak_learning_rate, or see the data"
            )
