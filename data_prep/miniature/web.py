"""Plans the web of the drawn world: a table like LAION's and one like CC3M's, their pictures, and the faults of
URLs."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.miniature.alt_texts import alt_text
from data_prep.miniature.pictures import Picture
from data_prep.miniature.scenes import Scene

LAION_SHARE = 0.5
"""The share of web rows in laion.parquet; the others are in cc3m.tsv. Two halves caption at the same time."""
TROUBLE = {"missing": 0.03, "not_image": 0.02, "truncated": 0.02, "recovering": 0.02, "slow": 0.005, "redirect": 0.025}
"""Behaviour of a URL -> share of rows. The first three never arrive (7%); the others arrive in the end (5%)."""


@dataclass(frozen=True)
class WebRow:
    """One row of a URL table."""

    url: str
    text: str
    scene: Scene


def plan_web(
    folder: Path, scenes: list[Scene], base_url: str, seed: int
) -> tuple[list[WebRow], list[Picture], dict[str, dict[str, object]]]:
    """The rows, the pictures to write under `folder`, and path -> route for the server (see `server.py`)."""
    rows: list[WebRow] = []
    pictures: list[Picture] = []
    routes: dict[str, dict[str, object]] = {}
    rng = np.random.default_rng((seed, 0x3EB))
    for i, scene in enumerate(scenes):
        text, _ = alt_text(scene, rng)
        file = f"images/{i:06d}.jpg"
        behaviour = _draw_behaviour(rng)
        route: dict[str, object] = {"behaviour": behaviour}
        path = f"/photos/{i % 97:02d}/{i:06d}.jpg"
        if behaviour == "redirect":
            target = f"/cdn/{i:06d}.jpg"
            routes[target] = {"behaviour": "ok", "file": file}
            route["location"] = target
        elif behaviour not in ("missing", "not_image"):
            route["file"] = file
        if behaviour == "slow":
            route["delay_s"] = round(1 + rng.random(), 2)
        routes[path] = route
        rows.append(WebRow(base_url + path, text, scene))
        if behaviour not in ("missing", "not_image"):
            pictures.append(Picture(folder / file, scene, "web", (seed, 0x3EC, i)))
    return rows, pictures, routes


def write_web_tables(folder: Path, rows: list[WebRow], routes: dict[str, dict[str, object]]) -> None:
    """laion.parquet (URL, TEXT), cc3m.tsv (caption, URL; without header, like Google's file) and routes.json."""
    folder.mkdir(parents=True, exist_ok=True)
    split = round(len(rows) * LAION_SHARE)
    table = pa.table({"URL": [row.url for row in rows[:split]], "TEXT": [row.text for row in rows[:split]]})
    pq.write_table(table, folder / "laion.parquet")
    lines = [f"{row.text}\t{row.url}\n" for row in rows[split:]]
    (folder / "cc3m.tsv").write_text("".join(lines), encoding="utf-8")
    (folder / "routes.json").write_text(json.dumps(routes, indent=0, sort_keys=True) + "\n", encoding="utf-8")


def _draw_behaviour(rng: np.random.Generator) -> str:
    draw = rng.random()
    for behaviour, share in TROUBLE.items():
        draw -= share
        if draw < 0:
            return behaviour
    return "ok"
