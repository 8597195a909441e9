"""Writes the offset tables beside a manifest, and removes those that it does not list."""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.manifest import Shard
from pipeline.files import PARTIAL_SUFFIX, replace_file

DIGITS = 12
"""Of a sha256 in a file name, so that a table of other bytes is never used."""


def table_name(tar: Path, tar_sha256: str) -> str:
    return f"{tar.stem}-{tar_sha256[:DIGITS]}.npy"


def table_bytes(table: NDArray[np.int64]) -> tuple[bytes, str]:
    """The content of an offset table's file, and its sha256."""
    content = io.BytesIO()
    np.save(content, table, allow_pickle=False)
    return content.getvalue(), hashlib.sha256(content.getvalue()).hexdigest()


def write_table(path: Path, table: NDArray[np.int64]) -> tuple[str, str]:
    """Write an offset table; returns its path relative to the manifest's folder, and its sha256."""
    content, sha256 = table_bytes(table)
    replace_file(path, content)
    return f"{path.parent.name}/{path.name}", sha256


def remove_unlisted(tables: Path, shards: Sequence[Shard]) -> None:
    """Remove the tables of earlier manifests, and partial files of killed runs."""
    listed = {Path(shard.index).name for shard in shards}
    for path in tables.iterdir():
        if path.suffix in (".npy", PARTIAL_SUFFIX) and path.name not in listed:
            path.unlink()
