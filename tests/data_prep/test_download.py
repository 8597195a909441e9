"""The whole download, with the real img2dataset against a real server: ledger, refusals, resumption, local images."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep import download
from data_prep.raw.raw_shards import key_of
from data_prep.raw.stored_image import ImageLimits, store
from data_prep.shards import tar_files
from data_prep.shards.receipts import finished_shards
from data_prep.tables.row import Row
from data_prep.web import fetching
from tests.support.web_folder import jpeg_bytes, make_web, requested, served

QUICK = ["--retries", "1", "--backoff-s", "0.1", "--timeout-s", "5", "--deadline-s", "20", "--processes", "1"]


def run(*arguments):
    return download.main([str(argument) for argument in arguments])


def write_table(path, urls):
    pq.write_table(pa.table({"url": urls, "caption": [f"caption {i}" for i in range(len(urls))]}), path)


def ledger(folder):
    tables = [pq.read_table(path) for path in sorted(folder.glob("*.ledger.parquet"))]
    return pa.concat_tables(tables).to_pylist()


def samples(folder):
    return [sample for tar in finished_shards(folder) for sample in tar_files.read_samples(tar)]


@pytest.fixture
def private():
    """A server at a loopback address that no flag admits; holds what it was asked for."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    asked = []
    server = ThreadingHTTPServer(("127.0.0.2", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.2:{server.server_address[1]}", asked
    server.shutdown()
    server.server_close()


def test_every_row_of_a_troubled_web_is_accounted_for(tmp_path, private, capsys):
    private_url, private_asked = private
    fine = {f"/ok{i}.jpg": {"behaviour": "ok", "file": f"images/{i}.jpg"} for i in range(6)}
    trouble = {
        "/recovering.jpg": {"behaviour": "recovering", "file": "images/r.jpg"},
        "/slow.jpg": {"behaviour": "slow", "file": "images/s.jpg", "delay_s": 1.0},
        "/moved.jpg": {"behaviour": "redirect", "location": "/ok0.jpg"},
        "/gone.jpg": {"behaviour": "missing"},
        "/page.jpg": {"behaviour": "not_image"},
        "/cut.jpg": {"behaviour": "truncated", "file": "images/c.jpg"},
        "/to-private.jpg": {"behaviour": "redirect", "location": private_url + "/secret.jpg"},
        "/to-file.jpg": {"behaviour": "redirect", "location": "file:///etc/passwd"},
        "/round.jpg": {"behaviour": "redirect", "location": "/round.jpg"},
        "/dark.jpg": {"behaviour": "ok", "file": "images/d.jpg"},
    }
    make_web(tmp_path / "web", fine | trouble)
    log, out = tmp_path / "log", tmp_path / "raw"
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(jpeg_bytes(99))
    with served(tmp_path / "web", log) as base:
        expected = dict.fromkeys([base + path for path in fine], "kept")
        expected |= {base + path: "kept" for path in ("/recovering.jpg", "/slow.jpg", "/moved.jpg")}
        expected |= {
            base + "/gone.jpg": "http_404",
            base + "/page.jpg": "not_an_image",
            base + "/cut.jpg": "truncated_body",
            base + "/to-private.jpg": "refused_address",
            base + "/to-file.jpg": "refused_scheme",
            base + "/round.jpg": "too_many_redirects",
            private_url + "/direct.jpg": "refused_address",
            secret.as_uri(): "refused_scheme",
            "data:image/jpeg;base64,AAAA": "refused_scheme",
            "http://169.254.169.254/latest/meta-data/": "refused_address",
            "http://no-such-host.invalid/a.jpg": "dns_failure",
        }
        write_table(tmp_path / "t.parquet", [*expected, "", base + "/ok1.jpg", base + "/dark.jpg"])
        table = pq.read_table(tmp_path / "t.parquet").to_pydict()
        table["caption"][-1] = "  "
        pq.write_table(pa.table(table), tmp_path / "t.parquet")
        flags = (
            "--input",
            tmp_path / "t.parquet",
            "--output",
            out,
            "--allow-loopback",
            "--samples-per-shard",
            8,
            *QUICK,
        )
        assert run("table", *flags) == 0
    entries = ledger(out)
    assert [entry["row"] for entry in entries] == list(range(len(expected) + 3))
    found = {entry["url"]: entry["reason"] or entry["status"] for entry in entries[: len(expected)]}
    assert found == expected
    assert [entry["reason"] for entry in entries[len(expected) :]] == ["no_url", None, "no_caption"]
    assert {entry["url"]: entry["http_status"] for entry in entries if entry["http_status"]} == {
        base + "/gone.jpg": 404
    }
    summary = json.loads((out / "table-000.summary.json").read_text())
    reasons = Counter(entry["reason"] for entry in entries if entry["reason"])
    assert (summary["rows"], summary["kept"]) == (len(entries), 10)
    assert summary["dropped_by_reason"] == dict(reasons)
    assert capsys.readouterr().out.splitlines()[-1] == str(out / "table-000.summary.json")

    asked = Counter(requested(log))
    assert private_asked == []
    assert asked["/dark.jpg"] == 0
    assert (asked["/recovering.jpg"], asked["/cut.jpg"], asked["/gone.jpg"], asked["/ok2.jpg"]) == (2, 2, 1, 1)
    kept = samples(out)
    assert [sample.key for sample in kept] == [entry["key"] for entry in entries if entry["status"] == "kept"]
    assert len({sample.key for sample in kept}) == 10
    first = kept[0]
    image = store(jpeg_bytes(0), ImageLimits(32, 256, 10**6))
    assert first.jpeg == image.jpeg
    assert first.record == {
        "key": key_of("table", Row(0, base + "/ok0.jpg", ())), "captions": ["caption 0"], "scores": [None],
        "sources": ["web"], "width": 80, "height": 60, "sha256": image.sha256, "url": base + "/ok0.jpg",
        "source": "table", "run": first.record["run"],
    }  # fmt: skip
    assert not list(out.glob(".*work*"))


def test_without_the_flag_nothing_on_this_machine_is_ever_requested(tmp_path):
    """By address it is refused before the downloader starts, by name at its connection, after the DNS answer."""
    make_web(tmp_path / "web", {"/a.jpg": {"behaviour": "ok", "file": "images/a.jpg"}})
    with served(tmp_path / "web", tmp_path / "log") as base:
        named = base.replace("127.0.0.1", "localhost")
        hexed = base.replace("127.0.0.1", "0x7f000001")
        write_table(tmp_path / "t.parquet", [base + "/a.jpg", named + "/a.jpg", hexed + "/a.jpg"])
        assert run("table", "--input", tmp_path / "t.parquet", "--output", tmp_path / "raw", *QUICK) == 1
    assert [entry["reason"] for entry in ledger(tmp_path / "raw")] == ["refused_address"] * 3
    assert requested(tmp_path / "log") == []


def test_kill_and_rerun_give_the_same_samples_and_repeat_no_finished_shard(tmp_path):
    count = 90
    routes = {f"/{i}.jpg": {"behaviour": "slow", "file": f"images/{i}.jpg", "delay_s": 0.2} for i in range(count)}
    make_web(tmp_path / "web", routes)
    log, out = tmp_path / "log", tmp_path / "raw"
    with served(tmp_path / "web", log) as base:
        write_table(tmp_path / "t.parquet", [f"{base}/{i}.jpg" for i in range(count)])
        flags = ["table", "--input", str(tmp_path / "t.parquet"), "--output", str(out), "--allow-loopback"]
        flags += ["--samples-per-shard", "40", "--threads", "4", *QUICK, "--retries", "0"]
        command = [sys.executable, "-m", "data_prep.download", *flags]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as victim:
            wait_until(lambda: len(requested(log)) > 5)
            family = psutil.Process(victim.pid).children(recursive=True)
            assert family
            assert run(*flags) == 1, "a second process at the same task is turned away"
            os.kill(victim.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(family, timeout=20)
        assert not alive, "img2dataset's processes outlive the download"
        assert not list(out.glob("*.receipt.json"))
        assert run(*flags) == 0
        whole = {path.name: path.read_bytes() for path in out.glob("*.tar")}
        keys = [key_of("table", Row(i, f"{base}/{i}.jpg", ())) for i in range(count)]
        assert [sample.key for sample in samples(out)] == keys
        limits = ImageLimits(32, 256, 10**6)
        assert [sample.jpeg for sample in samples(out)] == [store(jpeg_bytes(i), limits).jpeg for i in range(count)]

        (out / "table-000-000001.receipt.json").unlink()
        with (out / "table-000-000001.tar").open("r+b") as tar:
            tar.truncate(5000)
        log.unlink()
    with served(tmp_path / "web", log) as other:
        assert other != base
        assert run(*flags) == 1, "the old address answers no more: nothing of the wave arrives, so it is not done"
        assert not (out / "table-000-000001.receipt.json").exists()
    assert whole.keys() == {path.name for path in out.glob("*.tar")}
    assert {name: (out / name).read_bytes() == content for name, content in whole.items()} == {
        "table-000-000000.tar": True, "table-000-000001.tar": False, "table-000-000002.tar": True,
    }  # fmt: skip


def test_a_few_dead_hosts_are_dropped_and_a_dead_network_is_not_taken_for_an_answer(tmp_path, capsys):
    """One row alone in its shard does not hold up the table; forty rows of which one arrives stop it, unless told."""
    routes = {f"/{i}.jpg": {"behaviour": "ok", "file": f"images/{i}.jpg"} for i in range(10)}
    make_web(tmp_path / "web", routes)
    flags = ["--allow-loopback", *QUICK, "--retries", "0"]
    with served(tmp_path / "web") as base, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{closed.getsockname()[1]}"
        write_table(tmp_path / "few.parquet", [dead + "/x.jpg", *(base + path for path in routes)])
        write_table(tmp_path / "most.parquet", [base + "/1.jpg", *(f"{dead}/{i}.jpg" for i in range(40))])
        few = ["table", "--input", tmp_path / "few.parquet", "--output", tmp_path / "few", "--samples-per-shard", "1"]
        assert run(*few, *flags) == 0
        assert "\n1 of them failed temporarily" in capsys.readouterr().out
        most = ["table", "--input", tmp_path / "most.parquet", "--output", tmp_path / "most", *flags]
        assert run(*most) == 1
        assert "only 1 of 41 images arrived ({'connection_failed': 40})" in capsys.readouterr().err
        assert not list((tmp_path / "most").glob("*.tar"))
        assert run(*most, "--least-yield", "0.02") == 0
    reasons = ["connection_failed", *[None] * 10]
    assert [entry["reason"] for entry in ledger(tmp_path / "few")] == reasons
    assert len(samples(tmp_path / "most")) == 1


def test_a_full_disk_ends_the_fetching_at_once_with_a_line(tmp_path, monkeypatch, capsys):
    make_web(tmp_path / "web", {"/a.jpg": {"behaviour": "slow", "file": "images/a.jpg", "delay_s": 4.5}})
    monkeypatch.setattr(fetching, "LEAST_FREE_BYTES", 1 << 62)  # more than this disk has
    with served(tmp_path / "web") as base:
        write_table(tmp_path / "t.parquet", [base + "/a.jpg"])
        flags = ["--input", tmp_path / "t.parquet", "--output", tmp_path / "raw", "--allow-loopback", *QUICK]
        assert run("table", *flags) == 1
    error = capsys.readouterr().err
    assert "the disk is full" in error and error.count("\n") == 1
    assert not list((tmp_path / "raw").glob("*.tar"))


def wait_until(condition, timeout_s=60):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["nosuch", "--input", "t.csv"],
            "source 'nosuch': is not in sources.yaml; add yours with --sources FILE; use one of coco, ",
        ),
        (["table", "--input", "none.csv"], "--input none.csv: no such file"),
        (
            ["table", "--input", "t.csv", "--url-column", "link"],
            "--input t.csv: has no column 'link'; its columns are url, caption",
        ),
        (["table", "--input", "empty.csv"], "--input empty.csv: has no rows"),
        (["coco", "--input", "t.csv"], "source 'coco': its annotations name files; give their folder with --images"),
        (["table", "--input", "t.csv", "--images", "nowhere"], "--images nowhere: is not a folder"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("url,caption\nhttp://127.0.0.1/a.jpg,x\n")
    (tmp_path / "empty.csv").write_text("url,caption\n")
    assert run(*arguments, "--output", "raw") == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "flags", [["--task-index", "2", "--task-count", "2"], ["--samples-per-shard", "0"], ["--oops"]]
)
def test_wrong_usage_is_one_line_and_exit_2(tmp_path, capsys, flags):
    with pytest.raises(SystemExit) as end:
        run("table", "--input", "t.csv", "--output", tmp_path, *flags)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert flags[0] in error


def test_help_answers_at_once():
    heavy = {"pyarrow", "PIL", "numpy", "cykooz_resizer", "yaml"}
    code = f"import sys, data_prep.download; sys.exit(len({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
