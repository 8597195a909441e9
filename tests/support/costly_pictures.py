"""Small files whose decoding takes much time or memory: scans of a JPEG, tiles and strips of a TIFF."""

import io
import struct
import zlib

from PIL import Image


def progressive_with_scans(width_px: int, height_px: int, num_scans: int) -> bytes:
    """A progressive JPEG whose last scan comes `num_scans` times more."""
    content = io.BytesIO()
    Image.new("L", (width_px, height_px)).save(content, "JPEG", progressive=True)
    whole = content.getvalue()
    last = whole.rindex(b"\xff\xda")
    return whole[:-2] + whole[last:-2] * num_scans + whole[-2:]


def baseline_with_empty_scans(width_px: int, height_px: int, num_scans: int) -> bytes:
    """A baseline JPEG with a scan for each component, and then scans without content."""
    content = io.BytesIO()
    Image.new("RGB", (width_px, height_px)).save(content, "JPEG", subsampling=0)
    whole = content.getvalue()
    first = whole.index(b"\xff\xda")
    scans = [
        b"\xff\xda\x00\x08\x01" + bytes([component, 0 if component == 1 else 0x11, 0, 63, 0]) for component in (1, 2, 3)
    ]
    return whole[:first] + b"".join(scans) + scans[0] * num_scans + b"\xff\xd9"


def tiff(entries: list[tuple[int, int, int, int]], data: bytes) -> bytes:
    """A TIFF with this directory; `data` begins at byte 8."""
    data += bytes(len(data) % 2)
    directory = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(entries)) + directory + bytes(4)


def _rgb(width_px: int, height_px: int, compression: int) -> list[tuple[int, int, int, int]]:
    """Width, height, bits (at byte 8), compression, RGB, samples, one plane."""
    return [
        (256, 4, 1, width_px), (257, 4, 1, height_px), (258, 3, 3, 8), (259, 3, 1, compression), (262, 3, 1, 2),
        (277, 3, 1, 3), (284, 3, 1, 1),
    ]  # fmt: skip


BITS = struct.pack("<HHHH", 8, 8, 8, 0)


def tiff_with_a_large_tile(side_px: int, tile_px: int) -> bytes:
    packed = zlib.compress(bytes(3 * tile_px * tile_px))
    tiles = [(322, 4, 1, tile_px), (323, 4, 1, tile_px), (324, 4, 1, 16), (325, 4, 1, len(packed))]
    return tiff(_rgb(side_px, side_px, 8) + tiles, BITS + packed)


def tiff_with_many_strips(width_px: int, height_px: int, num_strips: int) -> bytes:
    """Each strip is nearly the whole picture, and all are the same bytes."""
    pixels = bytes(3 * width_px * (height_px - 1))
    offsets = struct.pack("<I", 16) * num_strips
    counts = struct.pack("<I", len(pixels)) * num_strips
    place = 16 + len(pixels)
    strips = [
        (273, 4, num_strips, place), (278, 4, 1, height_px - 1), (279, 4, num_strips, place + len(offsets)),
    ]  # fmt: skip
    return tiff(_rgb(width_px, height_px, 1) + strips, BITS + pixels + offsets + counts)
