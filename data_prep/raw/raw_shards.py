"""Writes one raw shard: the tar of its images and their texts, the ledger of all its rows, and the receipt last."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, field
from pathlib import Path

from data_prep.raw.earlier_shard import EarlierShard
from data_prep.raw.stored_image import ImageLimits, StoredImage, store
from data_prep.shards import tar_files
from data_prep.shards.ledger import Drop, Entry, check_entries, dropped_by_reason, ledger_path, write_ledger
from data_prep.shards.receipts import DOWNLOADED, Receipt, read_receipt, write_receipt
from data_prep.tables.caption_filter import CaptionRules, passing
from data_prep.tables.row import Place, Row
from data_prep.tables.sources import Source
from pipeline.files import remove_partials

BATCH = 128
"""Rows that are decoded before they are written into the tar: it bounds the memory."""

ReadImageBytes = Callable[[Row], bytes | Drop]
"""The image of a row as it was published, or why there is none."""


@dataclass(frozen=True)
class ShardWork:
    """The rows of one shard and its tar. `earlier` holds the results that stay, when only temporary failures are
    retried."""

    tar: Path
    rows: tuple[Row, ...]
    earlier: EarlierShard | None = None

    def settled(self, row: Row) -> StoredImage | Drop | None:
        return self.earlier.settled(row) if self.earlier else None

    def open_rows(self) -> list[Row]:
        """The rows to fetch."""
        return [row for row in self.rows if self.earlier is None or self.earlier.is_open(row)]

    def digest(self) -> str:
        """The sha256 of the rows that the shard is made from."""
        digest = hashlib.sha256()
        for row in self.rows:
            content: list[object] = [row.row, row.url, row.captions]
            if row.question_set:
                content += [row.question_set, [astuple(each) for each in row.questions], row.lost_questions]
            if isinstance(row.place, Place):
                content += [row.place.offset, row.place.size]
            digest.update(json.dumps(content).encode() + b"\n")
        return digest.hexdigest()


def key_of(source: str, row: Row) -> str:
    digest = hashlib.sha256(f"{row.url}\n{row.row}".encode(errors="replace")).hexdigest()
    return f"{source}_{digest[:16]}"


def finished_receipt(work: ShardWork, config_hash: str) -> Receipt | None:
    """The receipt of the shard if it is finished and was made from these rows with these settings, else None."""
    try:
        receipt = read_receipt(work.tar)
        complete = work.tar.stat().st_size == receipt.bytes and ledger_path(work.tar).exists()
    except (ValueError, FileNotFoundError):
        return None
    return receipt if complete and receipt.same_work(DOWNLOADED, work.digest(), config_hash) else None


@dataclass(frozen=True)
class Storing:
    """Which rows of a source are stored, and how."""

    source: Source
    limits: ImageLimits
    rules: CaptionRules
    config_hash: str
    cleaned_of: dict[str, int] = field(default_factory=dict)
    """The evaluation sets whose pictures are left out -> the number of their pictures."""


def write_raw_shard(work: ShardWork, read: ReadImageBytes, storing: Storing, threads: int) -> Receipt:
    """Write tar, ledger and receipt, in this order; every row of `work` is counted as kept or dropped.

    Raises ValueError when the disk is full.
    """
    entries: list[Entry] = []
    remove_partials(work.tar)
    totals = tar_files.write_shard(work.tar, _samples(work, read, storing, threads, entries))
    check_entries(entries, len(work.rows), totals.samples)
    dropped_questions = _dropped_questions(work.rows, entries)
    if totals.questions + sum(dropped_questions.values()) != sum(map(questions_in, work.rows)):
        raise RuntimeError(f"{work.tar}: {totals.questions} questions kept, dropped {dropped_questions}, not all")
    write_ledger(ledger_path(work.tar), entries)
    receipt = Receipt(
        stage=DOWNLOADED,
        input_sha256=work.digest(),
        config_hash=storing.config_hash,
        tar_sha256=totals.sha256,
        bytes=totals.bytes,
        samples=totals.samples,
        captions=totals.captions,
        seed=0,
        dropped=dropped_by_reason(entries),
        questions=totals.questions,
        dropped_questions=dropped_questions,
        question_sets=totals.question_sets,
        cleaned_of=storing.cleaned_of,
    )
    write_receipt(work.tar, receipt)
    return receipt


def questions_in(row: Row) -> int:
    """The number of questions that the files have about the picture."""
    return len(row.questions) + len(row.lost_questions)


def _dropped_questions(rows: Sequence[Row], entries: Sequence[Entry]) -> dict[str, int]:
    """Reason -> dropped questions. Those that could be used are dropped with their picture, for its reason."""
    dropped = Counter[str]()
    for row, entry in zip(rows, entries, strict=True):
        dropped.update(row.lost_questions)
        if entry.reason and row.questions:
            dropped[entry.reason] += len(row.questions)
    return dict(sorted(dropped.items()))


def _samples(
    work: ShardWork, read: ReadImageBytes, storing: Storing, threads: int, entries: list[Entry]
) -> Iterator[tar_files.Sample]:
    """The kept samples, in order of the rows; appends an entry to `entries` for every row, kept or dropped."""

    def stored(row: Row) -> StoredImage | Drop:
        if (settled := work.settled(row)) is not None:
            return settled
        fetched = read(row)
        return fetched if isinstance(fetched, Drop) else store(fetched, storing.limits)

    with ThreadPoolExecutor(threads) as pool:
        for rows in _batches(work.rows):
            for row, image in zip(rows, pool.map(stored, rows), strict=True):
                key = key_of(storing.source.name, row)
                caption = row.captions[0] if row.captions else ""
                if isinstance(image, Drop):
                    entries.append(Entry(row.row, row.url, caption, "dropped", image.reason, key, image.http_status))
                    continue
                entries.append(Entry(row.row, row.url, caption, "kept", None, key, None, image.sha256, image.phash))
                yield tar_files.Sample(key, image.jpeg, _record(key, row, image, storing))


def _batches(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    for start in range(0, len(rows), BATCH):
        yield rows[start : start + BATCH]


def _record(key: str, row: Row, image: StoredImage, storing: Storing) -> dict[str, object]:
    captions = () if row.question_set else passing(row.captions, storing.rules)
    assert not isinstance(captions, Drop), "a row whose captions all fail the rules is never read"
    record: dict[str, object] = {
        "key": key,
        "captions": list(captions),
        "scores": [None] * len(captions),
        "sources": [storing.source.captions] * len(captions),
        "width": image.width_px,
        "height": image.height_px,
        "sha256": image.sha256,
        "url": row.url,
        "source": storing.source.name,
        "run": storing.config_hash[:12],
    }
    if row.question_set:
        record["question_set"] = row.question_set
        record["questions"] = [
            {"id": each.id, "question": each.text, "answers": dict(each.answers)} for each in row.questions
        ]
    return record
