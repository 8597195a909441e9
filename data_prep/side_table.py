"""The side table of a captioned shard: every candidate caption with its score and what became of it, as parquet.

It keeps what the shard left out, so that another selection needs no model. The settings that the candidates were made
with stand in the file's metadata.
"""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep import shard_io
from data_prep.selection import Candidate, Verdict

SETTINGS_KEY = b"capfilt"


def side_table_path(tar: Path) -> Path:
    return tar.with_name(f"{tar.stem}.candidates.parquet")


def write_side_table(tar: Path, verdicts: Mapping[str, list[Verdict]], settings: Mapping[str, Any]) -> None:
    """Write the table beside `tar`: one row a candidate, in the order of the samples and of their candidates.

    Columns: key, position, caption, source, score (null: not scored), kept, reason ("" when kept).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "key": key,
            "position": verdict.candidate.position,
            "caption": verdict.candidate.caption,
            "source": verdict.candidate.source,
            "score": verdict.candidate.score,
            "kept": verdict.rank is not None,
            "reason": verdict.reason,
        }
        for key, each in verdicts.items()
        for verdict in each
    ]
    columns: list[Any] = [
        pa.field("key", pa.string()),
        pa.field("position", pa.int32()),
        pa.field("caption", pa.string()),
        pa.field("source", pa.string()),
        pa.field("score", pa.float64()),
        pa.field("kept", pa.bool_()),
        pa.field("reason", pa.string()),
    ]
    schema = pa.schema(columns, metadata={SETTINGS_KEY: json.dumps(settings, sort_keys=True).encode()})
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), content, compression="zstd")
    shard_io.replace_file(side_table_path(tar), content.getvalue())


def read_side_table(tar: Path) -> list[dict[str, Any]]:
    """The rows of the table beside `tar`, in order. Raises ValueError, naming it, when it is missing or damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = side_table_path(tar)
    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path}: no readable table of candidates ({error})") from error
    return rows


def read_candidates(tar: Path) -> tuple[dict[str, list[Candidate]], dict[str, Any]]:
    """(candidates by key, the settings that they were made with). Raises ValueError when the table is damaged."""
    import pyarrow.parquet as pq

    found: dict[str, list[Candidate]] = {}
    for row in read_side_table(tar):
        candidate = Candidate(row["position"], row["caption"], row["source"], row["score"])
        found.setdefault(row["key"], []).append(candidate)
    try:
        settings: dict[str, Any] = json.loads(pq.read_schema(side_table_path(tar)).metadata[SETTINGS_KEY])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{side_table_path(tar)}: does not say what its candidates were made with") from error
    return found, settings
