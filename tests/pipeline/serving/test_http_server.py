"""The server of the page refuses what hostile clients send, in one line, and goes on with the next request."""

import base64
import hashlib
import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.serving import http_server
from pipeline.serving.http_server import (
    BODY_TYPE,
    MAX_LINE_BYTES,
    MAX_PICTURE_BYTES,
    Desk,
    PageServer,
    Reply,
    as_json,
)

PAGE = "<html><style>a{}</style><script>let a = 1;\n</script><script>let b;</script></html>"


class Work:
    """Tasks: one answers at once, one waits for a word, two fail."""

    def __init__(self) -> None:
        self.go_on, self.desk, self.at_once, self.most_at_once = threading.Event(), Desk(1), 0, 0

    def echo(self, line: bytes, picture: bytes) -> Reply:
        return as_json({"line": line.decode(), "bytes": len(picture)})

    def slow(self, line: bytes, picture: bytes) -> Reply:
        with self.desk.turn():
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            assert self.go_on.wait(20)
            self.at_once -= 1
        return self.echo(line, picture)

    def refuse(self, line: bytes, picture: bytes) -> Reply:
        raise ValueError("picture:\nis \x1b[31m not readable")

    def fail(self, line: bytes, picture: bytes) -> Reply:
        raise RuntimeError(f"CUDA \x1b[2J\nbroke {'x' * 2000}")


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def server(work: Work) -> Iterator[PageServer]:
    with PageServer("127.0.0.1", 0) as server:
        tasks = {"/echo": work.echo, "/slow": work.slow, "/refuse": work.refuse, "/fail": work.fail}
        server.open(PAGE, tasks)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        work.go_on.set()
        server.shutdown()
        thread.join()


class Answer:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    server: PageServer, path: str = "/echo", body: bytes | None = b"{}\n", method: str = "POST", **headers: str
) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=20)
    given = {"Content-Type": BODY_TYPE} | {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, given)
    return Answer(connection.getresponse())


def sent(server: PageServer, content: bytes, and_end: bool = False) -> bytes:
    """What comes back for bytes as they are."""
    with socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=20) as client:
        client.sendall(content)
        if and_end:
            client.shutdown(socket.SHUT_WR)
        answer = b""
        while part := client.recv(65_536):
            answer += part
        return answer


def head(server: PageServer, *lines: str, path: str = "/echo") -> bytes:
    host = f"Host: 127.0.0.1:{server.server_address[1]}"
    return "\r\n".join([f"POST {path} HTTP/1.1", host, f"Content-Type: {BODY_TYPE}", *lines, "", ""]).encode()


def test_the_page_may_run_its_own_script_and_reach_this_server_alone(server: PageServer) -> None:
    answer = ask(server, "/", None, "GET")
    assert (answer.status, answer.body.decode()) == (200, PAGE)
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";"))
    own = [base64.b64encode(hashlib.sha256(each).digest()).decode() for each in (b"let a = 1;\n", b"let b;")]
    assert policy["script-src"] == f"'sha256-{own[0]}' 'sha256-{own[1]}'"
    assert (policy["default-src"], policy["connect-src"], policy["frame-ancestors"]) == ("'none'", "'self'", "'none'")
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    for each in (answer, ask(server), ask(server, "/gone"), ask(server, method="PUT")):
        assert (each.headers["X-Content-Type-Options"], each.headers["Cache-Control"]) == ("nosniff", "no-store")
        assert "Python" not in str(each.headers)


def test_a_task_gets_its_line_and_its_picture(server: PageServer) -> None:
    assert ask(server, body=b'{"a": 1}\n\x00\n\xff').json == {"line": '{"a": 1}', "bytes": 3}
    largest = b"{}" + b" " * (MAX_LINE_BYTES - 3) + b"\n" + bytes(MAX_PICTURE_BYTES)
    assert ask(server, body=largest).json["bytes"] == MAX_PICTURE_BYTES


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "/../../etc/passwd", "//etc/passwd", "/%2e%2e/serve.py", "/serve.js", "/.", "file:///etc/passwd",
     "http://127.0.0.1/", "/\x7f"],
)  # fmt: skip
def test_no_file_is_served_by_its_name(path: str, server: PageServer) -> None:
    host = f"Host: 127.0.0.1:{server.server_address[1]}"
    for method in ("GET", "POST"):
        answer = sent(server, f"{method} {path} HTTP/1.1\r\n{host}\r\nContent-Type: {BODY_TYPE}\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.0 404") and b"root:" not in answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"].isprintable()


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example",
                                  "", "[::1", "a@evil.example"])  # fmt: skip
def test_another_name_for_this_address_is_refused(host: str, server: PageServer) -> None:
    """DNS rebinding: a page of evil.example, whose name now leads here."""
    for method, path in (("GET", "/"), ("POST", "/echo")):
        answer = ask(server, path, b"{}\n", method, Host=host, Origin=f"http://{host}")
        assert answer.status == 403 and answer.json["error"].startswith("Host: is not a name of this server")


def test_its_own_names_are_served(server: PageServer) -> None:
    port = server.server_address[1]
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", "LOCALHOST", "localhost:9999", "[::1]:8080"):
        assert ask(server, "/", None, "GET", Host=host).status == 200
        assert ask(server, Host=host, Origin=f"http://{host}").status == 200
    assert b" 403 " in sent(server, b"GET / HTTP/1.1\r\n\r\n")
    assert b" 403 " in sent(server, b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")


@pytest.mark.parametrize("headers", [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://["},
                                     {"Origin": "http://127.0.0.1:1"}, {"Sec_Fetch_Site": "cross-site"},
                                     {"Sec_Fetch_Site": "same-site"}])  # fmt: skip
def test_the_page_of_another_may_not_ask(headers: dict[str, str], server: PageServer) -> None:
    answer = ask(server, "/echo", b"{}\n", "POST", **headers)
    assert answer.status == 403 and answer.json["error"] == "Origin: another page may not ask this server"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_what_an_html_form_can_send_is_refused(kind: str, server: PageServer) -> None:
    assert ask(server, Content_Type=kind).status == 415


def test_a_large_body_is_refused_before_it_is_read(server: PageServer) -> None:
    for length in (MAX_PICTURE_BYTES + MAX_LINE_BYTES + 1, "9" * 5000):
        answer = sent(server, head(server, f"Content-Length: {length}"))
        assert answer.startswith(b"HTTP/1.0 413") and b"larger than 20 MB" in answer
    with socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=20) as client:
        client.sendall(head(server, f"Content-Length: {2 * MAX_PICTURE_BYTES}"))
        client.sendall(bytes(2 * MAX_PICTURE_BYTES))  # a client that does not wait sees the answer, too
        assert client.recv(100).startswith(b"HTTP/1.0 413")


@pytest.mark.parametrize("lines", [(), ("Content-Length: -1",), ("Content-Length: 1e3",), ("Content-Length: \xb2",),
                                   ("Content-Length: 3", "Content-Length: 4"), ("Transfer-Encoding: chunked",),
                                   ("Content-Length: 3", "Transfer-Encoding: chunked")])  # fmt: skip
def test_a_body_says_its_length_once(lines: tuple[str, ...], server: PageServer) -> None:
    assert sent(server, head(server, *lines) + b"{}\n").startswith(b"HTTP/1.0 411")


@pytest.mark.parametrize("body", [b"", b"{}", b" " * MAX_LINE_BYTES + b"\n"])
def test_a_body_begins_with_a_bounded_line(body: bytes, server: PageServer) -> None:
    answer = ask(server, body=body)
    assert answer.status == 400 and "does not begin with a line of JSON" in answer.json["error"]


def test_a_body_that_ends_early_is_refused(server: PageServer) -> None:
    assert sent(server, head(server, "Content-Length: 100") + b"{}\n", and_end=True).startswith(b"HTTP/1.0 400")


@pytest.mark.parametrize("content", [b"\x16\x03\x01\x02\x00\x01\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
                                     b"GET /" + b"a" * 70_000, b"\x1b[2J / HTTP/1.1\r\n\r\n",
                                     b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n"])  # fmt: skip
def test_what_is_no_http_gets_one_line(content: bytes, server: PageServer, capsys: pytest.CaptureFixture[str]) -> None:
    answer = sent(server, content, and_end=True)
    assert re.match(rb"(HTTP/1.0 [45]\d\d .*\r\n|\{)", answer) and b"\x1b" not in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2] or answer)["error"].isprintable()
    assert ask(server).status == 200 and not capsys.readouterr().err


def test_slow_clients_are_cut(server: PageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silent ones, and those that send a byte now and then."""
    monkeypatch.setattr(http_server, "READ_S", 0.4)
    for content in (b"", b"GET / HT", head(server, "Content-Length: 100") + b"{}\n"):
        assert sent(server, content) == b""
    client = socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=20)
    with client, pytest.raises(ConnectionError):
        for _ in range(2000):
            client.sendall(b"G")
            time.sleep(0.01)
    assert ask(server).status == 200


def test_one_computes_one_waits_and_more_are_refused(server: PageServer, work: Work) -> None:
    statuses: list[int] = []
    threads = [threading.Thread(target=lambda: statuses.append(ask(server, "/slow").status)) for _ in range(2)]
    for thread in threads:
        thread.start()
    _wait_until_full(work.desk)
    answer = ask(server, "/slow")
    assert answer.status == 503 and answer.json["error"].startswith("the queue is full")
    assert ask(server).status == 200, "others do not wait for the desk"
    work.go_on.set()
    for thread in threads:
        thread.join()
    assert statuses == [200, 200] and work.most_at_once == 1
    assert ask(server, "/slow").status == 200


def _wait_until_full(desk: Desk) -> None:
    end = time.monotonic() + 20
    while desk.places.acquire(blocking=False):
        desk.places.release()
        assert time.monotonic() < end
        time.sleep(0.01)


def test_connections_are_bounded(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 2)
    with PageServer("127.0.0.1", 0) as server:
        server.open(PAGE, {"/echo": work.echo})
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            idle = [socket.create_connection(("127.0.0.1", server.server_address[1])) for _ in range(2)]
            assert sent(server, b"").startswith(b"HTTP/1.0 503")
            for each in idle:
                each.close()
            end = time.monotonic() + 20
            while b" 200 " not in sent(server, head(server, "Content-Length: 3") + b"{}\n"):
                assert time.monotonic() < end
        finally:
            server.shutdown()
            thread.join()


def test_faults_are_one_printable_line(server: PageServer, capsys: pytest.CaptureFixture[str]) -> None:
    refused, failed = ask(server, "/refuse"), ask(server, "/fail")
    assert (refused.status, refused.json["error"]) == (400, "picture: is \\x1b[31m not readable")
    assert failed.status == 500 and failed.json["error"].startswith("the model failed: CUDA \\x1b[2J broke xxx")
    assert len(failed.json["error"]) == http_server.LONGEST_FAULT
    errors = capsys.readouterr().err
    assert errors.startswith("fault: /fail: RuntimeError: CUDA \\x1b[2J") and errors.count("\n") == 1
    assert ask(server).status == 200


def test_a_client_that_goes_away_says_nothing(server: PageServer, work: Work, capsys: Any) -> None:
    with socket.create_connection(("127.0.0.1", server.server_address[1])) as client:
        client.sendall(head(server, "Content-Length: 3", path="/slow") + b"{}\n")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, not an end
    work.go_on.set()
    assert ask(server, "/slow").status == 200 and not capsys.readouterr().err


def test_a_port_that_is_taken_is_one_line(server: PageServer) -> None:
    taken = server.server_address[1]
    for host, port in (("127.0.0.1", taken), ("no.such.host.invalid", 0), ("192.0.2.1", 0)):
        with pytest.raises(ValueError, match=f"--host {host}, --port {port}: cannot be listened at"):
            PageServer(host, port)


def test_other_machines_use_an_address_or_the_name_of_this_one() -> None:
    with PageServer("0.0.0.0", 0) as server:
        assert not server.is_loopback and socket.gethostname().lower() in server.names
        assert server.url == f"http://{socket.gethostname()}:{server.server_address[1]}/"
    with PageServer("localhost", 0) as server:
        assert server.is_loopback and server.names == {"localhost"}


def test_a_desk_that_is_closed_ends_its_work_and_begins_no_other(server: PageServer, work: Work) -> None:
    answers: list[Answer] = []
    threads = [threading.Thread(target=lambda: answers.append(ask(server, "/slow"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    _wait_until_full(work.desk)
    work.desk.close(0.01)  # too short for the work that is being done
    work.go_on.set()
    for thread in threads:
        thread.join()
    assert sorted(each.status for each in answers) == [200, 503]
    assert "the server is ending" in str([each.json for each in answers])
