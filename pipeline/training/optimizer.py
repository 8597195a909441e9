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
