"""AdamW without decay on 1-D parameters, and the learning rate of a step (paper, section 4.1)."""

import math

import torch
from torch import nn

from pipeline.config import Optimizer


def build_optimizer(bridge: nn.Module, settings: Optimizer) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; biases, norms and other 0-D and 1-D parameters are not decayed."""
    parameters = [parameter for parameter in bridge.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.peak_learning_rate, betas=settings.betas)


def learning_rate(step: int, steps: int, settings: Optimizer, epochs: int = 0) -> float:
    """The rate of a step, 0 the first, in a run of so many steps, and `epochs` where they are known.

    It rises linearly over `warmup_steps` up to the peak. Then it falls to the minimum: as a cosine of the steps, or as
    LAVIS's staircase. There, epoch 0 warms up and stays at the peak, and epoch e >= 1 of E has
    minimum + (peak - minimum) * (1 + cos(pi * e / E)) / 2.
    """
    peak, minimum = settings.peak_learning_rate, settings.minimum_learning_rate
    stairs = settings.schedule == "staircase"
    epoch = step // (steps // epochs) if stairs else 0
    if stairs and epoch:
        progress = epoch / epochs
    elif step < settings.warmup_steps:
        return _warmup(step, settings)
    elif stairs:
        return peak
    else:
        progress = (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
    return minimum + (peak - minimum) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


def _warmup(step: int, settings: Optimizer) -> float:
    peak, start = settings.peak_learning_rate, settings.warmup_start
    if start is None:  # from 0, which no step has
        return peak * (step + 1) / settings.warmup_steps
    return start + (peak - start) * step / settings.warmup_steps
