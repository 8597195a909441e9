"""Reads tables row by row: parquet, TSV, CSV, JSON and JSON lines, or a folder of such files.

In place of URLs, a parquet table may hold the pictures' bytes. All but parquet may be gzipped. No row is skipped: a
row without a URL or a caption is passed on, and the ledger counts it. Halves of surrogate pairs, which JSON may hold,
become replacement characters.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain, count
from pathlib import Path
from typing import Any

from data_prep.tables.conditions import Condition, failed
from data_prep.tables.row import Cell, Row, captions_of, text_of

FORMATS = (".parquet", ".tsv", ".csv", ".json", ".jsonl", ".tsv.gz", ".csv.gz", ".json.gz", ".jsonl.gz")
LONGEST_FIELD = 1 << 24
"""Characters of one CSV field. Python's own limit of 131,072 is too small for some alt-texts."""
LONGEST_ROW = 64 << 20
"""Characters of a line."""
LONGEST_TEXT = 8 << 30
"""Characters of a .json, which is read at once. A small .json.gz can hold more than the memory does."""
PIECE = 1 << 24

END_OF_TABLE = "\0end of table"
"""A last line that no table has. A quote that is not closed takes it in."""

Columns = tuple[str, ...]
Values = tuple[Any, ...]


def table_rows(
    path: Path,
    url_column: str,
    caption_column: str,
    *,
    header: Columns | None = None,
    conditions: tuple[Condition, ...] = (),
) -> Iterator[Row]:
    """The rows of a table, or of all tables of a folder in order of name.

    `header` gives the column names of a TSV or CSV without a header line. Rows that fail one of the `conditions` are
    marked to be dropped. Raises ValueError, with the file's name, on an unknown ending, a missing column, or damage.
    """
    number = 0
    columns = (url_column, caption_column, *(each.column for each in conditions))
    for file in _files(path):
        try:
            for url, captions, *values in _values(file, columns, header):
                place = url if isinstance(url, Cell) else None
                name = text_of(f"{file.name}/{url.row}" if isinstance(url, Cell) else url)
                yield Row(number, name, captions_of(captions), drop=failed(conditions, values), place=place)
                number += 1
        except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"--input {file}: cannot be read as {_ending(file)} ({error})") from error


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        _ending(path)
        return [path]
    files = sorted(file for file in path.iterdir() if file.name.lower().endswith(FORMATS))
    if not files:
        raise ValueError(f"--input {path}: the folder has no table ({', '.join(FORMATS)})")
    return files


def _ending(path: Path) -> str:
    name = path.name.lower()
    endings = [ending for ending in FORMATS if name.endswith(ending)]
    if not endings:
        raise ValueError(f"--input {path}: is not a known kind of table; use one of {', '.join(FORMATS)}")
    return endings[0].removesuffix(".gz")


def _values(path: Path, columns: Columns, header: Columns | None) -> Iterator[Values]:
    """The values of some columns, row by row; in place of a picture's bytes, the cell that has them."""
    ending = _ending(path)
    if path.exists() and not path.is_file():  # a pipe would be waited for, and a device has no end
        raise ValueError(f"--input {path}: is not a regular file, as a table is; name another")
    if ending == ".parquet":
        return _parquet(path, columns)
    if ending in (".tsv", ".csv"):
        return _delimited(path, columns, header, ending)
    return _json(path, columns) if ending == ".json" else _json_lines(path, columns)


def _parquet(path: Path, columns: Columns) -> Iterator[Values]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as opened, pq.ParquetFile(opened) as file:  # Arrow takes paths in UTF-8 alone
            _check_columns(path, columns, file.schema_arrow.names)
            pictures = _picture_column(file.schema_arrow.field(columns[0]))
            others = columns[1:] if pictures else columns
            row = 0
            for batch in file.iter_batches(batch_size=65_536, columns=list(dict.fromkeys(others))):
                values = [batch.column(name).to_pylist() for name in others]
                cells = [[Cell(path, pictures, row + place) for place in range(len(batch))]] if pictures else []
                yield from zip(*cells, *values, strict=True)
                row += len(batch)
    except pa.ArrowException as error:
        raise ValueError(f"--input {path}: cannot be read as .parquet ({error})") from error


def _picture_column(field: Any) -> str | None:
    """The column of a parquet table with the pictures' bytes, if `field` holds them: as bytes, or as `datasets` does,
    in a struct with the field bytes."""
    import pyarrow.types as kinds

    in_struct = kinds.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
    kind = field.type.field("bytes").type if in_struct else field.type
    if not (kinds.is_binary(kind) or kinds.is_large_binary(kind)):
        return None
    return f"{field.name}.bytes" if in_struct else str(field.name)


def _delimited(path: Path, columns: Columns, header: Columns | None, ending: str) -> Iterator[Values]:
    csv.field_size_limit(LONGEST_FIELD)
    plain = ending == ".tsv" and (header is not None or not _has_quoted_fields(path))
    with _open(path, newline="\n" if plain else "") as file:
        lines = _lines(path, file)
        rows = _tab_separated(lines) if plain else _quoted(path, lines, "\t" if ending == ".tsv" else ",")
        names = header or tuple(next(rows, ()))
        if not names:
            return
        _check_columns(path, columns, names)
        places = [list(names).index(name) for name in columns]
        for fields in rows:
            if fields:
                yield tuple(fields[place] if place < len(fields) else None for place in places)


def _has_quoted_fields(path: Path) -> bool:
    """Whether a TSV is written as pandas does: fields with a tab, a line break or a quote stand in quotes.

    In other TSVs quotes are plain text, and then some line breaks the rules of quoting.
    """
    with _open(path) as file:
        reader = csv.reader(_lines(path, file), delimiter="\t", strict=True)
        try:
            width = len(next(reader, ()))
            return all(len(fields) in (0, width) for fields in reader)
        except csv.Error:
            return False


def _quoted(path: Path, lines: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    """The fields of each record, [] for an empty one. Raises ValueError, with the line, for a quote that is not closed:
    it swallows the rows after it."""
    reader = csv.reader(chain(lines, [END_OF_TABLE]), delimiter=delimiter)
    width, first_line = 0, 1
    try:
        for fields in reader:
            if fields == [END_OF_TABLE]:
                return
            width = width or len(fields)
            if fields[-1:] and fields[-1].endswith(END_OF_TABLE):
                raise csv.Error("a quote is not closed")
            if reader.line_num > first_line and len(fields) != width:
                raise csv.Error(
                    f"a record of {len(fields)} fields has line breaks, and the first line has {width} fields"
                )
            yield fields
            first_line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"--input {path}: line {first_line}: cannot be read as {_ending(path)} ({error}); correct its quotes"
        ) from error


def _tab_separated(lines: Iterable[str]) -> Iterator[list[str]]:
    """The fields of each line, [] for an empty one. A carriage return alone does not end a line; quotes are plain
    text."""
    for line in lines:
        text = line.removesuffix("\n").removesuffix("\r")
        yield text.split("\t") if text else []


def _json(path: Path, columns: Columns) -> Iterator[Values]:
    """A list of objects, or one object of equally long lists (as in SBU)."""
    content = _parsed(path, _whole_text(path))
    if isinstance(content, dict):
        _check_columns(path, columns, content)
        for name in columns:
            if not isinstance(content[name], list):
                raise ValueError(f"--input {path}: {name!r} is of type {type(content[name]).__name__}, expected a list")
            if (length := len(content[name])) != (first := len(content[columns[0]])):
                raise ValueError(
                    f"--input {path}: {columns[0]!r} and {name!r} are lists of {first} and {length} values, expected "
                    "equally many"
                )
        yield from zip(*(content[name] for name in columns), strict=True)
    elif isinstance(content, list):
        yield from _objects(path, columns, content)
    else:
        raise ValueError(
            f"--input {path}: is of type {type(content).__name__}, expected a list of objects or an object of lists"
        )


def _whole_text(path: Path) -> str:
    """A packed file does not say how long its text is, so it is read in pieces. Raises ValueError for a longer one."""
    pieces, length = [], 0
    with _open(path) as file:
        while piece := file.read(PIECE):
            pieces.append(piece)
            if (length := length + len(piece)) > LONGEST_TEXT:
                raise ValueError(
                    f"--input {path}: has a text of more than {LONGEST_TEXT} characters, too long to be read at once; "
                    "write JSON lines (.jsonl)"
                )
    return "".join(pieces)


def _json_lines(path: Path, columns: Columns) -> Iterator[Values]:
    with _open(path) as file:
        yield from _objects(path, columns, (_parsed(path, line) for line in _lines(path, file) if line.strip()))


def _parsed(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits raises no JSONDecodeError
        raise ValueError(f"--input {path}: cannot be read as {_ending(path)} ({error})") from error


def _objects(path: Path, columns: Columns, objects: Any) -> Iterator[Values]:
    first = True
    for entry in objects:
        if not isinstance(entry, dict):
            kind, names = type(entry).__name__, ", ".join(columns)
            raise ValueError(f"--input {path}: an entry is of type {kind}, expected an object with {names}")
        if first:
            _check_columns(path, columns, entry)
            first = False
        yield tuple(map(entry.get, columns))


def _lines(path: Path, file: io.TextIOBase) -> Iterator[str]:
    """The lines of a table. Raises ValueError for one without end, as a packed file can have it."""
    for number in count(1):
        if not (line := file.readline(LONGEST_ROW + 1)):
            return
        if len(line) > LONGEST_ROW:
            raise ValueError(
                f"--input {path}: line {number} has more than {LONGEST_ROW} characters; repair the table, or remove it"
            )
        yield line


def _open(path: Path, newline: str = "") -> io.TextIOBase:
    """Text of a plain or gzipped file. Bytes that are not UTF-8 become replacement characters, so that no row is
    lost."""
    # Both functions have many overloads; in text mode both give text.
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    return opener(path, "rt", encoding="utf-8-sig", errors="replace", newline=newline)  # type: ignore[return-value, operator]


def _check_columns(path: Path, wanted: Columns, found: Any) -> None:
    for place, name in enumerate(wanted):
        if name not in found:
            flag = ("--url-column", "--caption-column", "--keep-where")[min(place, 2)]
            free = next((each for each in found if each not in wanted), "NAME")
            raise ValueError(
                f"--input {path}: has no column {name!r}; its columns are {', '.join(map(str, found))}; give, for "
                f"example, {flag} {free}"
            )
        if list(found).count(name) > 1:
            raise ValueError(f"--input {path}: the column {name!r} comes twice; rename one of them")
