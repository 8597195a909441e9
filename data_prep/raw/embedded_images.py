"""Gets the image bytes of rows whose table holds the pictures: files of a tar, or cells of a parquet table."""

import hashlib
import shutil
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_prep.raw.image_bytes import unusable
from data_prep.raw.raw_shards import ReadImageBytes
from data_prep.shards.ledger import Drop
from data_prep.tables.caption_filter import CaptionRules
from data_prep.tables.row import Cell, Place, Row
from data_prep.web.fetching import check_disk
from pipeline.progress_line import ProgressLine

CELLS_AT_ONCE = 16
"""Cells that are in memory at a time."""
BUFFER_BYTES = 1 << 20
"""With a buffer, pyarrow does not read a whole column of a row group at once."""


@contextmanager
def embedded_image_bytes(
    rows: Sequence[Row], folder: Path, max_bytes: int, rules: CaptionRules
) -> Iterator[ReadImageBytes]:
    """The bytes of a tar's file are read when its row is asked for. Cells are copied first, into a private folder below
    `folder`, as parquet can only be read in order; it is removed when the block ends well."""
    cells = [(row.row, row.place) for row in rows if isinstance(row.place, Cell) and not unusable(row, rules)]
    private = folder / uuid.uuid4().hex
    copies: dict[int, Place | Drop] = {}
    if cells:
        private.mkdir(parents=True)
        copies = _copied(cells, private, max_bytes)

    def read(row: Row) -> bytes | Drop:
        if drop := unusable(row, rules):
            return drop
        place = row.place if isinstance(row.place, Place) else copies[row.row]
        return place if isinstance(place, Drop) else _read(place, max_bytes)

    yield read
    if cells:
        shutil.rmtree(private)


def _read(place: Place, max_bytes: int) -> bytes | Drop:
    if place.size > max_bytes:
        return Drop("byte_cap")
    try:
        content = place.read()
    except OSError:
        return Drop("unreadable_file")
    return content if len(content) == place.size else Drop("unreadable_file")


def cell_digests(cells: Sequence[Cell]) -> dict[Cell, bytes]:
    """The sha256 of each cell's bytes, of those that have any. Raises ValueError when a table cannot be read."""
    wanted: defaultdict[tuple[Path, str], set[int]] = defaultdict(set)
    for cell in cells:
        wanted[cell.file, cell.column].add(cell.row)
    found = {}
    with ProgressLine("comparing pictures", len(cells), "pictures", shown=bool(cells)) as line:
        for (file, column), rows in wanted.items():
            for row, content in _cells(file, column, rows):
                if content is not None:
                    found[Cell(file, column, row)] = hashlib.sha256(content).digest()
                line.advance()
    return found


def _copied(cells: Sequence[tuple[int, Cell]], folder: Path, max_bytes: int) -> dict[int, Place | Drop]:
    """Row -> where its bytes are now, or why they were not copied. Raises ValueError when a table cannot be read, or
    the disk is full."""
    wanted: defaultdict[tuple[Path, str], dict[int, int]] = defaultdict(dict)
    for row, cell in cells:
        wanted[cell.file, cell.column][cell.row] = row
    copies: dict[int, Place | Drop] = {}
    for number, ((file, column), rows) in enumerate(wanted.items()):
        copy = folder / str(number)
        with copy.open("wb") as target:
            for cell_row, content in _cells(file, column, rows.keys()):
                if content is None or len(content) > max_bytes:
                    copies[rows[cell_row]] = Drop("no_picture" if content is None else "byte_cap")
                    continue
                copies[rows[cell_row]] = Place(copy, target.tell(), len(content))
                target.write(content)
        check_disk(folder)
    return copies


def _cells(file: Path, column: str, wanted: Set[int]) -> Iterator[tuple[int, bytes | None]]:
    """(row, content) of the wanted cells; row groups without any are passed over."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file, buffer_size=BUFFER_BYTES) as table:
            last, row = max(wanted), 0
            for group in range(table.num_row_groups):
                end = row + table.metadata.row_group(group).num_rows
                if row <= last and not wanted.isdisjoint(range(row, end)):
                    yield from _of_group(table.iter_batches(CELLS_AT_ONCE, [group], [column]), row, wanted)
                row = end
    except pa.ArrowException as error:
        raise ValueError(f"--input {file}: cannot be read as .parquet ({error})") from error


def _of_group(batches: Iterator[Any], row: int, wanted: Set[int]) -> Iterator[tuple[int, bytes | None]]:
    last = max(wanted)
    for batch in batches:
        if row > last:
            return
        values = batch.column(0)
        values = values.field("bytes") if hasattr(values, "field") else values
        for place in range(len(batch)):
            if row + place in wanted:
                yield row + place, values[place].as_py()
        row += len(batch)
