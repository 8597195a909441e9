"""Writes and reads the side table of a captioned shard: every candidate caption, its score, and whether it was kept.

It holds what the shard left out, so that another selection (`--reselect`) needs no model. The metadata of the parquet
file hold the settings of the candidates, and the sha256 of the raw tar. The sha256 is needed because keys come from URL
and row alone: a table that is downloaded again with other captions has the same keys. The receipt cannot show it,
because a killed reselection has removed the receipt.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.captioning.selection import Candidate, Verdict
from data_prep.shards.parquet_files import read_rows, write_rows

SETTINGS_KEY, INPUT_KEY = b"capfilt", b"input_sha256"
REMEDY = "caption the shard again with --captioner and --ranker"
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
    """Write the table beside `tar`: one row for each candidate, in the order of the samples and of their candidates.

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
    """The rows of the table beside `tar`, in order. Raises ValueError, with its name, when it is missing or damaged."""
    return _read(tar)[0]


def read_checked_table(tar: Path, input_sha256: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(the rows of the table, the settings that they were made with). Raises ValueError when the table is damaged, or
    was made from another tar than that of `input_sha256`."""
    rows, metadata = _read(tar)
    if (made_from := metadata.get(INPUT_KEY, b"").decode(errors="replace")) != input_sha256:
        raise ValueError(
            f"{side_table_path(tar)}: was made from an input shard with sha256 {made_from[:12] or 'unknown'}, "
            f"but the present one has {input_sha256[:12]}; {REMEDY}"
        )
    try:
        settings = json.loads(metadata[SETTINGS_KEY])
        _ = settings["sampling"]["seed"], settings["sampling"].get, settings["models"].items()
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"{side_table_path(tar)}: does not say with which settings it was made; {REMEDY}") from error
    return rows, settings


def read_candidates(tar: Path, input_sha256: str) -> tuple[dict[str, list[Candidate]], dict[str, Any]]:
    """(candidates by key, the settings that they were made with). Raises ValueError as `read_checked_table`."""
    found: dict[str, list[Candidate]] = {}
    rows, settings = read_checked_table(tar, input_sha256)
    for row in rows:
        candidate = Candidate(row["position"], row["caption"], row["source"], row["score"])
        found.setdefault(row["key"], []).append(candidate)
    return found, settings


def _read(tar: Path) -> tuple[list[dict[str, Any]], dict[bytes, bytes]]:
    rows, metadata = read_rows(side_table_path(tar), COLUMNS, "table of candidates", REMEDY)
    for row in rows:
        if row["source"] not in ("web", "synthetic") or row["score"] != row["score"]:
            fault = f"source or score of {row['key']}"
            raise ValueError(f"{side_table_path(tar)}: is not a readable table of candidates ({fault}); {REMEDY}")
    return rows, metadata
