"""Writes and reads drop lists: the samples of a finished shard that must be left out, and why.

A drop list is a parquet file. `data_prep.duplicates` writes one for every shard that it has read, even if nothing is
dropped; `data_prep.capfilt --drops` reads it. The list holds the sha256 of the tar that it was made for.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data_prep.shards.parquet_files import read_rows, write_rows

TAR_KEY = b"tar_sha256"


class DropLine(NamedTuple):
    """One sample to leave out. `like` names the picture that it repeats: FOLDER/STEM:PLACE, or an evaluation
    picture."""

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
    """Key -> reason of the samples to leave out. Raises ValueError, with the file's name, when the list is missing or
    damaged, or was made for another tar."""
    path = drop_list_path(folder, tar, tar_sha256)
    remedy = "run data_prep.duplicates on its folder"
    rows, metadata = read_rows(path, COLUMNS, f"drop list of {tar}", remedy)
    if metadata.get(TAR_KEY) != tar_sha256.encode():
        raise ValueError(f"{path}: was made for another tar than {tar}; {remedy}")
    return {row["key"]: row["reason"] for row in rows}


def digest_of(drops: dict[str, str]) -> str | None:
    """The digest of a drop list, on which captioned shards depend. None if nothing is dropped: an empty list equals
    none."""
    return hashlib.sha256(json.dumps(sorted(drops.items())).encode()).hexdigest() if drops else None
