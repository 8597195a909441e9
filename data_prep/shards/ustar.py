"""Writes members of a USTAR archive (the same files give the same bytes) and reads their headers strictly."""

import hashlib
import tarfile
from functools import partial
from pathlib import Path
from typing import BinaryIO

BLOCK = 512
"""Bytes of a tar block: a header is one block, and data are padded to whole blocks."""

CHUNK = 1 << 20
"""Bytes that are read at once."""
LARGEST_MEMBER = 1 << 28
"""Bytes of a picture or its JSON; a sparse file may claim more than memory holds."""


class HashingFile:
    """Counts and hashes the bytes that are written into a file."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, content: bytes) -> None:
        self.file.write(content)
        self.digest.update(content)
        self.size += len(content)


def padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def write_member(file: HashingFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    info.mode = 0o644
    file.write(info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict"))
    file.write(content)
    file.write(bytes(padded(len(content)) - len(content)))


def read_header(file: BinaryIO, tar: Path, offset: int, size: int) -> tarfile.TarInfo | None:
    """The header at `offset`, or None at the end of the archive. Raises ValueError when it is damaged or cut short."""
    file.seek(offset)
    header = file.read(BLOCK)
    if header == bytes(BLOCK):
        if size < offset + 2 * BLOCK or any(chunk.strip(b"\0") for chunk in iter(partial(file.read, CHUNK), b"")):
            raise ValueError(f"{tar}: the end of the archive at byte {offset} is cut short, or other bytes follow it")
        return None
    try:
        info = tarfile.TarInfo.frombuf(header, "ascii", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError) as error:
        raise ValueError(f"{tar}: is cut short or damaged at byte {offset} ({error})") from error
    if not info.isreg() or info.size < 0 or offset + BLOCK + info.size > size:
        raise ValueError(f"{tar}: member {info.name!r} at byte {offset} is cut short, or is not a regular file")
    if info.size > LARGEST_MEMBER:
        raise ValueError(f"{tar}: member {info.name!r} at byte {offset} has {info.size} bytes, more than a sample has")
    info.offset_data = offset + BLOCK
    return info
