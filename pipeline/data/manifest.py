"""The manifest: which shards make a data set, and where in each tar every sample lies.

A manifest is one JSON file outside the shard folders, written by `data_prep.index`. Beside it, in `NAME.index/`, lies
one `.npy` per shard: int64 [samples, 7], a row a sample = (jpg offset, jpg bytes, json offset, json bytes, captions,
questions, digest of the JSON), so that a reader seeks straight to a sample, knows what it holds, and notices another
tar in the shard's place. Tables of earlier versions have the first four or six columns. Readers trust the manifest,
never a glob. Paths are relative to its folder.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.dataclasses import dataclass as validated_dataclass

from pipeline.files import read_validated

FORMAT = "blip2-manifest/1"
PLACES, COUNTS, COLUMNS = 4, 6, 7
"""Columns of an offset table: the places alone, with the two counts (earlier versions), with the digest of the JSON."""
REPLACED = "the tar was replaced or is damaged: run data_prep.verify, and data_prep.index again"
LEAST_SAMPLE = 1024
"""Bytes: a sample has two members in its tar, each with a header of 512 bytes."""
COUNTED = ("dropped", "dropped_questions", "question_sets", "cleaned_of")
"""The fields of `provenance` that are whole numbers by name; only `dropped` is always there."""


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("has unprintable characters")
    return text


def _below_the_manifest(path: str) -> str:
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise ValueError(f"{path!r} leaves the manifest's folder")
    return path


def _has_counts(provenance: dict[str, Any]) -> dict[str, Any]:
    for name in COUNTED:
        counts = provenance.get(name, {})
        if not isinstance(counts, dict) or not all(isinstance(number, int) for number in counts.values()):
            raise ValueError(f"{name} is not whole numbers by name")
    return provenance


Text = Annotated[str, AfterValidator(_printable)]
Place = Annotated[Text, AfterValidator(_below_the_manifest)]
Count = Annotated[int, Field(ge=0, lt=1 << 62)]


@validated_dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Shard:
    """One tar of samples. The fields of a manifest's lists `shards` and `empty_shards`."""

    path: Annotated[Place, Field(min_length=1)]
    """The tar, relative to the manifest's folder."""
    index: Place
    """Its table of byte offsets, relative to the manifest's folder; empty for a shard without samples."""
    source: Annotated[Text, Field(min_length=1)]
    """The source in the tar's name, SOURCE-PART-SHARD.tar."""
    bytes: Count
    """The size of the tar."""
    sha256: Annotated[Text, Field(min_length=1)]
    """The sha256 of the tar's bytes."""
    samples: Count
    captions: Count
    provenance: Annotated[dict[str, Any], AfterValidator(_has_counts)] = field(default_factory=dict)
    """What its receipt says: stage, input_sha256, config_hash, seed, models, dropped; where there are any, also
    dropped_questions, question_sets and cleaned_of."""
    questions: Count = 0
    short_side_px: Count | None = None
    """The longest of the shorter sides of its pictures: they were stored with at most so many pixels. Shards that were
    listed before it was known have none."""
    of_samples: Count = 0
    """Of a part, as `data_prep.split` chooses it: how many samples the whole tar has; 0: all of them are listed."""
    rows_sha256: Text = ""
    """Of a part: the sha256 of its offset table, which says which samples it has."""

    @property
    def identity(self) -> str:
        """What the data order depends on: the tar, and of a part also its rows."""
        return f"{self.sha256}/{self.rows_sha256}" if self.of_samples else self.sha256


class ManifestFile(BaseModel):
    """The whole content of a manifest file."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    format: Literal["blip2-manifest/1"]
    samples: Count | None = None
    """The sum over the shards; `data_prep.verify` compares it."""
    captions: Count | None = None
    """The sum over the shards; `data_prep.verify` compares it."""
    questions: Count | None = None
    """The sum over the shards; manifests before there were questions have none."""
    dropped: dict[str, dict[str, int]] | None = None
    """Source -> reason -> samples that were dropped; manifests before it was written have none."""
    empty_shards: tuple[Shard, ...] = ()
    """Shards that lost all their samples: readers skip them, their losses are counted."""
    shards: Annotated[tuple[Shard, ...], Field(min_length=1)]
    """The shards in their order, which decides the order of samples."""


@dataclass(frozen=True)
class Manifest:
    """The shards of a data set, in order, and the folder that their paths are relative to."""

    root: Path
    shards: tuple[Shard, ...]

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @property
    def captions(self) -> int:
        return sum(shard.captions for shard in self.shards)

    @property
    def questions(self) -> int:
        return sum(shard.questions for shard in self.shards)

    def digest(self) -> str:
        """sha256 over the shards' own digests, in order: what a data order depends on, wherever the files lie."""
        return hashlib.sha256("\n".join(shard.identity for shard in self.shards).encode()).hexdigest()

    def shard_path(self, shard: Shard) -> Path:
        return self.root / shard.path

    def offsets(self, shard: Shard) -> NDArray[np.int64]:
        """Memory-mapped int64 [samples, 4]: (jpg offset, jpg bytes, json offset, json bytes) of each sample."""
        return self.table(shard)[:, :PLACES]

    def counts(self, shard: Shard) -> NDArray[np.int64]:
        """Memory-mapped int64 [samples, 2]: (captions, questions) of each sample.

        Raises ValueError when the table is of an earlier version, which has no counts.
        """
        table = self.table(shard)
        if table.shape[1] < COUNTS:
            raise ValueError(
                f"{self.root / shard.index}: has no counts of captions and questions, because an earlier version wrote "
                "it; run `python -m data_prep.index` again"
            )
        return table[:, PLACES:COUNTS]

    def table(self, shard: Shard) -> NDArray[np.int64]:
        """Memory-mapped int64: all columns that the table of a shard has, 7, or 4 or 6 of earlier versions."""
        path = self.root / shard.index
        try:
            if not path.is_file():
                raise ValueError("no such file")
            table: NDArray[np.int64] = np.load(path, mmap_mode="r", allow_pickle=False)
            if table.dtype != np.int64:
                raise ValueError(f"its type is {table.dtype}, expected int64")
        except Exception as error:  # numpy raises many kinds of errors on a damaged header
            raise ValueError(f"{path}: is not a table of offsets ({error}); run data_prep.index again") from error
        if table.ndim != 2 or len(table) != shard.samples or table.shape[1] not in (PLACES, COUNTS, COLUMNS):
            raise ValueError(
                f"{self.root / shard.index}: shape {table.shape}, expected ({shard.samples}, {COLUMNS}) or, of an "
                f"earlier version, ({shard.samples}, {PLACES} or {COUNTS})"
            )
        return table


def digest_of(text: bytes) -> int:
    """64 bits of a hash of a sample's JSON, which holds its key, its texts and the sha256 of its picture."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)


def check_record(text: bytes, row: NDArray[np.int64]) -> None:
    """Raises ValueError when the JSON is not what was indexed; tables of earlier versions do not say what was."""
    if len(row) == COLUMNS and digest_of(text) != row[COUNTS]:
        raise ValueError(f"another JSON than was indexed; {REPLACED}")


def read_manifest(path: Path) -> ManifestFile:
    """All that a manifest file says. Raises ValueError, naming file and field, when it is missing or malformed."""
    if not path.exists():
        raise ValueError(f"{path}: no such manifest; write it with `python -m data_prep.index DIR --output {path}`")
    content = read_validated(path, ManifestFile, "a valid manifest")
    for name, shards, empty in (("shards", content.shards, False), ("empty_shards", content.empty_shards, True)):
        for number, shard in enumerate(shards):
            if empty != (shard.samples == 0) or empty == bool(shard.index):
                told = f"samples {shard.samples}, index {shard.index!r}"
                raise ValueError(f"{path}: is not a valid manifest ({name}.{number}: {told})")
            if bool(shard.of_samples) != bool(shard.rows_sha256) or 0 < shard.of_samples <= shard.samples:
                told = f"samples {shard.samples}, of_samples {shard.of_samples}, rows_sha256 {shard.rows_sha256!r}"
                raise ValueError(f"{path}: is not a valid manifest ({name}.{number}: {told})")
            if shard.samples * LEAST_SAMPLE > shard.bytes or max(shard.captions, shard.questions) > shard.bytes:
                told = f"{shard.samples} samples, {shard.captions} captions and {shard.questions} questions"
                raise ValueError(f"{path}: {name}.{number}: {told} do not fit into its {shard.bytes} bytes")
    _refuse_repeats(path, content.shards)
    return content


def _refuse_repeats(path: Path, shards: Sequence[Shard]) -> None:
    """Raises ValueError when a shard is listed twice, also as a copy: its samples would come twice."""
    known: dict[str, Shard] = {}
    for shard in shards:
        if shard.sha256 in known:
            raise ValueError(
                f"{path}: {shard.path} is the same shard as {known[shard.sha256].path}; write the manifest again with "
                "`python -m data_prep.index`, each folder once"
            )
        known[shard.sha256] = shard


def load_manifest(path: Path) -> Manifest:
    """The shards to read. Raises ValueError as `read_manifest` does."""
    return Manifest(path.parent, read_manifest(path).shards)


def dropped_by_source(shards: Sequence[Shard]) -> dict[str, dict[str, int]]:
    """Source -> reason -> samples that were dropped when its shards were made."""
    dropped: dict[str, Counter[str]] = {}
    for shard in shards:
        dropped.setdefault(shard.source, Counter()).update(shard.provenance.get("dropped", {}))
    return {source: dict(sorted(reasons.items())) for source, reasons in sorted(dropped.items())}


def question_sets(shards: Sequence[Shard]) -> dict[str, int]:
    """Question set, such as vqav2_val2014 -> the number of its questions in these shards."""
    found: Counter[str] = Counter()
    for shard in shards:
        found.update(shard.provenance.get("question_sets", {}))
    return dict(sorted(found.items()))


def cleaned_of(shards: Sequence[Shard]) -> dict[str, tuple[str, ...]]:
    """Source -> the evaluation sets whose pictures were dropped from all of its shards, such as karpathy_test."""
    found: dict[str, set[str]] = {}
    for shard in shards:
        sets = set(shard.provenance.get("cleaned_of", {}))
        found[shard.source] = found.get(shard.source, sets) & sets
    return {source: tuple(sorted(sets)) for source, sets in sorted(found.items())}


def _entry(shard: Shard) -> dict[str, Any]:
    """The fields of a shard; those of a part only where it is one."""
    return {name: value for name, value in asdict(shard).items() if value or name not in ("of_samples", "rows_sha256")}


def manifest_json(shards: Sequence[Shard], empty: Sequence[Shard] = ()) -> str:
    """The text of a manifest file; the same shards give the same bytes.

    `empty` are shards that lost all their samples: readers skip them, the account of what was dropped does not.
    """
    content = {
        "format": FORMAT,
        "samples": sum(shard.samples for shard in shards),
        "captions": sum(shard.captions for shard in shards),
        "questions": sum(shard.questions for shard in shards),
        "dropped": dropped_by_source([*shards, *empty]),
        "empty_shards": [_entry(shard) for shard in empty],
        "shards": [_entry(shard) for shard in shards],
    }
    return json.dumps(content, indent=1, sort_keys=True) + "\n"
