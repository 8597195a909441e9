"""The gallery's page: tiles, charts and cards of what `gallery_statistics` gathered. `gallery.html` draws them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.shards.sample_json import questions_of
from data_prep.viewing.gallery_statistics import Ledgers, ShownSample, Statistics
from pipeline.data.manifest import Manifest
from pipeline.pages.charts import Chart, bars, histogram
from pipeline.pages.page import render
from pipeline.pages.thumbnails import Thumbnail, thumbnail

LONGEST_PX = 320
"""The longest side of a picture in the page."""
MOST_ANSWERS = 20
"""Answers in a chart."""


@dataclass(frozen=True)
class Card:
    """One picture. `web` and `others` are rows of the side table; the others were dropped."""

    picture: Thumbnail
    key: str
    record: dict[str, Any]
    kept: list[tuple[str, float | None, str]]  # caption, score, source
    web: list[dict[str, Any]]
    others: list[dict[str, Any]]
    questions: list[tuple[str, list[tuple[str, int]]]]  # the question, its answers with their counts


def gallery_page(
    manifest: Manifest, title: str, statistics: Statistics, shown: Sequence[ShownSample], ledgers: Ledgers | None
) -> str:
    """The page as text."""
    whole = statistics.samples == manifest.samples
    part = f"{statistics.samples:,} of {manifest.samples:,} pictures, from shards at even distances"
    return render(
        Path(__file__).parent,
        "gallery.html",
        title=title,
        digest=manifest.digest(),
        tiles=_tiles(manifest, statistics),
        basis="all pictures" if whole else part,
        charts=_charts(statistics),
        ledgers={"rows": f"{ledgers.rows:,}", "charts": _download_charts(ledgers)} if ledgers else None,
        cards=[_card(each) for each in shown],
    )


def _tiles(manifest: Manifest, statistics: Statistics) -> list[tuple[str, str]]:
    sources = len({shard.source for shard in manifest.shards})
    size_gb = sum(shard.bytes for shard in manifest.shards) / 1e9
    texts = {"captions": manifest.captions, "questions": manifest.questions}
    shown = [name for name, number in texts.items() if number] or ["captions"]
    of_texts = [
        tile
        for name in shown
        for tile in (
            (f"{texts[name]:,}", name),
            (f"{texts[name] / manifest.samples:.2f}", f"{name} per picture"),
        )
    ]
    return [
        (f"{manifest.samples:,}", "pictures"),
        *of_texts,
        (f"{len(manifest.shards):,}", "shards"),
        (f"{sources:,}", "source" if sources == 1 else "sources"),
        (f"{size_gb:.2f} GB" if size_gb >= 0.1 else f"{1000 * size_gb:.1f} MB", "on disk"),
        (f"{statistics.sample_drops.total():,}", "pictures dropped"),
    ]


def _charts(statistics: Statistics) -> list[Chart]:
    by_source = statistics.source_drops if len(statistics.source_drops) > 1 else {}
    charts = [
        histogram("Scores of candidate captions", dict(sorted(statistics.scores.items(), reverse=True))),
        bars("Candidate captions, kept or dropped", statistics.caption_fates),
        bars("Sources of kept captions", statistics.kept_sources),
        histogram("Words per kept caption", {"words": statistics.words}),
        histogram("Short side of the picture", {"pixels": statistics.short_side_px}, unit=" px"),
        histogram("Aspect ratio (width / height)", {"aspect": statistics.aspect}),
        bars("Kept captions per picture", statistics.captions_each),
        histogram("Questions per picture", {"questions": statistics.questions_each}),
        histogram("Words per question", {"words": statistics.question_words}),
        bars("Most frequent answers", dict(statistics.answers.most_common(MOST_ANSWERS))),
        bars("Question sets", statistics.question_sets),
        bars("Dropped questions by reason", statistics.question_drops),
        bars("Dropped pictures by reason", statistics.sample_drops),
        bars("Dropped pictures by source", by_source),
    ]
    return [chart for chart in charts if chart]


def _download_charts(ledgers: Ledgers) -> list[Chart]:
    hosts = {
        f"{host} ({100 * ledgers.host_kept[host] / rows:.0f}% kept)": rows for host, rows in ledgers.host_rows.items()
    }
    return [
        chart
        for chart in (bars("Rows of the input tables, kept or dropped", ledgers.reasons), bars("Rows by host", hosts))
        if chart
    ]


def _card(shown: ShownSample) -> Card:
    record = shown.sample.record
    web = [row for row in shown.candidates if row["source"] == "web"]
    others = [row for row in shown.candidates if not row["kept"] and row["source"] != "web"]
    others.sort(key=lambda row: -1.0 if row["score"] is None else row["score"], reverse=True)
    kept = list(zip(record["captions"], record["scores"], record["sources"], strict=True))
    picture = thumbnail(shown.sample.jpeg, LONGEST_PX)
    return Card(picture, shown.sample.key, record, kept, web, others, _questions(record))


def _questions(record: dict[str, Any]) -> list[tuple[str, list[tuple[str, int]]]]:
    """The questions with their answers, the most frequent first."""
    found = questions_of(record)
    return [(each["question"], sorted(each["answers"].items(), key=lambda one: (-one[1], one[0]))) for each in found]
