"""What img2dataset has fetched, in place of its tars: the bytes of all pictures in one file, a line a row in another.

Only `fetching` reads these files, a few minutes after they are written.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.shards.ledger import Drop, drop_of_message
from data_prep.tables.row import Place

FINISHED = "_stats.json"
"""The ending of the file that img2dataset writes when one of its shards is finished."""


class RowWriter:
    """A sample writer with the interface that img2dataset asks for, also where it needs no argument of it (ARG002)."""

    def __init__(self, shard_id: int, output_folder: str, *_: Any) -> None:
        self.stem = Path(output_folder) / str(shard_id)
        self.pictures = self.stem.with_suffix(".bytes").open("wb")
        self.rows: list[tuple[int, int, int | None, str | None]] = []

    def write(self, img_str: bytes | None, key: str, caption: str | None, meta: dict[str, Any]) -> None:  # noqa: ARG002
        offset = self.pictures.tell()  # not the sum of sizes: a write may have failed on a full disk
        size = None if img_str is None else self.pictures.write(img_str)
        self.rows.append((meta["row"], offset, size, meta["error_message"]))

    def close(self) -> None:
        self.pictures.close()
        self.stem.with_suffix(".rows").write_text(json.dumps(self.rows), encoding="utf-8")


def read_results(folder: Path) -> Iterator[tuple[int, Place | Drop]]:
    """The result of each row in img2dataset's finished shards. A row without a result is fetched again by the
    caller."""
    for finished in sorted(folder.glob(f"*{FINISHED}")):
        stem = folder / str(int(finished.name.removesuffix(FINISHED)))
        try:
            rows = json.loads(stem.with_suffix(".rows").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        for row, offset, size, error in rows:
            if size is not None:
                yield row, Place(stem.with_suffix(".bytes"), offset, size)
            elif error:
                yield row, drop_of_message(error)
