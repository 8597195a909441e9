"""Reads `sources.yaml`: the sources that can be downloaded, and what the columns of their tables mean."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from data_prep.tables.conditions import Condition
from data_prep.tables.row import Row

SOURCES_FILE = Path(__file__).parents[1] / "sources.yaml"

CaptionKind = Literal["human", "web"]
SourceFormat = Literal[
    "table", "imagefolder", "tars", "karpathy", "coco_captions", "visual_genome", "llava", "vqa", "visual_genome_qa"
]  # fmt: skip
QUESTIONS: tuple[SourceFormat, ...] = ("vqa", "visual_genome_qa")
"""The formats whose rows have questions instead of captions; several files may be read at once."""
TABLES: tuple[SourceFormat, ...] = ("table", "imagefolder")
WITH_COLUMNS: tuple[SourceFormat, ...] = (*TABLES, "tars")
"""The formats with named columns; of tars, they are the fields of a sample's JSON."""
NUMBERED: tuple[SourceFormat, ...] = ("karpathy", "coco_captions", "visual_genome", "vqa", "visual_genome_qa")
"""The formats that have the number of each picture in COCO or in Visual Genome."""
JOINED: tuple[SourceFormat, ...] = (*TABLES, "llava")
"""The formats in which several rows may have captions of one picture."""
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""The table of an imagefolder, of which there is one."""
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
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); name a file as data_prep/sources.yaml") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: is not readable as YAML ({error}); correct it") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: is not a mapping of source names to entries")
    sources = {}
    for name, entry in content.items():
        for fault in _entry_faults(name, entry):
            raise ValueError(f"{path}: source {name!r}: {fault}")
        sources[name] = Source(name=name, **entry | {"columns": tuple(entry.get("columns") or ()) or None})
    return sources


def known_sources(own: Path | None) -> dict[str, Source]:
    """Name -> source, of `sources.yaml` and of the user's file, whose entries replace those of the same name."""
    return load_sources() | (load_sources(own) if own else {})


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
            missing = [name for name, each in FIELDS.items() if entry.get(name) is None and type(None) not in each]
            yield f"{', '.join(missing)} missing; add it as data_prep/sources.yaml has it"
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
    if entry["format"] in TABLES and not (entry.get("url_column") and entry.get("caption_column")):
        yield "a table needs url_column and caption_column"


def choose_source(
    name: str,
    *,
    url_column: str | None = None,
    caption_column: str | None = None,
    captions: CaptionKind | None = None,
    own: Path | None = None,
) -> Source:
    """The source of this name; columns and caption kind that are given replace its own. The sources of the file `own`
    are added to the known ones, or replace them."""
    sources = known_sources(own)
    if name not in sources:
        where = f"{SOURCES_FILE.name} or {own}" if own else f"{SOURCES_FILE.name}; add yours with --sources FILE"
        raise ValueError(f"source {name!r}: is not in {where}; use one of {', '.join(sources)}")
    source = sources[name]
    if source.format not in WITH_COLUMNS and (url_column or caption_column):
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
    source: Source,
    *paths: Path,
    split: str | None = None,
    annotations: Sequence[Path] = (),
    conditions: tuple[Condition, ...] = (),
    task: tuple[int, int] = (0, 1),
) -> Iterator[Row]:
    """The rows of a source's table, in order. Raises ValueError, with file and field, on a table that it cannot read.

    Only questions may be in several files; `annotations` are the answers of VQA's official question files. `task` is
    (number, count) of the tasks that share tars; other tables are read whole.
    """
    from data_prep.tables import annotation_files, question_files

    for path in paths:
        if not path.exists():
            raise ValueError(f"--input {path}: no such file")
    if annotations and source.format != "vqa":
        raise ValueError(f"--annotations {annotations[0]}: source {source.name!r} has no such files; leave it out")
    if source.format in QUESTIONS:
        return (
            question_files.vqa_rows(paths, annotations)
            if source.format == "vqa"
            else question_files.visual_genome_qa_rows(paths)
        )
    if len(paths) > 1:
        raise ValueError(f"--input {paths[1]}: source {source.name!r} is read from one file or folder; give one")
    path = paths[0]
    if source.format in WITH_COLUMNS:
        return _rows_with_columns(source, path, conditions, task)
    readers: dict[SourceFormat, Callable[[Path], Iterator[Row]]] = {
        "karpathy": partial(annotation_files.karpathy_rows, split=split or "train"),
        "coco_captions": annotation_files.coco_caption_rows,
        "visual_genome": annotation_files.visual_genome_rows,
        "llava": annotation_files.llava_rows,
    }
    return readers[source.format](path)


def _rows_with_columns(
    source: Source, path: Path, conditions: tuple[Condition, ...], task: tuple[int, int]
) -> Iterator[Row]:
    from data_prep.tables import foreign_tars, formats

    if source.format == "tars":
        wanted = foreign_tars.Wanted(source.url_column or "url", source.caption_column, conditions)
        return foreign_tars.tar_rows(path, wanted, *task)
    assert source.url_column and source.caption_column, source.name
    table = _metadata(path) if source.format == "imagefolder" and path.is_dir() else path
    columns = (source.url_column, source.caption_column)
    return formats.table_rows(table, *columns, header=source.columns, conditions=conditions)


def _metadata(folder: Path) -> Path:
    """The table of an imagefolder. Raises ValueError when there is not exactly one."""
    found = [path for name in METADATA if (path := folder / name).is_file()]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise ValueError(f"--input {folder}: needs one of {', '.join(METADATA)}, but has {names}")
    return found[0]
