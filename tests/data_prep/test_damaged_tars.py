"""The download from tars that are cut, spoilt or hostile: what is whole is kept, and each damage is counted once."""

import os
import random
import tarfile
import tracemalloc
from collections import Counter

import pytest

from data_prep.tables.foreign_tars import Wanted, _members, tar_rows
from data_prep.tables.row import Place
from tests.data_prep.test_download import ledger, run
from tests.data_prep.test_download_tars import reasons
from tests.support.foreign_tars import of_img2dataset, write_tar
from tests.support.hostile_files import any_bytes, spoil_member


def test_a_tar_cut_anywhere_gives_what_is_whole_and_is_counted_once(tmp_path):
    whole = write_tar(tmp_path / "whole.tar", [m for i in range(3) for m in of_img2dataset(f"k{i}", i, "a caption")])
    content = whole.read_bytes().rstrip(b"\0")  # without its end
    cut = tmp_path / "in" / "cut.tar"
    cut.parent.mkdir()
    for size in [*range(0, len(content) + 512, 512), *range(1, len(content), 1777)]:
        cut.write_bytes((content + bytes(512))[:size])
        rows = list(tar_rows(cut, Wanted()))
        assert [row.drop.reason for row in rows if row.drop][-1:] == ["damaged_tar"], size
        for row in rows[:-1]:
            assert not isinstance(row.place, Place) or row.place.offset + row.place.size <= size
    write_tar(tmp_path / "in" / "other.tar", of_img2dataset("k9", 9, "after the damage"))
    cut.write_bytes(content[: len(content) // 2])
    assert run("tars", tmp_path / "in", "--output", tmp_path / "raw") == 0
    counts = Counter(reasons(tmp_path / "raw"))
    assert counts["damaged_tar"] == 1 and ledger(tmp_path / "raw")[-1]["caption"] == "after the damage"


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "hostile",
    [
        header("x", 1 << 40, tarfile.GNUTYPE_LONGNAME),
        header("x", 1 << 33, tarfile.XHDTYPE),
        header("x", -(1 << 20)),
        header("x" * 90, 0, tarfile.GNUTYPE_LONGNAME) * 50,
        header("big.jpg", 1 << 40),
        header("itself", -512, b"Z"),
        b"\x1f\x8b" + b"\0" * 1000,
        b"garbage" * 200,
    ],
    ids=[
        "long name",
        "PAX attributes",
        "negative size",
        "names in a row",
        "larger than the tar",
        "a circle",
        "gzip",
        "garbage",
    ],
)
def test_a_hostile_header_ends_its_tar_alone(tmp_path, hostile):
    good = write_tar(tmp_path / "good.tar", of_img2dataset("a", 1, "a caption")).read_bytes().rstrip(b"\0")
    good += bytes(-len(good) % 512)
    path = tmp_path / "hostile.tar"
    path.write_bytes(good + hostile + bytes(10240))
    rows = list(tar_rows(path, Wanted()))
    assert rows[0].captions == ("a caption",) and rows[0].drop is None
    assert rows[-1].drop is not None and rows[-1].drop.reason == "damaged_tar"


def test_headers_in_a_circle_are_read_once_and_huge_ones_not_at_all(tmp_path):
    path = tmp_path / "t.tar"
    path.write_bytes(header("first.jpg", 0) + header("itself", -512, b"Z"))
    with pytest.raises(tarfile.ReadError, match="circle"):
        list(_members(path))
    path.write_bytes(header("x", 1 << 30, tarfile.GNUTYPE_LONGNAME))
    with path.open("r+b") as file:
        file.truncate(2 << 30)
    tracemalloc.start()
    with pytest.raises(tarfile.ReadError):
        list(_members(path))
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()


def test_no_damage_ends_the_reading(tmp_path):
    rng = random.Random(5)
    members = [member for i in range(3) for member in of_img2dataset(f"k{i}", i, "a caption")]
    content = write_tar(tmp_path / "t.tar", members, tarfile.PAX_FORMAT).read_bytes()
    known = {"damaged_tar", "no_picture", "repeated_member", "unreadable_caption", None}
    for _ in range(400):
        spoilt = spoil_member(rng, content) if rng.random() < 0.5 else any_bytes(rng, content)
        (tmp_path / "t.tar").write_bytes(spoilt)
        rows = list(tar_rows(tmp_path / "t.tar", Wanted()))
        assert {row.drop.reason if row.drop else None for row in rows} <= known
        assert len({row.row for row in rows}) == len(rows)


def test_what_only_looks_like_a_tar_is_counted(tmp_path):
    folder = tmp_path / "in"
    write_tar(folder / "deep" / "0.TAR", of_img2dataset("a", 1, "a caption"))
    os.mkfifo(folder / "pipe.tar")
    (folder / "gone.tar").symlink_to(tmp_path / "none.tar")
    (folder / "folder.tar").mkdir()
    assert run("tars", folder, "--output", tmp_path / "raw") == 0
    found = {entry["url"]: entry["reason"] for entry in ledger(tmp_path / "raw")}
    assert found == {"http://host/a.jpg": None, "in/gone.tar": "damaged_tar", "in/pipe.tar": "damaged_tar"}
