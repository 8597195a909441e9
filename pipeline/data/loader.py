"""From a recipe's data section to batches: a manifest's samples by seeking, or those of URLs by streaming."""

import logging
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, get_worker_info

from pipeline.config import Recipe
from pipeline.data.batch import Batch, Collate
from pipeline.data.manifest import Manifest, load_manifest
from pipeline.data.mixture import build_order
from pipeline.data.order import TOTALS, MicroBatches, sizes_of
from pipeline.data.stream import Sample, SampleStream
from pipeline.data.streaming import CANNOT_PROMISE, ShardUrls, StreamedSamples, expand_urls

log = logging.getLogger(__name__)
DataSource = Manifest | ShardUrls


GRACE_S = 15  # time for a rank to finish its step


def leave_signals_to_the_rank(_worker: int) -> None:
    """A worker ignores a stop signal that was sent to the whole process group: its rank still needs its batches.

    SIGTERM ends it after GRACE_S, since Python sends it, too, to a worker that does not end by itself.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda _number, _frame: signal.alarm(GRACE_S))


class WorkerError(ValueError):
    """A worker of the loader could not hand over its batches. It may happen on one rank alone, which then prints it."""


class InSharedMemory:
    """A collation whose batches a worker puts into shared memory itself. Left to its queue, a full /dev/shm would lose
    a batch without an error, and its rank would wait for it for ever."""

    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Raises WorkerError in one line when there is no room."""
        batch, worker = self.collate(samples), get_worker_info()
        if worker is None or not isinstance(batch, Batch):
            return batch
        try:
            for tensor in batch.tensors():
                tensor.share_memory_()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise WorkerError(
                f"data.num_workers {worker.num_workers}: /dev/shm has no room for a batch ({str(error).splitlines()[0]}"
                "); lower data.num_workers (0 needs none), or give the container more (docker run --shm-size=8g)"
            ) from error
        return batch


@contextmanager
def named_worker_faults(num_workers: int) -> Iterator[None]:
    """A worker that was killed is one line, not a traceback: torch raises a RuntimeError. Raises WorkerError."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise WorkerError(
            f"data.num_workers {num_workers}: a worker of the loader was killed ({str(error).splitlines()[0]}); memory "
            "or /dev/shm is too small: lower data.num_workers, or give the job more"
        ) from error


def in_steps(recipe: Recipe, source: DataSource) -> Recipe:
    """The recipe with its length in steps, also where it gives it in epochs."""
    if isinstance(source, ShardUrls):
        return recipe  # which has no epochs
    return recipe.in_steps(build_order(source, recipe.data, recipe.seed).samples)


def open_source(recipe: Recipe, world_size: int) -> DataSource:
    """Read the manifest or expand the URLs. Raises ValueError when there is too little data for `world_size` ranks."""
    data = recipe.data
    if data.urls:
        urls = expand_urls(data.urls)
        urls.check_readers(world_size, data.num_workers)
        return urls
    assert data.manifest is not None, "Data takes one of the two"
    manifest = load_manifest(data.manifest)
    if data.sample != "image":
        manifest.counts(manifest.shards[0])  # raises where an earlier version wrote the tables
    kind = data.sample if data.sample == "question" else "caption"
    if not sizes_of(manifest, kind).any():
        raise ValueError(
            f"data.manifest {data.manifest}: its shards hold no {kind}s, and data.sample is {data.sample!r}; name "
            f"another manifest, or change data.sample"
        )
    samples = build_order(manifest, data, recipe.seed).samples
    of = "an epoch with these source_weights" if data.source_weights else "the manifest"
    of += "" if data.sample == "image" else f", each {data.sample} a sample,"
    recipe.batch.check_samples(samples, of)
    return manifest


def enlarged(source: DataSource, image_size_px: int) -> str | None:
    """A warning when pictures were stored smaller than they are trained on, or None. Of streamed or old shards the
    stored size is not known."""
    if isinstance(source, ShardUrls):
        return None
    smaller = [each for each in source.shards if each.short_side_px is not None and each.short_side_px < image_size_px]
    if not smaller:
        return None
    most = max(each.short_side_px or 0 for each in smaller)
    return (
        f"vision.image_size_px {image_size_px}: {sum(each.samples for each in smaller)} of {source.samples} pictures "
        f"are stored with a shorter side of at most {most} px, and will be enlarged; download them again with "
        f"--max-side-px {image_size_px} or more"
    )


def build_loader(
    recipe: Recipe, source: DataSource, collate: Collate, rank: int, world_size: int, first_step: int
) -> Iterable[Batch]:
    """This rank's micro batches from step `first_step` to the recipe's last; every rank has the same number.

    Rank 0 logs what an epoch is, or what streaming cannot promise.
    """
    data, batch, steps = recipe.data, recipe.batch, recipe.run.steps
    settings: dict[str, Any] = {
        "collate_fn": InSharedMemory(collate),
        "worker_init_fn": leave_signals_to_the_rank,
        "num_workers": data.num_workers,
        "generator": torch.Generator(),  # else each start of a loader would draw from the numbers that dropout uses
        "pin_memory": torch.cuda.is_initialized(),  # type: ignore[no-untyped-call]  # the rank computes on a GPU
    }
    size_px = recipe.vision.image_size_px
    if isinstance(source, ShardUrls):
        if rank == 0:
            log.info("%d shards, %d steps; %s", len(source.urls), steps, CANNOT_PROMISE)
        num_batches = (steps - first_step) * batch.num_passes(world_size)
        streamed = StreamedSamples(
            source, data, size_px, recipe.seed, rank, world_size, first_step, num_batches, batch.micro_size
        )
        return DataLoader(streamed, batch_size=batch.micro_size, **settings)
    order = build_order(source, data, recipe.seed)
    if rank == 0:
        per_epoch, left_out = divmod(order.samples, batch.global_size)
        log.info(
            "%d %s in %d shards; an epoch has %d in %d steps and leaves out %d; %d steps are %.2f epochs",
            *(int(sizes_of(source, data.sample).sum()), TOTALS[data.sample], len(source.shards)),
            *(order.samples, per_epoch, left_out, steps, steps / per_epoch),
        )
        if warning := enlarged(source, size_px):
            log.warning("%s", warning)
    places = MicroBatches(order.samples, batch.global_size, batch.micro_size, rank, world_size, first_step, steps)
    stream: Any = SampleStream(source, order, data, size_px)  # a map over (epoch, position)
    return DataLoader(stream, batch_sampler=places, **settings)  # type: ignore[arg-type]
