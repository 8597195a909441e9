"""Three panels of a finished demo's report in one picture, for the README.

The panels are training curves, a caption with an answer, and scores. Chromium lays the report out. A script in a copy
of the page keeps the panels, which it finds by their headings.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TypedDict
from urllib.parse import unquote

from pipeline.command_line import Parser, finish

WIDTH_PX, MAX_HEIGHT_PX = 1180, 1600
PIXELS_PER_PX = 1.5  # sharp on the screens of today, and still a small file
DEADLINE_S = 60


class Layout(TypedDict):
    """What the script in the page says: panels that it did not find, and how high the others stand together."""

    missing: list[str]
    height: int


KEEPS_PANELS = Path(__file__).with_suffix(".html")
"""A script and a style for the head of the page."""


def make_picture(page: Path, output: Path) -> Path:
    """Write the panels of a report as a picture. Raises ValueError in one line when there is no such page or panel."""
    from PIL import Image

    if not page.is_file():
        raise ValueError(f"FOLDER {page.parent}: has no {page.name}; run `make demo` first")
    if shutil.which("chromium") is None:
        raise ValueError("chromium: is not installed; install Debian's package chromium")
    content = re.sub("<meta[^>]*Content-Security-Policy[^>]*>", "", page.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        copy, shot = Path(folder) / "panels.html", Path(folder) / "panels.png"
        copy.write_text(
            content.replace("</head>", f"{KEEPS_PANELS.read_text(encoding='utf-8')}</head>"), encoding="utf-8"
        )
        told = _lay_out(copy, shot, Path(folder) / "profile")
        if told["missing"]:
            raise ValueError(
                f"FOLDER {page.parent}: {page.name} has no panel {told['missing']}; run the demo to its end"
            )
        with Image.open(shot, formats=["PNG"]) as whole:
            panels = whole.convert("RGB").crop((0, 0, whole.width, round(told["height"] * PIXELS_PER_PX)))
        panels.save(output, quality=90, method=6)
    return output


def _lay_out(page: Path, shot: Path, profile: Path) -> Layout:
    """Take the picture of a page; returns what its script wrote into the title."""
    size = f"--window-size={WIDTH_PX},{MAX_HEIGHT_PX}"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", size, f"--screenshot={shot}"]
    flags += [f"--force-device-scale-factor={PIXELS_PER_PX}", f"--user-data-dir={profile}", "--dump-dom"]
    command = ["chromium", *flags, page.as_uri()]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=DEADLINE_S)
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"{page}: chromium has no picture of it after {DEADLINE_S} s; try again") from error
    title = re.search("<title>(.*?)</title>", done.stdout)
    if done.returncode or title is None or not shot.is_file():
        raise ValueError(f"{page}: chromium took no picture of it ({done.stderr.strip()[-200:]})")
    told: Layout = json.loads(unquote(title[1]))
    return told


def main() -> int:
    parser = Parser(prog="python -m data_prep.miniature.report_picture", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a finished demo, e.g. runs/miniature")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.webp")
    options = parser.parse_args()

    def work() -> None:
        print(make_picture(options.folder / "report.html", options.output))

    return finish(work)


if __name__ == "__main__":
    sys.exit(main())
