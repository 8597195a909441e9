"""Two thousand rows of a hostile web: every row in the ledger once, nothing refused is requested, memory bounded."""

import io
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.data_prep.raw.test_stored_image import bomb
from tests.data_prep.test_download import ledger, samples
from tests.support.hostile_server import HostileServer
from tests.support.web_folder import jpeg_bytes, make_web, served

ROOT = Path(__file__).parents[3]
ROUNDS = 125
NO_HOST = ("dns_failure", "timeout")
"""By how long the machine's resolver took."""
SLOW_OR_HUGE_EVERY = 20
"""Rounds from one endless body and drip feed to the next: each takes the byte cap, or the deadline."""
MOST_MEMORY_MB = 600
MOST_BYTES_SENT = 64 << 20
"""Of one endless body, before its server finds that nobody listens: the cap and what buffers hold."""


def cmyk() -> bytes:
    content = io.BytesIO()
    Image.new("CMYK", (64, 48), (9, 99, 0, 9)).save(content, "JPEG")
    return content.getvalue()


def answers(private_url, number):
    """By name: what our web does for it, the file's content, and the reason that the row must end for."""
    ok, away = {"behaviour": "ok"}, {"behaviour": "redirect"}
    picture, large = jpeg_bytes(number), jpeg_bytes(number, 640, 480)
    return {
        "ok.jpg": (ok, picture, None),
        "cmyk.jpg": (ok, cmyk(), None),
        "recovering.jpg": ({"behaviour": "recovering"}, picture, None),
        "moved.jpg": (away | {"location": f"/{number}/ok.jpg"}, None, None),
        "gone.jpg": ({"behaviour": "missing"}, None, "http_404"),
        "page.jpg": ({"behaviour": "not_image"}, None, "not_an_image"),
        "drawing.svg": (ok, b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"/>', "not_an_image"),
        "bomb.png": (ok, bomb(30_000, 30_000), "pixel_cap"),
        "half.jpg": (ok, large[: len(large) // 2], "truncated_image"),
        "to-private.jpg": (away | {"location": private_url + "/ok"}, None, "refused_address"),
        "to-file.jpg": (away | {"location": "file:///etc/passwd"}, None, "refused_scheme"),
        "round.jpg": (away | {"location": f"/{number}/round.jpg"}, None, "too_many_redirects"),
    }


def elsewhere(bodies_url, private_url, number):
    """URLs that our web does not serve, and the reason that the row must end for."""
    yield f"{private_url}/ok?{number}", "refused_address"
    yield f"http://localhost.localdomain.invalid/{number}.jpg", NO_HOST
    yield f"file:///etc/passwd?{number}", "refused_scheme"
    yield f"data:image/jpeg;base64,{number}", "refused_scheme"
    yield f"{bodies_url}/promised?{number}", "byte_cap"
    if number % SLOW_OR_HUGE_EVERY == 0:
        yield f"{bodies_url}/endless?{number}", "byte_cap"
        yield f"{bodies_url}/drip?{number}", "deadline"


def hostile_web(folder, bodies_url, private_url):
    """Writes the web into `folder`; returns each row's URL (a path, where our web serves it) and its reason."""
    rows, routes = [], {}
    make_web(folder, {})
    for number in range(ROUNDS):
        for name, (route, content, reason) in answers(private_url, number).items():
            file = f"images/{number}_{name}"
            if content is not None:
                (folder / file).write_bytes(content)
            routes[f"/{number}/{name}"] = route | ({"file": file} if content is not None else {})
            rows.append((f"/{number}/{name}", reason))
        rows += elsewhere(bodies_url, private_url, number)
    (folder / "routes.json").write_text(json.dumps(routes))
    return rows


def test_two_thousand_rows_of_a_hostile_web_are_all_accounted_for(tmp_path):
    with HostileServer() as bodies, HostileServer("127.0.0.2") as private:
        rows = hostile_web(tmp_path / "web", bodies.url, private.url)
        with served(tmp_path / "web", tmp_path / "log") as base:
            urls = [base + url if url.startswith("/") else url for url, _ in rows]
            pq.write_table(pa.table({"url": urls, "caption": ["a picture"] * len(rows)}), tmp_path / "t.parquet")
            peak_mb = download(tmp_path)
    entries = ledger(tmp_path / "raw")
    assert len(entries) == len(rows) >= 2000 and [entry["row"] for entry in entries] == list(range(len(rows)))
    found = [entry["reason"] for entry in entries]
    wanted = [reason if isinstance(reason, tuple) else (reason,) for _, reason in rows]
    assert [rows[row] for row in range(len(rows)) if found[row] not in wanted[row]] == [], Counter(found)
    assert len(samples(tmp_path / "raw")) == sum(reason is None for _, reason in rows)
    assert private.asked == []
    assert sum(path.startswith("/endless") for path in bodies.asked) > 0
    assert bodies.sent < len(bodies.asked) * MOST_BYTES_SENT
    assert peak_mb < MOST_MEMORY_MB


MEASURED = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, timeout=500)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
"""


def download(folder):
    """Runs it; returns the peak memory in MB of its largest process. A small process starts it: a child's peak begins
    with that of the process that forked it, and this one may be large."""
    command = [sys.executable, "-m", "data_prep.download", "table", "--input", "t.parquet"]
    command += ["--output", "raw", "--allow-loopback", "--samples-per-shard", "500", "--retries", "1"]
    command += ["--backoff-s", "0.1", "--processes", "2", "--timeout-s", "10", "--deadline-s", "5"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *command], check=True, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return float(done.stdout.splitlines()[-1])
