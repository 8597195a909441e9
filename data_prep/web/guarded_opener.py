"""Defines the urllib opener of the downloader's processes: it speaks only http and https, through the filtering proxy.

Each image has one deadline for all its redirects and a limit for its bytes. The user agent says who asks.
"""

import http.client
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.message import Message
from types import TracebackType
from typing import IO, Any, Self
from urllib.error import URLError

from data_prep.web.politeness import HostSlots, Robots, given_back_on_error

CHUNK_BYTES = 1 << 16
ROBOTS_TIMEOUT_S = 10.0
AGENT_TOKEN = "blip2-pretraining"
"""The name of this downloader for robots.txt and X-Robots-Tag."""


@dataclass(frozen=True)
class FetchLimits:
    """The limits of fetching one image."""

    proxy_url: str
    user_agent: str
    deadline_s: float
    max_bytes: int
    connections_per_host: int = 0
    robots: bool = False


def build_opener(limits: FetchLimits) -> "GuardedOpener":
    """An opener for http and https through the proxy, and for nothing else."""
    opener = GuardedOpener(limits)
    for handler in (
        urllib.request.ProxyHandler({"http": limits.proxy_url, "https": limits.proxy_url}),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        _Redirects(),
        urllib.request.HTTPErrorProcessor(),
        _BadGateways(),
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
        return _Capped(super().open(hop, None, timeout), self.limits.max_bytes, deadline, give_back)

    def _read_robots(self, url: str) -> bytes:
        # Takes no slot: after a redirect one slot is already held, and two such requests could wait for each other.
        with self._ask(url, ROBOTS_TIMEOUT_S, None, lambda: None) as answer:
            return answer.read()


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


class _BadGateways(urllib.request.BaseHandler):
    """Distinguishes the proxy's own 502 (no connection to the host) from a 502 that a server sent."""

    # The signature is urllib's.
    def http_error_502(self, req: Any, fp: Any, code: int, msg: str, headers: Message) -> None:  # noqa: ARG002
        if "proxy-agent" in headers:
            raise URLError("guard:connection_failed")


class _Capped:
    """An answer that is read whole within the byte limit and the deadline, or is an error."""

    def __init__(
        self, response: http.client.HTTPResponse, max_bytes: int, deadline: float, give_back: Callable[[], None]
    ) -> None:
        self.response, self.max_bytes, self.deadline = response, max_bytes, deadline
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
            self._check_deadline()
        # The proxy too closes the connection at the deadline, which looks like the end of the data.
        self._check_deadline()
        if size < expected:
            raise URLError("guard:truncated_body")
        return b"".join(chunks)

    def _check_deadline(self) -> None:
        if time.monotonic() > self.deadline:
            raise URLError("guard:deadline")
