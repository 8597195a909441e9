"""The download of images that lie here already: human captions, tasks, resumption, nothing outside the root."""

import json
import os

import pytest

from data_prep.raw.local_images import read_local
from data_prep.shards.ledger import Drop
from tests.data_prep.test_download import ledger, run, samples
from tests.support.web_folder import jpeg_bytes


@pytest.fixture
def coco(tmp_path):
    """A Karpathy JSON of 7 images, one of them missing, one of the test split."""
    images = []
    (tmp_path / "images" / "train2014").mkdir(parents=True)
    for i in range(7):
        if i != 3:
            (tmp_path / "images" / "train2014" / f"{i}.jpg").write_bytes(jpeg_bytes(i))
        split = "test" if i == 5 else "train"
        sentences = [{"raw": f"caption {i} {k}"} for k in range(5)]
        images.append({"filepath": "train2014", "filename": f"{i}.jpg", "split": split, "sentences": sentences})
    (tmp_path / "dataset.json").write_text(json.dumps({"images": images}))
    return tmp_path


def test_local_coco_keeps_all_human_captions(coco):
    flags = ("--input", coco / "dataset.json", "--images", coco / "images", "--output", coco / "raw")
    assert run("coco", *flags, "--samples-per-shard", 4) == 0
    entries = ledger(coco / "raw")
    assert [(entry["row"], entry["reason"]) for entry in entries] == [
        (0, None), (1, None), (2, None), (3, "missing_file"), (4, None), (6, None),
    ]  # fmt: skip
    record = samples(coco / "raw")[0].record
    assert record["captions"] == [f"caption 0 {k}" for k in range(5)]
    assert (record["sources"], record["scores"]) == (["human"] * 5, [None] * 5)


def test_tasks_share_the_rows_and_each_row_is_done_once(coco):
    flags = ("--input", coco / "dataset.json", "--images", coco / "images", "--samples-per-shard", 1)
    for i in range(2):
        assert run("coco", *flags, "--output", coco / "raw", "--task-index", i, "--task-count", 2) == 0
    assert run("coco", *flags, "--output", coco / "alone") == 0
    assert sorted(entry["row"] for entry in ledger(coco / "raw")) == [0, 1, 2, 3, 4, 6]
    assert {sample.key for sample in samples(coco / "raw")} == {sample.key for sample in samples(coco / "alone")}


def test_a_second_run_rewrites_nothing_and_other_settings_are_turned_away(coco, capsys):
    flags = ("--input", coco / "dataset.json", "--images", coco / "images", "--output", coco / "raw")
    assert run("coco", *flags) == 0
    times = {path: path.stat().st_mtime_ns for path in (coco / "raw").glob("*.tar")}
    (coco / "raw" / ".coco.download.json.0123.partial").write_text("{")  # of a run killed as it began
    assert run("coco", *flags) == 0
    assert not list((coco / "raw").glob(".*.partial"))
    assert times == {path: path.stat().st_mtime_ns for path in (coco / "raw").glob("*.tar")}
    assert json.loads((coco / "raw" / "coco-000.summary.json").read_text())["rows_of_this_run"] == 0
    capsys.readouterr()
    assert run("coco", *flags, "--max-side-px", 128) == 1
    assert "holds a download with max_side_px 256, not 128; name another folder" in capsys.readouterr().err


def test_two_runs_give_the_same_bytes(coco):
    flags = ("--input", coco / "dataset.json", "--images", coco / "images")
    for name, processes in (("one", 1), ("two", 3)):
        assert run("coco", *flags, "--output", coco / name, "--processes", processes) == 0
    files = [path.relative_to(coco / "one") for path in (coco / "one").glob("coco-*") if "summary" not in path.name]
    assert len(files) == 3
    assert all((coco / "one" / name).read_bytes() == (coco / "two" / name).read_bytes() for name in files)


def test_a_table_of_local_files_never_leaves_its_root(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "in.jpg").write_bytes(jpeg_bytes(1))
    (tmp_path / "out.jpg").write_bytes(jpeg_bytes(2))
    (root / "link.jpg").symlink_to(tmp_path / "out.jpg")
    os.mkfifo(root / "pipe.jpg")
    names = ["in.jpg", "../out.jpg", "link.jpg", str(tmp_path / "out.jpg"), "none.jpg", "pipe.jpg", "file:in.jpg"]
    (tmp_path / "t.csv").write_text("file,text\n" + "".join(f"{name},words\n" for name in names))
    flags = ("--url-column", "file", "--caption-column", "text", "--captions", "human", "--images", root)
    assert run("table", "--input", tmp_path / "t.csv", *flags, "--output", tmp_path / "raw") == 0
    refused = ["refused_path"] * 3
    expected = [None, *refused, "missing_file", "missing_file", "refused_scheme"]
    assert [entry["reason"] for entry in ledger(tmp_path / "raw")] == expected
    assert read_local(root, "in.jpg", max_bytes=10) == Drop("byte_cap")


def test_a_name_that_no_file_can_have_drops_its_row_alone(tmp_path):
    assert read_local(tmp_path, "half a character \ud800.jpg", 100) == Drop("unreadable_file")
