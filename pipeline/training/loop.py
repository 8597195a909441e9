"""The training loop: micro batches to steps, learning rate, logging, checkpoints, and a stop at a step boundary."""

import hashlib
import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from pipeline.config import Recipe
from pipeline.data.batch import Batch
from pipeline.distributed import collectives, process_group
from pipeline.training import checkpoint
from pipeline.training.optimizer import learning_rate
from pipeline.training.preemption import StopRequest
from pipeline.training.task import StepPlace, Task
from pipeline.training.telemetry import Telemetry

log = logging.getLogger(__name__)


def agree(task: Task, batches: list[Batch], recipe: Recipe, step: int, stop: bool) -> tuple[list[StepPlace], bool]:
    """What each micro batch must know of all ranks', and whether any is to stop. One gather, one synchronisation."""
    own = [number for b in batches for number in (task.num_scored_tokens(b), b.target.ids.shape[1])]
    everyone = collectives.gather_integers([int(stop), *own])
    tokens = sum(sum(row[1::2]) for row in everyone)
    weight = len(everyone) * len(batches) / max(1, tokens)
    places = []
    for part in range(len(batches)):
        longest = max(row[2 * part + 2] for row in everyone)
        seed = hashlib.sha256(f"{recipe.seed}/{step}/{part}/negatives".encode()).digest()[:7]
        places.append(StepPlace(process_group.rank(), weight, longest, int.from_bytes(seed, "little")))
    return places, any(row[0] for row in everyone)


def train_step(
    engine: Any, batches: list[Batch], places: list[StepPlace], recipe: Recipe, step: int
) -> dict[str, Tensor]:
    """One optimizer step over `accumulation` micro batches. Returns this rank's means, still on the device."""
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate(step, recipe.run.steps, recipe.optimizer)
    totals: dict[str, Tensor] = {}
    for batch, place in zip(batches, places, strict=True):
        values = engine(batch.to(str(engine.device)), place)
        engine.backward(values["loss"])
        engine.step()
        values["corrupt_samples"] = torch.tensor(float(batch.corrupt * len(batches)), device=engine.device)
        for name, value in values.items():
            totals[name] = totals.get(name, torch.zeros_like(value)) + value.detach() / len(batches)
    return totals


def _steps(batches: Iterable[Batch], accumulation: int) -> Iterator[list[Batch]]:
    step: list[Batch] = []
    for batch in batches:
        step.append(batch)
        if len(step) == accumulation:
            yield step
            step = []


def fit(engine: Any, batches: Iterable[Batch], recipe: Recipe, state: checkpoint.State, telemetry: Telemetry) -> bool:
    """Train from `state.step` to the recipe's last step. Returns False when a signal stopped it early, all saved."""
    run, stop, passes = recipe.run, StopRequest(), recipe.batch.num_passes(process_group.world_size())
    interval: list[dict[str, Tensor]] = []
    for step, parts in enumerate(_steps(batches, passes), start=state.step):
        places, stopped = agree(cast(Task, engine.module), parts, recipe, step, stop.requested)
        if stopped:
            log.info("stopping on a signal; saved %s", checkpoint.save(engine, recipe, state, run.output))
            return False
        interval.append(train_step(engine, parts, places, recipe, step))
        done = step + 1
        state = replace(state, step=done, consumed=done * recipe.batch.global_size)
        telemetry.advance()
        if done % run.log_every_steps == 0 or done == run.steps:
            values = _interval_means(interval)
            values["learning_rate"] = learning_rate(step, run.steps, recipe.optimizer)
            values["gradient_norm"] = float(engine.get_global_grad_norm() or 0.0)
            telemetry.log(done, state.consumed, values, recipe.batch.global_size)
            if not math.isfinite(values["loss"]):
                raise ValueError(f"loss is {values['loss']} in the interval that ends with step {done}; not saved")
            interval = []
        if done % run.checkpoint_every_steps == 0 or done == run.steps:
            log.info("saved %s", checkpoint.save(engine, recipe, state, run.output))
    return True


def _interval_means(interval: list[dict[str, Tensor]]) -> dict[str, float]:
    """Means over the interval's steps and over ranks (of corrupt samples, the sum). One host synchronisation."""
    names = list(interval[0])
    stacked = torch.stack([torch.stack([values[name].float() for name in names]) for values in interval]).mean(dim=0)
    means = dict(zip(names, collectives.mean_over_ranks(stacked).tolist(), strict=True))
    means["corrupt_samples"] *= len(interval) * process_group.world_size()
    return means
