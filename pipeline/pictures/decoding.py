"""The one decoder of pictures: which formats are read, and how much work one picture may make.

Download, CapFilt, training, evaluation and pages all decode here, so a picture has the same pixels everywhere.
"""

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.pictures.plain_picture import on_white, true_colour, upright

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""The only decoders that are given bytes from outside. Pillow's others start programs, or are rarely tested."""
MAX_BYTES = 256 << 20
MAX_PIXELS = 120_000_000
"""A photo of 108 megapixels is decoded."""
MAX_MEMORY = 600_000_000
"""Bytes that decoding may take at its peak. 120 megapixels in RGB take 5 a pixel, with what is copied meanwhile."""
OF_COPIES = {"WEBP": 20, "AVIF": 16}
"""Bytes a pixel of decoders that keep the picture several times, measured."""
OF_TRANSPARENCY, OF_OTHER_COLOURS, OF_RGB = 16, 9, 5
MAX_SCANNED_PIXELS = 2_000_000_000
"""Pixels x scans of a JPEG, about 1.3 s. An ordinary JPEG has 10 scans at most, a hostile one thousands."""
SCAN = (0xFF, 0xDA)
"""The marker of a scan."""
LEAST_SCAN_BYTES = 10
QUICK_BYTES = 1 << 20
"""Pillow reads the segments of a JPEG of this size in less than a second."""
MAX_READ_S = 10.0
"""Time of the processor, so that a busy machine drops no picture."""


class CostlyPictureError(Exception):
    """A picture whose decoding takes more time or memory than its size allows."""


class _Timed(io.BytesIO):
    """Bytes that can be read for MAX_READ_S. Pillow's own loops read between their steps."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.end_s = time.thread_time() + MAX_READ_S

    def read(self, size: int | None = -1, /) -> bytes:
        if time.thread_time() > self.end_s:
            raise CostlyPictureError(f"decoding takes more than {MAX_READ_S:g} s")
        return super().read(size)


@contextmanager
def opened(content: bytes, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] = FORMATS) -> Iterator[Image.Image]:
    """The picture, of which only the header is read yet. What is decoded inside is bounded in time and memory.

    Raises DecompressionBombError for more than `max_pixels`, CostlyPictureError, and what else Pillow raises.
    """
    quick = len(content) <= QUICK_BYTES and content.startswith(b"\xff\xd8")
    try:
        found = Image.open(io.BytesIO(content) if quick else _Timed(content), formats=formats)
    except UnidentifiedImageError as error:  # which names an object in memory
        raise UnidentifiedImageError(f"is no picture of {', '.join(formats)}") from error
    with found as image:
        num_pixels = image.width * image.height
        most = min(max_pixels, MAX_MEMORY // _bytes_a_pixel(image))
        if num_pixels > most:
            raise Image.DecompressionBombError(f"has {num_pixels} pixels, more than {most} in its format")
        if image.format in ("JPEG", "MPO"):
            _check_scans(image, content, num_pixels)
        elif image.format == "TIFF":
            _check_tiles(image, max_pixels)
        yield image


def _bytes_a_pixel(image: Image.Image) -> int:
    """What decoding and `plain` take at their peak."""
    if image.format in OF_COPIES:
        return OF_COPIES[image.format]
    if image.has_transparency_data:
        return OF_TRANSPARENCY
    return OF_RGB if image.mode in ("RGB", "L", "P", "1") else OF_OTHER_COLOURS


def _check_scans(image: Image.Image, content: bytes, num_pixels: int) -> None:
    if num_pixels * (len(content) // LEAST_SCAN_BYTES) <= MAX_SCANNED_PIXELS or _has_one_scan(image, content):
        return
    values = np.frombuffer(content, np.uint8)
    scans = int(np.count_nonzero((values[:-1] == SCAN[0]) & (values[1:] == SCAN[1])))
    if num_pixels * scans > MAX_SCANNED_PIXELS:
        raise CostlyPictureError(f"has {scans} scans of {num_pixels} pixels")


def _has_one_scan(image: Image.Image, content: bytes) -> bool:
    """Whether its first scan, whose header Pillow has just read, has all components, and it is not progressive: then
    no decoder reads another. Counting scans takes a fiftieth of the time of decoding."""
    components = getattr(image, "layers", 0)
    header = bytes((*SCAN, 0, 6 + 2 * components, components))
    file = getattr(image, "fp", None)
    end = file.tell() if file else 0
    return (
        components in (1, 3)
        and "progressive" not in image.info
        and content.startswith(header, end - len(header) - 3 - 2 * components)
    )


def _check_tiles(image: Image.Image, max_pixels: int) -> None:
    """A tile of a TIFF is decoded whole, even if the picture is smaller."""
    from PIL.TiffImagePlugin import TILELENGTH, TILEWIDTH

    tags = getattr(image, "tag_v2", {})
    width, length = tags.get(TILEWIDTH, 1), tags.get(TILELENGTH, 1)
    if not isinstance(width, int) or not isinstance(length, int) or width * length > max_pixels:
        raise CostlyPictureError(f"has tiles of {width} x {length} pixels")


def plain(image: Image.Image) -> Image.Image:
    """The first frame of an opened picture in RGB: upright, transparency on white."""
    image.load()
    return on_white(true_colour(upright(image)))


def decode_rgb(content: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture in RGB. Raises what `opened` and Pillow's decoders raise."""
    with opened(content, max_pixels) as image:
        return plain(image)


def read_picture(path: Path) -> bytes:
    """The bytes of a picture file. Raises OSError, and ValueError for what is no regular file or too large."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: is not a regular file")
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"{path}: is larger than {MAX_BYTES >> 20} MiB")
    return content
