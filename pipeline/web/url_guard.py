"""Decides which URLs and addresses may be fetched: http and https on the public internet, and nothing else."""

import ipaddress
import socket
from urllib.parse import quote, urlsplit, urlunsplit

SCHEMES = ("http", "https")
LOOPBACK = "127.0.0.1"
"""The only private address that a flag can allow, for tests and the miniature web."""
ALSO_REFUSED = tuple(
    map(
        ipaddress.ip_network,
        (
            "168.63.129.16/32",  # Azure's host agent
            "192.0.0.0/24",  # IETF protocol assignments; Oracle Cloud's metadata service is at 192.0.0.192
            "192.88.99.0/24",  # relays of 6to4
            "64:ff9b:1::/48",  # local NAT64
            "fec0::/10",  # site-local
            "3fff::/20",  # documentation
            "5f00::/16",  # segment routing
        ),
    )
)
"""Special address ranges that some versions of `ipaddress` call global, though they are not the public internet.

Add a range here to refuse it."""
NAT64 = ipaddress.ip_network("64:ff9b::/96")
SAFE_IN_URL = "!#$%&'()*+,/:;=?@[]~-._"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class RefusedError(Exception):
    """A URL must not be fetched; `reason` is the drop reason for the ledger."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def clean_url(url: str, *, allow_loopback: bool) -> str:
    """The URL in a form that can be requested: spaces and letters outside ASCII are escaped.

    Raises RefusedError, before anything is sent, on other schemes, on URLs without a host or with a password, and on
    hosts that are refused addresses.
    """
    try:
        parts = urlsplit(url.strip())
        host, port = parts.hostname, parts.port
        if parts.scheme.lower() not in SCHEMES:
            raise RefusedError("refused_scheme")
        if not host or not host.isprintable() or parts.username is not None or parts.password is not None or port == 0:
            raise RefusedError("malformed_url")
        name = host if ":" in host else host.encode("idna").decode("ascii")
        path, query = quote(parts.path or "/", safe=SAFE_IN_URL), quote(parts.query, safe=SAFE_IN_URL)
    except (ValueError, UnicodeError) as error:
        raise RefusedError("malformed_url") from error
    literal = _literal(host)
    if literal is not None and is_refused(literal, allow_loopback=allow_loopback):
        raise RefusedError("refused_address")
    place = (f"[{name}]" if ":" in name else name) + (f":{port}" if port else "")
    return urlunsplit((parts.scheme.lower(), place, path, query, ""))


def resolve(host: str, port: int, *, allow_loopback: bool) -> str:
    """The address to connect to. Every address of the DNS answer is checked. The caller must connect to the returned
    address without a second DNS request. Raises RefusedError("refused_address") or RefusedError("dns_failure")."""
    try:
        answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise RefusedError("dns_failure") from error
    addresses = [ipaddress.ip_address(str(answer[4][0]).partition("%")[0]) for answer in answers]
    if not addresses or any(is_refused(address, allow_loopback=allow_loopback) for address in addresses):
        raise RefusedError("refused_address")
    return str(min(addresses, key=lambda address: address.version))


def is_refused(address: Address, *, allow_loopback: bool) -> bool:
    """Whether an address is private, loopback, link-local, multicast, reserved or a cloud's metadata service. An IPv6
    address that contains an IPv4 address (mapped, 6to4, Teredo, NAT64) is also refused for that one."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = _embedded(address)
        if inner is not None and is_refused(inner, allow_loopback=False):
            return True
        if address.ipv4_mapped is not None or address in NAT64:
            return False  # it leads to the IPv4 address alone
    if allow_loopback and str(address) == LOOPBACK:
        return False
    refused = any(address in network for network in ALSO_REFUSED)
    return refused or not address.is_global or address.is_multicast or address.is_reserved


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address.teredo is not None:
        return address.teredo[1]
    if address in NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
