"""Spoilt files for tests: bytes mutated at random, and tars, JSONs, pictures and file kinds that are spoilt on purpose.

Every mutation is a function of a random generator and of what it spoils, so that a seed repeats it.
"""

import io
import json
import os
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

Rng = random.Random


def flip_bits(rng: Rng, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(rng: Rng, content: bytes) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def cut_at_a_block(rng: Rng, content: bytes) -> bytes:
    return content[: 512 * rng.randrange(len(content) // 512 + 1)]


def put_in(rng: Rng, content: bytes) -> bytes:
    place = rng.randrange(len(content) + 1)
    return content[:place] + rng.randbytes(rng.choice((1, 3, 512))) + content[place:]


def zero_out(rng: Rng, content: bytes) -> bytes:
    place, length = rng.randrange(len(content) + 1), rng.choice((1, 8, 512))
    return content[:place] + bytes(len(content[place : place + length])) + content[place + length :]


def repeat_part(rng: Rng, content: bytes) -> bytes:
    place, length = rng.randrange(len(content) + 1), rng.choice((8, 512, 1024))
    return content[: place + length] + content[place : place + length] + content[place + length :]


BYTES: tuple[Callable[[Rng, bytes], bytes], ...] = (
    flip_bits,
    flip_bits,
    cut,
    cut_at_a_block,
    put_in,
    zero_out,
    repeat_part,
)


def any_bytes(rng: Rng, content: bytes) -> bytes:
    return rng.choice(BYTES)(rng, content)


NAMES = (
    "../../escaped.jpg",
    "/tmp/escaped.jpg",
    "a/../../b.jpg",
    "..",
    "tiny_\u00e9.jpg",
    "x" * 96 + ".jpg",
    "tiny_a.b.jpg",
    "",
)
KINDS = (
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.FIFOTYPE,
    tarfile.DIRTYPE,
    b"x",
    b"L",
    b"S",
)


def spoil_member(rng: Rng, content: bytes) -> bytes:
    """One header of a tar rewritten, with a right checksum: another name, kind, size, owner or link."""
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        members = tar.getmembers()
    member = rng.choice(members)
    what = rng.choice(("name", "kind", "size", "link"))
    if what == "name":
        member.name = rng.choice((*NAMES, rng.choice(members).name))
    elif what == "kind":
        member.type = rng.choice(KINDS)
        member.linkname = rng.choice(("/etc/passwd", "../../escaped", members[0].name))
    elif what == "size":
        member.size = rng.choice((0, 1, member.size + 512, 1 << 32, (1 << 33) - 1))
    else:
        member.linkname = "/etc/passwd"
    header = member.tobuf(tarfile.USTAR_FORMAT, "utf-8", "surrogateescape")[:512]
    return content[: member.offset] + header + content[member.offset + 512 :]


JSON_VALUES: tuple[Any, ...] = (
    None, True, -1, 1 << 70, 1.5, "", "a\ud800b", "../../escaped", [], [None], ["x"] * 2, {}, {"a": {"b": []}}, "\0",
    "x" * 70_000,
)  # fmt: skip


def spoil_json(rng: Rng, content: bytes) -> bytes:
    """A JSON text with a field replaced, lost, given twice, nested too deep, not finite, or not in UTF-8."""
    fields = json.loads(content)
    name = rng.choice(sorted(fields))
    way = rng.randrange(8)
    if way <= 2:
        fields[name] = rng.choice(JSON_VALUES)
    elif way == 3:
        del fields[name]
    elif way == 4:
        return content.rstrip()[:-1] + b"," + json.dumps({name: rng.choice(JSON_VALUES)}).encode()[1:]
    elif way == 5:
        return content.rstrip()[:-1] + b',"deep":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    elif way == 6:
        return (
            content.rstrip()[:-1] + b',"scores":[' + rng.choice((b"NaN", b"-Infinity", b"1e999", b"9" * 5000)) + b"]}"
        )
    else:
        return content.replace(b"a", rng.choice((b"\xff", b"\xc0\x80", b"\xed\xa0\x80")), 1)
    return json.dumps(fields).encode()


def spoil_picture(rng: Rng, jpeg: bytes) -> bytes:
    """A JPEG with damaged bytes, impossible sizes, or something else in its place."""
    way = rng.randrange(6)
    if way <= 2:
        return any_bytes(rng, jpeg)
    if way == 3:  # the size in the frame header
        place = jpeg.find(b"\xff\xc0") + 5
        size = rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\0\1", b"\0\1\xff\xff"))
        return jpeg[:place] + size + jpeg[place + 4 :]
    if way == 4:
        content = io.BytesIO()
        Image.new(rng.choice(("L", "CMYK", "1")), rng.choice(((1, 1), (1, 3000), (40, 40)))).save(
            content, rng.choice(("JPEG", "TIFF"))
        )
        return content.getvalue()
    return rng.choice((b"", b"<svg/>", b"GIF89a", rng.randbytes(400), b"\xff\xd8\xff\xe1\xff\xff" + rng.randbytes(50)))


def replace_by_other_kind(rng: Rng, path: Path) -> None:
    """In the file's place something that is no ordinary file."""
    path.unlink()
    way = rng.randrange(6)
    if way == 0:
        path.symlink_to("/dev/zero")
    elif way == 1:
        path.symlink_to("/etc/passwd")
    elif way == 2:
        path.symlink_to(path.name)
    elif way == 3:
        path.mkdir()
    elif way == 4:
        os.mkfifo(path)
