"""The server of one page and a few tasks over HTTP, within bounds. It reads no file: a path is a task's name.

What it refuses: other host names (DNS rebinding), other origins (pages of others), large bodies, slow clients, and more
work than a short queue holds. A request is one line of JSON, then a picture's bytes. Each connection has one request.
"""

import base64
import hashlib
import io
import ipaddress
import json
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from threading import BoundedSemaphore, Lock
from typing import Any
from urllib.parse import urlsplit

from pipeline.command_line import one_line, printable

MAX_PICTURE_BYTES, MAX_LINE_BYTES = 20_000_000, 65_536
MAX_CONNECTIONS = 16
READ_S, WRITE_S = 60.0, 30.0  # for a whole request, and for a whole answer
LINGER_S = 1.0
BODY_TYPE = "application/octet-stream"
LONGEST_FAULT = 500
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
Reply = tuple[str, bytes]
"""A content type and the content."""
Task = Callable[[bytes, bytes], Reply]
"""From a line of JSON and a picture. Raises ValueError or OSError in one line for what it cannot do."""


class NotServedError(ValueError):
    """A request that gets a status of its own, and this line."""

    def __init__(self, line: str, status: HTTPStatus) -> None:
        super().__init__(line)
        self.status = status


class Desk:
    """Work that is done one at a time: `waiting` others stand in the queue, and more are refused."""

    def __init__(self, waiting: int) -> None:
        self.places, self.work = BoundedSemaphore(1 + waiting), Lock()
        self.is_closed = False

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Raises NotServedError when the queue is full, or the desk is closed."""
        if not self.places.acquire(blocking=False):
            raise NotServedError("the queue is full; try again in a moment", HTTPStatus.SERVICE_UNAVAILABLE)
        try:
            with self.work:
                if self.is_closed:
                    raise NotServedError("the server is ending; start it again", HTTPStatus.SERVICE_UNAVAILABLE)
                yield
        finally:
            self.places.release()

    def close(self, timeout_s: float) -> None:
        """Wait for the work that is being done; none begins after it."""
        self.is_closed = True
        self.work.acquire(timeout=timeout_s)


class PageServer(ThreadingMixIn, TCPServer):
    """Bound when it is made, so that a wrong --port costs nothing; `open` begins to answer."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = MAX_CONNECTIONS

    def __init__(self, host: str, port: int) -> None:
        try:
            [found, *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            self.address_family = found[0]
            super().__init__(found[4][:2], _Request, bind_and_activate=False)  # type: ignore[arg-type]
            self.server_bind()
        except (OSError, OverflowError) as error:
            raise ValueError(f"--host {host}, --port {port}: cannot be listened at ({error}); give others") from error
        self.is_loopback = ipaddress.ip_address(str(self.server_address[0])).is_loopback
        self.names = {"localhost"} if self.is_loopback else {"localhost", host.lower(), socket.gethostname().lower()}
        self.connections = BoundedSemaphore(MAX_CONNECTIONS)
        self.page, self.policy, self.tasks = b"", "", dict[str, Task]()

    @property
    def url(self) -> str:
        address, port = ipaddress.ip_address(str(self.server_address[0])), self.server_address[1]
        host = socket.gethostname() if address.is_unspecified else str(address)
        return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"

    def open(self, page: str, tasks: Mapping[str, Task]) -> None:
        """Listen. The page may run its own script and style alone, and reach this server alone."""
        self.page, self.tasks = page.encode(), dict(tasks)
        self.policy = (
            f"default-src 'none'; connect-src 'self'; img-src blob: data:; script-src {_digests(page, 'script')}; "
            f"style-src {_digests(page, 'style')}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        self.server_activate()

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a thread of its own, while there are fewer than MAX_CONNECTIONS; more are closed with a 503."""
        if not self.connections.acquire(blocking=False):
            request.settimeout(LINGER_S)
            request.sendall(b"HTTP/1.0 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread can be started
            self.connections.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  (socketserver's signature)
        """A client that went away is no fault of this program; anything else is one line."""
        error = sys.exception()
        if error is not None and not isinstance(error, OSError):
            print(f"fault: {type(error).__name__}: {one_line(error)}", file=sys.stderr, flush=True)


class _Request(BaseHTTPRequestHandler):
    server: PageServer
    has_unread_body = False

    def setup(self) -> None:
        super().setup()
        self.rfile = io.BufferedReader(_UntilDeadline(self.connection, time.monotonic() + READ_S))

    def do_GET(self) -> None:
        try:
            self._check_host()
            if self.path != "/":
                raise NotServedError(f"{self.path:.80}: is not here; the page is /", HTTPStatus.NOT_FOUND)
        except NotServedError as refused:
            self.send_error(refused.status, str(refused))
        else:
            policy = {"Content-Security-Policy": self.server.policy}
            self._send(HTTPStatus.OK, ("text/html; charset=utf-8", self.server.page), policy)

    def do_POST(self) -> None:
        self.has_unread_body = True
        try:
            self._check_host()
            self._check_origin()
            task = self.server.tasks.get(self.path)
            if task is None:
                raise NotServedError(f"{self.path:.80}: is no task of this model", HTTPStatus.NOT_FOUND)
            line, picture = self._body()
        except NotServedError as refused:
            self.send_error(refused.status, str(refused))
            return
        try:
            reply = task(line, picture)
        except NotServedError as refused:
            self.send_error(refused.status, str(refused))
        except (ValueError, OSError) as error:
            self.send_error(HTTPStatus.BAD_REQUEST, one_line(error))
        except Exception as error:  # whatever a model raises: the next request may be good
            print(f"fault: {self.path}: {type(error).__name__}: {one_line(error)}", file=sys.stderr, flush=True)
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, f"the model failed: {one_line(error)}")
        else:
            self._send(HTTPStatus.OK, reply)

    def _check_host(self) -> None:
        """A name that an attacker's DNS server points here is refused; an address is not a name."""
        hosts = self.headers.get_all("Host", [])
        try:
            name = urlsplit(f"//{hosts[0]}").hostname or "" if len(hosts) == 1 else ""
            known = name in self.server.names or bool(ipaddress.ip_address(name))
        except ValueError:
            known = False
        if not known:
            raise NotServedError("Host: is not a name of this server; open the address that it printed",
                                 HTTPStatus.FORBIDDEN)  # fmt: skip

    def _check_origin(self) -> None:
        """Browsers say which page asks; other programs say nothing."""
        origin, site = self.headers.get("Origin"), self.headers.get("Sec-Fetch-Site", "same-origin")
        if site != "same-origin" or (origin is not None and origin.partition("://")[2] != self.headers["Host"]):
            raise NotServedError("Origin: another page may not ask this server", HTTPStatus.FORBIDDEN)
        if self.headers.get("Content-Type") != BODY_TYPE:  # which no HTML form can send
            raise NotServedError(f"Content-Type: must be {BODY_TYPE}", HTTPStatus.UNSUPPORTED_MEDIA_TYPE)

    def _body(self) -> tuple[bytes, bytes]:
        lengths = self.headers.get_all("Content-Length", [])
        if len(lengths) != 1 or not re.fullmatch("[0-9]+", lengths[0]) or "Transfer-Encoding" in self.headers:
            raise NotServedError("Content-Length: is missing, or no number of bytes", HTTPStatus.LENGTH_REQUIRED)
        if len(lengths[0]) > 12 or int(lengths[0]) > MAX_LINE_BYTES + MAX_PICTURE_BYTES:
            raise NotServedError(f"the picture is larger than {MAX_PICTURE_BYTES // 1_000_000} MB",
                                 HTTPStatus.REQUEST_ENTITY_TOO_LARGE)  # fmt: skip
        body = self.rfile.read(int(lengths[0]))
        self.has_unread_body = False
        end = body.find(b"\n", 0, MAX_LINE_BYTES)
        if len(body) < int(lengths[0]) or end < 0:
            raise NotServedError(
                "the request is cut off, or does not begin with a line of JSON", HTTPStatus.BAD_REQUEST
            )
        return body[:end], body[end + 1 :]

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """The fault as JSON. Also called by http.server, for what is no HTTP."""
        fault = printable(message or HTTPStatus(code).phrase)
        self._send(HTTPStatus(code), as_json({"error": f"{fault:.{LONGEST_FAULT}}"}))
        if self.has_unread_body:
            self._linger()

    def _send(self, status: HTTPStatus, reply: Reply, more: Mapping[str, str] | None = None) -> None:
        self.connection.settimeout(WRITE_S)
        self.send_response(status)
        headers = {"Content-Type": reply[0], "Content-Length": str(len(reply[1]))}
        for name, value in (headers | HEADERS | dict(more or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply[1])

    def _linger(self) -> None:
        """Read on for a moment: closed at once, a client that is still sending would not see the answer."""
        self.connection.shutdown(socket.SHUT_WR)
        end = time.monotonic() + LINGER_S
        try:
            while (left := end - time.monotonic()) > 0:
                self.connection.settimeout(left)
                if not self.connection.recv(65_536):
                    return
        except OSError:
            return

    def version_string(self) -> str:
        return "blip2"

    def log_message(self, *_: Any) -> None:
        """What users ask is theirs: nothing is logged."""


class _UntilDeadline(io.RawIOBase):
    """What a client sends until the deadline; then TimeoutError, however slowly it still sends."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self.connection, self.deadline = connection, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request took too long")
        self.connection.settimeout(left)
        return self.connection.recv_into(buffer)


def as_json(content: Any) -> Reply:
    return "application/json", json.dumps(content).encode()


def _digests(page: str, tag: str) -> str:
    """The page's own scripts or styles, as Content-Security-Policy names them."""
    texts = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts)
