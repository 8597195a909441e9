"""The guarded opener: what may not be reached is not reached, and nothing lasts or grows for ever."""

import gzip
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zlib
from pathlib import Path

import pytest

from data_prep.shards.ledger import drop_of_message
from pipeline.web.guarded_opener import FetchLimits, build_opener
from tests.support.hostile_server import HostileServer

ROOT = Path(__file__).parents[3]
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


@pytest.fixture
def opener():
    return build_opener(FetchLimits("tester/1 (honest)", DEADLINE_S, MAX_BYTES, allow_loopback=True))


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


OTHER_CODE = """
import http.client, socket, sys
from pipeline.web.guarded_connections import refuse_other_connections
refuse_other_connections(allow_loopback=True)
for host, port in (("127.0.0.1", int(sys.argv[1])), ("127.0.0.2", int(sys.argv[2]))):
    try:
        http.client.HTTPConnection(host, port).request("GET", "/ok")
        print("reached")
    except Exception as error:
        print(error)
try:
    socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("169.254.169.254", 53))
except Exception as error:
    print(error)
"""


def test_other_code_of_the_process_reaches_no_refused_address_either(web, private):
    ports = [str(server.server_address[1]) for server in (web, private)]
    found = subprocess.run(
        [sys.executable, "-c", OTHER_CODE, *ports], check=True, capture_output=True, text=True, cwd=ROOT
    )
    assert found.stdout.split() == ["reached", "refused_address", "refused_address"]
    assert private.asked == []


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_no_proxy_of_the_environment_is_asked(web, private, monkeypatch, name):
    monkeypatch.setenv(name, private.url)
    opener = build_opener(FetchLimits("tests", DEADLINE_S, MAX_BYTES, allow_loopback=True))
    assert fetch(opener, web.url + "/ok") == b"hello" and private.asked == []


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


def test_the_endless_body_of_a_redirect_stops_at_the_cap(opener, web):
    """urllib reads the body of a redirect whole before it follows it."""
    web.location = web.url + "/ok"
    assert fetch(opener, web.url + "/endlessto") == "byte_cap"
    assert web.sent < MAX_BYTES + (16 << 20)


def test_endless_headers_stop(opener, web):
    assert fetch(opener, web.url + "/endlesshead") == "fetch_failed"


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


@pytest.fixture
def secure(tmp_path):
    """A server with a certificate for 127.0.0.1 that nobody signed, and the file of this certificate."""
    names = ["-subj", "/CN=tests", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out", "own.pem"]
    subprocess.run([*command, "-days", "2", *names], check=True, cwd=tmp_path, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "own.pem", tmp_path / "key.pem")
    with HostileServer() as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        yield server, tmp_path / "own.pem"


def test_a_certificate_that_nobody_trusts_is_refused(opener, secure):
    server, _ = secure
    assert fetch(opener, server.url.replace("http:", "https:") + "/ok") == "certificate_invalid"
    assert server.asked == []


@pytest.mark.parametrize(
    ("path", "found"),
    [("/ok", b"hello"), ("/drip", "deadline"), ("/endlessto", "byte_cap"), ("/cut", "truncated_body")],
)
def test_the_limits_hold_over_tls(secure, monkeypatch, path, found):
    server, certificate = secure
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    opener = build_opener(FetchLimits("tests", DEADLINE_S, MAX_BYTES, allow_loopback=True))
    started = time.monotonic()
    assert fetch(opener, server.url.replace("http:", "https:") + path) == found
    assert time.monotonic() - started < DEADLINE_S + 5


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"HTTP/1.1 404 guard:timeout", "http_404"),
        (b"HTTP/1.1 404 guard:" + b"A" * 60_000, "http_404"),
        (b"HTTP/1.1 410 timed out, X-Robots-Tag, is not allowed, infinite loop", "http_410"),
        (b"HTTP/1.1 404 <urlopen error guard:deadline>", "http_404"),
        (b"HTTP/1.1 302 guard:timeout", "http_302"),
        (b"guard:of_my_own", "fetch_failed"),
        (b"<urlopen error guard:" + b"a" * 5000 + b">", "fetch_failed"),
    ],
)
def test_a_servers_words_never_become_a_reason(opener, web, said, reason):
    web.body = said + b"\r\nContent-Length: 0\r\n\r\n"
    assert fetch(opener, web.url + "/said") == reason


@pytest.mark.parametrize(
    ("name", "body", "found"),
    [
        ("gzip", gzip.compress(b"picture" * 99, mtime=0), b"picture" * 99),
        ("deflate", zlib.compress(b"picture" * 99), b"picture" * 99),
        ("gzip", gzip.compress(bytes(3_000_000), mtime=0), "byte_cap"),
        ("gzip", gzip.compress(b"picture" * 99, mtime=0)[:-9], "truncated_body"),
        ("gzip", b"not packed", b"not packed"),
        ("identity", b"as it is", b"as it is"),
    ],
    ids=["gzip", "zlib", "bomb", "cut", "said only", "plain"],
)
def test_what_a_server_packs_unasked_is_unpacked_within_the_limit(opener, web, name, body, found):
    web.location, web.body = name, body
    assert fetch(opener, web.url + "/packed") == found
