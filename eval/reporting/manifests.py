"""Training pictures of a manifest to look at: web caption, captions kept with their scores, and those left out."""

import json
import random
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from pipeline.data.manifest import Manifest, Shard, load_manifest
from pipeline.pages.page import picture

SHARDS_READ = 3  # of a source
SIDE_TABLE = ".candidates.parquet"


def manifest_section(path: Path, count: int, seed: int) -> str:
    """`count` samples drawn at random from a few shards of each source."""
    manifest = load_manifest(path)
    cards = "".join(_card(record, jpeg, candidates) for record, jpeg, candidates in draw(manifest, count, seed))
    numbers = f"{manifest.samples:,} pictures, {manifest.captions:,} captions, {len(manifest.shards)} shards"
    return (
        f"<h2>Training data <small>{escape(path.parent.name)}/{escape(path.name)}</small></h2>"
        f'<p class="note">{numbers}. Tinted: kept for training. Scores: cosine of picture and caption.</p>'
        f'<div class="cards">{cards}</div>'
    )


def draw(manifest: Manifest, count: int, seed: int) -> list[tuple[dict[str, Any], bytes, list[dict[str, Any]]]]:
    """Random samples, as many of each source: record, JPEG bytes, and its candidate captions where a table has them."""
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


def _card(record: dict[str, Any], jpeg: bytes, candidates: Sequence[dict[str, Any]]) -> str:
    kept = "".join(
        _line("kept", source, caption, score, "")
        for caption, score, source in zip(record["captions"], record["scores"], record["sources"], strict=True)
    )
    web = [row for row in candidates if row["source"] == "web" and not row["kept"]]
    lost = sorted(
        (row for row in candidates if not row["kept"] and row["source"] != "web"),
        key=lambda row: -(row["score"] or -1.0),
    )
    shown_web = "".join(_line("lost", "web", row["caption"], row["score"], row["reason"]) for row in web)
    others = "".join(_line("lost", row["source"], row["caption"], row["score"], row["reason"]) for row in lost)
    return (
        f'<article class="card"><div class="picture">{picture(jpeg, record["key"])}</div>'
        f'<div class="body">{kept}{shown_web}'
        + (f"<details><summary>{len(lost)} more candidates</summary>{others}</details>" if lost else "")
        + "</div></article>"
    )


def _line(fate: str, source: str, caption: str, score: float | None, reason: str) -> str:
    shown = "" if score is None else f'<span class="score">{score:.3f}</span>'
    why = f'<span class="why">{escape(reason.replace("_", " "))}</span>' if reason else ""
    return (
        f'<p class="caption {fate}"><span class="chip {escape(source, quote=True)}">{escape(source)}</span>'
        f"<q>{escape(caption) or '<i>(empty)</i>'}</q>{why}{shown}</p>"
    )
