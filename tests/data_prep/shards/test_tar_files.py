"""Shards are whole or absent, the same bytes every time, and readers notice every kind of damage."""

import errno
import hashlib
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data_prep.shards import tar_files
from data_prep.shards.offsets import offset_table
from data_prep.shards.receipts import Receipt, finished_shards, read_receipt, receipt_path, write_receipt
from data_prep.shards.sample_json import encode_record
from data_prep.shards.tar_files import Sample, read_at
from data_prep.shards.ustar import BLOCK, HashingFile, write_member
from pipeline.files import PARTIAL_SUFFIX, remove_partials, sha256_of
from tests.support.tiny_shards import write_tiny_shards

QUESTION = {"id": 1, "question": "Is it?", "answers": {"yes": 10}}


def make_sample(number: int, size: int = 700) -> Sample:
    jpeg = np.random.default_rng(number).bytes(size + number)
    record = {
        "key": f"web_{number:04x}",
        "captions": [f"picture {number}"],
        "scores": [None],
        "sources": ["web"],
        "width": 640,
        "height": 480,
        "sha256": hashlib.sha256(jpeg).hexdigest(),
    }
    return Sample(f"web_{number:04x}", jpeg, record)


def write_finished(path: Path, num_samples: int = 5) -> Receipt:
    totals = tar_files.write_shard(path, (make_sample(number) for number in range(num_samples)))
    receipt = Receipt("download", "in", "config", totals.sha256, totals.bytes, totals.samples, totals.captions, 0)
    write_receipt(path, receipt)
    return receipt


def test_samples_come_back_in_order_and_tarfile_reads_the_same(tmp_path: Path) -> None:
    tar = tmp_path / "web-000-000000.tar"
    receipt = write_finished(tar)
    assert list(tar_files.read_samples(tar)) == [make_sample(number) for number in range(5)]
    assert (receipt.samples, receipt.captions, receipt.bytes) == (5, 5, tar.stat().st_size)
    assert receipt.tar_sha256 == sha256_of(tar) and read_receipt(tar) == receipt
    with tarfile.open(tar) as archive:
        members = archive.getmembers()
        first = archive.extractfile(members[0])
        assert first is not None and first.read() == make_sample(0).jpeg
    assert [each.name for each in members[:2]] == ["web_0000.jpg", "web_0000.json"]
    assert {(each.mtime, each.uid, each.gid) for each in members} == {(0, 0, 0)}


def test_the_offset_table_points_at_the_bytes_of_each_member(tmp_path: Path) -> None:
    tar = tmp_path / "web-000-000000.tar"
    write_finished(tar)
    table, content = offset_table(tar), tar.read_bytes()
    assert table.dtype == np.int64 and table.shape == (5, 4)
    for number, (jpeg_at, jpeg_bytes, json_at, json_bytes) in enumerate(table.tolist()):
        assert content[jpeg_at : jpeg_at + jpeg_bytes] == make_sample(number).jpeg
        assert content[json_at : json_at + json_bytes] == encode_record(make_sample(number).record)


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    one, two = tmp_path / "a.tar", tmp_path / "deeper" / "b.tar"
    assert write_finished(one).tar_sha256 == write_finished(two).tar_sha256
    assert one.read_bytes() == two.read_bytes()


def test_a_tar_cut_at_any_block_is_refused_by_name(tmp_path: Path) -> None:
    tar = tmp_path / "web-000-000000.tar"
    receipt = write_finished(tar, num_samples=2)
    whole = tar.read_bytes()
    for size in range(0, len(whole), BLOCK):
        tar.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"web-000-000000\.tar"):
            list(tar_files.read_samples(tar))
    for size in range(0, len(whole) - 2 * BLOCK, BLOCK):  # even where the length is the expected one
        tar.write_bytes(whole[:size] + bytes(receipt.bytes - size))
        with pytest.raises(ValueError, match=r"web-000-000000\.tar"):
            list(tar_files.read_samples(tar))


def test_a_flipped_bit_in_a_picture_is_refused(tmp_path: Path) -> None:
    tar = tmp_path / "web-000-000000.tar"
    write_finished(tar)
    content = bytearray(tar.read_bytes())
    content[int(offset_table(tar)[3, 0]) + 17] ^= 4
    tar.write_bytes(content)
    with pytest.raises(ValueError, match=r"web-000-000000\.tar: the picture of sample web_0003"):
        list(tar_files.read_samples(tar))


@pytest.mark.parametrize(
    "change",
    [
        {"key": 7},
        {"sha256": None},
        {"width": "640"},
        {"captions": "picture 0"},
        {"captions": [1]},
        {"scores": []},
        {"scores": ["high"]},
        {"sources": ["web", "web"]},
        {"questions": {}},
        {"questions": [QUESTION]},
        {"question_set": "vqav2_val2014", "questions": [QUESTION | {"id": -1}]},
        {"question_set": "vqav2_val2014", "questions": [QUESTION | {"id": True}]},
        {"question_set": "vqav2_val2014", "questions": [QUESTION, QUESTION]},
        {"question_set": "vqav2_val2014", "questions": [QUESTION | {"question": " "}]},
        {"question_set": "vqav2_val2014", "questions": [QUESTION | {"answers": {}}]},
        {"question_set": "vqav2_val2014", "questions": [QUESTION | {"answers": {"": 1}}]},
        {"question_set": "vqav2_val2014", "questions": [QUESTION | {"answers": {"yes": 0}}]},
        {"question_set": "vqav2_val2014", "questions": [QUESTION | {"answers": ["yes"]}]},
    ],
)
def test_a_record_of_another_shape_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    tar, sample = tmp_path / "web-000-000000.tar", make_sample(0)
    content = sample.record | change
    text = json.dumps(content).encode()
    with tar.open("wb") as file:
        hashed = HashingFile(file)
        write_member(hashed, "web_0000.jpg", sample.jpeg)
        write_member(hashed, "web_0000.json", text)
        hashed.write(bytes(2 * BLOCK))
    write_receipt(tar, Receipt("", "", "", hashed.digest.hexdigest(), hashed.size, 1, 1, 0))
    with pytest.raises(ValueError, match=r"web-000-000000\.tar: the JSON at byte \d+ is not that of a sample"):
        list(tar_files.read_samples(tar))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    tar = tmp_path / "web-000-000000.tar"
    with tarfile.open(tar, "w", format=tarfile.USTAR_FORMAT) as archive:
        member = tarfile.TarInfo("web_1.jpg")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(ValueError, match="is not a regular file"):
        offset_table(tar)


@pytest.mark.parametrize("name", ["../escape.jpg", "/root.jpg", "a.b.jpg", "web_1.png", "web_1"])
def test_names_other_than_a_plain_key_are_refused(tmp_path: Path, name: str) -> None:
    tar = tmp_path / "web-000-000000.tar"
    with tarfile.open(tar, "w", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo(name))
    with pytest.raises(ValueError, match="unexpected member"):
        offset_table(tar)


def test_a_failed_write_leaves_what_was_there_and_no_temporary_file(tmp_path: Path) -> None:
    tar = tmp_path / "web-000-000000.tar"
    write_finished(tar)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def failing() -> object:
        yield make_sample(0)
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        tar_files.write_shard(tar, failing())  # type: ignore[arg-type]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(HashingFile, "write", full)
    with pytest.raises(ValueError, match=r"web-000-000000\.tar: the disk is full"):
        write_finished(tmp_path / "web-000-000000.tar")
    assert list(tmp_path.iterdir()) == []


def test_rewriting_a_tar_takes_away_the_receipt_of_the_old_bytes(tmp_path: Path) -> None:
    tar = tmp_path / "web-000-000000.tar"
    write_finished(tar)
    tar_files.write_shard(tar, [make_sample(9)])
    assert finished_shards(tmp_path) == []
    with pytest.raises(ValueError, match="no receipt"):
        list(tar_files.read_samples(tar))


def test_a_key_that_comes_twice_or_holds_a_dot_is_refused(tmp_path: Path) -> None:
    for bad in ([make_sample(1), make_sample(1)], [Sample("a.b", b"x", {"key": "a.b", "captions": []})]):
        with pytest.raises(ValueError, match="key"):
            tar_files.write_shard(tmp_path / "web-000-000000.tar", bad)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"stage": 1}', "{", '{"samples": "many"}'])
def test_a_damaged_receipt_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.receipt.json").write_text(content)
    with pytest.raises(ValueError, match=r"a\.receipt\.json: is not a valid receipt"):
        read_receipt(tmp_path / "a.tar")


def test_partials_of_a_killed_writer_are_removed_for_that_shard_alone(tmp_path: Path) -> None:
    mine, other = (
        tmp_path / f".a.tar.1234{PARTIAL_SUFFIX}",
        tmp_path / f".b.tar.1234{PARTIAL_SUFFIX}",
    )
    mine.touch()
    other.touch()
    remove_partials(tmp_path / "a.tar")
    assert not mine.exists() and other.exists()


def test_the_table_with_counts_has_the_places_and_the_numbers_of_captions_and_questions(tmp_path: Path) -> None:
    tar, asked = tmp_path / "web-000-000000.tar", {"question_set": "vqav2_val2014", "questions": [QUESTION]}
    second = make_sample(1)
    totals = tar_files.write_shard(tar, [make_sample(0), second._replace(record=second.record | asked)])
    assert (totals.captions, totals.questions, totals.question_sets) == (2, 1, {"vqav2_val2014": 1})
    table, short_side_px = tar_files.counted_table(tar)
    assert short_side_px == max(min(each.record["width"], each.record["height"]) for each in (make_sample(0), second))
    assert table.dtype == np.int64 and table[:, 4:6].tolist() == [[1, 0], [1, 1]]
    content = tar.read_bytes()
    texts = [content[offset : offset + size] for offset, size in table[:, 2:4].tolist()]
    digests = [hashlib.blake2b(text, digest_size=8).digest() for text in texts]
    assert table[:, 6].astype("<i8").tobytes() == b"".join(digests)
    assert np.array_equal(table[:, :4], offset_table(tar))


def test_a_tar_that_a_sparse_file_makes_huge_is_not_read_into_memory(tmp_path: Path) -> None:
    tar = write_tiny_shards(tmp_path, 2)[0]
    with tar.open("r+b") as file:
        file.truncate(1 << 40)
        file.seek((1 << 40) - 1)
        file.write(b"x")
    header = tarfile.TarInfo("a.jpg")
    header.size = 1 << 33
    huge = tmp_path / "huge.tar"
    with huge.open("wb") as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match=r"huge\.tar: member 'a\.jpg' at byte 0 has 8589934592 bytes"):
        offset_table(huge)
    with tar.open("rb") as file, pytest.raises(ValueError, match="no member of a sample can have"):
        read_at(file, tar, np.array([0, 1 << 40, 0, 9]))


@pytest.mark.parametrize(
    "change",
    [
        {"tar_sha256": "/../../../escaped"}, {"tar_sha256": "A" * 64}, {"bytes": -1}, {"samples": 1 << 70},
        {"captions": 1.5}, {"dropped": {"x": -1}}, {"questions": "3"},
    ],
    ids=str,
)  # fmt: skip
def test_a_receipt_with_numbers_or_digests_that_cannot_be_is_named(tmp_path: Path, change: dict[str, object]) -> None:
    """The digest becomes a part of the names of tables and drop lists."""
    path = receipt_path(write_tiny_shards(tmp_path, 2)[0])
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=f"{path.name}: is not a valid receipt .{next(iter(change))}"):
        read_receipt(path.with_name("tiny-000-000000.tar"))
