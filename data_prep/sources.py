"""The sources that can be downloaded (`sources.yaml`): what each table's rows mean."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

SOURCES_FILE = Path(__file__).with_name("sources.yaml")

CaptionKind = Literal["human", "web"]
SourceFormat = Literal["table", "karpathy", "visual_genome"]


@dataclass(frozen=True)
class Source:
    """One entry of `sources.yaml`; `columns` names the columns of a table that has no header line."""

    name: str
    title: str
    home: str
    licence: str
    format: SourceFormat
    captions: CaptionKind
    rows: int
    expected_yield: float
    url_column: str | None = None
    caption_column: str | None = None
    columns: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Row:
    """One row of a table: its number (from 0), the URL or the path below the image root, and its captions."""

    row: int
    url: str
    captions: tuple[str, ...]


def load_sources(path: Path = SOURCES_FILE) -> dict[str, Source]:
    """Name -> source. Raises ValueError, naming entry and field, on an entry that is malformed."""
    import yaml

    known = {each.name for each in fields(Source)}
    sources: dict[str, Source] = {}
    for name, entry in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        unknown = set(entry) - known
        if unknown:
            raise ValueError(f"{path}: {name} has unknown fields {sorted(unknown)}")
        if entry.get("columns"):
            entry["columns"] = tuple(entry["columns"])
        sources[name] = Source(name=name, **entry)
    return sources


def choose_source(
    name: str, *, url_column: str | None = None, caption_column: str | None = None, captions: CaptionKind | None = None
) -> Source:
    """The named source, with the caller's columns and caption kind in place of its own where given."""
    sources = load_sources()
    if name not in sources:
        raise ValueError(f"source {name!r}: not in {SOURCES_FILE.name}; use one of {', '.join(sources)}")
    source = sources[name]
    if source.format != "table" and (url_column or caption_column):
        raise ValueError(f"source {name!r}: is read from annotations, not from columns; leave out --url-column")
    return replace(
        source,
        url_column=url_column or source.url_column,
        caption_column=caption_column or source.caption_column,
        captions=captions or source.captions,
    )


def read_rows(source: Source, path: Path, *, split: str | None = None) -> Iterator[Row]:
    """The rows of a source's table, in order. Raises ValueError, naming file and field, on a table it cannot read."""
    from data_prep import annotation_files, tables

    if not path.exists():
        raise ValueError(f"input {path}: no such file")
    if source.format == "karpathy":
        return annotation_files.karpathy_rows(path, split or "train")
    if source.format == "visual_genome":
        return annotation_files.visual_genome_rows(path)
    assert source.url_column and source.caption_column, source.name
    return tables.table_rows(path, source.url_column, source.caption_column, header=source.columns)
