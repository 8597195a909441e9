"""A host gets few connections at a time, what its robots.txt forbids is never requested, and opt-outs are obeyed."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import URLError

import pytest

from pipeline.web.guarded_opener import FetchLimits, build_opener
from pipeline.web.politeness import MOST_ROBOTS_BYTES, Robots
from tests.data_prep.test_download import QUICK, ledger, run, write_table
from tests.support.hostile_server import HostileServer
from tests.support.web_folder import jpeg_bytes, make_web, requested, served

ROBOTS = (
    b"User-agent: *\nDisallow: /all/\n\n"
    b"User-agent: blip2-pretraining\nAllow: /\nDisallow: /private/\nDisallow: /*.png$\n"
)
"""The longest match decides, not the first, and there are wildcards (RFC 9309, 2.2.2 and 2.2.3)."""


def test_what_robots_txt_forbids_is_left_out_and_never_requested(tmp_path):
    paths = ["/fine.jpg", "/private/a.jpg", "/all/a.jpg", "/drawn/b.png"]
    routes = {path: {"behaviour": "ok", "file": f"images/{path.replace('/', '_')}"} for path in paths}
    make_web(tmp_path / "web", routes | {"/robots.txt": {"behaviour": "ok", "file": "images/robots.txt"}})
    (tmp_path / "web" / "images" / "robots.txt").write_bytes(ROBOTS)
    log = tmp_path / "log"
    with served(tmp_path / "web", log) as base:
        write_table(tmp_path / "t.parquet", [base + path for path in paths])
        flags = ["--input", tmp_path / "t.parquet", "--output", tmp_path / "raw", "--allow-loopback", *QUICK]
        assert run("table", *flags, "--robots") == 0
    assert [entry["reason"] for entry in ledger(tmp_path / "raw")] == [
        None,
        "robots_disallowed",
        None,
        "robots_disallowed",
    ]
    assert sorted(requested(log)) == ["/all/a.jpg", "/fine.jpg", "/robots.txt"]


class Busy(ThreadingHTTPServer):
    """Counts how many it serves at once; what its robots.txt answers is its `status`."""

    daemon_threads = True
    status, elsewhere = 404, ""

    def __init__(self):
        self.lock, self.now, self.most, self.asked = threading.Lock(), 0, 0, []
        super().__init__(("127.0.0.1", 0), BusyHandler)


class BusyHandler(BaseHTTPRequestHandler):
    server: Busy

    def do_GET(self):
        with self.server.lock:
            self.server.now += 1
            self.server.asked.append(self.path)
            self.server.most = max(self.server.most, self.server.now)
        time.sleep(0.05)
        with self.server.lock:
            self.server.now -= 1
        statuses = {"/robots.txt": self.server.status, "/gone": 404, "/moved": 302}
        self.send_response(statuses.get(self.path, 200))
        if self.path == "/moved":
            self.send_header("Location", self.server.elsewhere)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_):
        pass


@contextmanager
def serving():
    server = Busy()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def busy():
    with serving() as server:
        yield server


def fetch_all(server, paths, **limits):
    """What 8 threads get of the server, errors as text."""
    opener = build_opener(FetchLimits("tests", 10.0, 1000, allow_loopback=True, **limits))

    def fetch(path):
        try:
            with opener.open(f"http://127.0.0.1:{server.server_address[1]}{path}", timeout=5) as answer:
                return answer.read()
        except URLError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(fetch, paths))


@pytest.mark.parametrize(("per_host", "most"), [(2, 2), (0, 8)])
def test_a_host_is_asked_for_few_pictures_at_a_time(busy, per_host, most):
    """Slots come back after errors too: more of them than there are slots."""
    found = fetch_all(busy, ["/gone"] * 8 + ["/ok"] * 16, connections_per_host=per_host)
    assert found[8:] == [b"ok"] * 16 and all("404" in text for text in found[:8])
    assert busy.most <= most and (per_host == 0 or busy.most == most)


def test_robots_txt_is_read_once_a_host_and_its_absence_allows_all(busy):
    assert fetch_all(busy, ["/a"] * 10, robots=True, connections_per_host=1) == [b"ok"] * 10
    assert busy.asked.count("/robots.txt") == 1


def test_a_host_whose_robots_txt_fails_is_left_alone(busy):
    busy.status = 503
    found = fetch_all(busy, ["/a", "/b"], robots=True)
    assert all("robots_unreachable" in text for text in found)
    assert set(busy.asked) == {"/robots.txt"}


def test_a_redirect_to_a_host_that_forbids_it_is_not_followed(busy):
    with serving() as other:
        other.status = 503
        busy.elsewhere = f"http://127.0.0.1:{other.server_address[1]}/picture"
        found = fetch_all(busy, ["/moved"] * 4, robots=True, connections_per_host=1)
        assert all("robots_unreachable" in text for text in found) and set(other.asked) == {"/robots.txt"}
        assert fetch_all(busy, ["/moved"], robots=False) == [b"ok"] and "/picture" in other.asked


def test_a_long_robots_txt_is_read_to_its_first_512_kibibytes():
    with HostileServer() as server:
        server.body = b"HTTP/1.0 200 OK\r\n\r\nUser-agent: *\nDisallow: /a\n" + b"#" * 600_000 + b"\nDisallow: /b\n"
        server.body = server.body.replace(b"#" * 600_000, b"# padding\n" * 60_000)
        opener = build_opener(FetchLimits("tests", 10.0, 20_000_000, allow_loopback=True, robots=True))
        assert len(opener._read_robots(server.url + "/said")) == 512 << 10
        rules = Robots("tests", lambda _: opener._read_robots(server.url + "/said"))
        with pytest.raises(URLError, match="robots_disallowed"):
            rules.check("http://a/a")
        rules.check("http://a/b")


def test_a_process_remembers_few_bytes_of_robots_txt_and_forgets_the_oldest():
    asked = []

    def read(place):
        asked.append(place)
        return b"User-agent: *\nDisallow: /a\n" + b"# padding\n" * 20_000

    rules = Robots("tests", read)
    for number in range(30):
        rules.check(f"http://{number}.example/b")
        rules.check("http://often.example/b")
    assert sum(host.num_bytes for host in rules._of_host.values()) <= MOST_ROBOTS_BYTES
    assert asked.count("http://often.example/robots.txt") == 1 and len(rules._of_host) == 10
    rules.check("http://0.example/b")
    assert asked.count("http://0.example/robots.txt") == 2


OPT_OUTS = {
    "noml": "opt_out", "noai, noimageai": "opt_out", "NoML, noarchive": "opt_out", "blip2-pretraining: noml": "opt_out",
    "other-bot: noml": None, "all": None,
}  # fmt: skip
"""X-Robots-Tag -> why its picture is dropped."""


class TaggedHandler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("X-Robots-Tag", "nofollow")
        self.send_header("X-Robots-Tag", list(OPT_OUTS)[int(self.path[1:])])
        content = jpeg_bytes(int(self.path[1:]))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def test_pictures_whose_owners_opt_out_of_machine_learning_are_left_out(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), TaggedHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        urls = [f"http://127.0.0.1:{server.server_address[1]}/{number}" for number in range(len(OPT_OUTS))]
        write_table(tmp_path / "t.parquet", urls)
        flags = ["--input", tmp_path / "t.parquet", "--output", tmp_path / "raw", "--allow-loopback", *QUICK]
        assert run("table", *flags) == 0
    finally:
        server.shutdown()
        server.server_close()
    assert [entry["reason"] for entry in ledger(tmp_path / "raw")] == list(OPT_OUTS.values())
