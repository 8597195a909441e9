"""Reads whole JSON files that other programs wrote."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.files import LARGEST_FOREIGN, read_whole


def load_json(path: Path, flag: str, read_object: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """The content of a file; `read_object` may replace each object. Raises ValueError that names flag and file."""
    try:
        return json.loads(read_whole(path, LARGEST_FOREIGN), object_hook=read_object)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{flag} {path}: cannot be read as JSON ({error})") from error


def fault_of(error: Exception) -> str:
    """What is wrong with an entry of a file, in words: a KeyError alone only says the name of the field."""
    return f"it has no {error}" if isinstance(error, KeyError) else str(error)
