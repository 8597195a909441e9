"""Joins rows of a table that have the same picture: one sample then has all their captions."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from data_prep.tables.row import Row


def joined(rows: Iterable[Row]) -> Iterator[Row]:
    """One row for each picture, at the place of its first row, with the different captions of all its rows.

    Rows without a URL, rows that must not be used, and rows whose picture is in the table stay as they are. All rows
    are held in memory.
    """
    found: dict[str | int, list[Row]] = {}
    for row in rows:
        alone = not row.url or row.drop is not None or row.place is not None
        found.setdefault(row.row if alone else row.url, []).append(row)
    for same in found.values():
        first, *later = same
        captions = tuple(dict.fromkeys(caption for row in same for caption in row.captions))
        yield replace(first, captions=captions, joined=len(later)) if later else first
