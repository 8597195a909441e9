"""Pictures of a training manifest: the captions that were kept, with their scores, and those that were dropped."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.manifest import Manifest, Shard, load_manifest
from pipeline.pages.thumbnails import Thumbnail, thumbnail

SHARDS_READ = 3  # of each source
SIDE_TABLE = ".candidates.parquet"


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
    import pyarrow.parquet

    by_key: dict[str, list[dict[str, Any]]] = {}
    for row in pyarrow.parquet.read_table(path).to_pylist():
        by_key.setdefault(row["key"], []).append(row)
    return by_key


def _read(manifest: Manifest, shard: Shard, row: int) -> tuple[dict[str, Any], bytes]:
    jpg_offset, jpg_bytes, json_offset, json_bytes = (int(each) for each in manifest.offsets(shard)[row])
    with manifest.shard_path(shard).open("rb") as file:
        file.seek(jpg_offset)
        jpeg = file.read(jpg_bytes)
        file.seek(json_offset)
        record: dict[str, Any] = json.loads(file.read(json_bytes))
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
