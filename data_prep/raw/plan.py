"""Plans one task of a download: its settings, which rows are its own, in which shards, and which shards go together."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from data_prep.raw.embedded_images import cell_digests
from data_prep.raw.raw_shards import ShardWork
from data_prep.raw.stored_image import ImageLimits
from data_prep.tables.caption_filter import CaptionRules
from data_prep.tables.conditions import Condition
from data_prep.tables.evaluation_pictures import EvaluationPictures
from data_prep.tables.joined_rows import joined
from data_prep.tables.row import Row
from data_prep.tables.sources import JOINED, Source, read_rows
from data_prep.web.fetching import FetchSettings
from pipeline.files import sha256_of_json

ROWS_PER_WAVE = 20_000
"""Rows that are fetched before their shards are written.

The fetched bytes of at most three waves are on the disk: of one that is being written, one that waits, and one that is
being fetched. A wave, not a shard, shows whether the network is down: a shard of one row with a dead host must finish.
"""


@dataclass(frozen=True)
class DownloadSettings:
    """Which rows go where, and how they are fetched. `images` is the folder of local images, None for the web."""

    source: Source
    tables: tuple[Path, ...]
    output: Path
    task_index: int
    task_count: int
    samples_per_shard: int
    images: Path | None
    split: str | None
    limits: ImageLimits
    rules: CaptionRules
    fetching: FetchSettings
    retry_failed: bool
    least_yield: float
    annotations: tuple[Path, ...] = ()
    evaluation: EvaluationPictures | None = None
    """The pictures that are left out."""
    conditions: tuple[Condition, ...] = ()

    def identity(self) -> dict[str, object]:
        """What the shards depend on, besides their rows. All tasks of a download must agree on it."""
        kept = [str(each) for each in self.conditions]
        filters = {"max_aspect": self.limits.max_aspect, **asdict(self.rules), "keep_where": kept}
        chosen = {name: list(value) if isinstance(value, tuple) else value for name, value in filters.items() if value}
        identity = {
            "source": self.source.name,
            "captions": self.source.captions,
            "samples_per_shard": self.samples_per_shard,
            "task_count": self.task_count,
            "min_side_px": self.limits.min_side_px,
            "max_side_px": self.limits.max_side_px,
            "max_pixels": self.limits.max_pixels,
            "max_bytes": self.fetching.max_bytes,
        }
        cleaned = {"cleaned_of": [*self.cleaned_of(), self.evaluation.digest()]} if self.evaluation else {}
        return identity | ({"filters": chosen} if chosen else {}) | cleaned

    def cleaned_of(self) -> dict[str, int]:
        return self.evaluation.sizes() if self.evaluation else {}

    def rows(self) -> Iterator[Row]:
        """The rows of the whole table; of tars, those of this task."""
        rows = read_rows(
            self.source,
            *self.tables,
            split=self.split,
            annotations=self.annotations,
            conditions=self.conditions,
            task=(self.task_index, self.task_count),
        )
        if self.joins:
            rows = joined(rows, cell_digests)
        return self.evaluation.marked(rows) if self.evaluation else rows

    @property
    def joins(self) -> bool:
        """Whether rows of one picture become one. Tables of the web with web captions do not fit into memory."""
        return self.source.format in JOINED and (self.images is not None or self.source.captions == "human")

    @property
    def shares_tars(self) -> bool:
        """Whether whole tars are shared between the tasks, and not blocks of rows."""
        return self.source.format == "tars"

    @property
    def config_hash(self) -> str:
        return sha256_of_json(self.identity())

    @property
    def label(self) -> str:
        return f"{self.source.name}-{self.task_index:03d}"


def task_shards(settings: DownloadSettings) -> Iterator[ShardWork]:
    """This task's shards: of every `task_count` blocks of rows, the block at `task_index`; of tars, all blocks. The
    number of rows need not be known. Raises ValueError at once on a table without rows."""
    rows = settings.rows()
    first = next(rows, None)
    if first is None:
        if settings.shares_tars and settings.task_count > 1:
            return iter(())  # there are more tasks than tars
        raise ValueError(f"--input {settings.tables[0]}: has no rows")
    return _blocks(first, rows, settings)


def _blocks(first: Row, rest: Iterator[Row], settings: DownloadSettings) -> Iterator[ShardWork]:
    def work() -> Iterator[ShardWork]:
        if settings.shares_tars or number % settings.task_count == settings.task_index:
            yield ShardWork(settings.output / f"{settings.label}-{number:06d}.tar", tuple(block))

    number, block = 0, [first]
    for row in rest:
        if len(block) == settings.samples_per_shard:
            yield from work()
            number, block = number + 1, []
        block.append(row)
    yield from work()


def waves(shards: Iterator[ShardWork], samples_per_shard: int) -> Iterator[list[ShardWork]]:
    """The shards in groups of about ROWS_PER_WAVE rows."""
    size = max(1, ROWS_PER_WAVE // samples_per_shard)
    wave: list[ShardWork] = []
    for work in shards:
        wave.append(work)
        if len(wave) == size:
            yield wave
            wave = []
    if wave:
        yield wave
