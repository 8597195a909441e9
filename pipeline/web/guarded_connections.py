"""Defines the connections of the fetching processes: each goes to a checked address, and ends at its limits.

For each request, and so for each redirect, the host name is resolved once, all its addresses are checked, and one that
was checked is connected. So a DNS answer cannot change between check and connection. Every received byte counts: those
of headers, of bodies and of the bodies of redirects.
"""

import http.client
import ipaddress
import socket
import ssl
import sys
import time
from dataclasses import dataclass
from typing import Any
from urllib.error import URLError

from pipeline.web.url_guard import RefusedError, is_refused, resolve

HEADER_ALLOWANCE = 1 << 20
"""Bytes that headers may add to a body that has exactly the largest allowed size."""


@dataclass
class Bounds:
    """What one connection may do. `deadline` is a time of the monotonic clock."""

    allow_loopback: bool
    deadline: float
    bytes_left: int


class _Bounded(socket.socket):
    """A socket that receives nothing after the deadline or beyond the byte limit."""

    bounds: Bounds

    def recv_into(self, *arguments: Any) -> int:
        """As `socket.recv_into`. Raises URLError("guard:deadline") and URLError("guard:byte_cap")."""
        left_s, timeout_s = self.bounds.deadline - time.monotonic(), self.gettimeout()
        if left_s <= 0:
            raise URLError("guard:deadline")
        if timeout_s is None or left_s < timeout_s:
            self.settimeout(left_s)
        try:
            received = super().recv_into(*arguments)
        except TimeoutError as error:
            if time.monotonic() >= self.bounds.deadline:
                raise URLError("guard:deadline") from error
            raise
        self.bounds.bytes_left -= received
        if self.bounds.bytes_left < 0:
            raise URLError("guard:byte_cap")
        return received


class _BoundedTLS(_Bounded, ssl.SSLSocket):
    pass


def tls_context() -> ssl.SSLContext:
    """Checks certificates and host names. Making it takes 20 ms, so one is made for a whole process."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    context.sslsocket_class = _BoundedTLS
    return context


def _connected(connection: http.client.HTTPConnection, bounds: Bounds) -> _Bounded:
    try:
        address = resolve(connection.host, connection.port, allow_loopback=bounds.allow_loopback)
    except RefusedError as error:
        raise URLError(f"guard:{error.reason}") from error
    bounded = _Bounded(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    bounded.bounds = bounds
    bounded.settimeout(connection.timeout)
    try:
        bounded.connect((address, connection.port))
    except OSError as error:
        bounded.close()
        raise error if isinstance(error, TimeoutError) else URLError("guard:connection_failed") from error
    return bounded


class GuardedHTTP(http.client.HTTPConnection):
    def __init__(self, host: str, *, bounds: Bounds, **named: Any) -> None:
        super().__init__(host, **named)
        self.bounds = bounds

    def connect(self) -> None:
        self.sock = _connected(self, self.bounds)


class GuardedHTTPS(http.client.HTTPSConnection):
    def __init__(self, host: str, *, bounds: Bounds, context: ssl.SSLContext, **named: Any) -> None:
        super().__init__(host, context=context, **named)
        self.bounds, self.context = bounds, context

    def connect(self) -> None:
        plain = _connected(self, self.bounds)
        try:
            tls = self.context.wrap_socket(plain, server_hostname=self.host)
        except BaseException:
            plain.close()
            raise
        assert isinstance(tls, _BoundedTLS)
        tls.bounds = self.bounds
        self.sock = tls


def refuse_other_connections(*, allow_loopback: bool) -> None:
    """From now on nothing in this process, whatever library asks, reaches an address that no download may reach."""

    def check(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("socket.connect", "socket.sendto") and arguments[0].family in (socket.AF_INET, socket.AF_INET6):
            try:
                refused = is_refused(ipaddress.ip_address(arguments[1][0]), allow_loopback=allow_loopback)
            except ValueError:  # a name, which would be resolved without a check
                refused = True
            if refused:
                raise RefusedError("refused_address")

    sys.addaudithook(check)
