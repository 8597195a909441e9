"""Defines one row of a table of images, which every reader of tables gives."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One row of a table: its number (from 0), the URL or the path below the image root, and its captions."""

    row: int
    url: str
    captions: tuple[str, ...]
