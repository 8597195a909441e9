"""Writes and checks the JSON of a sample, the file beside its picture in a tar (in the code: its record)."""

import json
import re
from typing import Any

KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,90}")
"""Keys have no dot, because WebDataset splits names at the first dot. With its ending a key fits a USTAR name."""
LONGEST_SIDE_PX = 1 << 20
LARGEST_SCORE = 1e6
"""JSON sets no limit for whole numbers, and Python cannot convert huge ones to floats."""


def encode_record(record: dict[str, Any]) -> bytes:
    """Compact JSON with sorted keys: the same record gives the same bytes. Raises ValueError on NaN or infinity."""
    return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def record_fault(record: Any) -> str | None:
    """Why a decoded JSON is not that of a sample, or None. Readers rely on these fields and their types."""
    return _field_fault(record) or _caption_fault(record) if isinstance(record, dict) else "it is not a JSON object"


def _field_fault(record: dict[str, Any]) -> str | None:
    kinds = {"key": str, "sha256": str, "width": int, "height": int}
    if wrong := [name for name, kind in kinds.items() if not isinstance(record.get(name), kind)]:
        return f"{wrong[0]} is missing or its type is not {kinds[wrong[0]].__name__}"
    if wrong := [name for name in ("width", "height") if not 0 < record[name] <= LONGEST_SIDE_PX]:
        return f"{wrong[0]} is not between 1 and {LONGEST_SIDE_PX}"
    if not KEY_PATTERN.fullmatch(record["key"]):
        return "key is not 1 to 90 letters, digits, _ or -"
    return None


def _caption_fault(record: dict[str, Any]) -> str | None:
    columns = [record.get(name) for name in ("captions", "scores", "sources")]
    if not all(isinstance(column, list) for column in columns) or len({len(column or ()) for column in columns}) != 1:
        return "captions, scores and sources are not three lists of equal length"
    texts, numbers = [*(columns[0] or ()), *(columns[2] or ())], columns[1] or ()
    if not all(isinstance(text, str) for text in texts):
        return "a caption or a source is not a text"
    fit = all(each is None or (isinstance(each, int | float) and abs(each) <= LARGEST_SCORE) for each in numbers)
    return None if fit else f"a score is not a number of at most {LARGEST_SCORE:g}"
