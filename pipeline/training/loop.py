"""The training loop: micro batches to steps, learning rate, logging, checkpoints, and a stop at a step boundary."""

import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor

from pipeline.config import Recipe
from pipeline.data.batch import Batch
from pipeline.distributed import process_group
from pipeline.distributed.stopwatch import STOPWATCH
from pipeline.training import checkpoint
from pipeline.training.agreement import agree, seed_of
from pipeline.training.faults import FaultPolicy
from pipeline.training.optimizer import learning_rate
from pipeline.training.preemption import StopRequest
from pipeline.training.task import StepPlace, Task
from pipeline.training.telemetry import Telemetry, interval_means
from pipeline.training.validation import Validation
from pipeline.training.watchdog import Watchdog

log = logging.getLogger(__name__)


def train_step(
    engine: Any, batches: list[Batch], places: list[StepPlace], recipe: Recipe, step: int, faults: FaultPolicy
) -> dict[str, Tensor] | None:
    """One optimizer step over `accumulation` micro batches. Returns this rank's means, still on the device.

    None when the step was skipped. Raises ValueError when too many were.
    """
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate(step, recipe.run.steps, recipe.optimizer)
    torch.manual_seed(seed_of(recipe.seed, step, process_group.rank(), "dropout"))
    task = cast(Task, engine.module)
    totals: dict[str, Tensor] = {}
    for batch, place in zip(batches, places, strict=True):
        values: dict[str, Tensor] = engine(batch.to(str(engine.device)), place)
        engine.backward(faults.spoil_leap(values["loss"]) * task.loss_scale.value)
        engine.step()
        values["corrupt_samples"] = torch.tensor(float(batch.corrupt * len(batches)), device=engine.device)
        for name, value in values.items():
            totals[name] = totals.get(name, torch.zeros_like(value)) + value.detach() / len(batches)
    skipped = bool(engine.optimizer.overflow)  # DeepSpeed's, of the global gradient norm: the same on every rank
    task.loss_scale.update(skipped)
    faults.after_step(step, skipped)
    return None if skipped else totals


def _steps(batches: Iterable[Batch], accumulation: int) -> Iterator[list[Batch]]:
    """The micro batches of each step; waiting for them is measured."""
    source = iter(batches)
    while True:
        with STOPWATCH.measure("data"):
            step = list(islice(source, accumulation))
        if len(step) < accumulation:
            return
        yield step


def fit(
    engine: Any,
    batches: Iterable[Batch],
    recipe: Recipe,
    state: checkpoint.State,
    stop: StopRequest,
    telemetry: Telemetry,
    watchdog: Watchdog,
    validation: Validation | None = None,
) -> bool:
    """Train from `state.step` to the recipe's last step. Returns False when a signal stopped it early, all saved."""
    run, passes = recipe.run, recipe.batch.num_passes(process_group.world_size())
    task, faults = (
        cast(Task, engine.module),
        FaultPolicy(recipe.faults, state.skipped, state.skipped_in_a_row, state.recent_losses),
    )
    if state.step and task.loss_scale.dynamic:
        task.loss_scale.value, task.loss_scale.good_steps = state.loss_scale
    interval: list[dict[str, Tensor]] = []
    for step, parts in enumerate(_steps(batches, passes), start=state.step):
        watchdog.beat(step)
        places, stopped = agree(task, parts, recipe.seed, step, stop.requested)
        if stopped:
            _save(engine, recipe, state, last=True)
            log.info("stopping on a signal")
            return False
        values_of_step = train_step(engine, parts, places, recipe, step, faults)
        interval += [values_of_step] if values_of_step else []
        done, last = step + 1, step + 1 == run.steps
        scale = (task.loss_scale.value, task.loss_scale.good_steps)
        consumed = done * recipe.batch.global_size
        state = replace(state, step=done, consumed=consumed, skipped=faults.skipped, loss_scale=scale)
        state = replace(state, skipped_in_a_row=faults.in_a_row, validation_loss=None)
        telemetry.advance(places[0].step_tokens(passes))
        if done % run.log_every_steps == 0 or last:
            values = interval_means(interval)
            faults.remember(values.get("loss", math.nan))
            values["learning_rate"] = learning_rate(step, run.steps, recipe.optimizer)
            values["gradient_norm"] = float(engine.get_global_grad_norm() or 0.0)
            values["skipped_steps"] = faults.skipped
            telemetry.log(done, state.consumed, values, recipe.batch.global_size)
            interval = []
        if validation and (done % validation.every_steps == 0 or last):
            held_out = validation.losses(engine, beat=partial(watchdog.beat, step))
            telemetry.log_validation(done, held_out)
            state = replace(state, validation_loss=held_out["loss"])
        if done % run.checkpoint_every_steps == 0 or last:
            watchdog.beat(step)
            state = replace(state, recent_losses=tuple(faults.losses))
            _save(engine, recipe, state, last)
    return True


def _save(engine: Any, recipe: Recipe, state: checkpoint.State, last: bool) -> None:
    """Save; when that fails, go on if the recipe says so and there will be another. Raises SaveError otherwise."""
    try:
        with STOPWATCH.measure("checkpoint"):
            log.info("saved %s", checkpoint.save(engine, recipe, state, recipe.run.output))
    except checkpoint.SaveError as error:
        if last or recipe.faults.save_failure == "stop":
            raise
        log.warning("%s; going on (faults.save_failure)", error)
