"""Small pictures inside a page: one function makes a data URI of a file or of bytes."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

LONGEST_PX = 256
"""The longest side of a picture, unless the caller wants another."""
QUALITY = 82
"""JPEG quality of the small picture, 0 to 100."""


@dataclass(frozen=True)
class Thumbnail:
    """A picture as a data URI with its size, or the reason why there is none (`fault`)."""

    uri: str = ""
    width: int = 0
    height: int = 0
    fault: str = ""


def thumbnail(source: Path | bytes, longest_px: int = LONGEST_PX) -> Thumbnail:
    """Make the picture small, upright and RGB. Bytes come from a shard."""
    from pipeline.pictures.decoding import decode_rgb, read_picture

    try:
        image = decode_rgb(source if isinstance(source, bytes) else read_picture(source))
    except Exception as error:  # Pillow raises many kinds for a damaged file
        return Thumbnail(fault=str(error))
    image.thumbnail((longest_px, longest_px))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=QUALITY)
    encoded = base64.b64encode(content.getvalue()).decode()
    return Thumbnail(f"data:image/jpeg;base64,{encoded}", image.width, image.height)
