"""Three panels of a finished demo's report in one picture, for the README.

The panels are training curves, a caption with an answer, and scores. Chromium lays the report out. A script in a copy
of the page keeps the panels, which it finds by their headings.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from html import unescape
from pathlib import Path
from typing import TypedDict

WIDTH_PX, MAX_HEIGHT_PX = 1180, 1600
PIXELS_PER_PX = 1.5  # sharp on the screens of today, and still a small file
DEADLINE_S = 60


class Layout(TypedDict):
    """What the script in the page says: panels that it did not find, and how high the others stand together."""

    missing: list[str]
    height: int


KEEPS_PANELS = """<script>addEventListener("load", () => {
  const all = (selector) => [...document.querySelectorAll(selector)]
  const says = (element, text) => element.textContent.trim().toLowerCase().startsWith(text)
  const after = (heading) => (element) => heading && heading.compareDocumentPosition(element) & 4
  const chart = (title) => all("figcaption").find((each) => says(each, title))?.closest("figure")
  const table = (title) => all("h3").find((each) => says(each, title))?.closest("article")
  const card = (title) => all("article").filter(after(all("h2").find((each) => says(each, title))))
    .find((each) => each.querySelector("img"))
  const panels = {
    "Training curves of stage 1": [chart("losses"), chart("accuracies")],
    "A caption and an answer": [card("captions: coco"), card("visual question answering")],
    "Scores beside their baselines": [table("retrieval"), table("vqa"), table("captions")],
  }
  const main = document.createElement("main")
  main.id = "picture"
  for (const [title, parts] of Object.entries(panels)) {
    const column = main.appendChild(document.createElement("div"))
    column.appendChild(document.createElement("h3")).textContent = title
    column.append(...parts.filter((part) => part))
  }
  const missing = Object.keys(panels).filter((title) => panels[title].some((part) => !part))
  document.body.replaceChildren(main)
  document.title = JSON.stringify({missing, height: Math.ceil(main.getBoundingClientRect().height)})
})</script>
<style>
  #picture { display: grid; grid-template-columns: 1fr 0.9fr 1fr; gap: 18px; padding: 12px 18px 18px; }
  #picture > div { display: flex; flex-direction: column; gap: 12px; min-width: 0; }
  #picture > div > h3 { margin: 0; }
</style>"""


def make_picture(page: Path, output: Path) -> Path:
    """Write the panels of a report as a picture. Raises ValueError in one line when there is no such page or panel."""
    from PIL import Image

    if not page.is_file():
        raise ValueError(f"FOLDER {page.parent}: has no {page.name}; run `make demo` first")
    if shutil.which("chromium") is None:
        raise ValueError("chromium: is not installed; install Debian's package chromium")
    content = re.sub("<meta[^>]*Content-Security-Policy[^>]*>", "", page.read_text())
    with tempfile.TemporaryDirectory() as folder:
        copy, shot = Path(folder) / "panels.html", Path(folder) / "panels.png"
        copy.write_text(content.replace("</head>", f"{KEEPS_PANELS}</head>"))
        told = _lay_out(copy, shot, Path(folder) / "profile")
        if told["missing"]:
            raise ValueError(
                f"FOLDER {page.parent}: {page.name} has no panel {told['missing']}; run the demo to its end"
            )
        with Image.open(shot) as whole:
            panels = whole.convert("RGB").crop((0, 0, whole.width, round(told["height"] * PIXELS_PER_PX)))
        panels.save(output, quality=90, method=6)
    return output


def _lay_out(page: Path, shot: Path, profile: Path) -> Layout:
    """Take the picture of a page; returns what its script wrote into the title."""
    size = f"--window-size={WIDTH_PX},{MAX_HEIGHT_PX}"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", size, f"--screenshot={shot}"]
    flags += [f"--force-device-scale-factor={PIXELS_PER_PX}", f"--user-data-dir={profile}", "--dump-dom"]
    done = subprocess.run(
        ["chromium", *flags, page.as_uri()], check=False, capture_output=True, text=True, timeout=DEADLINE_S
    )
    title = re.search("<title>(.*?)</title>", done.stdout)
    if done.returncode or title is None or not shot.is_file():
        raise ValueError(f"{page}: chromium took no picture of it ({done.stderr.strip()[-200:]})")
    told: Layout = json.loads(unescape(title[1]))
    return told


def main() -> int:
    parser = argparse.ArgumentParser(prog="data_prep.miniature.report_picture", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a finished demo, e.g. runs/miniature")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.webp")
    arguments = parser.parse_args()
    try:
        print(make_picture(arguments.folder / "report.html", arguments.output))
    except (ValueError, OSError, subprocess.TimeoutExpired) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
