"""Runs one task of a download: it takes its rows of the table, fetches them in waves, and writes shards and a
summary."""

import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.raw.earlier_shard import EarlierShard
from data_prep.raw.image_bytes import local_image_bytes, web_image_bytes
from data_prep.raw.prefetch import prefetch
from data_prep.raw.raw_shards import ReadImageBytes, ShardWork, Storing, finished_receipt, write_raw_shard
from data_prep.raw.stored_image import ImageLimits
from data_prep.shards.ledger import Drop
from data_prep.shards.receipts import Receipt
from data_prep.tables.caption_filter import CaptionRules
from data_prep.tables.evaluation_pictures import EvaluationPictures
from data_prep.tables.row import Row
from data_prep.tables.sources import Source, read_rows
from data_prep.web.fetching import FetchSettings
from pipeline.files import lock_file, read_validated, remove_partials, replace_file, sha256_of_json
from pipeline.progress_line import ProgressLine

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

    def identity(self) -> dict[str, object]:
        """What the shards depend on, besides their rows. All tasks of a download must agree on it."""
        filters = {"max_aspect": self.limits.max_aspect, **asdict(self.rules)}
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
        rows = read_rows(self.source, *self.tables, split=self.split, annotations=self.annotations)
        return self.evaluation.marked(rows) if self.evaluation else rows

    @property
    def config_hash(self) -> str:
        return sha256_of_json(self.identity())

    @property
    def label(self) -> str:
        return f"{self.source.name}-{self.task_index:03d}"


def download(settings: DownloadSettings) -> dict[str, object]:
    """Do the task and return its summary, which is also written to `LABEL.summary.json`.

    Raises ValueError on a table that cannot be read, a folder that holds a download with other settings, a second
    process for the same task, a wave of which almost nothing arrived, and when no row of the task was kept.
    """
    started = time.monotonic()
    shards = task_shards(settings)
    rows = fetched = kept = questions = 0
    dropped, dropped_questions = Counter[str](), Counter[str]()
    with _claimed(settings), ProgressLine(settings.label, unit="rows") as line:
        waves = _waves(shards, max(1, ROWS_PER_WAVE // settings.samples_per_shard))
        for wave in prefetch(waves, partial(_fetched, settings)):
            for work, receipt, is_new in _finished(wave, settings):
                count = receipt.samples + sum(receipt.dropped.values())
                if count != len(work.rows):
                    raise RuntimeError(f"{work.tar}: {len(work.rows)} rows in, {count} kept or dropped")
                rows, kept, fetched = rows + count, kept + receipt.samples, fetched + count * is_new
                dropped.update(receipt.dropped)
                questions += receipt.questions
                dropped_questions.update(receipt.dropped_questions)
                (line.advance if is_new else line.skip)(count)
    summary = {
        "source": settings.source.name,
        "task": [settings.task_index, settings.task_count],
        "rows": rows,
        "kept": kept,
        "dropped_by_reason": dict(sorted(dropped.items())),
        "failed_in_passing": sum(count for reason, count in dropped.items() if Drop.named(reason).temporary),
        "questions": questions,
        "dropped_questions_by_reason": dict(sorted(dropped_questions.items())),
        "cleaned_of": settings.cleaned_of(),
        "licence": settings.source.licence,
        "rows_of_this_run": fetched,
        "seconds_of_this_run": round(time.monotonic() - started, 2),
    }
    replace_file(summary_path(settings), (json.dumps(summary, indent=1) + "\n").encode())
    if rows and not kept:
        raise ValueError(
            f"--input {settings.tables[0]}: none of {rows} rows was kept: {dict(dropped.most_common())}; "
            f"correct the cause, remove {settings.output} and run again"
        )
    return summary


def summary_path(settings: DownloadSettings) -> Path:
    return settings.output / f"{settings.label}.summary.json"


def task_shards(settings: DownloadSettings) -> Iterator[ShardWork]:
    """This task's shards: of every `task_count` blocks of rows, the block at `task_index`. The number of rows of the
    table need not be known. Raises ValueError at once on a table without rows."""
    rows = settings.rows()
    first = next(rows, None)
    if first is None:
        raise ValueError(f"--input {settings.tables[0]}: has no rows")
    return _blocks(first, rows, settings)


def _blocks(first: Row, rest: Iterator[Row], settings: DownloadSettings) -> Iterator[ShardWork]:
    def work() -> Iterator[ShardWork]:
        if number % settings.task_count == settings.task_index:
            yield ShardWork(settings.output / f"{settings.label}-{number:06d}.tar", tuple(block))

    number, block = 0, [first]
    for row in rest:
        if len(block) == settings.samples_per_shard:
            yield from work()
            number, block = number + 1, []
        block.append(row)
    yield from work()


def _waves(shards: Iterator[ShardWork], size: int) -> Iterator[list[ShardWork]]:
    wave: list[ShardWork] = []
    for work in shards:
        wave.append(work)
        if len(wave) == size:
            yield wave
            wave = []
    if wave:
        yield wave


@dataclass(frozen=True)
class _Wave:
    """Shards that are fetched together: the finished ones, and those to write, whose image bytes have been fetched."""

    finished: list[tuple[ShardWork, Receipt]]
    todo: list[ShardWork]
    fetched_files: ExitStack
    read: ReadImageBytes


def _fetched(settings: DownloadSettings, shards: list[ShardWork]) -> _Wave:
    """Fetch what the shards of a wave need; finished shards need nothing."""
    finished: list[tuple[ShardWork, Receipt]] = []
    todo: list[ShardWork] = []
    for work in shards:
        receipt = finished_receipt(work, settings.config_hash)
        if receipt is None:
            todo.append(work)
        elif settings.retry_failed and receipt.dropped and (earlier := EarlierShard(work.tar)).open_rows():
            todo.append(replace(work, earlier=earlier))
        else:
            finished.append((work, receipt))
    if settings.images is not None:
        image_bytes = local_image_bytes(settings.images, settings.fetching.max_bytes, settings.rules)
    else:
        rows = [row for work in todo for row in work.open_rows()]
        folder = _work_folder(settings)
        image_bytes = web_image_bytes(rows, folder, settings.fetching, settings.rules, settings.least_yield)
    held = ExitStack()
    return _Wave(finished, todo, held, held.enter_context(image_bytes))


def _finished(wave: _Wave, settings: DownloadSettings) -> Iterator[tuple[ShardWork, Receipt, bool]]:
    """Each shard of the wave with its receipt, and whether it was written now."""
    for work, receipt in wave.finished:
        yield work, receipt, False
    storing = Storing(settings.source, settings.limits, settings.rules, settings.config_hash, settings.cleaned_of())
    with wave.fetched_files:
        for work in wave.todo:
            yield work, write_raw_shard(work, wave.read, storing, settings.fetching.processes), True


def _work_folder(settings: DownloadSettings) -> Path:
    return settings.output / f".{settings.label}.work"


@contextmanager
def _claimed(settings: DownloadSettings) -> Iterator[None]:
    """Keep out a second process for this task, and a download with other settings into this folder. What a killed run
    left in the task's work folder is removed first."""
    settings.output.mkdir(parents=True, exist_ok=True)
    path = settings.output / f".{settings.label}.lock"
    with path.open("w", encoding="utf-8") as lock:
        try:
            lock_file(lock, path)
        except BlockingIOError as error:
            raise ValueError(
                f"--output {settings.output}: another process works on task {settings.label}; wait for its end"
            ) from error
        _check_identity(settings)
        shutil.rmtree(_work_folder(settings), ignore_errors=True)
        remove_partials(summary_path(settings))
        yield
        shutil.rmtree(_work_folder(settings), ignore_errors=True)


def _check_identity(settings: DownloadSettings) -> None:
    """Raises ValueError when the folder holds a download with other settings. The lock lets in one task at a time, so
    every partial file found here was left by a killed task."""
    path = settings.output / f"{settings.source.name}.download.json"
    wanted = settings.identity()
    locked = path.with_name(f".{path.stem}.lock")
    with locked.open("w", encoding="utf-8") as lock:
        lock_file(lock, locked, wait=True)
        remove_partials(path)
        if not path.exists():
            replace_file(path, (json.dumps(wanted, indent=1) + "\n").encode())
            return
        found = read_validated(path, dict[str, Any], "the settings of a download")
    for name in {**wanted, **found}:
        was, now = found.get(name), wanted.get(name)
        if was != now:
            raise ValueError(
                f"--output {settings.output}: holds a download with {name} {was}, not {now}; name another folder"
            )
