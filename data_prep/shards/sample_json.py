"""A sample's record, the JSON beside its picture: how it is written, and what it must be to be read."""

import json
import re
from typing import Any

KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,90}")
"""Keys hold no dot (WebDataset splits names at the first one) and fit a USTAR name with their ending."""
LONGEST_SIDE_PX = 1 << 20
LARGEST_SCORE = 1e6
"""Whole numbers of JSON have no bound of their own, floating-point numbers have."""


def encode_record(record: dict[str, Any]) -> bytes:
    """Compact JSON with sorted keys: the same record gives the same bytes. Raises ValueError on NaN or infinity."""
    return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def record_fault(record: Any) -> str | None:
    """What keeps a decoded JSON from being a sample's record, or None: readers rely on these fields and their types."""
    return _field_fault(record) or _caption_fault(record) if isinstance(record, dict) else "no JSON object"


def _field_fault(record: dict[str, Any]) -> str | None:
    kinds = {"key": str, "sha256": str, "width": int, "height": int}
    if wrong := [name for name, kind in kinds.items() if not isinstance(record.get(name), kind)]:
        return f"{wrong[0]} is missing or no {kinds[wrong[0]].__name__}"
    if wrong := [name for name in ("width", "height") if not 0 < record[name] <= LONGEST_SIDE_PX]:
        return f"{wrong[0]} does not lie in 1 .. {LONGEST_SIDE_PX}"
    if not KEY_PATTERN.fullmatch(record["key"]):
        return "key may hold letters, digits, _ and - alone"
    return None


def _caption_fault(record: dict[str, Any]) -> str | None:
    columns = [record.get(name) for name in ("captions", "scores", "sources")]
    if not all(isinstance(column, list) for column in columns) or len({len(column or ()) for column in columns}) != 1:
        return "captions, scores and sources are not three lists of one length"
    texts, numbers = [*(columns[0] or ()), *(columns[2] or ())], columns[1] or ()
    if not all(isinstance(text, str) for text in texts):
        return "a caption or a source is no text"
    fit = all(each is None or (isinstance(each, int | float) and abs(each) <= LARGEST_SCORE) for each in numbers)
    return None if fit else f"a score is no number up to {LARGEST_SCORE:g}"
