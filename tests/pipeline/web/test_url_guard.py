"""Only http and https on the public internet pass the guard, however an address is written."""

import ipaddress
import socket

import pytest

from pipeline.web.url_guard import RefusedError, clean_url, is_refused, resolve


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "data:image/png;base64,AAAA", "ftp://example.com/a.jpg", "javascript:1", "a.jpg", "//x/y"],
)
def test_other_schemes_are_refused(url):
    with pytest.raises(RefusedError, match="refused_scheme"):
        clean_url(url, allow_loopback=True)


@pytest.mark.parametrize(
    "url", ["http:///a.jpg", "http://user:pw@example.com/a.jpg", "http://[::1/a", "http://x:99999/a"]
)
def test_malformed_urls_are_refused(url):
    with pytest.raises(RefusedError, match="malformed_url"):
        clean_url(url, allow_loopback=True)


REFUSED = [
    "127.0.0.2", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.100.100.200", "168.63.129.16",
    "0.0.0.0", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "192.0.2.1", "::1", "::", "fe80::1",
    "fc00::1", "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe", "64:ff9b::a01:203",
    "192.0.0.192", "192.88.99.1", "fec0::1", "64:ff9b:1::1", "3fff::1", "5f00::1",
]  # fmt: skip


@pytest.mark.parametrize("address", REFUSED)
def test_private_and_special_addresses_are_refused_even_with_loopback_admitted(address):
    assert is_refused(ipaddress.ip_address(address), allow_loopback=True)
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(RefusedError, match="refused_address"):
        clean_url(f"http://{host}/a.jpg", allow_loopback=True)


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946", "::ffff:93.184.216.34", "64:ff9b::808:808"]
)
def test_public_addresses_pass(address):
    assert not is_refused(ipaddress.ip_address(address), allow_loopback=False)


def test_the_loopback_address_passes_only_with_the_flag():
    assert clean_url("http://127.0.0.1:8765/a.jpg", allow_loopback=True) == "http://127.0.0.1:8765/a.jpg"
    with pytest.raises(RefusedError, match="refused_address"):
        clean_url("http://127.0.0.1:8765/a.jpg", allow_loopback=False)


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "0177.0.0.1", "127.1", "localhost"])
def test_other_spellings_of_loopback_are_refused_when_they_resolve(host):
    with pytest.raises(RefusedError, match="refused_address"):
        resolve(host, 80, allow_loopback=False)


def answer_with(monkeypatch, *addresses):
    def answers(host, port, **_):
        return [
            (socket.AF_INET6 if ":" in a else socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in addresses
        ]

    monkeypatch.setattr(socket, "getaddrinfo", answers)


def test_one_private_address_among_the_answers_refuses_the_host(monkeypatch):
    answer_with(monkeypatch, "93.184.216.34", "10.0.0.1")
    with pytest.raises(RefusedError, match="refused_address"):
        resolve("two-faced.example", 80, allow_loopback=False)


def test_a_checked_address_is_returned_for_the_connection(monkeypatch):
    answer_with(monkeypatch, "2606:2800:220:1:248:1893:25c8:1946", "93.184.216.34")
    assert resolve("example.com", 80, allow_loopback=False) == "93.184.216.34"


def test_an_unknown_host_is_a_dns_failure(monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(RefusedError, match="dns_failure"):
        resolve("no-such.example", 80, allow_loopback=False)


def test_urls_are_escaped_for_the_request():
    url = clean_url("http://bücher.example/ein bild%20ö.jpg?a=b c#top", allow_loopback=False)
    assert url == "http://xn--bcher-kva.example/ein%20bild%20%C3%B6.jpg?a=b%20c"
