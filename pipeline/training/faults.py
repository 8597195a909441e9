"""Losses and gradients that are not finite, and loss spikes: such a step is skipped, and the loss scale is halved.

A loss far above the last ones is made NaN before its backward pass. DeepSpeed skips a step whose gradient norm is not
finite, and it computes that norm anyway. So all ranks skip the same step, without a synchronisation of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

REMEMBERED = 20  # logged losses; their median is the usual loss
INITIAL_SCALE, LARGEST_SCALE = 2.0**16, 2.0**24
STEPS_TO_GROW = 2000  # good steps after which the scale doubles (torch's and apex' value)


@dataclass
class LossScale:
    """The factor on a loss during its backward pass through an fp16 tower, where small gradients would vanish."""

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


def spoil_leap(loss: Tensor, recent_losses: Sequence[float], spike_factor: float | None) -> Tensor:
    """The loss, or NaN where it exceeds `spike_factor` times the median of the recent ones (once there are a few)."""
    if spike_factor is None or len(recent_losses) < REMEMBERED // 4:
        return loss
    leapt = loss.detach() > spike_factor * median(recent_losses)
    # A product, not masked_fill on the loss itself: that would give a gradient of 0, which is finite.
    return loss * torch.ones_like(loss).masked_fill(leapt, float("nan"))
