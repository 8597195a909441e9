"""The training loop: steps until the last one, with logging, held-out losses and checkpoints, or until a signal."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pipeline.config import Recipe
from pipeline.data.batch import Batch
from pipeline.distributed import process_group
from pipeline.training.agreement import agree
from pipeline.training.ahead import Ahead
from pipeline.training.optimizer import layer_rates
from pipeline.training.preemption import StopRequest
from pipeline.training.profiling import Profile
from pipeline.training.progress import Progress
from pipeline.training.saving import Saver
from pipeline.training.step import train_step
from pipeline.training.telemetry import Telemetry
from pipeline.training.validation import Validation
from pipeline.training.watchdog import Watchdog

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunParts:
    """What a run needs beside its progress."""

    recipe: Recipe
    engine: Any
    batches: Iterable[Batch]
    validation: Validation | None
    telemetry: Telemetry
    saver: Saver
    watchdog: Watchdog
    profile: Profile
    stop: StopRequest


def fit(parts: RunParts, progress: Progress) -> bool:
    """Train from where `progress` is to the recipe's last step. False when a signal stopped it early, all saved."""
    engine, recipe, run, validation = parts.engine, parts.recipe, parts.recipe.run, parts.validation
    passes = recipe.batch.num_passes(process_group.world_size())
    ahead = Ahead(parts.batches, passes, engine.device, engine.module.towers.vision)
    for batches in ahead.steps():
        parts.watchdog.beat(progress.step)
        # One gather a step says all that ranks must know of one another: also the stop, as a signal may reach one rank.
        flags = parts.stop.requested, parts.saver.is_ready
        places, (stopped, written) = agree(engine.module, batches, recipe.seed, progress.step, *flags)
        if written:
            parts.saver.finish()
        if stopped:
            parts.watchdog.save()
            parts.saver.begin(progress.state())
            parts.saver.finish(must_succeed=True)
            log.info("stopping on a signal")
            return False
        progress.advance(train_step(engine, batches, places, recipe, progress, ahead))
        parts.telemetry.advance(places[0].step_tokens(passes))
        parts.profile.step()
        if progress.is_due(run.log_every_steps):
            norm = float(engine.get_global_grad_norm() or 0.0)
            values = layer_rates(engine.optimizer) | {"gradient_norm": norm, "skipped_steps": progress.skipped}
            values = progress.end_interval() | values
            parts.telemetry.log(progress.step, progress.samples, values, recipe.batch.global_size)
        if validation and progress.is_due(validation.every_steps):
            held_out = validation.losses(engine, parts.watchdog.beat)
            texts = validation.sample_texts.texts(engine)
            parts.telemetry.log_validation(progress.step, held_out, texts, validation.sample_texts.pictures)
            progress.validated(held_out["loss"])
        if progress.is_due(run.checkpoint_every_steps):
            parts.watchdog.beat()
            parts.saver.begin(progress.state())
    parts.watchdog.save()
    parts.saver.finish(must_succeed=True)
    return True
