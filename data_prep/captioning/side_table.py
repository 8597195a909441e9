"""The side table of a captioned shard: every candidate caption with its score and what became of it, as parquet.

It keeps what the shard left out, so that another selection needs no model. The settings that the candidates were made
with stand in the file's metadata, and the sha256 of the tar that they were made from.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.captioning.selection import Candidate, Verdict
from data_prep.shards.parquet_files import read_rows, write_rows

SETTINGS_KEY, INPUT_KEY = b"capfilt", b"input_sha256"
COLUMNS = {
    "key": "string",
    "position": "int32",
    "caption": "string",
    "source": "string",
    "score": "double?",
    "kept": "bool",
    "reason": "string",
}


def side_table_path(tar: Path) -> Path:
    return tar.with_name(f"{tar.stem}.candidates.parquet")


def write_side_table(
    tar: Path, verdicts: Mapping[str, list[Verdict]], settings: Mapping[str, Any], input_sha256: str
) -> None:
    """Write the table beside `tar`: one row a candidate, in the order of the samples and of their candidates.

    Columns: key, position, caption, source, score (null: not scored), kept, reason ("" when kept).
    """
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
    metadata = {SETTINGS_KEY: json.dumps(settings, sort_keys=True).encode(), INPUT_KEY: input_sha256.encode()}
    write_rows(side_table_path(tar), COLUMNS, rows, metadata)


def read_side_table(tar: Path) -> list[dict[str, Any]]:
    """The rows of the table beside `tar`, in order. Raises ValueError, naming it, when it is missing or damaged."""
    return _read(tar)[0]


def read_vouched(tar: Path, input_sha256: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(the rows of the table, the settings that they were made with). Raises ValueError when the table is damaged, or
    was made from another tar than that of `input_sha256`: the same keys may have other captions there."""
    rows, metadata = _read(tar)
    if (made_from := metadata.get(INPUT_KEY, b"").decode(errors="replace")) != input_sha256:
        raise ValueError(
            f"{side_table_path(tar)}: its captions are of an input shard of sha256 {made_from[:12] or 'unknown'}, "
            f"not of today's, {input_sha256[:12]}; caption the shard again, with --captioner and --ranker"
        )
    try:
        settings = json.loads(metadata[SETTINGS_KEY])
        _ = settings["sampling"]["seed"], settings["sampling"].get, settings["models"].items()
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"{side_table_path(tar)}: does not say what its candidates were made with") from error
    return rows, settings


def read_candidates(tar: Path, input_sha256: str) -> tuple[dict[str, list[Candidate]], dict[str, Any]]:
    """(candidates by key, the settings that they were made with). Raises ValueError as `read_vouched` does."""
    found: dict[str, list[Candidate]] = {}
    rows, settings = read_vouched(tar, input_sha256)
    for row in rows:
        candidate = Candidate(row["position"], row["caption"], row["source"], row["score"])
        found.setdefault(row["key"], []).append(candidate)
    return found, settings


def _read(tar: Path) -> tuple[list[dict[str, Any]], dict[bytes, bytes]]:
    rows, metadata = read_rows(side_table_path(tar), COLUMNS, "table of candidates")
    for row in rows:
        if row["source"] not in ("web", "synthetic") or row["score"] != row["score"]:
            raise ValueError(f"{side_table_path(tar)}: not a readable table of candidates (its row of {row['key']})")
    return rows, metadata
