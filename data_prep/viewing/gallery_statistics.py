"""What a gallery shows, read from the shards of a manifest: numbers, and samples with their candidate captions."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from data_prep.captioning.side_table import read_side_table, side_table_path
from data_prep.shards import tar_files
from data_prep.shards.ledger import read_ledger
from data_prep.shards.offsets import checked_offsets
from data_prep.shards.sample_json import questions_of
from data_prep.shards.tar_files import Sample
from pipeline.data.manifest import Manifest, Shard, dropped_by_source
from pipeline.progress_line import ProgressLine

MOST_SHARDS = 32
"""The most shards that are read. Of a larger manifest they are taken at even distances, and the page says so."""
LONGEST_ANSWER = 40
"""Characters of an answer in a chart."""


@dataclass
class Statistics:
    """Numbers of the samples that were read, one list for each chart, and counts."""

    samples: int = 0
    short_side_px: list[float] = field(default_factory=list)
    aspect: list[float] = field(default_factory=list)
    words: list[float] = field(default_factory=list)
    scores: dict[str, list[float]] = field(default_factory=dict)
    kept_sources: Counter[str] = field(default_factory=Counter)
    captions_each: Counter[str] = field(default_factory=Counter)
    question_words: list[float] = field(default_factory=list)
    questions_each: list[float] = field(default_factory=list)
    question_sets: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    caption_fates: Counter[str] = field(default_factory=Counter)
    sample_drops: Counter[str] = field(default_factory=Counter)
    source_drops: Counter[str] = field(default_factory=Counter)
    question_drops: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class ShownSample:
    """A sample with its candidate captions: rows of the side table. Human captions have no such table."""

    sample: Sample
    candidates: list[dict[str, Any]]


@dataclass
class Ledgers:
    """Counts of rows in the ledgers of data_prep.download: by reason, by host, and those kept by host."""

    rows: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    host_rows: Counter[str] = field(default_factory=Counter)
    host_kept: Counter[str] = field(default_factory=Counter)


def gather(
    manifest: Manifest, num_samples: int, seed: int, empty: Sequence[Shard] = ()
) -> tuple[Statistics, list[ShownSample]]:
    """Statistics of at most MOST_SHARDS shards, and `num_samples` random samples of them (all, if there are fewer).

    Dropped pictures and questions are counted over all shards, and over `empty`, the shards without samples.
    """
    statistics = Statistics()
    for source, reasons in dropped_by_source([*manifest.shards, *empty]).items():
        statistics.sample_drops.update(reasons)
        if reasons:
            statistics.source_drops[source] = sum(reasons.values())
    for shard in (*manifest.shards, *empty):
        statistics.question_drops.update(shard.provenance.get("dropped_questions", {}))
    count = min(MOST_SHARDS, len(manifest.shards))
    chosen = [manifest.shards[number * len(manifest.shards) // count] for number in range(count)]
    places = [(position, row) for position, shard in enumerate(chosen) for row in range(shard.samples)]
    order = np.random.default_rng(seed).permutation(len(places))[:num_samples]
    wanted = {places[number]: rank for rank, number in enumerate(order.tolist())}
    shown: dict[int, ShownSample] = {}
    for position, shard in enumerate(ProgressLine("reading", count, "shards").follow(chosen)):
        rows = {row: rank for (place, row), rank in wanted.items() if place == position}
        _read_shard(manifest, shard, rows, statistics, shown)
    return statistics, [shown[rank] for rank in sorted(shown)]


def _read_shard(
    manifest: Manifest, shard: Shard, wanted: dict[int, int], statistics: Statistics, shown: dict[int, ShownSample]
) -> None:
    tar = manifest.shard_path(shard)
    table = read_side_table(tar) if side_table_path(tar).is_file() else []
    candidates: dict[str, list[dict[str, Any]]] = {}
    for row in table:
        candidates.setdefault(row["key"], []).append(row)
        statistics.caption_fates["kept" if row["kept"] else row["reason"]] += 1
        if row["score"] is not None:
            statistics.scores.setdefault(row["source"], []).append(row["score"])
    try:
        with tar.open("rb") as file:
            for number, offsets in enumerate(checked_offsets(manifest, shard)):
                sample = tar_files.read_at(file, tar, offsets)
                _count(sample.record, statistics)
                if number in wanted:
                    shown[wanted[number]] = ShownSample(sample, candidates.get(sample.key, []))
    except OSError as error:
        raise ValueError(f"{tar}: cannot be read ({error.strerror}); run data_prep.verify on the manifest") from error


def _count(record: dict[str, Any], statistics: Statistics) -> None:
    width, height = float(record["width"]), float(record["height"])
    statistics.samples += 1
    statistics.short_side_px.append(min(width, height))
    statistics.aspect.append(width / height)
    statistics.words += [float(len(caption.split())) for caption in record["captions"]]
    statistics.kept_sources.update(record["sources"])
    if questions := questions_of(record):
        _count_questions(questions, record["question_set"], statistics)
        return
    count = len(record["captions"])
    statistics.captions_each["1 caption" if count == 1 else f"{count} captions"] += 1


def _count_questions(questions: list[dict[str, Any]], name: str, statistics: Statistics) -> None:
    statistics.question_sets[name] += len(questions)
    statistics.questions_each.append(float(len(questions)))
    for each in questions:
        statistics.question_words.append(float(len(each["question"].split())))
        statistics.answers[max(each["answers"], key=each["answers"].__getitem__)[:LONGEST_ANSWER]] += 1


def read_ledgers(folders: Sequence[Path]) -> Ledgers:
    """Count the rows of all ledgers in `folders`. Raises ValueError for a folder without a ledger or a damaged one."""
    ledgers = Ledgers()
    for folder in folders:
        paths = sorted(folder.glob("*.ledger.parquet"))
        if not paths:
            raise ValueError(f"--ledger {folder}: has no *.ledger.parquet; give an output folder of data_prep.download")
        for path in ProgressLine(f"reading {folder}", len(paths), "ledgers").follow(paths):
            for row in read_ledger(path, ("url", "status", "reason")):
                host, kept = _host(row["url"]), row["status"] == "kept"
                ledgers.rows += 1
                ledgers.reasons["kept" if kept else row["reason"] or "dropped"] += 1
                ledgers.host_rows[host] += 1
                ledgers.host_kept[host] += kept
    return ledgers


def _host(url: str | None) -> str:
    try:
        return urlsplit(url or "").hostname or "(local file)"
    except ValueError:
        return "(malformed URL)"
