"""Reads tars of captioned pictures that other programs wrote, as WebDataset and img2dataset do.

A sample is the files of a tar with one key, which is the name up to the first dot after the last slash: one picture,
and its caption in `KEY.txt` or in a field of `KEY.json`. `_apart` tells samples of one key apart. Only
headers and captions are read here; nothing is unpacked.

Nothing in a tar is trusted: what is damaged becomes a row that is dropped for a named reason.
"""

import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, starmap
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from data_prep.shards.ledger import Drop
from data_prep.tables.conditions import Condition, failed
from data_prep.tables.row import Place, Row, captions_of, text_of
from data_prep.tables.unicode_text import without_surrogates
from pipeline.tar_headers import BoundedTarInfo

ENDING = ".tar"
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
PICTURES = ("jpg", "jpeg", "png", "webp")
KINDS = ("picture", "txt", "json")
SAMPLES_OF_A_TAR = 10**9
"""The row of a sample is the number of its tar times this, plus its place in it: the same in any number of tasks."""
NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)
"""(key, endings), as WebDataset splits the name of a file."""
METADATA = re.compile(r"__[^/]*__($|/)")
"""Names of files that WebDataset leaves out."""
LONGEST_NAME = 512
LONGEST_HEADER = 1 << 20
"""Bytes of the long names and attributes in front of one file."""
MOST_FILES = 2_000_000
"""Files of one tar: their places are held in memory."""
LARGEST_TEXT = 1 << 20
"""Bytes of a caption file or JSON. img2dataset's JSON may hold all of a picture's EXIF."""
LONGEST_CAPTION, LONGEST_URL = 20_000, 8_000
"""Characters."""


class _BoundedFile:
    """A file of which tarfile reads headers alone: a header that claims gigabytes is an error, not read."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self.file.read(size)


@dataclass(frozen=True)
class Wanted:
    """What to take from the JSON of a sample. Without `caption`, the text of `KEY.txt` counts, else the field
    "caption"."""

    url: str = "url"
    caption: str | None = None
    conditions: tuple[Condition, ...] = ()


class _File(NamedTuple):
    """A file of a sample: its kind, what stands before that in its ending (of `seg.jpg`: seg), and its bytes' place."""

    kind: str
    part: str
    place: Place


def tar_files(path: Path) -> list[Path]:
    """The tars below a folder in order of their paths, or the one tar. Raises ValueError when there is none, or one is
    compressed."""
    found = [path] if not path.is_dir() else sorted(each for each in path.rglob("*") if not each.is_dir())
    if packed := [each for each in found if each.name.lower().endswith(PACKED)]:
        raise ValueError(f"--input {packed[0]}: is compressed, so its pictures cannot be found by place; unpack it")
    tars = [each for each in found if each.name.lower().endswith(ENDING)]
    if not tars:
        raise ValueError(f"--input {path}: has no {ENDING} file; name a folder of tars, or use another source")
    return tars


def tar_rows(path: Path, wanted: Wanted, task_index: int = 0, task_count: int = 1) -> Iterator[Row]:
    """The samples of the tars that belong to this task: every `task_count`-th, from `task_index` on.

    Raises ValueError as `tar_files` does. A tar that is damaged gives the samples before the damage, and one row more,
    which says so.
    """
    for number, tar in list(enumerate(tar_files(path)))[task_index::task_count]:
        name = f"{path.resolve().name}/{tar.relative_to(path)}" if path.is_dir() else tar.name
        yield from _rows_of(tar, without_surrogates(name), number * SAMPLES_OF_A_TAR, wanted)


def _rows_of(tar: Path, name: str, first: int, wanted: Wanted) -> Iterator[Row]:
    samples: dict[str, list[_File]] = {}
    damaged = False
    try:
        for member in _members(tar):
            _add(samples, tar, member)
    except Exception:  # tarfile raises many kinds for hostile headers
        damaged = True
    number = first
    for number, (key, files) in enumerate(chain.from_iterable(starmap(_apart, samples.items())), first + 1):
        yield _row(number - 1, f"{name}/{key}", files, wanted)
    if damaged:
        yield Row(number, name, (), drop=Drop("damaged_tar"))


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    """The headers of a tar's files, in order. Raises an error of any kind at the first damage."""
    if not path.is_file():
        raise tarfile.ReadError("is not a regular file")
    size = path.stat().st_size
    with path.open("rb") as file:
        bounded: Any = _BoundedFile(file)
        tar: Any = tarfile.open(fileobj=bounded, mode="r:", tarinfo=BoundedTarInfo)  # noqa: SIM115 - it holds nothing but the file
        end, number = -1, 0
        while (member := tar.next()) is not None:
            tar.members = []  # else it keeps every header
            number += 1
            if tar.offset <= end:
                raise tarfile.ReadError("headers in a circle")
            if number > MOST_FILES or len(member.name) > LONGEST_NAME:
                raise tarfile.ReadError("too many files, or a name that is too long")
            end = tar.offset
            if not member.isreg() or member.issparse():
                continue
            if not 0 <= member.size <= size - member.offset_data:
                raise tarfile.ReadError("a file is cut short")
            yield member
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("the end of the archive is missing")  # also where tarfile took damage for the end


def _add(samples: dict[str, list[_File]], tar: Path, member: tarfile.TarInfo) -> None:
    match = NAME.fullmatch(member.name.removeprefix("./"))
    if match and not METADATA.match(member.name):
        files = samples.setdefault(without_surrogates(match[1]), [])
        part, _, ending = match[2].lower().rpartition(".")
        kind = "picture" if ending in PICTURES else ending
        if kind in KINDS:
            files.append(_File(kind, part, Place(tar, member.offset_data, member.size)))


def _apart(key: str, files: list[_File]) -> list[tuple[str, list[_File]]]:
    """The samples of one key: each part with a picture and a text, and each part that is dropped, as a row of its own.

    The picture without a part, else the only one, takes what it lacks from texts that have no picture: both have the
    same part, or one of them has none, as of `x.jpg` and `x.caption.txt`, or of `x.face.jpg` and `x.txt`.
    """
    parts: dict[str, list[_File]] = {} if files else {"": []}
    for file in files:
        parts.setdefault(file.part, []).append(file)
    shown = {part for part, own in parts.items() if any(file.kind == "picture" for file in own)}
    main = min(shown, default="") if len(shown) < 2 or "" in shown else None
    samples = {}
    for part, own in parts.items():
        kinds = {file.kind for file in own}
        if part == main:
            loose = [file for file in files if "" in (part, file.part) and file.part not in shown]
            samples[part] = own + [file for file in loose if file.kind not in kinds]
        elif part in shown and kinds == {"picture"}:
            if "" not in shown:  # else it is beside the point, as a mask
                samples[part] = own * 2 if "" in parts else own  # twice, so refused: the text may be another picture's
        elif part in shown or "" not in parts:
            samples[part] = own
    return [(f"{key}.{part}" if part and len(samples) > 1 else key, own) for part, own in samples.items()]


def _row(number: int, name: str, files: Sequence[_File], wanted: Wanted) -> Row:
    """One sample as a row; `name` stands for its URL where its JSON has none."""
    pictures, texts, records = ([each.place for each in files if each.kind == kind] for kind in KINDS)
    if not pictures:
        return Row(number, name, (), drop=Drop("no_picture"))
    if max(map(len, (pictures, texts, records))) > 1:
        return Row(number, name, (), drop=Drop("repeated_member"))
    fields = _fields(records[0]) if records else {}
    try:
        text = captions_of(_text(texts[0])) if texts and not wanted.caption else ()
    except UnicodeDecodeError:
        return Row(number, name, (), drop=Drop("unreadable_caption"))
    captions = text or captions_of((fields or {}).get(wanted.caption or "caption"))
    too_long = any(len(caption) > LONGEST_CAPTION for caption in captions)
    if too_long or (fields is None and not captions):
        return Row(number, name, (), drop=Drop("unreadable_caption"))
    values = [(fields or {}).get(each.column) for each in wanted.conditions]
    url = text_of((fields or {}).get(wanted.url))
    url = url if 0 < len(url) <= LONGEST_URL else name
    return Row(number, url, captions, drop=failed(wanted.conditions, values), place=pictures[0])


def _fields(place: Place) -> dict[str, Any] | None:
    """The JSON of a sample, or None if it is damaged."""
    try:
        content = json.loads(_text(place))
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _text(place: Place) -> str:
    """A whole caption file or JSON; empty if it is far too large, or cannot be read now. Raises UnicodeDecodeError."""
    try:
        return place.read().decode("utf-8-sig") if place.size <= LARGEST_TEXT else ""
    except OSError:
        return ""
