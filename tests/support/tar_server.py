"""A real HTTP server of shards on the loopback interface, with the troubles of real ones: failures, cuts, silence."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class TarServer(ThreadingHTTPServer):
    """Serves the files of a folder. `troubles` says of a file's name what its next answers are: a status, or "cut"."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.lock = folder, threading.Lock()
        self.troubles: dict[str, list[int | str]] = {}
        self.requests: Counter[str] = Counter()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: TarServer

    def do_GET(self) -> None:
        name = self.path.removeprefix("/")
        with self.server.lock:
            self.server.requests[name] += 1
            waiting = self.server.troubles.get(name, [])
            trouble = waiting.pop(0) if waiting else 200 if (self.server.folder / name).is_file() else 404
        if isinstance(trouble, int) and trouble != 200:
            self.send_error(trouble)
            return
        content = (self.server.folder / name).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content if trouble == 200 else content[: len(content) // 2])

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[TarServer]:
    """A server of a folder for as long as the context lasts."""
    server = TarServer(folder)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
