"""Held-out losses: the same samples, crops and negatives each time, without dropout and without gradient."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor

from pipeline.config import Recipe
from pipeline.data.batch import Batch, Collate
from pipeline.data.loader import InSharedMemory, leave_signals_to_the_rank
from pipeline.data.manifest import load_manifest
from pipeline.data.order import MicroBatches, SampleOrder
from pipeline.data.stream import SampleStream
from pipeline.distributed import collectives, process_group
from pipeline.training.agreement import agree
from pipeline.training.sample_texts import SampleTexts
from pipeline.training.task import Task

STEP = -1  # of the seeds of negatives: no training step has it


class Validation:
    """The first `validation.samples` of a manifest, in one order, uncropped and unflipped."""

    def __init__(self, recipe: Recipe, collate: Collate) -> None:
        assert recipe.validation is not None
        self.recipe, self.every_steps = recipe, recipe.validation.every_steps
        manifest, ranks = load_manifest(recipe.validation.manifest), process_group.world_size()
        size = recipe.batch.micro_size * ranks
        order = SampleOrder(manifest, 0, recipe.data.shuffle_shards, recipe.data.sample)
        samples = min(recipe.validation.samples, order.samples)
        self.steps = samples // size
        if not self.steps:
            raise ValueError(
                f"validation.manifest {recipe.validation.manifest}: {samples} samples are fewer than one pass of all "
                f"ranks, {size}; use more (validation.samples), or lower batch.micro_size"
            )
        settings = recipe.data.model_copy(update={"crop_scale": (1.0, 1.0), "horizontal_flip": False})
        places = MicroBatches(order.samples, size, recipe.batch.micro_size, process_group.rank(), ranks, 0, self.steps)
        self.sample_texts = SampleTexts(recipe, collate)
        self.loader: Iterable[Batch] = torch.utils.data.DataLoader(
            SampleStream(manifest, order, settings, recipe.vision.image_size_px),  # type: ignore[arg-type]
            batch_sampler=places,  # type: ignore[arg-type]
            collate_fn=InSharedMemory(collate),
            num_workers=min(2, recipe.data.num_workers),
            generator=torch.Generator(),
            worker_init_fn=leave_signals_to_the_rank,
        )

    @torch.no_grad()
    def losses(self, engine: Any, beat: Callable[[], None]) -> dict[str, float]:
        """Means over all held-out samples; `beat` is called at each pass. Collective: every rank at the same step."""
        engine.eval()
        try:
            values = list(self._values(engine, beat))
        finally:
            engine.train()
        names = [name for name in values[0] if name != "temperature"]
        stacked = torch.stack([torch.stack([each[name].float() for name in names]) for each in values]).mean(dim=0)
        return dict(zip(names, collectives.mean_over_ranks(stacked).tolist(), strict=True))

    def _values(self, engine: Any, beat: Callable[[], None]) -> Iterator[dict[str, Tensor]]:
        task = cast(Task, engine.module)
        for number, batch in enumerate(self.loader):
            beat()
            [place], _ = agree(task, [batch], self.recipe.seed, STEP - number, False)
            yield engine(batch.to(str(engine.device)), place)
