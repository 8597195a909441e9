"""Joins rows of a table that have the same picture: one sample then has all their captions."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from data_prep.tables.row import Cell, Row


def joined(rows: Iterable[Row], digests: Callable[[Sequence[Cell]], dict[Cell, bytes]]) -> Iterator[Row]:
    """One row for each picture, at the place of its first row, with the different captions of all its rows.

    A row has its picture's URL or file name; where the table itself holds pictures, `digests` reads those of its cells.
    Rows without a picture, and rows that must not be used, stay as they are. All rows are held in memory.
    """
    table = list(rows)
    of_cells = digests([row.place for row in table if isinstance(row.place, Cell) and row.drop is None])
    found: dict[str | bytes | int, list[Row]] = {}
    for row in table:
        name = of_cells.get(row.place) if isinstance(row.place, Cell) else row.url
        found.setdefault(row.row if row.drop or not name else name, []).append(row)
    for same in found.values():
        first, *later = same
        captions = tuple(dict.fromkeys(caption for row in same for caption in row.captions))
        yield replace(first, captions=captions, joined=len(later)) if later else first
