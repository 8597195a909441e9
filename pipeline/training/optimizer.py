"""AdamW without decay on 1-D parameters, and the learning rate of a step (paper, section 4.1)."""

import math
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn

from pipeline.config import Optimizer

BRIDGE = "bridge"  # the layer of all that is trained but the layers of an image encoder


def build_optimizer(task: nn.Module, settings: Optimizer) -> torch.optim.AdamW:
    """AdamW over the trained parameters; biases, norms and other 0-D and 1-D parameters are not decayed.

    With `layer_decay`, each layer of the image encoder has groups of its own. A group's `factor` scales the step's
    learning rate; its `layer` names it.
    """
    groups: list[dict[str, Any]] = []
    for layer, factor, parameters in _layers(task, settings.layer_decay):
        for decay, chosen in (
            (settings.weight_decay, [p for p in parameters if p.ndim >= 2]),
            (0.0, [p for p in parameters if p.ndim < 2]),
        ):
            if chosen:  # DeepSpeed drops a group without parameters
                groups.append({"params": chosen, "weight_decay": decay, "factor": factor, "layer": layer})
    return torch.optim.AdamW(groups, lr=settings.peak_learning_rate, betas=settings.betas)


def _layers(task: nn.Module, layer_decay: float) -> Iterator[tuple[str, float, list[nn.Parameter]]]:
    """Trained parameters by the factor of their learning rate: (name, factor, parameters)."""
    own: set[int] = set()
    if layer_decay != 1:
        layers = list(cast(Any, task).bridge.vision.layers())
        for number, (name, parameters) in enumerate(layers):
            own.update(map(id, parameters))
            yield name, layer_decay ** (len(layers) - number), parameters
    yield BRIDGE, 1.0, [p for p in task.parameters() if p.requires_grad and id(p) not in own]


def set_learning_rate(optimizer: Any, rate: float) -> None:
    """Give each group its own part of a step's learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


def layer_rates(optimizer: Any) -> dict[str, float]:
    """The learning rates of the last step, as the optimizer had them: the bridge's, and with `layer_decay` those of
    what is before the encoder's blocks, of its first block and of its last one."""
    rates = {group["layer"].replace(" ", "_"): group["lr"] for group in optimizer.param_groups}
    bridge, blocks = rates.pop(BRIDGE), list(rates)
    shown = {name: rates[name] for name in (*blocks[:2], *blocks[-1:])}
    return {"learning_rate": bridge} | {f"learning_rate_{name}": rate for name, rate in shown.items()}


def learning_rate(step: int, steps: int, settings: Optimizer) -> float:
    """Linear from 0 to the peak over `warmup_steps`, then a cosine from the peak to the minimum at `steps`."""
    if step < settings.warmup_steps:
        return settings.peak_learning_rate * (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
    span = settings.peak_learning_rate - settings.minimum_learning_rate
    return settings.minimum_learning_rate + span * (1 + math.cos(math.pi * min(1.0, progress))) / 2
