"""Production's steps on batches that are given: DeepSpeed's engine, the batch one ahead, agreement, update."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any

import torch

from pipeline.config import Recipe
from pipeline.data.batch import Batch
from pipeline.distributed import process_group
from pipeline.training.agreement import agree
from pipeline.training.ahead import Ahead
from pipeline.training.checkpoint import State
from pipeline.training.engine import build_engine, resolve_ds_config
from pipeline.training.progress import Progress
from pipeline.training.step import train_step


class Steps:
    """The steps of one rank. `longest` is the longest caption of all ranks, which another rank may have."""

    def __init__(self, task: Any, recipe: Recipe, longest: int | None = None) -> None:
        process_group.initialise(even_alone=True)
        self.task, self.recipe, self.longest = task, recipe, longest
        self.engine = build_engine(task, recipe, resolve_ds_config(recipe, 1))
        self.progress = Progress(recipe, State(0, 0, recipe.seed, 1, "", {}, {}, {}), task.loss_scale)

    def feed(self, batches: Iterable[Batch]) -> None:
        """From now on the steps are on these."""
        passes = self.recipe.batch.num_passes(1)
        self.ahead = Ahead(batches, passes, self.engine.device, self.task.towers.vision)
        self.steps: Iterator[list[Batch]] = self.ahead.steps()

    def feed_again_and_again(self, batches: Sequence[Batch]) -> None:
        """From now on the steps are on these, pinned where there is a GPU, without an end."""
        pinned = [batch.pin_memory() if torch.cuda.is_available() else batch for batch in batches]
        self.feed(cycle(pinned))

    def step(self) -> dict[str, torch.Tensor] | None:
        """One optimizer step as `pipeline.training.loop` does it; None when it was skipped."""
        batches = next(self.steps)
        places, _ = agree(self.task, batches, self.recipe.seed, self.progress.step, False)
        if self.longest is not None:
            places = [replace(place, longest_target=max(self.longest, place.longest_target)) for place in places]
        values = train_step(self.engine, batches, places, self.recipe, self.progress, self.ahead)
        self.progress.advance(values)
        return values
