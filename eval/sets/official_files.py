"""Prediction and annotation files in their published formats, read strictly: an error names file and id in one line."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.files import LARGEST_FOREIGN, check_line, read_lines, read_whole

SampleId = int | str
IDS_SHOWN = 5
ID_FIELDS = ("question_id", "questionId", "image_id", "id", "cocoid", "imgid", "image")  # to name entries in messages
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # JSON's escape; two in a row make one character


def read_json(path: Path, most_bytes: int = LARGEST_FOREIGN) -> Any:
    """A JSON file's content.

    Raises ValueError in one line when the file is missing, too large or no regular file, is not JSON, has a key twice,
    or a string that is not Unicode.
    """
    try:
        text = read_whole(path, most_bytes).decode()
        content = json.loads(text, object_pairs_hook=_once_each)
        check_whole_characters(text, content)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error}); name a whole JSON file") from error
    return content


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number, from 1, and the object of each line that is not empty, read as strictly as `read_json` reads."""
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            check_line(line)
            text = line.decode()
            content = json.loads(text, object_pairs_hook=_once_each)
            check_whole_characters(text, content)
            if not isinstance(content, dict):
                raise ValueError(f"found {type(content).__name__}")
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path}: line {number} is not one JSON object ({error}); write one object a line"
            ) from error
        yield number, content


def check_whole_characters(text: str, content: Any) -> None:
    """Raise ValueError, naming the entry, when JSON's `text` escapes half of a character: it cannot be written."""
    if _SURROGATE.search(text) and (place := _half_character(content)):
        raise ValueError(f"{place} holds a lone surrogate, half of a character; remove it")


def _half_character(content: Any, place: str = "a text") -> str | None:
    """Where in a content a string has a lone surrogate: the nearest id, or the field."""
    if isinstance(content, str):
        try:
            content.encode()
        except UnicodeEncodeError:
            return place
        return None
    if isinstance(content, dict):
        place = next((f"{name} {content[name]!r}" for name in ID_FIELDS if name in content), place)
        parts = [(each, place if place != "a text" else repr(key)) for key, each in content.items()]
        parts += [(key, f"a field of {place}") for key in content]
    else:
        parts = [(each, place) for each in content] if isinstance(content, list) else []
    return next((found for each, where in parts if (found := _half_character(each, where))), None)


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object. A key that occurs twice is an error: where keys are ids (GQA's questions), one would be lost."""
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"{twice!r} occurs twice in one object")
    return found


def read_predictions(path: Path, id_field: str, text_field: str) -> dict[SampleId, str]:
    """A list of {id_field, text_field}, each id once."""
    content = read_json(path)
    if not isinstance(content, list):
        raise ValueError(
            f"{path}: expected a list of {{{id_field}, {text_field}}}, found {type(content).__name__}; write that list"
        )
    predictions: dict[SampleId, str] = {}
    for entry in content:
        sample_id = field_of(path, entry, id_field, (int, str))
        if sample_id in predictions:
            raise ValueError(f"{path}: {id_field} {sample_id!r} occurs twice; remove one of them")
        predictions[sample_id] = field_of(path, entry, text_field, (str,))
    return predictions


def check_same_ids(path: Path, found: Iterable[SampleId], reference: Path, expected: Iterable[SampleId]) -> None:
    """Raise ValueError, naming ids, when one file lacks ids that the other has."""
    found_ids, expected_ids = dict.fromkeys(found), dict.fromkeys(expected)
    faults = [
        f"{len(ids)} {kind} ({', '.join(map(repr, ids[:IDS_SHOWN]))}{', ...' if len(ids) > IDS_SHOWN else ''})"
        for kind, ids in (
            ("missing", [each for each in expected_ids if each not in found_ids]),
            ("extra", [each for each in found_ids if each not in expected_ids]),
        )
        if ids
    ]
    if faults:
        raise ValueError(f"{path}: ids differ from those of {reference}: {', '.join(faults)}; both need the same ids")


def listed(path: Path, content: Any, name: str) -> Sequence[Any]:
    """The list of that name in an object. Raises ValueError when it is missing or empty."""
    entries = content.get(name) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path}: expected an object with a list of {name}; name the official file")
    return entries


def field_of(path: Path, entry: Any, name: str, types: tuple[type, ...], of: str = "") -> Any:
    """A field of an entry. `of` says what the entry belongs to, for messages.

    Raises ValueError, naming file and entry, when the field is missing or of another type.
    """
    if not isinstance(entry, dict) or name not in entry:
        raise ValueError(f"{path}: an entry{of and f' of {of}'} without {name!r}: {str(entry)[:80]}")
    value = entry[name]
    if not isinstance(value, types) or isinstance(value, bool):
        wanted = " or ".join(each.__name__ for each in types)
        own = next((f"{each} {entry[each]!r}" for each in ID_FIELDS if each != name and each in entry), "")
        of_id = f" of {of or own}" if of or own else ""
        raise ValueError(f"{path}: {name} {value!r}{of_id} is a {type(value).__name__}, expected {wanted}")
    return value
