"""One picture by its URL: whatever the server answers, a fault is one line."""

import pytest

from pipeline.web.picture import fetch_picture
from tests.support.hostile_server import HostileServer

HEAD = b"HTTP/1.1 200 OK\r\n"
ANSWERS = {
    "no status": b"XYZ\r\n\r\n",
    "a status of six digits": b"HTTP/1.1 999999 OK\r\n\r\n",
    "a bad chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "a long header": HEAD + b"X: " + b"a" * 70_000 + b"\r\n\r\n",
    "many headers": HEAD + b"X: a\r\n" * 120 + b"\r\n",
    "no length": HEAD + b"Content-Length: abc\r\n\r\n",
    "a redirect to a port above 65,535": b"HTTP/1.1 302 Found\r\nLocation: http://a:99999/\r\n\r\n",
    "a redirect to a control character": b"HTTP/1.1 302 Found\r\nLocation: http://a\x01b/\r\n\r\n",
    "a redirect to a private address": b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\n\r\n",
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_a_hostile_answer_is_one_line(kind: str) -> None:
    with HostileServer() as web:
        web.body = ANSWERS[kind]
        with pytest.raises(ValueError, match=r"/said: cannot be fetched \(.*\); give another URL") as fault:
            fetch_picture(f"{web.url}/said", allow_loopback=True)
    assert str(fault.value).isprintable() and len(str(fault.value)) < 500
    if "private" in kind:
        assert "(refused_address)" in str(fault.value)


@pytest.mark.parametrize("url", ["http://a\0b/", "http://a\x1bb/", "https://[::1", "http://127.0.0.1/", "file:///a"])
def test_a_hostile_url_is_one_line(url: str) -> None:
    with pytest.raises(ValueError, match="cannot be fetched") as fault:
        fetch_picture(url)
    assert str(fault.value).isprintable()
