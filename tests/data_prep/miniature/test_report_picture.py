"""The README's picture: the panels of a report, found by their headings, as Chromium lays them out."""

import shutil
from pathlib import Path

import pytest

from data_prep.miniature.report_picture import make_picture

pytestmark = pytest.mark.skipif(
    shutil.which("chromium") is None, reason="chromium is not installed: nothing is laid out"
)

PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
PAGE = f"""<!doctype html><html><head>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<style>article, figure {{ display: block; height: 100px; background: rgb(200, 0, 0) }}</style></head><body><main>
<h2>Summary</h2><article><h3>retrieval</h3></article><article><h3>VQA</h3></article><article><h3>captions</h3></article>
<h2>Training</h2><figure><figcaption>Losses</figcaption></figure><figure><figcaption>Accuracies</figcaption></figure>
<h2>Captions: coco</h2><article><img src="{PIXEL}"></article>
<h2>Visual question answering: vqav2</h2><article><img src="{PIXEL}"></article>
</main></body></html>"""


def test_three_columns_of_panels_fill_a_picture_of_their_height(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "report.html").write_text(PAGE)
    with Image.open(make_picture(tmp_path / "report.html", tmp_path / "panels.png")) as picture:
        assert picture.width == 1770 and 450 < picture.height < 700
        middle = picture.convert("RGB").resize((3, 1), Image.Resampling.BOX)
        assert all(middle.getpixel((column, 0))[0] > 200 > middle.getpixel((column, 0))[1] for column in range(3))


def test_a_report_without_a_panel_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(PAGE.replace("<h3>VQA</h3>", ""))
    with pytest.raises(ValueError, match=r"has no panel \['Scores beside their baselines'\]"):
        make_picture(tmp_path / "report.html", tmp_path / "panels.png")


def test_a_folder_without_a_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no report\.html; run `make demo` first"):
        make_picture(tmp_path / "report.html", tmp_path / "panels.png")
