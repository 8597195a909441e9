"""Small parquet files of known columns: read strictly, so that a damaged or foreign one is named and never believed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

Columns = Mapping[str, str]
"""Name -> Arrow type; with a question mark at its end where values may be missing."""


def read_rows(path: Path, columns: Columns, what: str) -> tuple[list[dict[str, Any]], dict[bytes, bytes]]:
    """(a dict a row with just these columns, the metadata). Raises ValueError, naming the file as `what` it is to be,
    when it is no regular file, is damaged, or a column is missing, of another type or without a value."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if not path.is_file():
            raise ValueError("no such file")
        with pq.ParquetFile(path) as file:
            if lacking := [name for name in columns if name not in file.schema_arrow.names]:
                raise ValueError(f"lacks {', '.join(lacking)}")
            table = file.read(columns=list(columns))
        table = table.cast(_schema(columns, table.schema.metadata)).select(list(columns))
        table.validate(full=True)
        for name, kind in columns.items():
            if not kind.endswith("?") and table[name].null_count:
                raise ValueError(f"{name} is missing in a row")
        rows: list[dict[str, Any]] = table.to_pylist()
    except (OSError, ValueError, OverflowError, MemoryError, pa.ArrowException) as error:
        raise ValueError(f"{path}: not a readable {what} ({' '.join(str(error).split())})") from error
    return rows, table.schema.metadata or {}


def _schema(columns: Columns, metadata: Any) -> Any:
    import pyarrow as pa

    alias: Any = pa.type_for_alias  # its stubs know literals alone
    return pa.schema([pa.field(name, alias(kind.rstrip("?"))) for name, kind in columns.items()], metadata=metadata)


def write_rows(
    path: Path, columns: Columns, rows: list[dict[str, Any]], metadata: Mapping[bytes, bytes] | None = None
) -> None:
    """Written whole or not at all; the same rows give the same bytes."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipeline.files import replace_file

    content = io.BytesIO()
    table = pa.Table.from_pylist(rows, schema=_schema(columns, dict(metadata or {})))
    pq.write_table(table, content, compression="zstd")
    replace_file(path, content.getvalue())
