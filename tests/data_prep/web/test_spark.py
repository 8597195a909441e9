"""img2dataset's pyspark distributor on a real local Spark: the same end of every row, and nothing round the guard."""

import os
import shutil
from collections import Counter

import pytest

from tests.data_prep.test_download import ledger, private, run, samples, write_table  # noqa: F401 - a fixture
from tests.support.hostile_server import HostileServer
from tests.support.web_folder import make_web, requested, served

pytest.importorskip("pyspark", reason="pyspark is not installed")
if not shutil.which("java"):
    pytest.skip("no Java here, which Spark runs on (openjdk-17-jre-headless)", allow_module_level=True)

QUICK = ["--retries", "1", "--backoff-s", "0.1", "--timeout-s", "5", "--deadline-s", "20", "--threads", "8"]


def test_every_spark_task_fetches_through_the_guard(tmp_path, private, monkeypatch):  # noqa: F811 - the fixture
    private_url, private_asked = private
    monkeypatch.setitem(os.environ, "no_proxy", "127.0.0.1,127.0.0.2")
    routes = {f"/{number}.jpg": {"behaviour": "ok", "file": f"images/{number}.jpg"} for number in range(140)}
    routes["/recovering.jpg"] = {"behaviour": "recovering", "file": "images/r.jpg"}
    routes["/gone.jpg"] = {"behaviour": "missing"}
    routes["/to-private.jpg"] = {"behaviour": "redirect", "location": private_url + "/secret.jpg"}
    routes["/to-file.jpg"] = {"behaviour": "redirect", "location": "file:///etc/passwd"}
    make_web(tmp_path / "web", routes)
    with served(tmp_path / "web", tmp_path / "log") as base:
        write_table(tmp_path / "t.parquet", [*(base + path for path in routes), private_url + "/direct.jpg"])
        flags = ["--input", tmp_path / "t.parquet", "--allow-loopback", "--samples-per-shard", 80, "--processes", 2]
        assert run("table", *flags, *QUICK, "--output", tmp_path / "spark", "--distributor", "pyspark") == 0
        by_spark = Counter(requested(tmp_path / "log"))
        monkeypatch.delitem(os.environ, "no_proxy")
        assert run("table", *flags, *QUICK, "--output", tmp_path / "plain") == 0
    reasons = [entry["reason"] for entry in ledger(tmp_path / "spark")]
    assert reasons == [None] * 141 + ["http_404", "refused_address", "refused_scheme", "refused_address"]
    assert reasons == [entry["reason"] for entry in ledger(tmp_path / "plain")]
    assert samples(tmp_path / "spark") == samples(tmp_path / "plain")
    assert private_asked == []
    assert by_spark == Counter([*routes, "/recovering.jpg"])


def test_a_hostile_server_harms_no_spark_task(tmp_path, monkeypatch):
    """The bounds of the guard hold in Spark's own processes: sizes, deadlines, and reasons that are never its words."""
    monkeypatch.setitem(os.environ, "no_proxy", "127.0.0.1,127.0.0.2")
    paths = {
        "/ok": "not_an_image",
        "/endless": "byte_cap",
        "/promised": "byte_cap",
        "/drip": "deadline",
        "/cut": "truncated_body",
        "/loop": "too_many_redirects",
        "/badgateway": "http_502",
        "/to": "refused_scheme",
        "/said": "http_404",
    }
    with HostileServer() as server:
        server.location = "file:///etc/passwd"
        server.body = b"HTTP/1.1 404 guard:timeout\r\nContent-Length: 0\r\n\r\n"
        write_table(tmp_path / "t.parquet", [server.url + path for path in paths])
        flags = ["--input", tmp_path / "t.parquet", "--allow-loopback", "--distributor", "pyspark", "--retries", "0"]
        flags += ["--timeout-s", "5", "--deadline-s", "3", "--output", tmp_path / "spark", "--least-yield", "0"]
        assert run("table", *flags) == 1  # as no picture is kept
    assert [entry["reason"] for entry in ledger(tmp_path / "spark")] == list(paths.values())
