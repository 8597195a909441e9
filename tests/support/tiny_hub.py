"""A hub of model repositories on loopback: enough of its protocol for huggingface_hub to list and download files."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


class TinyHub:
    """`root`/OWNER/NAME are the main branches; `root`/OWNER/NAME@refs-pr-N the pull requests. `asked` are the files
    that were downloaded."""

    def __init__(self, root: Path, pull_requests: dict[str, list[dict[str, Any]]]) -> None:
        self.root, self.pull_requests = root, pull_requests
        self.asked: list[str] = []

    def folder(self, repository: str, revision: str) -> Path | None:
        for folder in (self.root / repository, *self.root.glob(f"{repository}@*")):
            names = ("main", "") if "@" not in folder.name else (folder.name.partition("@")[2].replace("-", "/"),)
            if folder.is_dir() and revision in (*names, commit(folder)):
                return folder
        return None


def commit(folder: Path) -> str:
    return hashlib.sha1(str(folder).encode(), usedforsecurity=False).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: TinyHub

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        if path.startswith("api/models/"):
            found = self._api(path.removeprefix("api/models/"))
            content, headers = json.dumps(found).encode(), {"Content-Type": "application/json"}
            if found is None:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        else:
            repository, _, rest = path.partition("/resolve/")
            revision, _, name = rest.partition("/")
            folder = self.hub.folder(repository, revision)
            assert folder is not None, path
            content = (folder / name).read_bytes()
            headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": commit(folder)}
            if with_body:
                self.hub.asked.append(f"{repository}/{name}")
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def _api(self, path: str) -> Any:
        if path.endswith("/discussions"):
            repository = path.removesuffix("/discussions")
            found = self.hub.pull_requests.get(repository, [])
            common = {"isPullRequest": True, "status": "open", "createdAt": "2024-01-01T00:00:00.000Z"}
            each = [common | {"repo": {"name": repository, "type": "model"}} | one for one in found]
            return {"discussions": each, "count": len(each), "start": 0}
        for kind in ("revision", "tree"):
            repository, there, revision = path.partition(f"/{kind}/")
            if there:
                break
        else:
            repository, revision = path, "main"
        folder = self.hub.folder(repository, revision)
        if folder is None:
            return None
        files = sorted(each for each in folder.rglob("*") if each.is_file())
        if kind == "tree":
            return [
                {"type": "file", "path": each.relative_to(folder).as_posix(), "size": each.stat().st_size,
                 "oid": hashlib.sha1(each.read_bytes(), usedforsecurity=False).hexdigest()}
                for each in files
            ]  # fmt: skip
        names = [{"rfilename": each.relative_to(folder).as_posix()} for each in files]
        return {"id": repository, "modelId": repository, "sha": commit(folder), "siblings": names}


@contextmanager
def serving(root: Path, pull_requests: dict[str, list[dict[str, Any]]] | None = None) -> Iterator[tuple[str, TinyHub]]:
    """The address of a hub of the repositories below `root`, while the block runs."""
    hub = TinyHub(root, pull_requests or {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", hub
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()
