"""Reads what an earlier run made of a shard, so that only its temporary failures are fetched again."""

from pathlib import Path

from data_prep.raw.stored_image import StoredImage
from data_prep.shards import tar_files
from data_prep.shards.ledger import COLUMNS, Drop, Entry, ledger_path, read_ledger
from data_prep.shards.offsets import offset_table
from data_prep.tables.row import Row


class EarlierShard:
    """A finished shard with its ledger. Raises ValueError, with the file's name, when one of them is damaged."""

    def __init__(self, tar: Path) -> None:
        self.tar = tar
        self.entries = {row["row"]: Entry(**row) for row in read_ledger(ledger_path(tar), tuple(COLUMNS))}
        kept = [number for number, entry in self.entries.items() if entry.status == "kept"]
        self.places = dict(zip(kept, offset_table(tar), strict=True))

    def open_rows(self) -> int:
        """How many rows failed temporarily."""
        return sum(_is_temporary(entry) for entry in self.entries.values())

    def is_open(self, row: Row) -> bool:
        """Whether the row failed temporarily."""
        return _is_temporary(self.entries[row.row])

    def settled(self, row: Row) -> StoredImage | Drop | None:
        """The final result of a row, or None if it failed temporarily and is worth another try."""
        entry = self.entries[row.row]
        if entry.status == "kept":
            with self.tar.open("rb") as file:
                sample = tar_files.read_at(file, self.tar, self.places[row.row])
            return StoredImage(sample.jpeg, sample.record["width"], sample.record["height"], entry.phash)
        return None if _is_temporary(entry) else Drop(entry.reason or "", entry.http_status)


def _is_temporary(entry: Entry) -> bool:
    return entry.reason is not None and Drop(entry.reason, entry.http_status).temporary
