"""Defines the urllib opener of the fetching processes: it speaks only http and https, over guarded connections.

Each image has one deadline for all its redirects and a limit for its bytes. The user agent says who asks.
"""

import http.client
import time
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, Self
from urllib.error import URLError

from pipeline.web.guarded_connections import HEADER_ALLOWANCE, Bounds, GuardedHTTP, GuardedHTTPS, tls_context
from pipeline.web.politeness import HostSlots, Robots, given_back_on_error

CHUNK_BYTES = 1 << 16
ROBOTS_TIMEOUT_S = 10.0
ROBOTS_BYTES = 512 << 10
"""What is read of a robots.txt; RFC 9309 asks for 500 KiB."""
AGENT_TOKEN = "blip2-pretraining"
"""The name of this downloader for robots.txt and X-Robots-Tag."""


@dataclass(frozen=True)
class FetchLimits:
    """The limits of fetching one image."""

    user_agent: str
    deadline_s: float
    max_bytes: int
    allow_loopback: bool = False
    connections_per_host: int = 0
    robots: bool = False


def build_opener(limits: FetchLimits) -> "GuardedOpener":
    """An opener for http and https to checked addresses, and for nothing else."""
    opener = GuardedOpener(limits)
    for handler in (
        urllib.request.UnknownHandler(),
        _Guarded(limits),
        urllib.request.HTTPDefaultErrorHandler(),
        _Redirects(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


class _Hop(urllib.request.Request):
    """One request for an image: the first, or one after a redirect. With `robots`, the host's robots.txt is obeyed."""

    def __init__(self, url: str, headers: Mapping[str, str], deadline: float, robots: Robots | None) -> None:
        super().__init__(url, headers=dict(headers))
        self.deadline = deadline
        self.robots = robots


class GuardedOpener(urllib.request.OpenerDirector):
    """An opener that stops reading at the byte limit or the deadline, limits connections to a host and obeys
    robots.txt."""

    def __init__(self, limits: FetchLimits) -> None:
        super().__init__()
        self.addheaders = []
        self.limits = limits
        self.slots = HostSlots(limits.connections_per_host)
        self.robots = Robots(AGENT_TOKEN, self._read_robots) if limits.robots else None

    def open(self, fullurl: Any, data: Any = None, timeout: Any = None) -> Any:
        """As `OpenerDirector.open`, but without `data`: the downloader never sends any."""
        assert data is None, "the downloader sends nothing"
        if isinstance(fullurl, _Hop):  # after a redirect
            return super().open(fullurl, None, timeout)
        url = fullurl if isinstance(fullurl, str) else fullurl.full_url
        if self.robots is not None:
            self.robots.check(url)
        give_back = self.slots.take(url)
        with given_back_on_error(give_back):
            return self._ask(url, timeout, self.robots, give_back)

    def _ask(self, url: str, timeout: float | None, robots: Robots | None, give_back: Callable[[], None]) -> "_Capped":
        deadline = time.monotonic() + self.limits.deadline_s
        hop = _Hop(url, {"User-Agent": self.limits.user_agent}, deadline, robots)
        return _Capped(super().open(hop, None, timeout), self.limits.max_bytes, give_back)

    def _read_robots(self, url: str) -> bytes:
        # Takes no slot: after a redirect one slot is already held, and two such requests could wait for each other.
        with self._ask(url, ROBOTS_TIMEOUT_S, None, lambda: None) as answer:
            return answer.beginning(ROBOTS_BYTES)


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = 5
    max_repeats = 2

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:  # fmt: skip
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        assert isinstance(req, _Hop)
        if time.monotonic() > req.deadline:
            raise URLError("guard:deadline")
        if new is not None and req.robots is not None:
            req.robots.check(new.full_url)
        return new and _Hop(new.full_url, new.headers, req.deadline, req.robots)


class _Guarded(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Opens http and https over guarded connections. It asks no proxy, whatever the environment says."""

    def __init__(self, limits: FetchLimits) -> None:
        super().__init__()
        self.limits, self.context = limits, tls_context()

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        guarded: Any = GuardedHTTP  # its type has more arguments than the type of do_open allows
        return self.do_open(guarded, req, bounds=self._bounds(req))

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        guarded: Any = GuardedHTTPS
        return self.do_open(guarded, req, bounds=self._bounds(req), context=self.context)

    def _bounds(self, request: urllib.request.Request) -> Bounds:
        assert isinstance(request, _Hop)
        return Bounds(self.limits.allow_loopback, request.deadline, self.limits.max_bytes + HEADER_ALLOWANCE)


class _Capped:
    """An answer that is read whole within the byte limit, or is an error."""

    def __init__(self, response: http.client.HTTPResponse, max_bytes: int, give_back: Callable[[], None]) -> None:
        self.response, self.max_bytes = response, max_bytes
        self.give_back = give_back
        self.headers = response.headers

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.response.close()
        self.give_back()

    def read(self) -> bytes:
        """The whole content, unpacked. Raises URLError("guard:byte_cap") and URLError("guard:truncated_body")."""
        content, complete = _unpacked(self._whole(), self.headers, self.max_bytes + 1)
        if len(content) > self.max_bytes:
            raise URLError("guard:byte_cap")
        if not complete:
            raise URLError("guard:truncated_body")
        return content

    def beginning(self, most: int) -> bytes:
        """The first bytes of the content."""
        content = b""
        while len(content) < most and (chunk := self.response.read1(min(CHUNK_BYTES, most - len(content)))):
            content += chunk
        return _unpacked(content, self.headers, most)[0]

    def _whole(self) -> bytes:
        expected = int(self.headers.get("Content-Length", "-1")) if "Transfer-Encoding" not in self.headers else -1
        if expected > self.max_bytes:
            raise URLError("guard:byte_cap")
        chunks: list[bytes] = []
        size = 0
        while chunk := self.response.read1(CHUNK_BYTES):
            chunks.append(chunk)
            size += len(chunk)
            if size > self.max_bytes:
                raise URLError("guard:byte_cap")
        if size < expected:
            raise URLError("guard:truncated_body")
        return b"".join(chunks)


def _unpacked(content: bytes, headers: http.client.HTTPMessage, most: int) -> tuple[bytes, bool]:
    """At most `most` bytes of what a server packed, unasked, and whether that is all of it."""
    if headers.get("Content-Encoding", "").strip().lower() not in ("gzip", "x-gzip", "deflate"):
        return content, True
    unpacking = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # gzip or zlib, by its header
    try:
        return unpacking.decompress(content, most), unpacking.eof
    except zlib.error:
        return content, True  # the server's header was wrong
