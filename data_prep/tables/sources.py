"""Reads `sources.yaml`: the sources that can be downloaded, and what the columns of their tables mean."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from data_prep.tables.row import Row

SOURCES_FILE = Path(__file__).parents[1] / "sources.yaml"

CaptionKind = Literal["human", "web"]
SourceFormat = Literal["table", "karpathy", "visual_genome", "vqa", "visual_genome_qa"]
QUESTIONS: tuple[SourceFormat, ...] = ("vqa", "visual_genome_qa")
"""The formats whose rows have questions instead of captions; several files may be read at once."""
NAME_PATTERN = re.compile("[A-Za-z0-9_-]{1,64}")
FIELDS: dict[str, tuple[type, ...]] = (
    dict.fromkeys(("title", "home", "licence", "format", "captions"), (str,))
    | {"rows": (int,), "expected_yield": (int, float)}
    | {"url_column": (str, type(None)), "caption_column": (str, type(None)), "columns": (list, type(None))}
)
"""The fields of an entry of `sources.yaml` -> the types of their values. Those that admit None may be left out."""


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


def load_sources(path: Path = SOURCES_FILE) -> dict[str, Source]:
    """Name -> source. Raises ValueError, with entry and field, on a malformed entry."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot be read as YAML ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: is not a mapping of source names to entries")
    sources = {}
    for name, entry in content.items():
        for fault in _entry_faults(name, entry):
            raise ValueError(f"{path}: source {name!r}: {fault}")
        sources[name] = Source(name=name, **entry | {"columns": tuple(entry.get("columns") or ()) or None})
    return sources


def _entry_faults(name: Any, entry: Any) -> Iterator[str]:
    """What is wrong with an entry. The caller stops at the first fault, and each check relies on the checks before
    it."""
    if not isinstance(name, str) or not NAME_PATTERN.fullmatch(name):
        yield "a name must be 1 to 64 letters, digits, _ or -, because every key begins with it"
    if not isinstance(entry, dict):
        yield "is not a mapping of fields to values"
    if unknown := entry.keys() - FIELDS.keys():
        yield f"unknown field {min(map(str, unknown))!r}; the fields are {', '.join(FIELDS)}"
    for field, kinds in FIELDS.items():
        value = entry.get(field)
        if value is None and type(None) not in kinds:
            yield f"{field} is missing"
        if not isinstance(value, kinds) or isinstance(value, bool):
            names = (kind.__name__ for kind in kinds if kind is not type(None))
            yield f"{field} {value!r}: expected {' or '.join(names)}"
    for field, allowed in (("format", get_args(SourceFormat)), ("captions", get_args(CaptionKind))):
        if entry[field] not in allowed:
            yield f"{field} {entry[field]!r}: use one of {', '.join(allowed)}"
    if entry["rows"] < 0 or not 0 < entry["expected_yield"] <= 1:
        yield "rows must be at least 0; expected_yield must be above 0 and at most 1"
    if not all(isinstance(column, str) for column in entry.get("columns") or ()):
        yield f"columns {entry['columns']!r}: expected a list of names"
    if entry["format"] == "table" and not (entry.get("url_column") and entry.get("caption_column")):
        yield "a table needs url_column and caption_column"


def choose_source(
    name: str, *, url_column: str | None = None, caption_column: str | None = None, captions: CaptionKind | None = None
) -> Source:
    """The source of this name; columns and caption kind that are given replace its own."""
    sources = load_sources()
    if name not in sources:
        raise ValueError(f"source {name!r}: is not in {SOURCES_FILE.name}; use one of {', '.join(sources)}")
    source = sources[name]
    if source.format != "table" and (url_column or caption_column):
        raise ValueError(
            f"source {name!r}: its annotations have no columns; leave out --url-column and --caption-column"
        )
    return replace(
        source,
        url_column=url_column or source.url_column,
        caption_column=caption_column or source.caption_column,
        captions=captions or source.captions,
    )


def read_rows(
    source: Source, *paths: Path, split: str | None = None, annotations: Sequence[Path] = ()
) -> Iterator[Row]:
    """The rows of a source's table, in order. Raises ValueError, with file and field, on a table that it cannot read.

    Only questions may be in several files; `annotations` are the answers of VQA's official question files.
    """
    from data_prep.tables import annotation_files, formats, question_files

    for path in paths:
        if not path.exists():
            raise ValueError(f"--input {path}: no such file")
    if annotations and source.format != "vqa":
        raise ValueError(f"--annotations {annotations[0]}: source {source.name!r} has no such files; leave it out")
    if source.format == "vqa":
        return question_files.vqa_rows(paths, annotations)
    if source.format == "visual_genome_qa":
        return question_files.visual_genome_qa_rows(paths)
    if len(paths) > 1:
        raise ValueError(f"--input {paths[1]}: source {source.name!r} is read from one file or folder; give one")
    path = paths[0]
    if source.format == "karpathy":
        return annotation_files.karpathy_rows(path, split or "train")
    if source.format == "visual_genome":
        return annotation_files.visual_genome_rows(path)
    assert source.url_column and source.caption_column, source.name
    return formats.table_rows(path, source.url_column, source.caption_column, header=source.columns)
