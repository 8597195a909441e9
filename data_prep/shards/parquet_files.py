"""Reads and writes small parquet files of known columns. Reading is strict: a damaged or foreign file is an error."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

Columns = Mapping[str, str]
"""Name -> Arrow type; a question mark at its end means that values may be missing."""


def read_rows(path: Path, columns: Columns, what: str, remedy: str) -> tuple[list[dict[str, Any]], dict[bytes, bytes]]:
    """(one dict for each row with exactly these columns, the metadata).

    Raises ValueError when the file is missing or damaged, or when a column is missing, has another type or lacks a
    value. The message says `what` the file should be, and `remedy` what to do.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if not path.is_file():
            raise ValueError("no such file")
        with path.open("rb") as opened, pq.ParquetFile(opened) as file:  # Arrow takes paths in UTF-8 alone
            if missing := [name for name in columns if name not in file.schema_arrow.names]:
                raise ValueError(f"has no column {', '.join(missing)}")
            table = file.read(columns=list(columns))
        table = table.cast(_schema(columns, table.schema.metadata)).select(list(columns))
        table.validate(full=True)
        for name, kind in columns.items():
            if not kind.endswith("?") and table[name].null_count:
                raise ValueError(f"a row has no {name}")
        rows: list[dict[str, Any]] = table.to_pylist()
    except (OSError, ValueError, OverflowError, MemoryError, pa.ArrowException) as error:
        raise ValueError(f"{path}: is not a readable {what} ({' '.join(str(error).split())}); {remedy}") from error
    return rows, table.schema.metadata or {}


def _schema(columns: Columns, metadata: Any) -> Any:
    import pyarrow as pa

    alias: Any = pa.type_for_alias  # its type stubs accept literal texts only
    return pa.schema([pa.field(name, alias(kind.rstrip("?"))) for name, kind in columns.items()], metadata=metadata)


def write_rows(
    path: Path, columns: Columns, rows: list[dict[str, Any]], metadata: Mapping[bytes, bytes] | None = None
) -> None:
    """Write the file whole or not at all; the same rows give the same bytes."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipeline.files import replace_file

    content = io.BytesIO()
    table = pa.Table.from_pylist(rows, schema=_schema(columns, dict(metadata or {})))
    pq.write_table(table, content, compression="zstd")
    replace_file(path, content.getvalue())
