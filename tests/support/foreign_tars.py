"""Tars as other programs write them: samples of a picture with KEY.txt and KEY.json, in any format of tar."""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

from tests.support.web_folder import jpeg_bytes

Member = tuple[str, bytes] | tarfile.TarInfo


def write_tar(path: Path, members: Iterable[Member], tar_format: int = tarfile.GNU_FORMAT) -> Path:
    """The members in their order: files by name and content, and other kinds as their headers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tar_format) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            name, content = member
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def of_img2dataset(key: str, seed: int, caption: str = "", **fields: object) -> list[tuple[str, bytes]]:
    """The three files of a sample of img2dataset, in its order. Without a caption it writes an empty one."""
    record = {
        **{"key": key, "caption": caption, "url": f"http://host/{key}.jpg", "status": "success", "error_message": None},
        **{"width": 96, "height": 64, "original_width": 960, "original_height": 640, "exif": "{}", "sha256": "0" * 64},
    }
    return [
        (f"{key}.jpg", jpeg_bytes(seed)),
        (f"{key}.json", json.dumps(record | fields).encode()),
        (f"{key}.txt", caption.encode()),
    ]
