"""The card of a data set, a README.md as the hub has it: its sources and their licences, and what was dropped."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.shards.receipts import CAPTIONED
from data_prep.tables.sources import Source
from pipeline.data.manifest import Shard, cleaned_of, dropped_by_source, question_sets
from pipeline.pages.markdown import escaped, table

MARK = "<!-- written by data_prep.index -->"
WARNING = """**Pictures from the web belong to their owners.** A licence of a table covers its rows, not the pictures
that they name. An owner may ask that a picture is removed, and law may limit what may be done with it. Captions and
addresses are other people's words: they hold names, errors and prejudices, and were not checked by a person.
"""
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
LARGER = ((10_000_000, "1M<n<10M"), (100_000_000, "10M<n<100M"), (1_000_000_000, "100M<n<1B"))


def check_card(path: Path) -> None:
    """Raises ValueError for a file that is no card of this program: it may be a page of the user's."""
    if path.suffix != ".md":
        raise ValueError(f"--card {path}: must end in .md, such as README.md")
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        raise ValueError(f"--card {path}: exists and is not a card of data_prep.index; name another file")


def data_card(title: str, shards: Sequence[Shard], known: Mapping[str, Source], empty: Sequence[Shard] = ()) -> str:
    """The whole page. `known` says what the sources are; `empty` are the shards that lost all their samples, whose
    drops count."""
    counts = _counts(shards)
    samples = sum(each["samples"] for each in counts.values())
    parts = [
        _front_matter(title, samples, counts),
        f"{MARK}\n\n# {escaped(title)}\n\nPictures with captions or questions for BLIP-2, in {len(shards):,} tars. "
        "The manifest lists every sample.\n",
        f"## Sources\n\n{_sources(counts, known)}\n{WARNING}",
        f"## Captions\n\n{_captions(shards)}",
        f"## What was dropped\n\n{_dropped([*shards, *empty])}",
    ]
    return "\n".join(parts)


def _counts(shards: Sequence[Shard]) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = {}
    for shard in shards:
        numbers = {name: getattr(shard, name) for name in ("samples", "captions", "questions")}
        counts.setdefault(shard.source, Counter()).update(numbers)
    return dict(sorted(counts.items()))


def _front_matter(title: str, samples: int, counts: dict[str, Counter[str]]) -> str:
    from huggingface_hub import DatasetCardData

    asked = any(each["questions"] for each in counts.values())
    size = next((name for most, name in SIZES + LARGER if samples < most), "1B<n<10B")
    data: Any = DatasetCardData(
        license="other",
        license_name="licences-of-the-sources",
        pretty_name=" ".join(title.split()),
        task_categories=["visual-question-answering"] if asked else ["image-to-text"],
        size_categories=[size],
        tags=["blip-2", "webdataset"],
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _sources(counts: dict[str, Counter[str]], known: Mapping[str, Source]) -> str:
    rows = []
    for name, each in counts.items():
        source = known.get(name)
        about = (source.title, source.licence) if source else ("", "not known here; ask its owner")
        numbers = (f"{each[kind]:,}" for kind in ("samples", "captions", "questions"))
        rows.append((escaped(name), escaped(about[0]), *numbers, escaped(about[1])))
    return table(("source", "what it is", "pictures", "captions", "questions", "licence"), rows)


def _captions(shards: Sequence[Shard]) -> str:
    models = Counter[tuple[tuple[str, str], ...]]()
    for shard in shards:
        if shard.provenance.get("stage") == CAPTIONED:
            models[tuple(sorted(shard.provenance.get("models", {}).items()))] += shard.samples
    lines = [f"- {samples:,} pictures went through CapFilt: web captions and those of a captioner, ranked and chosen; "
             f"human captions as they were. {escaped(', '.join(f'{part} {digest[:12]}' for part, digest in used))}\n"
             for used, samples in sorted(models.items())]  # fmt: skip
    sets = [f"{escaped(name)} ({count:,})" for name, count in question_sets(shards).items()]
    lines += [f"- Question sets: {', '.join(sets)}\n"] if sets else []
    return "".join(lines) or "As their sources have them.\n"


def _dropped(shards: Sequence[Shard]) -> str:
    rows = [
        (escaped(source), escaped(reason), f"{count:,}")
        for source, reasons in dropped_by_source(shards).items()
        for reason, count in reasons.items()
    ]
    clean = [
        f"- {escaped(source)} has no picture of {escaped(', '.join(sets))}\n"
        for source, sets in cleaned_of(shards).items()
        if sets
    ]
    text = table(("source", "reason", "rows or samples"), rows) if rows else "Nothing by the last step.\n"
    if any(shard.provenance.get("stage") == CAPTIONED for shard in shards):
        text += "\nShards that went through CapFilt do not say what their download dropped: its ledgers do.\n"
    return text + ("\n" + "".join(clean) if clean else "")
