"""Serves the web of the drawn world on the loopback interface: pictures, and the faults of the real web."""

import errno
import json
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, TextIO

from pipeline.command_line import Parser, finish

HOST = "127.0.0.1"
PAGE = b"<!DOCTYPE html><html><head><title>Gone</title></head><body><h1>This picture has moved on.</h1></body></html>\n"
BEHAVIOURS = ("ok", "missing", "recovering", "slow", "redirect", "truncated", "not_image")


class WebServer(ThreadingHTTPServer):
    """Serves one folder. `routes.json` says how each path behaves; the memory holds which paths already gave their
    503."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 256

    def __init__(self, root: Path, port: int, log: TextIO | None = None) -> None:
        self.routes = load_routes(root)
        self.root = root
        self.log = log
        self.lock = threading.Lock()
        self.recovered: set[str] = set()
        super().__init__((HOST, port), _Handler)

    def first_visit(self, path: str) -> bool:
        """Whether this is the first request for this path."""
        with self.lock:
            first = path not in self.recovered
            self.recovered.add(path)
            return first

    def note(self, status: int, path: str, user_agent: str) -> None:
        """Write one line of the access log: status, path and user agent, separated by tabs."""
        if self.log is not None:
            with self.lock:
                self.log.write(f"{status}\t{path}\t{user_agent}\n")
                self.log.flush()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing when a client closes the connection; report other errors as usual."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def load_routes(root: Path) -> dict[str, dict[str, Any]]:
    """Path -> route of a web folder. Raises ValueError, with the file's name, when it is missing or malformed."""
    path = root / "routes.json"
    try:
        routes = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(
            f"{path}: no such file; draw a world first with `python -m data_prep.miniature.world`"
        ) from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: is not valid JSON ({error}); draw the world again") from error
    for name, route in routes.items():
        if route.get("behaviour") not in BEHAVIOURS:
            found = route.get("behaviour")
            raise ValueError(f"{path}: the behaviour of {name} is {found!r}, expected one of {', '.join(BEHAVIOURS)}")
    checked: dict[str, dict[str, Any]] = routes
    return checked


class _Handler(BaseHTTPRequestHandler):
    server: WebServer
    server_version = "MiniatureWeb"
    timeout: ClassVar[float] = 30.0

    def do_GET(self) -> None:
        route = self.server.routes.get(self.path, {"behaviour": "missing"})
        behaviour = route["behaviour"]
        if behaviour == "missing":
            self._answer(404, PAGE, "text/html")
        elif behaviour == "not_image":
            self._answer(200, PAGE, "text/html")
        elif behaviour == "redirect":
            self._answer(302, b"", "text/html", location=route["location"])
        elif behaviour == "recovering" and self.server.first_visit(self.path):
            self._answer(503, b"", "text/html")
        else:
            self._picture(route)

    def _picture(self, route: dict[str, Any]) -> None:
        """Send the picture. `slow` waits first; `truncated` promises all bytes and closes the connection half way."""
        if route["behaviour"] == "slow":
            time.sleep(route["delay_s"])
        body = (self.server.root / route["file"]).read_bytes()
        cut = len(body) // 2 if route["behaviour"] == "truncated" else len(body)
        self._answer(200, body[:cut], "image/jpeg", length=len(body))

    def _answer(
        self, status: int, body: bytes, kind: str, *, length: int | None = None, location: str | None = None
    ) -> None:
        self.server.note(status, self.path, self.headers.get("User-Agent", ""))
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        if location is not None:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing on stderr; the access log has all requests."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.miniature.server", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help="the web/ folder of a world")
    parser.add_argument("--port", type=int, required=True, help="the port; 0 takes a free one and prints it")
    parser.add_argument(
        "--log", type=Path, metavar="FILE", help="append one line for each request to FILE (default: no log)"
    )
    options = parser.parse_args(arguments)

    def work() -> int:
        with open_log(options.log) as log, open_server(options.root, options.port, log) as server:
            print(f"serving {options.root} at http://{HOST}:{server.server_address[1]}", flush=True)
            server.serve_forever()
        return 0

    return finish(work)


def open_server(root: Path, port: int, log: TextIO | None) -> WebServer:
    """A server that listens. Raises ValueError, with the port, when it cannot."""
    try:
        return WebServer(root, port, log)
    except OverflowError as error:
        raise ValueError(f"--port {port}: must be from 0 to 65535") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ValueError(
                f"--port {port}: is in use; stop the program that listens there or name another port"
            ) from error
        raise


def open_log(path: Path | None) -> AbstractContextManager[TextIO | None]:
    return path.open("a", encoding="utf-8") if path else nullcontext()


if __name__ == "__main__":
    sys.exit(main())
