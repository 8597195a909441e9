"""Compares a manifest with the disk: every byte of its tars, their offset tables, the files beside them, and its
sums."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.auditing.sidecar_checks import Fault, Record, sidecar_faults
from data_prep.shards import tar_files
from data_prep.shards.offsets import checked_offsets, offset_table
from data_prep.shards.processes import map_in_order
from data_prep.shards.receipts import source_of
from data_prep.shards.sample_json import questions_of
from pipeline.data.captions import has_words, is_text
from pipeline.data.manifest import COUNTS, PLACES, Manifest, ManifestFile, Shard, dropped_by_source
from pipeline.files import sha256_of
from pipeline.progress_line import ProgressLine


def find_faults(manifest: Manifest, *, decode: bool, workers: int = 1, empty: Sequence[Shard] = ()) -> Iterator[Fault]:
    """Every fault of every shard, in order, then those of the shards without samples, then repeated keys.

    Reads every byte of the tars; `decode` also decodes every picture. Keys are compared by a 64-bit hash, which takes
    16 bytes of memory for each sample.
    """
    alone = [Manifest(manifest.root, (shard,)) for shard in (*manifest.shards, *empty)]
    checked = map_in_order(partial(_check_shard, decode=decode), alone, workers)
    keys: list[NDArray[np.uint64]] = []
    for faults, hashes in ProgressLine("verifying", len(alone), "shards").follow(checked):
        yield from faults
        keys.append(hashes)
    for number, repeated in shards_with_known_keys(keys).items():
        yield from _repeated_keys(manifest.shard_path(manifest.shards[number]), repeated)


def total_faults(path: Path, manifest: Manifest, content: ManifestFile) -> Iterator[Fault]:
    """The sums of the manifest that are wrong."""
    for name in ("samples", "captions", "questions"):
        if name == "questions" and content.questions is None and not manifest.questions:
            continue  # a manifest before there were questions
        if (stated := getattr(content, name)) != (found := getattr(manifest, name)):
            yield Fault("totals", path, f"{name} is {stated!r}, but its shards have {found}")
    dropped = dropped_by_source([*manifest.shards, *content.empty_shards])
    if content.dropped not in (None, dropped):
        yield Fault("totals", path, f"dropped is {content.dropped!r}, but its shards say {dropped}")


def shards_with_known_keys(keys: Sequence[NDArray[np.uint64]]) -> dict[int, set[int]]:
    """The number of a shard -> the hashes that occur first there and again in this or a later shard.

    Sorting all hashes and looking up only the repeated ones takes 2.1 GB for 129M keys; np.unique with indices 9.8 GiB.
    """
    ordered = np.concatenate(keys)
    ordered.sort()
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    found: dict[int, set[int]] = {}
    known: set[int] = set()
    for number, hashes in enumerate(keys if len(repeated) else ()):
        if new := set(hashes[np.isin(hashes, repeated)].tolist()) - known:
            found[number] = new
            known |= new
    return found


def _repeated_keys(tar: Path, repeated: set[int]) -> Iterator[Fault]:
    with tar.open("rb") as file:
        for row in offset_table(tar):
            try:
                key = tar_files.read_at(file, tar, row).key
            except ValueError:  # already reported
                continue
            if (each := _key_hash(key)) in repeated:
                repeated.remove(each)
                yield Fault("duplicate key", tar, f"sample {key}: a later sample has the same key")


def _check_shard(manifest: Manifest, *, decode: bool) -> tuple[list[Fault], NDArray[np.uint64]]:
    """The faults of a manifest's one shard, and the hash of each sample's key."""
    records: list[Record] = []
    faults = list(_shard_faults(manifest, manifest.shards[0], records, decode=decode))
    return faults, np.array([_key_hash(record["key"]) for record in records], dtype=np.uint64)


def _shard_faults(manifest: Manifest, shard: Shard, records: list[Record], *, decode: bool) -> Iterator[Fault]:
    """The faults of one shard; the records that could be read are put into `records`."""
    tar = manifest.shard_path(shard)
    if not tar.is_file():
        yield Fault("missing tar", tar, "the manifest lists it, but it does not exist")
        return
    if tar.is_symlink():
        yield Fault("symlink", tar, f"must not be a symlink, but points to {tar.readlink()}")
    size = tar.stat().st_size
    if size != shard.bytes:
        yield Fault("size", tar, f"has {size} bytes, but the manifest says {shard.bytes}")
    sha256 = sha256_of(tar)
    if sha256 != shard.sha256:
        yield Fault("sha256", tar, f"is {sha256}, but the manifest says {shard.sha256}")
    everything: list[Record] = []  # of the whole tar, also if the manifest lists a part of it
    try:
        table = offset_table(tar)
    except ValueError as error:
        yield Fault("unreadable tar", tar, str(error))
    else:
        if len(table) != (samples := shard.of_samples or shard.samples):
            yield Fault("sample count", tar, f"has {len(table)} samples, but the manifest says {samples}")
        yield from _sample_faults(tar, table, everything, decode=decode)
        if shard.of_samples:
            yield from _part_faults(manifest, shard, table, everything, records)
        else:
            records += everything
            yield from _count_faults(tar, shard, records)
            if shard.index:
                yield from _offset_faults(manifest, shard, table)
    yield from _source_faults(tar, shard, everything)
    yield from sidecar_faults(tar, _whole(shard, everything), everything)


def _whole(shard: Shard, records: Sequence[Record]) -> Shard:
    """The entry of the whole tar, which the files beside it are about."""
    if not shard.of_samples:
        return shard
    captions, questions = (sum(len(each[name]) for each in records) for name in ("captions", "questions"))
    return replace(shard, samples=shard.of_samples, captions=captions, questions=questions)


def _part_faults(
    manifest: Manifest, shard: Shard, table: NDArray[np.int64], everything: Sequence[Record], records: list[Record]
) -> Iterator[Fault]:
    """The faults of a part; its records are put into `records`, if all of the tar could be read."""
    path = manifest.root / shard.index
    places = {tuple(row): place for place, row in enumerate(table.tolist())}
    try:
        rows = [places.get(tuple(row), -1) for row in checked_offsets(manifest, shard)[:, :PLACES].tolist()]
    except ValueError as error:
        yield Fault("offsets", path, str(error))
        return
    if -1 in rows or any(one >= other for one, other in pairwise(rows)) or sha256_of(path) != shard.rows_sha256:
        yield Fault("offsets", path, "differs from the tar or from the manifest; run data_prep.split again")
    elif len(everything) == len(table):
        records += [everything[row] for row in rows]
        yield from _count_faults(manifest.shard_path(shard), shard, records)
        yield from _offset_faults(manifest, shard, table[rows], rows)


def _offset_faults(
    manifest: Manifest, shard: Shard, table: NDArray[np.int64], rows: Sequence[int] | None = None
) -> Iterator[Fault]:
    """`table` has the places of the listed samples; of a part, `rows` are their numbers in the tar."""
    path = manifest.root / shard.index
    try:
        written = checked_offsets(manifest, shard)
        if not np.array_equal(written[:, :PLACES], table):
            yield Fault("offsets", path, "differs from the tar; run data_prep.index again")
            return
    except ValueError as error:
        yield Fault("offsets", path, str(error))
        return
    with suppress(ValueError):  # a damaged JSON, which is reported already
        whole = tar_files.counted_table(manifest.shard_path(shard)).table[:, : written.shape[1]]
        told = whole if rows is None else whole[rows]
        if not np.array_equal(written[:, PLACES:COUNTS], told[:, PLACES:COUNTS]):
            yield Fault("offsets", path, "its counts of captions and questions differ; run data_prep.index again")
        if not np.array_equal(written[:, COUNTS:], told[:, COUNTS:]):
            yield Fault("offsets", path, "its digests differ from the tar; run data_prep.index again")


def _sample_faults(tar: Path, table: NDArray[np.int64], records: list[Record], *, decode: bool) -> Iterator[Fault]:
    with tar.open("rb") as file:
        for row in table:
            try:
                sample = tar_files.read_at(file, tar, row)
            except ValueError as error:
                yield Fault("damaged sample", tar, str(error))
                continue
            kept = {
                name: sample.record.get(name) for name in ("key", "captions", "sources", "source", "width", "height")
            }
            records.append(kept | {"questions": questions_of(sample.record)})
            if problem := _record_problem(sample):
                yield Fault("record", tar, f"sample {sample.key}: {problem}")
            if decode and (problem := _picture_problem(sample)):
                yield Fault("unreadable JPEG", tar, f"sample {sample.key}: {problem}")


def _count_faults(tar: Path, shard: Shard, records: Sequence[Record]) -> Iterator[Fault]:
    for name, stated in (("captions", shard.captions), ("questions", shard.questions)):
        if (found := sum(len(record[name]) for record in records)) != stated:
            yield Fault(f"{name[:-1]} count", tar, f"has {found} {name}, but the manifest says {stated}")
    found = max((min(record["width"], record["height"]) for record in records), default=0)
    of_all = len(records) == shard.samples and not shard.of_samples  # a part has its tar's size
    if of_all and shard.short_side_px not in (None, found):
        told = f"the longest shorter side of its pictures is {found} px, but the manifest says {shard.short_side_px}"
        yield Fault("stored size", tar, told)


def _source_faults(tar: Path, shard: Shard, records: Sequence[Record]) -> Iterator[Fault]:
    """The source in the manifest must be that of the tar's name, and of every sample JSON that names one."""
    if shard.source != (named := source_of(tar)):
        yield Fault("source", tar, f"its name says {named!r}, but the manifest says {shard.source!r}")
    others = [each for each in records if each["source"] not in (None, shard.source)]
    if others:
        first = f"sample {others[0]['key']} says {others[0]['source']!r}"
        yield Fault("source", tar, f"{len(others)} samples have another source than {shard.source!r}: {first}")


def _key_hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def _record_problem(sample: tar_files.Sample) -> str | None:
    captions, questions = sample.record["captions"], questions_of(sample.record)
    if not captions and not questions:
        return "it has neither captions nor questions"
    if unusable := [caption for caption in captions if not has_words(caption)]:
        return f"its caption {unusable[0]!r:.80} has no letter or digit, or half a character"
    texts = [text for each in questions for text in (each["question"], *each["answers"])]
    if unusable := [text for text in texts if not is_text(text)]:
        return f"its question or answer {unusable[0]!r:.80} is blank, or has half a character"
    return None


def _picture_problem(sample: tar_files.Sample) -> str | None:
    from pipeline.pictures.decoding import opened

    try:
        with opened(sample.jpeg, formats=("JPEG",)) as image:
            image.load()
            size = image.size
    except Exception as error:  # any error of a decoder on a damaged picture is reported
        return f"{type(error).__name__}: {error}"
    if size != (sample.record.get("width"), sample.record.get("height")):
        return f"is {size[0]}x{size[1]}, but its JSON says {sample.record.get('width')}x{sample.record.get('height')}"
    return None
