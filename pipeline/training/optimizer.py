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


def learning_rate(step: int, steps: int, settings: Optimizer) -> float:
    """Linear from 0 to the peak over `warmup_steps`, then a cosine from the peak to the minimum at `steps`."""
    if step < settings.warmup_steps:
        return settings.peak_learning_rate * (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
    span = settings.peak_learning_rate - settings.minimum_learning_rate
    return settings.minimum_learning_rate + span * (1 + math.cos(math.pi * min(1.0, progress))) / 2
