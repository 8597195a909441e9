"""The filtering proxy and the opener: what may not be reached is not reached, and nothing lasts or grows for ever."""

import socket
import time
import urllib.error
import urllib.request

import pytest

from data_prep.shards.ledger import drop_of_message
from data_prep.web.guard_proxy import GuardLimits, GuardProxy
from data_prep.web.guarded_opener import FetchLimits, build_opener
from tests.support.hostile_server import HostileServer

MAX_BYTES = 200_000
DEADLINE_S = 1.5


@pytest.fixture
def web():
    with HostileServer() as server:
        yield server


@pytest.fixture
def private():
    """A server at another loopback address, which no flag admits."""
    with HostileServer("127.0.0.2") as server:
        yield server


@pytest.fixture(scope="module")
def proxy():
    with GuardProxy(GuardLimits(True, MAX_BYTES, DEADLINE_S)) as running:
        yield running


@pytest.fixture
def opener(proxy):
    return build_opener(FetchLimits(proxy.url, "tester/1 (honest)", DEADLINE_S, MAX_BYTES))


def fetch(opener, url):
    """The body, or the ledger's reason."""
    try:
        with opener.open(urllib.request.Request(url, headers={"User-Agent": "Firefox"}), timeout=5) as answer:
            return answer.read()
    except Exception as error:
        return drop_of_message(str(error)).reason


def test_an_ordinary_answer_passes_and_the_user_agent_is_ours(opener, web):
    assert fetch(opener, web.url + "/ok") == b"hello"
    assert web.agents == ["tester/1 (honest)"]


@pytest.mark.parametrize("address", ["http://169.254.169.254/latest/meta-data/", "http://[::1]/a", "http://10.0.0.1/a"])
def test_redirects_to_refused_addresses_are_not_followed(opener, web, address):
    web.location = address
    assert fetch(opener, web.url + "/to") == "refused_address"


def test_a_redirect_to_a_listening_private_server_never_reaches_it(opener, web, private):
    web.location = private.url + "/ok"
    assert fetch(opener, web.url + "/to") == "refused_address"
    assert (web.asked, private.asked) == (["/to"], [])


@pytest.mark.parametrize("location", ["file:///etc/passwd", "data:,hello", "ftp://127.0.0.1/a", "gopher://127.0.0.1/"])
def test_redirects_to_other_schemes_are_not_followed(opener, web, location):
    web.location = location
    assert fetch(opener, web.url + "/to") == "refused_scheme"


def test_redirect_loops_end(opener, web):
    assert fetch(opener, web.url + "/loop") == "too_many_redirects"
    assert len(web.asked) <= 12


def test_the_first_request_is_checked_as_well(opener, private):
    assert fetch(opener, private.url + "/ok") == "refused_address"
    assert private.asked == []


@pytest.mark.parametrize("url", ["file:///etc/hostname", "data:,hello", "ftp://127.0.0.1/a"])
def test_the_opener_knows_no_other_scheme(opener, url):
    with pytest.raises(urllib.error.URLError, match="unknown url type"):
        opener.open(url)


def test_a_client_of_the_proxy_cannot_tunnel_to_a_refused_address(proxy, private):
    host, port = proxy.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as raw:
        raw.sendall(f"CONNECT 127.0.0.2:{private.server_address[1]} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert raw.recv(4096).startswith(b"HTTP/1.1 403 guard:refused_address")


def test_the_host_is_resolved_once_and_the_checked_address_is_used(opener, web, private, monkeypatch):
    """DNS that answers with the admitted address first and a private one after: there is no second question."""
    asked = []
    real = socket.getaddrinfo

    def rebinding(host, port, *rest, **named):
        if host != "rebind.example":
            return real(host, port, *rest, **named)
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1" if len(asked) == 1 else "127.0.0.2", port))]

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    assert fetch(opener, f"http://rebind.example:{web.server_address[1]}/ok") == b"hello"
    assert (asked, private.asked) == (["rebind.example"], [])
    assert fetch(opener, f"http://rebind.example:{private.server_address[1]}/ok") == "refused_address"
    assert private.asked == []


def test_an_endless_body_stops_at_the_cap(opener, web):
    assert fetch(opener, web.url + "/endless") == "byte_cap"


def test_the_proxy_itself_hangs_up_on_an_endless_body(proxy, web):
    """A client without our opener's cap: the proxy alone has to bound the bytes."""
    plain = urllib.request.build_opener(urllib.request.ProxyHandler({"http": proxy.url}))
    with plain.open(web.url + "/endless", timeout=5) as answer:
        received = len(answer.read())
    assert MAX_BYTES <= received < MAX_BYTES + (2 << 20)


def test_a_promised_gigabyte_is_not_awaited(opener, web):
    assert fetch(opener, web.url + "/promised") == "byte_cap"


@pytest.mark.parametrize("path", ["/drip", "/unmeasured", "/slowhead"])
def test_a_drip_feed_ends_at_the_deadline_and_may_be_tried_again(opener, web, path):
    started = time.monotonic()
    assert fetch(opener, web.url + path) == "deadline"
    assert time.monotonic() - started < DEADLINE_S + 5


def test_a_body_that_is_cut_short_is_no_body(opener, web):
    assert fetch(opener, web.url + "/cut") == "truncated_body"


def test_a_dead_port_and_a_bad_gateway_are_told_apart(opener, web):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        dead = free.getsockname()[1]
    assert fetch(opener, f"http://127.0.0.1:{dead}/ok") == "connection_failed"
    assert fetch(opener, web.url + "/badgateway") == "http_502"
