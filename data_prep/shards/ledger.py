"""Writes and reads the ledger: what became of every row of a table.

Rows in = kept + dropped, and each drop has one named reason. A reason is temporary (another try may help) or final.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from data_prep.shards.parquet_files import read_rows, write_rows

TEMPORARY = frozenset(
    {
        "timeout",
        "deadline",
        "dns_failure",
        "connection_failed",
        "truncated_body",
        "lost_by_img2dataset",
        "robots_unreachable",
    }
)
"""Reasons that may be gone at the next try. TEMPORARY_STATUS and every HTTP 5xx are temporary too."""
TEMPORARY_STATUS = frozenset({408, 425, 429})
PHRASES = (
    ("X-Robots-Tag", "opt_out"),
    ("is not allowed", "refused_scheme"),
    ("unknown url type", "refused_scheme"),
    ("infinite loop", "too_many_redirects"),
    ("timed out", "timeout"),
    ("CERTIFICATE_VERIFY_FAILED", "certificate_invalid"),
    ("IncompleteRead", "truncated_body"),
    ("Connection reset", "connection_failed"),
    ("Connection refused", "connection_failed"),
    ("Remote end closed", "connection_failed"),
)
"""(part of an error message of urllib or img2dataset, the reason that it means); the first match decides."""
GUARD = frozenset(
    {
        *("refused_address", "refused_scheme", "malformed_url", "dns_failure", "connection_failed", "deadline"),
        *("byte_cap", "truncated_body", "robots_disallowed", "robots_unreachable"),
    }
)
"""The reasons that the guard of the fetching processes gives."""
OF_REDIRECTS = ("refused_scheme", "too_many_redirects")
"""What urllib says of a redirect that it does not follow, in an error with the redirect's status."""


class Drop(NamedTuple):
    """Why a row was dropped. `http_status` is the answer of the server, if there was one."""

    reason: str
    http_status: int | None = None

    @property
    def temporary(self) -> bool:
        """Whether another try may help."""
        status = self.http_status or 0
        return self.reason in TEMPORARY or status in TEMPORARY_STATUS or 500 <= status < 600

    @classmethod
    def named(cls, reason: str) -> Self:
        """The drop for a reason of the ledger; `http_503` also gives the status."""
        status = re.fullmatch(r"http_(\d{3})", reason)
        return cls(reason, int(status.group(1)) if status else None)


def drop_of_message(message: str) -> Drop:
    """The reason for an error message of the fetch: an HTTP status, our own (`guard:REASON`), or a known phrase.

    The status comes first, as the words after it are the server's.
    """
    if status := re.match(r"HTTP Error (\d{3}): ", message):
        redirected = status.group(1).startswith("3")
        phrases = tuple(each for each in PHRASES if redirected and each[1] in OF_REDIRECTS)
        drop = Drop.named(f"http_{status.group(1)}")
    else:
        own = re.fullmatch(r"(?:<urlopen error )*guard:(\w{1,40})>*", message)
        if own and own.group(1) in GUARD:
            return Drop(own.group(1))
        phrases, drop = PHRASES, Drop("fetch_failed")
    return next((Drop(reason) for phrase, reason in phrases if phrase in message), drop)


@dataclass(frozen=True)
class Entry:
    """One row of the ledger. A kept picture also has the sha256 of its JPEG and its perceptual hash (None if flat)."""

    row: int
    url: str
    caption: str
    status: str
    reason: str | None
    key: str
    http_status: int | None
    sha256: str | None = None
    phash: int | None = None


COLUMNS = {
    "row": "int64",
    "url": "string",
    "caption": "string",
    "status": "string",
    "reason": "string?",
    "key": "string",
    "http_status": "int32?",
    "sha256": "string?",
    "phash": "uint64?",
}


def check_entries(entries: Sequence[Entry], rows: int, kept: int) -> None:
    """Raises RuntimeError when rows in = kept + dropped is false. That is a fault of this program, never of its
    input."""
    dropped = sum(entry.status == "dropped" and bool(entry.reason) for entry in entries)
    if len(entries) != rows or kept + dropped != rows or len({entry.row for entry in entries}) != rows:
        raise RuntimeError(f"ledger of {len(entries)} entries: {rows} rows in, {kept} kept, {dropped} dropped")


def dropped_by_reason(entries: Sequence[Entry]) -> dict[str, int]:
    return dict(sorted(Counter(entry.reason for entry in entries if entry.reason).items()))


def write_ledger(path: Path, entries: Sequence[Entry]) -> None:
    """Write one parquet row for each row of the table; the file appears whole or not at all."""
    write_rows(path, COLUMNS, [vars(entry) for entry in entries])


def read_ledger(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Some columns of a ledger, one dict for each row. Raises ValueError with the file's name when it cannot read them.

    Ledgers of older downloads have no sha256 and no phash.
    """
    chosen = {name: COLUMNS[name] for name in columns}
    rows, _ = read_rows(path, chosen, "ledger", "run data_prep.download into another folder")
    return rows


def ledger_path(tar: Path) -> Path:
    return tar.with_name(f"{tar.stem}.ledger.parquet")
