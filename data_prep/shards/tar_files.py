"""Writes and reads tars of samples: pairs of `KEY.jpg` and `KEY.json`.

A tar is USTAR with fixed times and owners, so the same samples give the same bytes. It appears whole or not at all: it
is written to a temporary file in its own folder, hashed meanwhile, scanned again, synced, and then renamed. Its receipt
is written last (see `receipts`).
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.shards.offsets import offset_table
from data_prep.shards.receipts import read_receipt, receipt_path
from data_prep.shards.sample_json import KEY_PATTERN, encode_record, questions_of, record_fault
from data_prep.shards.ustar import BLOCK, LARGEST_MEMBER, HashingFile, write_member
from pipeline.data.manifest import COLUMNS, PLACES, check_record, digest_of
from pipeline.files import parse_json, replacing

REMEDY = "the tar is damaged or was replaced; remove it and run the step that writes it again"


class Sample(NamedTuple):
    """One image with its captions and questions; `record` is the JSON beside the picture (see `sample_json`)."""

    key: str
    jpeg: bytes
    record: dict[str, Any]


class ShardTotals(NamedTuple):
    """What a new tar holds; the receipt repeats it."""

    sha256: str
    bytes: int
    samples: int
    captions: int
    questions: int
    question_sets: dict[str, int]


def write_shard(path: Path, samples: Iterable[Sample]) -> ShardTotals:
    """Write `samples`, in their order, as the tar `path`; the tar appears complete or not at all.

    The receipt of an older tar of this name is removed first: it describes other bytes. Raises ValueError on a key that
    is malformed or repeated, and when the disk is full.
    """
    keys: set[str] = set()
    captions, question_sets = 0, Counter[str]()
    with replacing(path) as file:
        hashed = HashingFile(file)
        for key, jpeg, record in samples:
            if not KEY_PATTERN.fullmatch(key) or key in keys or record.get("key") != key:
                raise ValueError(f"{path}: key {key!r} is malformed, comes twice, or differs from the key in its JSON")
            keys.add(key)
            captions += len(record["captions"])
            if questions := questions_of(record):
                question_sets[record["question_set"]] += len(questions)
            write_member(hashed, f"{key}.jpg", jpeg)
            write_member(hashed, f"{key}.json", encode_record(record))
        hashed.write(bytes(2 * BLOCK))
        file.flush()
        if len(offset_table(Path(file.name))) != len(keys):
            raise ValueError(f"{path}: reading the tar again did not give its {len(keys)} samples; check the disk")
        receipt_path(path).unlink(missing_ok=True)
    return ShardTotals(
        hashed.digest.hexdigest(), hashed.size, len(keys), captions, question_sets.total(), dict(question_sets)
    )


def read_samples(tar: Path) -> Iterator[Sample]:
    """The samples of a finished tar, in order. Each picture is checked against its sha256.

    Raises ValueError, with the name of the tar, when it is cut short (also exactly between two members), damaged, or
    different from its receipt.
    """
    receipt = read_receipt(tar)
    try:
        size = tar.stat().st_size
    except OSError as error:
        raise ValueError(f"{tar}: has a receipt, but cannot be read ({error.strerror}); {REMEDY}") from error
    if size != receipt.bytes:
        raise ValueError(f"{tar}: has {size} bytes, but its receipt says {receipt.bytes}; {REMEDY}")
    table = offset_table(tar)
    if len(table) != receipt.samples:
        raise ValueError(f"{tar}: has {len(table)} samples, but its receipt says {receipt.samples}; {REMEDY}")
    keys: set[str] = set()
    with tar.open("rb") as file:
        for row in table:
            sample = read_at(file, tar, row)
            if sample.key in keys:
                raise ValueError(f"{tar}: the key {sample.key} comes twice; {REMEDY}")
            keys.add(sample.key)
            yield sample


def read_at(file: BinaryIO, tar: Path, row: NDArray[np.int64]) -> Sample:
    """The sample that a row of the offset table points at. Raises ValueError, with the name of the tar, on damage.

    A row of a manifest's whole table also says which JSON must be there.
    """
    jpeg = _read(file, tar, row[0], row[1])
    record = _read_record(file, tar, row)
    if hashlib.sha256(jpeg).hexdigest() != record["sha256"]:
        raise ValueError(f"{tar}: the picture of sample {record['key']} differs from its sha256; {REMEDY}")
    return Sample(record["key"], jpeg, record)


def _read(file: BinaryIO, tar: Path, offset: np.int64, size: np.int64) -> bytes:
    if not 0 <= size <= LARGEST_MEMBER or offset < 0:
        raise ValueError(
            f"{tar}: no member of a sample can have {size} bytes at byte {offset}; run data_prep.index again"
        )
    file.seek(int(offset))
    return file.read(int(size))


class CountedTable(NamedTuple):
    """int64 [samples, 7]: the offset table of a tar, and of each sample the numbers of its captions and questions and a
    digest of its JSON; and the longest of the shorter sides of all pictures."""

    table: NDArray[np.int64]
    short_side_px: int


def counted_table(tar: Path) -> CountedTable:
    """The places, counts and digests of a tar's samples, from its headers and all its JSONs.

    Raises ValueError, with the name of the tar, as `offset_table` does, and on a damaged JSON.
    """
    table = offset_table(tar)
    with tar.open("rb") as file:
        told = [_told(_read(file, tar, row[2], row[3]), _read_record(file, tar, row)) for row in table]
    numbers = np.array(told, np.int64).reshape(-1, COLUMNS - PLACES + 1)
    return CountedTable(np.hstack([table, numbers[:, :-1]]), int(numbers[:, -1].max(initial=0)))


def _told(text: bytes, record: dict[str, Any]) -> tuple[int, int, int, int]:
    side = min(record["width"], record["height"])
    return len(record["captions"]), len(questions_of(record)), digest_of(text), side


def content_hashes(tar: Path, table: NDArray[np.int64]) -> NDArray[np.uint64]:
    """uint64 [samples]: the first 64 bits of the sha256 that each sample's JSON has of its picture."""
    with tar.open("rb") as file:
        records = (_read_record(file, tar, row) for row in table)
        return np.array([content_hash(tar, record["sha256"]) for record in records], np.uint64)


def content_hash(path: Path, sha256: str) -> int:
    """The first 64 bits of a sha256. Raises ValueError, with the file's name, when it is none."""
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise ValueError(f"{path}: {sha256!r:.80} is not the sha256 of a picture; {REMEDY}")
    return int(sha256[:16], 16)


def _read_record(file: BinaryIO, tar: Path, row: NDArray[np.int64]) -> dict[str, Any]:
    json_offset, text = int(row[2]), _read(file, tar, row[2], row[3])
    try:
        check_record(text, row)
        record = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{tar}: the JSON at byte {json_offset} is damaged ({error}); {REMEDY}") from error
    if fault := record_fault(record):
        raise ValueError(f"{tar}: the JSON at byte {json_offset} is not that of a sample: {fault}")
    checked: dict[str, Any] = record
    return checked
