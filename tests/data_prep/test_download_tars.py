"""The download from tars of other programs: their layouts, damage and hostility, tasks, and the commands after it."""

import io
import json
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_prep import capfilt, duplicates, gallery, index, verify
from data_prep.shards.receipts import finished_shards
from data_prep.tables.foreign_tars import LARGEST_TEXT, NAME, Wanted, tar_rows
from tests.data_prep.test_download import ledger, run, samples
from tests.support.foreign_tars import of_img2dataset, write_tar
from tests.support.tiny_captioning_models import save_tiny_blip, save_tiny_clip
from tests.support.web_folder import jpeg_bytes


def reasons(folder: Path) -> list[str | None]:
    return [entry["reason"] for entry in ledger(folder)]


def encoded(kind: str) -> bytes:
    content = io.BytesIO()
    Image.frombytes("RGB", (48, 40), random.Random(3).randbytes(48 * 40 * 3)).save(content, kind)
    return content.getvalue()


def test_the_output_of_img2dataset_goes_through_every_command(tmp_path, capsys):
    """A folder of its tars, with its other files beside them, becomes a data set with captions of capfilt."""
    members = [each for i in range(5) for each in of_img2dataset(f"{i:09d}", i, f"a picture of {i} things")]
    write_tar(tmp_path / "in" / "00000.tar", [*members, *of_img2dataset("000000005", 5)], tarfile.USTAR_FORMAT)
    write_tar(tmp_path / "in" / "00001.tar", of_img2dataset("000010000", 1, "the same picture again"))
    (tmp_path / "in" / "00000_stats.json").write_text("{}")
    raw, captioned, drops = tmp_path / "raw", tmp_path / "captioned", tmp_path / "drops"
    assert run("tars", tmp_path / "in", "--output", raw) == 0
    entries = ledger(raw)
    assert [(each["caption"], each["reason"]) for each in entries] == [
        *((f"a picture of {i} things", None) for i in range(5)), ("", "no_caption"), ("the same picture again", None),
    ]  # fmt: skip
    assert entries[6]["url"] == "http://host/000010000.jpg" and entries[6]["row"] == 10**9
    record = samples(raw)[0].record
    assert (record["captions"], record["sources"], record["source"]) == (["a picture of 0 things"], ["web"], "tars")
    assert len(list(raw.glob("*.tar"))) == 1, "small tars share a shard"

    def done(command: Any, *arguments: object) -> bool:
        return bool(command.main([str(each) for each in arguments]) == 0)

    models = ("--captioner", save_tiny_blip(tmp_path / "blip"), "--ranker", save_tiny_clip(tmp_path / "clip"))
    assert done(duplicates, raw, "--output", drops)
    flags = ("--device", "cpu", "--max-length", 10, "--num-captions", 2)
    assert done(capfilt, "--input", raw, "--output", captioned, "--drops", drops, *models, *flags)
    assert done(index, captioned, "--output", tmp_path / "manifest.json")
    assert done(verify, tmp_path / "manifest.json", "--decode")
    assert done(gallery, tmp_path / "manifest.json", "--ledger", raw, "--output", tmp_path / "gallery.html")
    told = capsys.readouterr().out
    assert "6 pictures, 5 kept, dropped {'duplicate_picture': 1}" in told
    assert "no faults: 1 shards, 5 samples" in told and "dropped from tars: 1 duplicate_picture" in told


def test_layouts_of_other_writers(tmp_path):
    """Any order, upper case, folders in names, dots, other files; GNU's and PAX's long names; a caption in the JSON."""
    deep = "a folder/" * 20
    members = [
        ("b.txt", b"text first"), ("b.JPG", jpeg_bytes(1)),
        ("dir.d/c.png", encoded("PNG")), ("dir.d/c.json", b'{"caption": "of a folder", "url": 7}'),
        ("e.webp", encoded("WEBP")), ("e.cls", b"5"), ("e.seg.png", b"a mask"), ("e.txt", "\ufeffa cat \n".encode()),
        ("./f.jpeg", jpeg_bytes(2)), ("./f.json", b'{"caption": ["one dog", " ", "two dogs"]}'),
        (f"{deep}g.photo.jpg", jpeg_bytes(3)), (f"{deep}g.txt", "caf\u00e9".encode()),
        ("__meta__/a.json", b"{}"), (".hidden", b""), ("README", b""),
    ]  # fmt: skip
    for name, tar_format in (("gnu", tarfile.GNU_FORMAT), ("pax", tarfile.PAX_FORMAT)):
        path = write_tar(tmp_path / f"{name}.tar", members, tar_format)
        assert run("tars", path, "--output", tmp_path / name) == 0
        entries = ledger(tmp_path / name)
        expected = [f"{name}.tar/{key}" for key in ("b", "dir.d/c", "e", "f", f"{deep}g")]
        assert [(each["url"], each["reason"]) for each in entries] == [(url, None) for url in expected]
        captions = [each.record["captions"] for each in samples(tmp_path / name)]
        assert captions == [["text first"], ["of a folder"], ["a cat"], ["one dog", "two dogs"], ["caf\u00e9"]]


def test_parts_of_a_key_are_samples_where_each_has_its_own_text(tmp_path):
    """Else it is not clear which text belongs to which picture; what is dropped is counted one by one."""
    members = [
        ("a.1.jpg", jpeg_bytes(1)), ("a.2.jpg", jpeg_bytes(2)), ("a.2.txt", b"two"), ("a.1.txt", b"one"),
        ("b.1.jpg", jpeg_bytes(3)), ("b.2.jpg", jpeg_bytes(4)), ("b.txt", b"which?"),
        ("c.1.jpg", jpeg_bytes(5)), ("c.2.jpg", jpeg_bytes(6)), ("c.2.txt", b"of the second"), ("c.3.txt", b"third"),
        ("d.jpg", jpeg_bytes(7)), ("d.txt", b"whole"), ("d.1.jpg", jpeg_bytes(8)), ("d.1.txt", b"a part"),
        ("e.jpg", jpeg_bytes(9)), ("e.1.jpg", jpeg_bytes(10)), ("e.1.txt", b"not of the whole"),
    ]  # fmt: skip
    path = write_tar(tmp_path / "in.tar", members)
    assert run("tars", path, "--output", tmp_path / "raw") == 0
    told = {each["url"].removeprefix("in.tar/"): each["reason"] for each in ledger(tmp_path / "raw")}
    assert told == {
        "a.1": None, "a.2": None, "b.1": "repeated_member", "b.2": "repeated_member", "c.1": "no_caption", "c.2": None,
        "c.3": "no_picture", "d": None, "d.1": None, "e": "no_caption", "e.1": None,
    }  # fmt: skip
    assert [each["row"] for each in ledger(tmp_path / "raw")] == list(range(11))
    kept = {
        each.record["url"].removeprefix("in.tar/"): each.record["captions"][0] for each in samples(tmp_path / "raw")
    }
    assert kept == {
        "a.1": "one", "a.2": "two", "c.2": "of the second", "d": "whole", "d.1": "a part", "e.1": "not of the whole",
    }  # fmt: skip


def test_a_picture_takes_no_text_of_another_part(tmp_path):
    picture = jpeg_bytes(1)
    members = [
        ("ph_1.0.jpg", picture), ("ph_1.5.txt", b"of another picture"),
        ("x.jpg", jpeg_bytes(2)), ("x.caption.txt", b"of the whole"),
        ("y.face.jpg", jpeg_bytes(3)), ("y.txt", b"of the face"), ("y.notes.txt", b"notes"),
    ]  # fmt: skip
    rows = list(tar_rows(write_tar(tmp_path / "in.tar", members), Wanted()))
    assert [(row.url, row.captions, row.drop and row.drop.reason) for row in rows] == [
        ("in.tar/ph_1.0", (), None),  # dropped as no_caption by the caption filter
        ("in.tar/ph_1.5", (), "no_picture"),
        ("in.tar/x", ("of the whole",), None),
        ("in.tar/y", ("of the face",), None),
    ]


def test_a_frame_without_a_text_costs_no_other(tmp_path):
    members = [
        (f"frame_0.{i:03}.{end}", b"text") for i in range(100) for end in ("jpg", "txt") if (i, end) != (7, "txt")
    ]
    rows = list(tar_rows(write_tar(tmp_path / "in.tar", members), Wanted()))
    assert [row.url for row in rows] == [f"in.tar/frame_0.{i:03}" for i in range(100)]
    assert [row.captions for row in rows] == [("text",) if i != 7 else () for i in range(100)]
    assert not any(row.drop for row in rows)


def test_keys_and_endings_are_those_of_webdataset():
    """But for files that are hidden or have no ending, which hold no sample here."""
    from webdataset.tariterators import base_plus_ext

    rng, compared = random.Random(7), 0
    for _ in range(5_000):
        name = "".join(rng.choices(("a", "b c", ".", "/", "_", "jpg"), k=rng.randrange(1, 8)))
        key, ending = base_plus_ext(name)
        if key and ending and not key.endswith("/"):
            match = NAME.fullmatch(name)
            assert match and match.groups() == (key, ending), name
            compared += 1
    assert compared > 500


def test_the_field_of_the_caption_can_be_named(tmp_path):
    path = write_tar(tmp_path / "in.tar", of_img2dataset("a", 1, "the txt", TEXT="the field"))
    assert run("tars", path, "--caption-key", "TEXT", "--captions", "human", "--output", tmp_path / "raw") == 0
    record = samples(tmp_path / "raw")[0].record
    assert (record["captions"], record["sources"]) == (["the field"], ["human"])


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_each_bad_sample_is_counted_by_its_reason_and_nothing_is_unpacked(tmp_path, monkeypatch):
    (tmp_path / "secret.txt").write_text("a secret caption")
    good = of_img2dataset("good", 1, "a good caption")
    members = [
        *good,
        ("alone.txt", b"a caption alone"),
        ("../../escaped.jpg", jpeg_bytes(2)), ("../../escaped.txt", b"outside"),
        ("/tmp/absolute.jpg", jpeg_bytes(3)), ("/tmp/absolute.txt", b"absolute"),
        link("link.jpg", "/etc/passwd"), ("link.txt", b"a link"),
        ("stolen.jpg", jpeg_bytes(4)), link("stolen.txt", str(tmp_path / "secret.txt")),
        ("hard.jpg", jpeg_bytes(4)), link("hard.txt", "good.txt", tarfile.LNKTYPE),
        ("latin.jpg", jpeg_bytes(5)), ("latin.txt", b"a caf\xe9"),
        ("twice.jpg", jpeg_bytes(5)), ("twice.png", encoded("PNG")), ("twice.txt", b"which?"),
        ("nojson.jpg", jpeg_bytes(6)), ("nojson.json", b"{" * 100_000),
        ("list.jpg", jpeg_bytes(6)), ("list.json", b"[]"),
        ("giant.jpg", jpeg_bytes(6)), ("giant.json", b'{"caption": "a", "exif": "' + b"x" * LARGEST_TEXT + b'"}'),
        link("sparse.jpg", "", tarfile.GNUTYPE_SPARSE), ("sparse.txt", b"a caption"),
        ("long.jpg", jpeg_bytes(6)), ("long.txt", b"word " * 5_000),
        ("broken.jpg", b"no picture"), ("broken.txt", b"a caption"),
        ("empty.jpg", b""), ("empty.txt", b"a caption"),
        ("half.jpg", jpeg_bytes(7)), ("half.json", b'{"caption": "a \\ud800 half", "url": "\\udfff"}'),
        ("saved.jpg", jpeg_bytes(8)), ("saved.json", b"not JSON"), ("saved.txt", b"the text counts"),
    ]  # fmt: skip
    monkeypatch.chdir(tmp_path)
    before = sorted(Path().rglob("*"))
    write_tar(tmp_path / "in" / "0.tar", members)
    assert run("tars", "in", "--output", "raw") == 0
    found = {entry["url"].rpartition("/")[2]: entry["reason"] for entry in ledger(tmp_path / "raw")}
    assert found == {
        "good.jpg": None, "alone": "no_picture", "escaped": None, "absolute": None, "link": "no_picture",
        "sparse": "no_picture",
        "stolen": "no_caption", "hard": "no_caption", "twice": "repeated_member", "nojson": "unreadable_caption",
        "latin": "unreadable_caption", "list": "unreadable_caption", "giant": "unreadable_caption",
        "long": "unreadable_caption",
        "broken": "not_an_image", "empty": "not_an_image", "\ufffd": None, "saved": None,
    }  # fmt: skip
    outside = [path for path in Path().rglob("*") if path.parts[0] not in ("in", "raw")]
    assert sorted(outside) == before and not Path("/tmp/absolute.jpg").exists()


def test_tasks_share_the_tars_and_each_sample_is_done_once(tmp_path):
    for i in range(3):
        members = [m for k in range(3) for m in of_img2dataset(f"{i}{k}", 3 * i + k, f"caption {i} {k}")]
        write_tar(tmp_path / "in" / f"{i}.tar", members)
    for i in range(4):
        flags = ("--task-index", i, "--task-count", 4, "--samples-per-shard", 2)
        assert run("tars", tmp_path / "in", "--output", tmp_path / "raw", *flags) == 0
    assert run("tars", tmp_path / "in", "--output", tmp_path / "alone") == 0
    shared, alone = samples(tmp_path / "raw"), samples(tmp_path / "alone")
    assert [each.key for each in shared] == [each.key for each in alone] and len(alone) == 9
    assert len(list((tmp_path / "raw").glob("*.tar"))) == 6
    assert json.loads((tmp_path / "raw" / "tars-003.summary.json").read_text())["rows"] == 0, "a task without a tar"


def test_another_picture_in_a_tar_makes_its_shard_again(tmp_path):
    flags = (tmp_path / "in.tar", "--output", tmp_path / "raw")
    for seed, rows_done in ((1, 1), (1, 0), (2, 1)):
        write_tar(tmp_path / "in.tar", of_img2dataset("a", seed, "a caption"))
        assert run("tars", *flags) == 0
        summary = json.loads((tmp_path / "raw" / "tars-000.summary.json").read_text())
        assert summary["rows_of_this_run"] == rows_done


def test_a_killed_download_continues_with_the_same_bytes(tmp_path):
    """SIGKILL when some shards are finished; what follows is as if it had never happened."""
    large = jpeg_bytes(1, 2400, 1800)
    members = [each for i in range(60) for each in ((f"{i:03d}.jpg", large), (f"{i:03d}.txt", b"words"))]
    write_tar(tmp_path / "in" / "0.tar", members)
    flags = [*("tars", tmp_path / "in", "--samples-per-shard", 5, "--processes", 1), "--output"]
    assert run(*flags, tmp_path / "calm") == 0
    command = [sys.executable, "-m", "data_prep.download", *map(str, flags), str(tmp_path / "raw")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not finished_shards(tmp_path / "raw") and process.poll() is None:
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL and 0 < len(finished_shards(tmp_path / "raw")) < 12
    assert run(*flags, tmp_path / "raw") == 0
    calm = {path.name: path.read_bytes() for path in (tmp_path / "calm").glob("tars-*") if "summary" not in path.name}
    assert calm.items() <= {path.name: path.read_bytes() for path in (tmp_path / "raw").glob("tars-*")}.items()
    assert len(calm) == 36 and not list((tmp_path / "raw").glob("*.partial"))


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("in/0.tar.gz", [], "--input in/0.tar.gz: is compressed, so its pictures cannot be found by place; unpack it"),
        ("in/0.zip", [], "--input in: has no .tar file; name a folder of tars, or use another source"),
        ("in/0.tar", ["--images", "."], "--images .: source 'tars' has its pictures in its tars; leave it out"),
        ("in/0.tar", ["--not-in", "x.json"], "--not-in: rows of source 'tars' have no COCO numbers"),
    ],
)
def test_a_wrong_use_is_one_line(tmp_path, monkeypatch, capsys, name, flags, message):
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    Path(name).write_bytes(b"")
    assert run("tars", "in", "--output", "raw", *flags) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1


def test_without_a_table_the_usage_is_wrong(capsys):
    with pytest.raises(SystemExit) as end:
        run("tars", "--output", "raw")
    assert end.value.code == 2
    assert "--input: is missing; name a table, an annotation file or a folder of tars" in capsys.readouterr().err
