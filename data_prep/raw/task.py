"""Runs one task of a download: it takes its rows of the table, fetches them in waves, and writes shards and a
summary."""

import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.raw.earlier_shard import EarlierShard
from data_prep.raw.embedded_images import embedded_image_bytes
from data_prep.raw.image_bytes import local_image_bytes, web_image_bytes
from data_prep.raw.plan import DownloadSettings, task_shards, waves
from data_prep.raw.prefetch import prefetch
from data_prep.raw.raw_shards import ReadImageBytes, ShardWork, Storing, finished_receipt, write_raw_shard
from data_prep.shards.ledger import Drop
from data_prep.shards.receipts import Receipt
from data_prep.tables.row import Cell
from pipeline.files import lock_file, open_lock, read_validated, remove_partials, replace_file
from pipeline.progress_line import ProgressLine


def download(settings: DownloadSettings) -> dict[str, object]:
    """Do the task and return its summary, which is also written to `LABEL.summary.json`.

    Raises ValueError on a table that cannot be read, a folder that holds a download with other settings, a second
    process for the same task, a wave of which almost nothing arrived, and when no row of the task was kept.
    """
    started = time.monotonic()
    shards = task_shards(settings)
    rows = fetched = kept = questions = joined_rows = damaged = embedded = 0
    dropped, dropped_questions = Counter[str](), Counter[str]()
    with _claimed(settings), ProgressLine(settings.label, unit="rows") as line:
        for wave in prefetch(waves(shards, settings.samples_per_shard), partial(_fetched, settings)):
            for work, receipt, is_new in _finished(wave, settings):
                count = receipt.samples + sum(receipt.dropped.values())
                if count != len(work.rows):
                    raise RuntimeError(f"{work.tar}: {len(work.rows)} rows in, {count} kept or dropped")
                rows, kept, fetched = rows + count, kept + receipt.samples, fetched + count * is_new
                dropped.update(receipt.dropped)
                questions += receipt.questions
                joined_rows += sum(row.joined for row in work.rows)
                embedded += sum(isinstance(row.place, Cell) for row in work.rows)
                damaged += sum("\N{REPLACEMENT CHARACTER}" in "".join(row.captions) for row in work.rows)
                dropped_questions.update(receipt.dropped_questions)
                (line.advance if is_new else line.skip)(count)
    summary = {
        "source": settings.source.name,
        "task": [settings.task_index, settings.task_count],
        "rows": rows,
        "kept": kept,
        "dropped_by_reason": dict(sorted(dropped.items())),
        "joined_rows": joined_rows,
        "damaged_captions": damaged,
        "embedded_pictures": embedded,
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
    rows = [row for work in todo for row in work.open_rows()]
    most, rules, folder = settings.fetching.max_bytes, settings.rules, _work_folder(settings)
    held = ExitStack()
    inside = held.enter_context(embedded_image_bytes(rows, folder, most, rules))
    if settings.images is not None:
        outside = held.enter_context(local_image_bytes(settings.images, most, rules))
    else:
        elsewhere = [row for row in rows if row.place is None]
        outside = held.enter_context(web_image_bytes(elsewhere, folder, settings.fetching, rules, settings.least_yield))
    return _Wave(finished, todo, held, lambda row: (outside if row.place is None else inside)(row))


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
    with open_lock(path) as lock:
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
    with open_lock(locked) as lock:
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
