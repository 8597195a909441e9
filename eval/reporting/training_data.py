"""Pictures of a training manifest: the captions that were kept, with their scores, and those that were dropped."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from pipeline.data.manifest import PLACES, Manifest, Shard, check_record, load_manifest
from pipeline.files import first_fault, parse_json
from pipeline.pages.thumbnails import Thumbnail, thumbnail

SHARDS_READ = 3  # of each source
SIDE_TABLE = ".candidates.parquet"


class _Record(BaseModel):
    """What a page shows of a sample's JSON."""

    model_config = ConfigDict(strict=True)

    key: str
    captions: list[str]
    scores: list[float | None]
    sources: list[str]

    @model_validator(mode="after")
    def _equally_many(self) -> "_Record":
        if not len(self.captions) == len(self.scores) == len(self.sources):
            raise ValueError("captions, scores and sources are not equally many")
        return self


class _Candidate(BaseModel):
    """What it shows of a row of the side table."""

    model_config = ConfigDict(strict=True)

    key: str
    caption: str
    source: str
    score: float | None
    kept: bool
    reason: str


@dataclass(frozen=True)
class Card:
    """One picture. `web` and `others` are dropped captions, rows of the side table."""

    picture: Thumbnail
    key: str
    kept: list[tuple[str, float | None, str]]  # caption, score, source
    web: list[dict[str, Any]]
    others: list[dict[str, Any]]


@dataclass(frozen=True)
class TrainingData:
    """A manifest, and some of its pictures."""

    name: str
    manifest: Manifest
    cards: list[Card]


def training_data(path: Path, count: int, seed: int) -> TrainingData:
    """`count` random samples from a few shards of each source."""
    manifest = load_manifest(path)
    cards = [_card(record, jpeg, candidates) for record, jpeg, candidates in draw(manifest, count, seed)]
    return TrainingData(f"{path.parent.name}/{path.name}", manifest, cards)


def draw(manifest: Manifest, count: int, seed: int) -> list[tuple[dict[str, Any], bytes, list[dict[str, Any]]]]:
    """Random samples, equally many of each source: record, JPEG bytes, and candidate captions if there is a table."""
    rng = random.Random(f"manifest {manifest.digest()}, seed {seed}")
    by_source: dict[str, list[Shard]] = {}
    for shard in manifest.shards:
        if shard.samples:
            by_source.setdefault(shard.source, []).append(shard)
    samples = []
    for place, source in enumerate(sorted(by_source)):
        wanted = count // len(by_source) + (place < count % len(by_source))
        shards = rng.sample(by_source[source], min(SHARDS_READ, len(by_source[source])))
        places = [(shard, row) for shard in shards for row in range(shard.samples)]
        tables = {shard.path: _candidates(_side_table(manifest, shard)) for shard in shards}
        for shard, row in rng.sample(places, min(wanted, len(places))):
            record, jpeg = _read(manifest, shard, row)
            samples.append((record, jpeg, tables[shard.path].get(record["key"], [])))
    return samples


def _side_table(manifest: Manifest, shard: Shard) -> Path:
    return manifest.shard_path(shard).with_suffix(SIDE_TABLE)


def _candidates(path: Path) -> dict[str, list[dict[str, Any]]]:
    if not path.is_file():
        return {}
    import pyarrow as pa
    import pyarrow.parquet

    by_key: dict[str, list[dict[str, Any]]] = {}
    try:
        for row in pyarrow.parquet.read_table(path, columns=list(_Candidate.model_fields)).to_pylist():
            _Candidate.model_validate(row)
            by_key.setdefault(row["key"], []).append(row)
    except (OSError, ValueError, OverflowError, pa.ArrowException) as error:
        told = first_fault(error) if isinstance(error, ValidationError) else " ".join(str(error).split())
        raise ValueError(f"{path}: is not a table of candidates ({told}); run data_prep.capfilt again") from error
    return by_key


def _read(manifest: Manifest, shard: Shard, row: int) -> tuple[dict[str, Any], bytes]:
    """Raises ValueError when the table points outside the tar, or the JSON there is not that of a sample."""
    path, table = manifest.shard_path(shard), manifest.table(shard)
    places = [int(each) for each in table[row, :PLACES]]
    try:
        size = path.stat().st_size if path.is_file() else 0
        if min(places) < 0 or max(places[0] + places[1], places[2] + places[3]) > size:
            raise ValueError("it does not lie in the tar")
        with path.open("rb") as file:
            file.seek(places[0])
            jpeg = file.read(places[1])
            file.seek(places[2])
            text = file.read(places[3])
        check_record(text, table[row])
        record: dict[str, Any] = parse_json(text)
        _Record.model_validate(record)
    except (OSError, ValueError) as error:
        told = first_fault(error) if isinstance(error, ValidationError) else error
        raise ValueError(
            f"{path}: sample {row} cannot be read ({told}); run data_prep.verify on the manifest"
        ) from error
    return record, jpeg


def _card(record: dict[str, Any], jpeg: bytes, candidates: Sequence[dict[str, Any]]) -> Card:
    dropped = [row for row in candidates if not row["kept"]]
    dropped.sort(key=lambda row: -1.0 if row["score"] is None else row["score"], reverse=True)
    return Card(
        thumbnail(jpeg),
        record["key"],
        kept=list(zip(record["captions"], record["scores"], record["sources"], strict=True)),
        web=[row for row in dropped if row["source"] == "web"],
        others=[row for row in dropped if row["source"] != "web"],
    )
