"""Streamed tars of a hostile server: every length in them is bounded, and no such tar ends a run or its worker."""

import bz2
import gzip
import itertools
import json
import lzma
import tarfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from pipeline.config import Data
from pipeline.data import streamed_tar, streaming
from pipeline.data.stream import UnreadableShardError
from tests.support.tiny_shards import tiny_jpeg

BOUND = 4 << 20
"""MOST_BYTES in these tests: what the attacks send is small, too."""
GOOD = 3
Parts = Callable[[], Iterator[bytes]]


def good() -> bytes:
    """Whole samples without the tar's end."""
    rng = np.random.default_rng(0)
    content = b""
    for number in range(GOOD):
        record = json.dumps({"key": f"g{number}", "captions": ["a cat"]}).encode()
        for name, data in ((f"g{number}.jpg", tiny_jpeg(rng, "red", "dark", 32, 32)), (f"g{number}.json", record)):
            content += header(tarfile.REGTYPE, len(data), name) + data + bytes(-len(data) % 512)
    return content


def header(kind: bytes, size: int, name: str = "bad.jpg", pax: dict[str, str] | None = None) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.pax_headers = kind, size, pax or {}
    return info.tobuf(tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT)


def endless(start: bytes) -> Parts:
    def parts() -> Iterator[bytes]:
        yield start
        while True:
            yield bytes(1 << 20)

    return parts


def once(content: bytes) -> Parts:
    return lambda: iter([content])


def packed_zeros(compressor: Any) -> bytes:
    start = compressor.compress(header(tarfile.REGTYPE, 1 << 31))
    return start + b"".join(compressor.compress(bytes(1 << 20)) for _ in range(64)) + compressor.flush()


def deep_headers() -> bytes:
    """Each long name is for the header after it, which is one again."""
    return (header(tarfile.GNUTYPE_LONGNAME, 4, "n") + b"name".ljust(512, b"\0")) * 5000


def sparse_file(size: int) -> bytes:
    """A file that is one hole of this size, and takes no byte of the tar."""
    block = bytearray(header(tarfile.GNUTYPE_SPARSE, 0))
    block[483:495] = b"%011o\0" % size
    block[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(block))[0]  # type: ignore[attr-defined]
    return bytes(block)


def files_of_one_key() -> Iterator[bytes]:
    """Each is small; a name without an ending stands between them, which belongs to no sample."""
    yield good()
    for number in itertools.count():
        yield header(tarfile.REGTYPE, 1 << 18, f"a.{number}") + bytes(1 << 18) + header(tarfile.REGTYPE, 0, "README")


END = bytes(1024)
ATTACKS: dict[str, Parts] = {
    "a file of 8 GB": endless(good() + header(tarfile.REGTYPE, 8 << 30)),
    "a sparse file of 4 GB": once(good() + sparse_file(4 << 30) + END),
    "a pax header of 8 GB": endless(good() + header(b"x", 8 << 30)),
    "a long name of 8 GB": endless(good() + header(tarfile.GNUTYPE_LONGNAME, 8 << 30)),
    "headers within headers": once(good() + deep_headers() + END),
    "a negative size": once(good() + header(tarfile.REGTYPE, 0, pax={"size": "-512"}) + END),
    "a size of 5000 digits": once(good() + header(tarfile.REGTYPE, 0, pax={"size": "9" * 5000}) + END),
    "an end that never comes": endless(good() + END),
    "links and devices for ever": lambda: (part for part in iter(lambda: header(tarfile.SYMTYPE, 0) * 500, None)),
    "files of one key for ever": files_of_one_key,
    "gzip": once(gzip.compress(good() + END)),
    "a gzip bomb": once(gzip.compress(header(tarfile.REGTYPE, 1 << 31) + bytes(64 << 20))),
    "a bzip2 bomb": once(packed_zeros(bz2.BZ2Compressor())),
    "an xz bomb": once(packed_zeros(lzma.LZMACompressor(preset=0))),
}


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    parts: Parts = staticmethod(once(b""))
    location = ""

    def do_GET(self) -> None:
        self.send_response(302 if self.location and self.path == "/moved.tar" else 200)
        if self.location:
            self.send_header("Location", self.location)
        self.end_headers()
        try:
            for part in type(self).parts():
                self.wfile.write(part)
        except OSError:
            return

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(streaming, "BACK_OFF_S", 0.01)
    monkeypatch.setattr(streamed_tar, "MOST_BYTES", BOUND)
    server = Server()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def read(url: str, count: int = GOOD * 2) -> list[streaming.Sample]:
    samples = streaming.StreamedSamples(streaming.expand_urls([url]), Data(urls=(url,)), 32, 1, 0, 1, 0, 1, count)
    return list(samples)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_tar_costs_little_and_ends_no_run_with_good_samples(
    name: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Handler, "parts", staticmethod(once(good() + END)))
    read(f"{url}/a.tar")  # imports what it needs
    monkeypatch.setattr(Handler, "parts", staticmethod(ATTACKS[name]))
    tracemalloc.start()
    start_s = time.thread_time()
    try:
        samples = read(f"{url}/a.tar")
    except UnreadableShardError as error:
        assert "\n" not in str(error) and url in str(error)
        assert name in ("gzip", "a gzip bomb", "a bzip2 bomb", "an xz bomb", "links and devices for ever")
    else:
        assert {sample.key for sample in samples} == {f"g{number}" for number in range(GOOD)}
        assert sum(sample.corrupt for sample in samples) >= 1
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 6 * BOUND and time.thread_time() - start_s < 20


@pytest.mark.parametrize("location", ["ftp://127.0.0.1:9/a.tar", "file:///etc/passwd", "gopher://127.0.0.1/a"])
def test_a_redirect_to_another_scheme_is_not_followed(url: str, location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handler, "location", location)
    with pytest.raises(UnreadableShardError, match=r"another scheme|is not allowed"):
        read(f"{url}/moved.tar")


def test_a_redirect_to_http_is_followed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handler, "location", "/a.tar")
    monkeypatch.setattr(Handler, "parts", staticmethod(once(good() + END)))
    assert len(read(f"{url}/moved.tar")) == GOOD * 2
