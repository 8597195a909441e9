"""A gallery of a data set in one HTML file: `python -m data_prep.gallery MANIFEST --output FILE.html`.

It shows pictures with their web caption, the captions kept, with scores, and why the others were dropped, and how
sizes, lengths, scores and losses are distributed. The page asks nothing of any server.
"""

import base64
import io
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from data_prep.viewing.gallery_statistics import Ledgers, Statistics, Story, gather, read_ledgers
from pipeline.command_line import Parser, finish, positive, print_settings
from pipeline.data.manifest import Manifest, read_manifest
from pipeline.files import replace_file
from pipeline.pages.charts import bars, histogram

THUMBNAIL_PX = 320
"""The longest side of a picture in the page."""
NO_LEDGER = "Why rows of the input tables were dropped, and what hosts gave: not shown without --ledger."


def render(manifest: Manifest, name: str, statistics: Statistics, stories: list[Story], ledgers: Ledgers | None) -> str:
    """The page as text. Every string that comes from data is escaped; pictures are `data:` URIs."""
    style = (Path(__file__).parent / "viewing" / "gallery.css").read_text()
    cards = "\n".join(_card(story) for story in stories)
    download = _download_section(ledgers) if ledgers else f'<p class="note">{NO_LEDGER}</p>'
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{escape(name)}</title>
<style>{style}</style>
</head>
<body><main>
<h1>{escape(name)}</h1>
<code>data sha256 {manifest.digest()}</code>
{_tiles(manifest, statistics)}
{_charts(manifest, statistics)}
{download}
<h2>{len(stories)} samples, drawn at random</h2>
<div class="cards">
{cards}
</div>
<footer>Scores are the cosine of picture and caption by the ranker. The captions on a tinted ground were kept.</footer>
</main></body>
</html>
"""


def _tiles(manifest: Manifest, statistics: Statistics) -> str:
    sources = len({shard.source for shard in manifest.shards})
    size_gb = sum(shard.bytes for shard in manifest.shards) / 1e9
    tiles = [
        (f"{manifest.samples:,}", "pictures"),
        (f"{manifest.captions:,}", "captions"),
        (f"{manifest.captions / manifest.samples:.2f}", "captions a picture"),
        (f"{len(manifest.shards):,}", "shards"),
        (f"{sources:,}", "source" if sources == 1 else "sources"),
        (f"{size_gb:.2f} GB" if size_gb >= 0.1 else f"{1000 * size_gb:.1f} MB", "on disk"),
        (f"{statistics.sample_drops.total():,}", "pictures dropped"),
    ]
    return f'<ul class="tiles">{"".join(f"<li><b>{value}</b><span>{label}</span></li>" for value, label in tiles)}</ul>'


def _charts(manifest: Manifest, statistics: Statistics) -> str:
    whole = statistics.samples == manifest.samples
    basis = (
        "all pictures"
        if whole
        else f"{statistics.samples:,} of {manifest.samples:,} pictures, from shards spread evenly"
    )
    charts = [
        histogram(
            "Score of each candidate", {name: statistics.scores[name] for name in sorted(statistics.scores)[::-1]}
        )
        if statistics.scores
        else "",
        bars("What became of the candidate captions", statistics.caption_fates),
        bars("Source of the kept captions", statistics.kept_sources),
        histogram("Words in a kept caption", {"words": statistics.words}),
        histogram("Short side of the picture", {"pixels": statistics.short_side_px}, unit=" px"),
        histogram("Aspect, width / height", {"aspect": statistics.aspect}),
        bars("Captions kept a picture", statistics.captions_each),
        bars("Pictures dropped", statistics.sample_drops),
        bars("Pictures dropped by source", statistics.source_drops) if len(statistics.source_drops) > 1 else "",
    ]
    return f'<h2>In numbers</h2><p class="note">Over {basis}.</p><div class="charts">{"".join(charts)}</div>'


def _download_section(ledgers: Ledgers) -> str:
    hosts = {
        f"{host} ({100 * ledgers.host_kept[host] / rows:.0f}% kept)": rows for host, rows in ledgers.host_rows.items()
    }
    return (
        f'<h2>Download</h2><p class="note">{ledgers.rows:,} rows of the input tables.</p><div class="charts">'
        f"{bars('What became of the rows', ledgers.reasons)}{bars('Rows by host', hosts)}</div>"
    )


def _card(story: Story) -> str:
    record, kept = story.sample.record, []
    for caption, score, source in zip(record["captions"], record["scores"], record["sources"], strict=True):
        kept.append(
            f'<div class="caption kept"><span class="chip {escape(source)}">{escape(source)}</span>'
            f'<q>{escape(caption)}</q><span class="score">{_score(score)}</span></div>'
        )
    web = [row for row in story.candidates if row["source"] == "web"]
    others = [row for row in story.candidates if not row["kept"] and row["source"] != "web"]
    others.sort(key=lambda row: -(row["score"] or -1.0))
    web_part, dropped = "".join(map(_dropped, web)), "".join(map(_dropped, others))
    return (
        f'<article class="card"><div class="picture">{_picture(story)}</div><div class="body">'
        + (f'<p class="label">Web caption</p>{web_part}' if web_part else "")
        + f'<p class="label">Kept</p>{"".join(kept)}'
        + (f"<details><summary>{len(others)} others</summary>{dropped}</details>" if dropped else "")
        + f'<p class="key-name">{escape(str(record.get("source", "?")))} &middot; {escape(story.sample.key)} &middot; '
        f"{record['width']}&times;{record['height']}</p>"
        "</div></article>"
    )


def _dropped(row: dict[str, Any]) -> str:
    """A candidate with what became of it."""
    fate = "kept" if row["kept"] else row["reason"].replace("_", " ")
    return (
        f'<div class="caption lost"><q>{escape(row["caption"]) or "(empty)"}</q>'
        f'<span class="why">{escape(fate)}</span><span class="score">{_score(row["score"])}</span></div>'
    )


def _score(score: float | None) -> str:
    return "" if score is None else f"{score:.3f}"


def _picture(story: Story) -> str:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(story.sample.jpeg), formats=["JPEG"]) as file:
            image = file.convert("RGB")
    except Exception as error:  # decoders raise nearly anything on a damaged picture
        return f"<p>the picture cannot be decoded: {escape(str(error))}</p>"
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=85)
    encoded = base64.b64encode(content.getvalue()).decode()
    size = f'width="{image.width}" height="{image.height}"'
    best = escape(" ".join(story.sample.record["captions"][:1]))
    return f'<img {size} alt="{best}" src="data:image/jpeg;base64,{encoded}">'


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.gallery", description=__doc__)
    parser.add_argument("manifest", metavar="MANIFEST", type=Path)
    parser.add_argument("--output", metavar="FILE.html", type=Path, required=True)
    parser.add_argument("--samples", metavar="N", type=positive, default=48, help="pictures to show")
    parser.add_argument(
        "--ledger", metavar="DIR", type=Path, nargs="+", default=[], help="outputs of data_prep.download"
    )
    parser.add_argument("--seed", type=int, default=0, help="which pictures are drawn")
    options = parser.parse_args(arguments)
    print_settings(options)

    def work() -> int:
        content = read_manifest(options.manifest)
        manifest = Manifest(options.manifest.parent, content.shards)
        statistics, stories = gather(manifest, options.samples, options.seed, content.empty_shards)
        ledgers = read_ledgers(options.ledger) if options.ledger else None
        page = render(manifest, options.manifest.name, statistics, stories, ledgers)
        replace_file(options.output, page.encode("utf-8", "replace"))
        print(options.output)
        return 0

    return finish(work)


if __name__ == "__main__":
    sys.exit(main())
