"""A hand-made web folder and its server, for tests of the server and of the download."""

import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_prep.miniature.server import WebServer


def jpeg_bytes(seed: int, width_px: int = 80, height_px: int = 60) -> bytes:
    """A small smooth picture that no other seed has."""
    corners = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(corners).resize((width_px, height_px), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def make_web(root: Path, routes: dict[str, dict[str, Any]]) -> None:
    """Write `routes.json` and, for each route that names a file, a picture of its own."""
    (root / "images").mkdir(parents=True)
    for i, route in enumerate(routes.values()):
        if "file" in route:
            (root / route["file"]).write_bytes(jpeg_bytes(i))
    (root / "routes.json").write_text(json.dumps(routes))


@contextmanager
def served(root: Path, log: Path | None = None) -> Iterator[str]:
    """Serve a web folder on a free port; yields its base URL."""
    file = log.open("a") if log else None
    server = WebServer(root, 0, file)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        if file:
            file.close()


def requested(log: Path) -> list[str]:
    """The paths that were asked for, in order."""
    return [line.split("\t")[1] for line in log.read_text().splitlines()] if log.exists() else []
