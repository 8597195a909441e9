"""Two thousand rows of a hostile web: every row in the ledger once, nothing refused is requested, memory bounded."""

import io
import json
import os
import resource
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.data_prep.test_download import ledger, private, samples  # noqa: F401 - a fixture
from tests.data_prep.test_stored_image import bomb
from tests.support.web_folder import jpeg_bytes, make_web, requested, served

ROOT = Path(__file__).parents[2]
ROUNDS = 125
HALF, NO_HOST = ("truncated_image", "undecodable"), ("dns_failure", "timeout")
"""By where the cut fell, and by how long the machine's resolver took."""
MOST_MEMORY_MB = 600


def cmyk() -> bytes:
    content = io.BytesIO()
    Image.new("CMYK", (64, 48), (9, 99, 0, 9)).save(content, "JPEG")
    return content.getvalue()


def hostile_rows(base, private_url, number):
    """(route, what it does, the file's content) and the row's URL, with the reason that it must end for."""
    ok, away = {"behaviour": "ok"}, {"behaviour": "redirect"}
    picture = jpeg_bytes(number)
    kinds = {
        "ok.jpg": (ok, picture, None),
        "cmyk.jpg": (ok, cmyk(), None),
        "recovering.jpg": ({"behaviour": "recovering"}, picture, None),
        "moved.jpg": (away | {"location": f"/{number}/ok.jpg"}, None, None),
        "gone.jpg": ({"behaviour": "missing"}, None, "http_404"),
        "page.jpg": ({"behaviour": "not_image"}, None, "not_an_image"),
        "drawing.svg": (ok, b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"/>', "not_an_image"),
        "bomb.png": (ok, bomb(30_000, 30_000), "pixel_cap"),
        "half.jpg": (ok, picture[: len(picture) // 2], HALF),
        "to-private.jpg": (away | {"location": private_url + "/secret.jpg"}, None, "refused_address"),
        "to-file.jpg": (away | {"location": "file:///etc/passwd"}, None, "refused_scheme"),
        "round.jpg": (away | {"location": f"/{number}/round.jpg"}, None, "too_many_redirects"),
    }
    for name, (route, content, reason) in kinds.items():
        yield f"{base}/{number}/{name}", reason, (f"/{number}/{name}", route, content)
    for url, reason in (
        (f"{private_url}/{number}.jpg", "refused_address"),
        (f"http://localhost.localdomain.invalid/{number}.jpg", NO_HOST),
        (f"file:///etc/passwd?{number}", "refused_scheme"),
        (f"data:image/jpeg;base64,{number}", "refused_scheme"),
    ):
        yield url, reason, None


@pytest.mark.large
def test_two_thousand_rows_of_a_hostile_web_are_all_accounted_for(tmp_path, private):  # noqa: F811 - the fixture
    private_url, private_asked = private
    make_web(tmp_path / "web", {})
    with served(tmp_path / "web", tmp_path / "log") as base:
        rows, routes = [], {}
        for number in range(ROUNDS):
            for url, reason, served_as in hostile_rows(base, private_url, number):
                rows.append((url, reason))
                if served_as is not None:
                    path, route, content = served_as
                    file = f"images/{path.replace('/', '_')}"
                    routes[path] = route | ({"file": file} if content is not None else {})
                    if content is not None:
                        (tmp_path / "web" / file).write_bytes(content)
        (tmp_path / "web" / "routes.json").write_text(json.dumps(routes))
    with served(tmp_path / "web", tmp_path / "log") as again:
        urls = [url.replace(base, again) for url, _ in rows]
        pq.write_table(pa.table({"url": urls, "caption": ["a picture"] * len(rows)}), tmp_path / "t.parquet")
        arguments = [
            "table",
            "--input",
            "t.parquet",
            "--output",
            "raw",
            "--allow-loopback",
            "--samples-per-shard",
            "500",
        ]
        arguments += ["--retries", "1", "--backoff-s", "0.1", "--processes", "2", "--timeout-s", "10"]
        command = [sys.executable, "-m", "data_prep.download", *arguments]
        assert (
            subprocess.run(
                command, check=False, cwd=tmp_path, timeout=500, env=os.environ | {"PYTHONPATH": str(ROOT)}
            ).returncode
            == 0
        )
    entries = ledger(tmp_path / "raw")
    assert len(entries) == len(rows) >= 2000 and [entry["row"] for entry in entries] == list(range(len(rows)))
    found = [entry["reason"] for entry in entries]
    wanted = [reason if isinstance(reason, tuple) else (reason,) for _, reason in rows]
    assert [row for row in range(len(rows)) if found[row] not in wanted[row]] == [], Counter(found)
    assert len(samples(tmp_path / "raw")) == sum(reason is None for _, reason in rows)
    assert private_asked == [] and not [path for path in requested(tmp_path / "log") if "secret" in path]
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024 < MOST_MEMORY_MB
