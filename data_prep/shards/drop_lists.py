"""Drop lists: which samples of a finished shard are to be left out, and why, as parquet files of one folder.

`data_prep.duplicates` writes one for every shard it has seen, with drops or without; `data_prep.capfilt --drops` reads
them. A list names the sha256 of the tar that it was made for.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data_prep.shards.parquet_files import read_rows, write_rows

TAR_KEY = b"tar_sha256"


class DropLine(NamedTuple):
    """One sample to be left out. `like`: what it is a copy of, FOLDER/STEM:PLACE, or the evaluation's picture."""

    key: str
    reason: str
    like: str


COLUMNS = dict.fromkeys(DropLine._fields, "string")


def drop_list_path(folder: Path, tar: Path, tar_sha256: str) -> Path:
    return folder / f"{tar.stem}-{tar_sha256[:12]}.drops.parquet"


def write_drop_list(folder: Path, tar: Path, tar_sha256: str, lines: Sequence[DropLine]) -> None:
    rows = [line._asdict() for line in lines]
    write_rows(drop_list_path(folder, tar, tar_sha256), COLUMNS, rows, {TAR_KEY: tar_sha256.encode()})


def read_drop_list(folder: Path, tar: Path, tar_sha256: str) -> dict[str, str]:
    """Key -> reason of the samples of a shard to be left out. Raises ValueError, naming the file, when it is missing,
    damaged, or was made for other bytes."""
    path = drop_list_path(folder, tar, tar_sha256)
    rows, metadata = read_rows(path, COLUMNS, f"drop list of {tar}; run data_prep.duplicates over its folder")
    if metadata.get(TAR_KEY) != tar_sha256.encode():
        raise ValueError(f"{path}: made for another tar than {tar}; run data_prep.duplicates over its folder")
    return {row["key"]: row["reason"] for row in rows}


def digest_of(drops: dict[str, str]) -> str | None:
    """What captions depend on of a drop list; None when nothing is dropped, as without a list."""
    return hashlib.sha256(json.dumps(sorted(drops.items())).encode()).hexdigest() if drops else None
