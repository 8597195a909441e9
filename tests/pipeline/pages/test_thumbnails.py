"""Small pictures as data URIs: upright, small enough, or a reason."""

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from pipeline.pages.page import render
from pipeline.pages.thumbnails import Thumbnail, thumbnail

ORIENTATION_TAG = 0x0112


def encoded(size: tuple[int, int], kind: str, orientation: int = 1) -> bytes:
    content, exif = io.BytesIO(), Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    Image.new("RGB", size, (200, 30, 30)).save(content, kind, exif=exif)
    return content.getvalue()


def decoded(made: Thumbnail) -> Image.Image:
    assert made.uri.startswith("data:image/jpeg;base64,")
    return Image.open(io.BytesIO(base64.b64decode(made.uri.partition(",")[2])))


def test_a_picture_is_made_small_and_upright(tmp_path: Path) -> None:
    made = thumbnail(encoded((600, 300), "JPEG", orientation=6), 100)
    assert (made.width, made.height) == decoded(made).size == (50, 100) and not made.fault
    (tmp_path / "a.png").write_bytes(encoded((30, 20), "PNG"))
    made = thumbnail(tmp_path / "a.png")
    assert (made.width, made.height) == decoded(made).size == (30, 20)


@pytest.mark.parametrize("source", [b"", b"no picture", encoded((90, 90), "JPEG")[:-400]])
def test_bytes_that_are_no_whole_jpeg_have_a_fault(source: bytes) -> None:
    made = thumbnail(source)
    assert made.fault and not made.uri


def test_a_missing_file_has_a_fault_that_names_it(tmp_path: Path) -> None:
    assert "gone.jpg" in thumbnail(tmp_path / "gone.jpg").fault


def test_the_page_says_what_cannot_be_shown(tmp_path: Path) -> None:
    (tmp_path / "t.html").write_text(
        '{% from "pages/picture.html" import picture %}{{ picture(thumbnail, alt) }}', encoding="utf-8"
    )
    page = render(tmp_path, "t.html", thumbnail=Thumbnail(fault="<b>torn</b>"), alt="")
    assert "picture not readable: &lt;b&gt;torn&lt;/b&gt;" in page and "<img" not in page
    page = render(tmp_path, "t.html", thumbnail=thumbnail(encoded((9, 9), "JPEG")), alt='" onload="x')
    assert page.count("<img") == 1 and 'onload="x"' not in page
