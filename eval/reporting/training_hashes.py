"""Perceptual hashes of training pictures, read from parquet files.

A file has a column `phash` (64 bits; null for a picture of one colour). Other columns are optional: rows whose `status`
is not "kept" are left out; `url` or `key` names the picture. The ledgers of data_prep.download are such files.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.pictures.near_hashes import Hashes

ROWS_AT_ONCE = 1_000_000


def training_hashes(paths: Iterable[Path]) -> Iterator[tuple[Sequence[Any], Hashes]]:
    """Names (use `str` on each) and hashes of all parquet files in `paths` and below its folders, in batches of rows.

    Raises ValueError that names the file when one cannot be read.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet

    for path in paths:
        files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
        files = [file for file in files if "phash" in _columns(file)]
        if not files:
            raise ValueError(
                f"--training-hashes {path}: no parquet with a column 'phash'; give the output of data_prep.download"
            )
        for file in files:
            columns = [name for name in ("phash", "status", "url", "key") if name in _columns(file)]
            try:
                opened = pyarrow.parquet.ParquetFile(file)
                kind = opened.schema_arrow.field("phash").type
                if pa.types.is_null(kind):  # no picture in it has a hash
                    continue
                if not pa.types.is_integer(kind):
                    raise ValueError(f"--training-hashes {file}: column phash holds {kind}, expected whole numbers")
                for batch in opened.iter_batches(ROWS_AT_ONCE, columns=columns):
                    rows: Any = batch.filter(pc.is_valid(batch["phash"]))
                    if "status" in columns:
                        rows = rows.filter(pc.field("status") == "kept")
                    named = [rows[name].cast(pa.string()) for name in ("url", "key") if name in columns]
                    names: Any = pc.coalesce(*named, pa.array([file.name] * len(rows), pa.string()))
                    yield names, rows["phash"].to_numpy(zero_copy_only=False).astype(np.uint64)
            except (pa.ArrowException, KeyError) as error:  # KeyError: two columns have one name
                raise ValueError(f"--training-hashes {file}: is not a readable parquet file ({error})") from error


@cache
def _columns(file: Path) -> frozenset[str]:
    import pyarrow.parquet

    try:
        return frozenset(pyarrow.parquet.read_schema(file).names)
    except (OSError, ValueError) as error:
        raise ValueError(f"--training-hashes {file}: is not a readable parquet file ({error})") from error
