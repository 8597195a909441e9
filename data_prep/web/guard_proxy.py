"""Runs a filtering proxy on the loopback interface, the downloader's only way to the network (proxy.py with a plugin).

For each request, and so for each redirect, it resolves the host name, checks all its addresses, and connects to one
that it has checked. So a DNS answer cannot change between check and connection. It closes the connection at the byte
cap or the deadline. It runs in threads of the process that owns it, and ends with that process.
"""

import logging
import socket
import threading
import time
from argparse import Namespace
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from proxy.common.flag import FlagParser
from proxy.core.work import start_threaded_work
from proxy.http.exception import HttpProtocolException, HttpRequestRejected
from proxy.http.parser import HttpParser
from proxy.http.proxy import HttpProxyBasePlugin

from data_prep.web.url_guard import LOOPBACK, RefusedError, resolve

BACKLOG = 512
OPEN_FILES = 16_384
"""The soft limit of open files to set. A connection takes two files, so the usual 1,024 would allow only about 500."""
HEADER_ALLOWANCE = 1 << 20
"""Bytes that headers and TLS may add to a body that has exactly the largest allowed size."""


@dataclass(frozen=True)
class GuardLimits:
    """What one connection may do."""

    allow_loopback: bool
    max_bytes: int
    deadline_s: float


class GuardPlugin(HttpProxyBasePlugin):  # type: ignore[misc]  # proxy.py has no types
    """One connection through the proxy: its checked address, the bytes received so far, and its deadline."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.limits: GuardLimits = self.flags.guard_limits
        self.deadline = time.monotonic() + self.limits.deadline_s
        self.received = 0
        self.address: str | None = None

    def before_upstream_connection(self, request: HttpParser) -> HttpParser:
        host = (request.host or b"").decode("ascii", "replace").strip("[]")
        if not request.is_https_tunnel and request._url.scheme not in (None, b"http"):
            raise _rejected("refused_scheme")
        try:
            self.address = resolve(host, request.port or 80, allow_loopback=self.limits.allow_loopback)
        except RefusedError as error:
            raise _rejected(error.reason) from error
        return request

    def resolve_dns(self, host: str, port: int) -> tuple[str | None, None]:  # noqa: ARG002  (the hook)
        return self.address, None

    def handle_upstream_chunk(self, chunk: memoryview) -> memoryview:
        self.received += len(chunk)
        if self.received > self.limits.max_bytes + HEADER_ALLOWANCE or time.monotonic() > self.deadline:
            raise HttpProtocolException("over the byte cap or the deadline")
        return chunk

    def on_access_log(self, context: dict[str, Any]) -> None:
        """Log nothing: the ledger says what became of each row."""


class GuardProxy:
    """`with GuardProxy(limits) as proxy:` serves at `proxy.url` until the block ends."""

    def __init__(self, limits: GuardLimits) -> None:
        timeout = str(int(limits.deadline_s) + 1)
        flags = FlagParser.initialize(
            ["--threaded", "--log-level", "CRITICAL", "--timeout", timeout, "--open-file-limit", str(OPEN_FILES)],
            plugins=[GuardPlugin],
        )
        logging.getLogger("proxy").setLevel(logging.CRITICAL + 1)
        flags.guard_limits = limits
        self.flags: Namespace = flags
        self.listener = socket.create_server((LOOPBACK, 0), backlog=BACKLOG)
        self.url = f"http://{LOOPBACK}:{self.listener.getsockname()[1]}"
        self.thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connection, address = self.listener.accept()
            except OSError:
                return
            start_threaded_work(self.flags, connection, address)


def _rejected(reason: str) -> HttpRequestRejected:
    return HttpRequestRejected(status_code=403, reason=f"guard:{reason}".encode())
