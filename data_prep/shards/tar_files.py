"""Tars of (`KEY.jpg`, `KEY.json`) pairs, written whole or not at all, and read back sample by sample.

A tar is USTAR with fixed times and owners, so the same samples give the same bytes. It is written to a temporary file
in its own folder, hashed while it is written, scanned again, synced, and only then renamed. Its receipt is written
last (see `receipts`): a tar without a receipt is unfinished, readers ignore it and writers write it again.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.shards.offsets import offset_table
from data_prep.shards.receipts import read_receipt, receipt_path
from data_prep.shards.sample_json import KEY_PATTERN, encode_record, record_fault
from data_prep.shards.ustar import BLOCK, HashingFile, write_member
from pipeline.files import parse_json, replacing


class Sample(NamedTuple):
    """One image with its captions. `record` is the JSON beside the picture (see `sample_json`)."""

    key: str
    jpeg: bytes
    record: dict[str, Any]


class ShardTotals(NamedTuple):
    """What a freshly written tar holds; the receipt repeats it."""

    sha256: str
    bytes: int
    samples: int
    captions: int


def write_shard(path: Path, samples: Iterable[Sample]) -> ShardTotals:
    """Write `samples`, in their order, as the tar `path`; the tar appears complete or not at all.

    A receipt that stood beside an older tar of this name is removed first: it would vouch for other bytes. Raises
    ValueError on a key that is malformed or comes twice, and when the disk is full.
    """
    keys: set[str] = set()
    captions = 0
    with replacing(path) as file:
        hashed = HashingFile(file)
        for key, jpeg, record in samples:
            if not KEY_PATTERN.fullmatch(key) or key in keys or record.get("key") != key:
                raise ValueError(f"{path}: key {key!r} is malformed, comes twice, or differs from its record's")
            keys.add(key)
            captions += len(record["captions"])
            write_member(hashed, f"{key}.jpg", jpeg)
            write_member(hashed, f"{key}.json", encode_record(record))
        hashed.write(bytes(2 * BLOCK))
        file.flush()
        if len(offset_table(Path(file.name))) != len(keys):
            raise ValueError(f"{path}: reading the tar back gave another number of samples than {len(keys)}")
        receipt_path(path).unlink(missing_ok=True)
    return ShardTotals(hashed.digest.hexdigest(), hashed.size, len(keys), captions)


def read_samples(tar: Path) -> Iterator[Sample]:
    """The samples of a finished tar, in order, each picture checked against its sha256.

    Raises ValueError, naming the tar, when it is cut short (at a member's boundary too), damaged, or not what its
    receipt says.
    """
    receipt = read_receipt(tar)
    try:
        size = tar.stat().st_size
    except OSError as error:
        raise ValueError(f"{tar}: its receipt stands, but the tar cannot be read ({error.strerror})") from error
    if size != receipt.bytes:
        raise ValueError(f"{tar}: {size} bytes, but its receipt says {receipt.bytes}; it is cut short or was replaced")
    table = offset_table(tar)
    if len(table) != receipt.samples:
        raise ValueError(f"{tar}: {len(table)} samples, but its receipt says {receipt.samples}")
    keys: set[str] = set()
    with tar.open("rb") as file:
        for row in table:
            sample = read_at(file, tar, row)
            if sample.key in keys:
                raise ValueError(f"{tar}: the key {sample.key} comes twice in its records")
            keys.add(sample.key)
            yield sample


def read_at(file: BinaryIO, tar: Path, row: NDArray[np.int64]) -> Sample:
    """The sample that a row of the offset table points at. Raises ValueError, naming `tar`, when it is damaged."""
    jpeg_offset, jpeg_bytes, json_offset, json_bytes = (int(number) for number in row)
    file.seek(jpeg_offset)
    jpeg = file.read(jpeg_bytes)
    file.seek(json_offset)
    text = file.read(json_bytes)
    try:
        record = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{tar}: the JSON at byte {json_offset} is damaged ({error})") from error
    if fault := record_fault(record):
        raise ValueError(f"{tar}: the JSON at byte {json_offset} is not a sample's record: {fault}")
    if hashlib.sha256(jpeg).hexdigest() != record["sha256"]:
        raise ValueError(f"{tar}: the picture of sample {record['key']} differs from its sha256; the tar is damaged")
    return Sample(record["key"], jpeg, record)
