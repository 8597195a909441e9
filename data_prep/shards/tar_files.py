"""Shards on disk: tars of (`KEY.jpg`, `KEY.json`) pairs, written whole or not at all, each vouched for by a receipt.

A tar is USTAR with fixed times and owners, so that the same samples give the same bytes. It is written to a temporary
file in its own folder, hashed on the way, synced, scanned again, and only then renamed; its receipt
(`STEM.receipt.json`) is written last. A tar without a receipt is unfinished: readers ignore it and writers redo it.
"""

import errno
import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.shards.sample_json import KEY_PATTERN, encode_record, parse_json, record_fault
from data_prep.shards.ustar import BLOCK, HashingFile, padded, read_header, write_member

PARTIAL_SUFFIX = ".partial"


class Sample(NamedTuple):
    """One image with its captions. `record` is the JSON beside the picture (see `records`)."""

    key: str
    jpeg: bytes
    record: dict[str, Any]


class ShardTotals(NamedTuple):
    """What a freshly written tar holds; the receipt repeats it."""

    sha256: str
    bytes: int
    samples: int
    captions: int


@dataclass(frozen=True)
class Receipt:
    """What is known of a finished tar: its identity (stage, input, settings), its bytes, and its losses by reason."""

    stage: str
    input_sha256: str
    config_hash: str
    tar_sha256: str
    bytes: int
    samples: int
    captions: int
    seed: int
    models: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)

    def same_work(self, stage: str, input_sha256: str, config_hash: str) -> bool:
        """Whether this receipt answers for the given piece of work, so that it need not be done again."""
        return (self.stage, self.input_sha256, self.config_hash) == (stage, input_sha256, config_hash)


def receipt_path(tar: Path) -> Path:
    return tar.with_name(f"{tar.stem}.receipt.json")


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
        os.fsync(file.fileno())
        if len(offset_table(Path(file.name))) != len(keys):
            raise ValueError(f"{path}: reading the tar back gave another number of samples than {len(keys)}")
        receipt_path(path).unlink(missing_ok=True)
    return ShardTotals(hashed.digest.hexdigest(), hashed.size, len(keys), captions)


def write_receipt(tar: Path, receipt: Receipt) -> Path:
    """Vouch for `tar`: the last thing to be written of a shard. Returns the receipt's path."""
    path = receipt_path(tar)
    replace_file(path, (json.dumps(asdict(receipt), sort_keys=True, indent=1) + "\n").encode())
    return path


def read_receipt(tar: Path) -> Receipt:
    """The receipt beside `tar`. Raises ValueError, naming the file, when it is missing or malformed."""
    path = receipt_path(tar)
    try:
        if path.exists() and not path.is_file():
            raise TypeError("no regular file")
        content = parse_json(path.read_bytes())
        if not isinstance(content, dict):
            raise TypeError("not a JSON object")
        known = {each.name for each in fields(Receipt)}
        receipt = Receipt(**{name: value for name, value in content.items() if name in known})
    except FileNotFoundError as error:
        raise ValueError(
            f"{tar}: no receipt beside it, so it is unfinished; run the step that writes it again"
        ) from error
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: not a valid receipt ({error})") from error
    if fault := _receipt_fault(receipt):
        raise ValueError(f"{path}: not a valid receipt ({fault})")
    return receipt


def _receipt_fault(receipt: Receipt) -> str | None:
    texts = [receipt.stage, receipt.input_sha256, receipt.config_hash, receipt.tar_sha256]
    numbers = [receipt.bytes, receipt.samples, receipt.captions, receipt.seed]
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(number, int) for number in numbers):
        return "digests must be texts; bytes, samples, captions and seed whole numbers"
    if not isinstance(receipt.models, dict) or not all(isinstance(each, str) for each in receipt.models.values()):
        return "models must be texts by name"
    if not isinstance(receipt.dropped, dict) or not all(isinstance(each, int) for each in receipt.dropped.values()):
        return "dropped must be whole numbers by reason"
    return None


def finished_shards(folder: Path) -> list[Path]:
    """The tars of `folder` that have a receipt, in order of name; [] when there is none.

    Receipts alone are trusted: a tar that is gone although its receipt stands is listed, and fails when it is read.
    """
    return sorted(
        path.with_name(path.name.removesuffix(".receipt.json") + ".tar") for path in folder.glob("*.receipt.json")
    )


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


def offset_table(tar: Path) -> NDArray[np.int64]:
    """int64 [samples, 4]: (jpg offset, jpg bytes, json offset, json bytes), from a strict scan of the tar's headers.

    Raises ValueError, naming the tar, on anything but pairs of regular files `KEY.jpg`, `KEY.json` with distinct keys,
    closed by the end-of-archive blocks.
    """
    if not tar.is_file():
        raise ValueError(f"{tar}: no regular file")
    size = tar.stat().st_size
    rows: list[tuple[int, int, int, int]] = []
    keys: set[str] = set()
    with tar.open("rb") as file:
        offset = 0
        while (jpeg := read_header(file, tar, offset, size)) is not None:
            key, _, ending = jpeg.name.partition(".")
            if not KEY_PATTERN.fullmatch(key) or ending != "jpg" or key in keys:
                raise ValueError(f"{tar}: unexpected member {jpeg.name!r} at byte {offset}, expected a new KEY.jpg")
            offset += BLOCK + padded(jpeg.size)
            text = read_header(file, tar, offset, size)
            if text is None or text.name != f"{key}.json":
                raise ValueError(f"{tar}: {jpeg.name!r} is not followed by {key}.json at byte {offset}")
            rows.append((jpeg.offset_data, jpeg.size, text.offset_data, text.size))
            keys.add(key)
            offset += BLOCK + padded(text.size)
    return np.array(rows, dtype=np.int64).reshape(-1, 4)


def replace_file(path: Path, content: bytes) -> None:
    """Write a small file whole or not at all, synced to the disk. Raises ValueError when the disk is full."""
    with replacing(path) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def remove_partials(tar: Path) -> None:
    """Remove what killed writers of this shard (or file) left half written. Only the holder of its lease may do so."""
    for path in tar.parent.glob(f".{tar.stem}.*{PARTIAL_SUFFIX}"):
        path.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A temporary file beside `path` that takes its name when the block ends well and vanishes when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")
    try:
        with temporary.open("xb") as file:
            yield file
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ValueError(
                f"{path}: the disk is full; nothing half written was left; free space, run again"
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
