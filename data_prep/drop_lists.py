"""Drop lists: which samples of a finished shard are to be left out, and why, as parquet files of one folder.

`data_prep.duplicates` writes one for every shard it has seen, with drops or without; `data_prep.capfilt --drops` reads
them. A list names the sha256 of the tar that it was made for.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data_prep import shard_io

TAR_KEY = b"tar_sha256"


class DropLine(NamedTuple):
    """One sample to be left out. `like`: what it is a copy of, FOLDER/STEM:PLACE, or the evaluation's picture."""

    key: str
    reason: str
    like: str


def drop_list_path(folder: Path, tar: Path, tar_sha256: str) -> Path:
    return folder / f"{tar.stem}-{tar_sha256[:12]}.drops.parquet"


def write_drop_list(folder: Path, tar: Path, tar_sha256: str, lines: Sequence[DropLine]) -> None:
    """Written whole or not at all; the same lines give the same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {name: [getattr(line, name) for line in lines] for name in DropLine._fields}
    schema = pa.schema([pa.field(name, pa.string()) for name in columns], metadata={TAR_KEY: tar_sha256.encode()})
    content = io.BytesIO()
    pq.write_table(pa.table(columns, schema=schema), content, compression="zstd")
    shard_io.replace_file(drop_list_path(folder, tar, tar_sha256), content.getvalue())


def read_drop_list(folder: Path, tar: Path, tar_sha256: str) -> dict[str, str]:
    """Key -> reason of the samples of a shard to be left out. Raises ValueError, naming the file, when it is missing,
    damaged, or was made for other bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = drop_list_path(folder, tar, tar_sha256)
    try:
        table = pq.read_table(path)
        if (table.schema.metadata or {}).get(TAR_KEY) != tar_sha256.encode():
            raise ValueError("it was made for another tar")
        return {str(row["key"]): str(row["reason"]) for row in table.select(["key", "reason"]).to_pylist()}
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise ValueError(
            f"{path}: no drop list of {tar} ({' '.join(str(error).split())}); run data_prep.duplicates over its folder"
        ) from error


def digest_of(drops: dict[str, str]) -> str | None:
    """What captions depend on of a drop list; None when nothing is dropped, as without a list."""
    return hashlib.sha256(json.dumps(sorted(drops.items())).encode()).hexdigest() if drops else None
