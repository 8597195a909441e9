"""Predictions on disk: one JSON line a sample, appended and synced, each sample once, for any number of ranks.

Rank r appends to predictions.rank{r}.jsonl. A new start, with any number of ranks, reads all these files and continues
with the rest; a last line that a kill cut off does not count. When all samples are there, rank 0 writes them to
predictions.jsonl in the data set's order: the same bytes, however the work was divided.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from eval.sets.official_files import SampleId, check_whole_characters, field_of
from pipeline.files import check_target, lock_file, naming_full_disk, read_whole, replace_file

Entry = Mapping[str, Any]
RANK_FILES = "predictions.rank*.jsonl"


class PredictionLog:
    """One rank's file. It is locked while it is open: two processes never write the same file."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.path = folder / f"predictions.rank{rank}.jsonl"
        check_target(self.path)
        self.file = self.path.open("a+b")
        try:
            _lock(self.file, self.path)
        except ValueError:
            self.file.close()
            raise
        self._drop_torn_line()

    def _drop_torn_line(self) -> None:
        self.file.seek(0)
        content = self.file.read()
        if content and not content.endswith(b"\n"):
            self.file.truncate(content.rfind(b"\n") + 1)

    def append(self, entries: Iterable[Entry]) -> None:
        """Add whole lines; they are on disk when this returns."""
        with naming_full_disk(self.path):
            self.file.write("".join(json.dumps(entry) + "\n" for entry in entries).encode())
            self.file.flush()
            os.fsync(self.file.fileno())

    def __enter__(self) -> "PredictionLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()


def check_not_written(path: Path) -> None:
    """Raise ValueError while a process has this log open, for example a rank that outlived its job."""
    check_target(path)
    with path.open("rb") as file:
        _lock(file, path)


def _lock(file: BinaryIO, path: Path) -> None:
    try:
        lock_file(file, path)
    except BlockingIOError as error:
        raise ValueError(f"{path}: another process is writing it; wait for it, or stop it first") from error


def read_log(path: Path) -> list[Entry]:
    """A rank file's whole lines. A last line without its end was cut off by a kill and is left out."""
    try:
        *lines, _torn = read_whole(path).split(b"\n")
    except ValueError as error:
        raise ValueError(
            f"{path}: is not a file of predictions or scores ({error}); remove it to write it again"
        ) from error
    entries: list[Entry] = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict):
                raise ValueError(f"found {type(entry).__name__}")
            check_whole_characters(line.decode(), entry)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path}: line {number} is not a JSON object ({error}); remove the file to write it again"
            ) from error
        entries.append(entry)
    return entries


def finished(folder: Path) -> dict[SampleId, Entry]:
    """What all ranks of all runs so far have predicted, by sample id."""
    found: dict[SampleId, Entry] = {}
    for path in sorted(folder.glob(RANK_FILES)):
        for entry in read_log(path):
            sample_id = field_of(path, entry, "id", (int, str))
            if found.setdefault(sample_id, entry) != entry:
                raise ValueError(
                    f"{path}: id {sample_id!r} has two different predictions; remove {folder} to start again"
                )
    return found


def merge(folder: Path, order: Sequence[SampleId]) -> list[Entry]:
    """All entries in the given order, also written to predictions.jsonl. Raises ValueError when some are missing."""
    found = finished(folder)
    missing = [sample_id for sample_id in order if sample_id not in found]
    if missing:
        raise ValueError(
            f"{folder}: {len(missing)} of {len(order)} predictions missing, first {missing[0]!r}; run the same command "
            "again"
        )
    entries = [found[sample_id] for sample_id in order]
    replace_file(folder / "predictions.jsonl", "".join(json.dumps(entry) + "\n" for entry in entries))
    return entries


def batches_of_rank(
    ids: Sequence[SampleId], done: Mapping[SampleId, Entry], batch_size: int, rank: int, world_size: int
) -> list[list[SampleId]]:
    """This rank's whole batches that have something left to predict.

    Batches are cut from the whole list: a sample's neighbours decide the last digits of its scores, and must depend
    neither on the number of ranks nor on where an earlier run was stopped. One exception: when a kill cuts off the
    writing of a batch, the rest of that batch is predicted alone.
    """
    whole = [list(ids[start : start + batch_size]) for start in range(0, len(ids), batch_size)]
    return [batch for batch in whole if any(each not in done for each in batch)][rank::world_size]
