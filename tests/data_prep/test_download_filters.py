"""The filters of a download, each counted by its reason, and the retry of temporary failures."""

import json

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.shards.ledger import ledger_path, read_ledger
from data_prep.shards.receipts import finished_shards, receipt_path
from tests.data_prep.test_download import QUICK, ledger, run, samples, write_table
from tests.support.web_folder import jpeg_bytes, make_web, requested, served


def test_each_filter_is_counted_and_captions_are_judged_before_anything_is_requested(tmp_path):
    rows = {
        "/fine.jpg": ("a dog on the grass", None),
        "/short.jpg": ("dog", "caption_too_short"),
        "/long.jpg": ("a dog " * 9, "caption_too_long"),
        "/german.jpg": ("Ein Hund läuft über die Wiese", "caption_language"),
        "/wide.jpg": ("a very wide picture", "aspect"),
        "/small.jpg": ("a very small picture", "too_small"),
    }
    make_web(tmp_path / "web", {path: {"behaviour": "ok", "file": f"images{path}"} for path in rows})
    (tmp_path / "web" / "images" / "wide.jpg").write_bytes(jpeg_bytes(1, 240, 60))
    (tmp_path / "web" / "images" / "small.jpg").write_bytes(jpeg_bytes(1, 60, 40))
    with served(tmp_path / "web", tmp_path / "log") as base:
        table = {"url": [base + path for path in rows], "caption": [caption for caption, _ in rows.values()]}
        pq.write_table(pa.table(table), tmp_path / "t.parquet")
        filters = ["--min-side-px", 50, "--max-aspect", 3, "--min-words", 2, "--max-words", 9, "--language", "en"]
        flags = ["--input", tmp_path / "t.parquet", "--output", tmp_path / "raw", "--allow-loopback", *QUICK]
        assert run("table", *flags, *filters) == 0
        assert run("table", *flags) == 1, "other filters are another download"
    assert [entry["reason"] for entry in ledger(tmp_path / "raw")] == [reason for _, reason in rows.values()]
    assert sorted(requested(tmp_path / "log")) == ["/fine.jpg", "/small.jpg", "/wide.jpg"]
    assert json.loads((tmp_path / "raw" / "table-000.summary.json").read_text())["kept"] == 1


def test_of_several_captions_those_that_pass_are_kept(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(jpeg_bytes(1))
    (tmp_path / "t.jsonl").write_text(json.dumps({"url": "a.jpg", "caption": ["dog", "a dog", "a brown dog"]}) + "\n")
    flags = ["--input", tmp_path / "t.jsonl", "--images", tmp_path / "images", "--output", tmp_path / "raw"]
    assert run("table", *flags, "--min-words", 2) == 0
    [sample] = samples(tmp_path / "raw")
    assert sample.record["captions"] == ["a dog", "a brown dog"]
    assert (sample.record["sources"], sample.record["scores"]) == (["web"] * 2, [None] * 2)


def test_retry_failed_fetches_temporary_failures_and_nothing_else(tmp_path):
    """In the first download two of eight answered 503; with an undisturbed web the result is the same to the byte."""
    paths = [f"/{number}.jpg" for number in range(8)]
    routes = {path: {"behaviour": "ok", "file": f"images{path}"} for path in paths}
    make_web(tmp_path / "web", routes)
    troubled = routes | {path: {"behaviour": "recovering", "file": f"images{path}"} for path in ("/2.jpg", "/5.jpg")}
    troubled["/6.jpg"] = {"behaviour": "missing"}
    (tmp_path / "web" / "routes.json").write_text(json.dumps(troubled))
    flags = ["--input", tmp_path / "t.parquet", "--allow-loopback", "--samples-per-shard", 4, *QUICK, "--retries", 0]
    log = tmp_path / "log"
    with served(tmp_path / "web", log) as base:
        write_table(tmp_path / "t.parquet", [base + path for path in paths])
        assert run("table", *flags, "--output", tmp_path / "raw") == 0
        first = [entry["reason"] for entry in ledger(tmp_path / "raw")]
        assert first == [None, None, "http_503", None, None, "http_503", "http_404", None]
        before = len(requested(log))
        assert run("table", *flags, "--output", tmp_path / "raw") == 0
        assert len(requested(log)) == before, "finished shards are left alone unless asked"
        assert run("table", *flags, "--output", tmp_path / "raw", "--retry-failed") == 0
        assert sorted(requested(log)[before:]) == ["/2.jpg", "/5.jpg"]
        assert run("table", *flags, "--output", tmp_path / "calm") == 0
    for tar in finished_shards(tmp_path / "raw"):
        for path in (tar, ledger_path(tar), receipt_path(tar)):
            assert path.read_bytes() == (tmp_path / "calm" / path.name).read_bytes()
    assert [row["reason"] for row in ledger(tmp_path / "raw")].count("http_404") == 1
    assert all(row["sha256"] for row in read_ledger(ledger_path(tar), ("status", "sha256")) if row["status"] == "kept")


def test_rows_that_fail_a_condition_are_never_requested_and_a_missing_column_is_named(tmp_path, capsys):
    make_web(tmp_path / "web", {path: {"behaviour": "ok", "file": f"images{path}"} for path in ("/a.jpg", "/b.jpg")})
    with served(tmp_path / "web", tmp_path / "log") as base:
        table = {"URL": [base + "/a.jpg", base + "/b.jpg"], "TEXT": ["a", "b"], "WIDTH": [300, 200]}
        pq.write_table(pa.table(table), tmp_path / "t.parquet")
        flags = ["--output", tmp_path / "raw", "--allow-loopback", *QUICK, "--keep-where", "WIDTH>256"]
        assert run("laion400m", tmp_path / "t.parquet", *flags) == 0
        assert run("laion400m", tmp_path / "t.parquet", *flags[:-1], "WIDTH>100") == 1, "another download"
        assert "holds a download with filters {'keep_where': ['WIDTH>256']}, not" in capsys.readouterr().err
    assert [entry["reason"] for entry in ledger(tmp_path / "raw")] == [None, "condition_not_met"]
    assert requested(tmp_path / "log") == ["/a.jpg"]
    assert run("laion400m", tmp_path / "t.parquet", "--output", tmp_path / "b", "--keep-where", "similarity>=0.3") == 1
    assert "has no column 'similarity'; its columns are URL, TEXT, WIDTH" in capsys.readouterr().err
    flags = ["--images", tmp_path, "--output", tmp_path / "b", "--keep-where", "WIDTH>256"]
    assert run("coco", tmp_path / "t.parquet", *flags) == 1
    assert "--keep-where WIDTH>256: source 'coco' has no columns; leave it out" in capsys.readouterr().err
