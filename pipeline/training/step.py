"""One optimizer step: its micro batches, forward and backward, and the update that DeepSpeed makes or skips."""

from typing import Any, cast

import torch
from torch import Tensor

from pipeline.config import Recipe
from pipeline.data.batch import Batch
from pipeline.distributed import process_group
from pipeline.training.agreement import seed_of
from pipeline.training.ahead import Ahead
from pipeline.training.faults import spoil_leap
from pipeline.training.optimizer import learning_rate, set_learning_rate
from pipeline.training.progress import Progress
from pipeline.training.task import StepPlace, Task


def train_step(
    engine: Any, batches: list[Batch], places: list[StepPlace], recipe: Recipe, progress: Progress, ahead: Ahead
) -> dict[str, Tensor] | None:
    """One optimizer step over `accumulation` micro batches. Returns this rank's means, still on the device.

    None when the step was skipped.
    """
    rate = learning_rate(progress.step, recipe.run.steps, recipe.optimizer, recipe.run.epochs)
    set_learning_rate(engine.optimizer, rate)
    # Random draws are functions of (seed, step, rank), seeded again at each step: so there is no random state to save.
    torch.manual_seed(seed_of(recipe.seed, progress.step, process_group.rank(), "dropout"))
    task = cast(Task, engine.module)
    totals: dict[str, Tensor] = {}
    for part, (batch, place) in enumerate(zip(batches, places, strict=True)):
        values: dict[str, Tensor] = engine(ahead.take(batch), place)
        loss = spoil_leap(values["loss"], progress.recent_losses, recipe.faults.spike_factor) * task.loss_scale.value
        ahead.watch(loss)
        engine.backward(loss)
        ahead.begin_after(batches, part)  # before the host waits for the device, as in step()
        engine.step()
        values["corrupt_samples"] = torch.full((), float(batch.corrupt * len(batches)), device=engine.device)
        for name, value in values.items():
            totals[name] = totals.get(name, torch.zeros_like(value)) + value.detach() / len(batches)
    skipped = bool(engine.optimizer.overflow)  # DeepSpeed's, of the global gradient norm: the same on every rank
    return None if skipped else totals
