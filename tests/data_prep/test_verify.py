"""Verification names each fault of a manifest by its kind and its file, and passes a sound one."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_prep import index, verify
from data_prep.shards import tar_files
from data_prep.shards.ledger import ledger_path
from data_prep.shards.receipts import Receipt, receipt_path, write_receipt
from data_prep.shards.tar_files import Sample
from pipeline.data.manifest import Manifest, load_manifest
from tests.support.tiny_shards import tiny_manifest, tiny_sample, write_tiny_ledger


def rewrite(tar: Path, samples: list[Sample]) -> None:
    totals = tar_files.write_shard(tar, samples)
    receipt = Receipt("download", "", "", totals.sha256, totals.bytes, totals.samples, totals.captions, 0)
    write_receipt(tar, receipt)
    write_tiny_ledger(tar, samples)


def flip(tar: Path, offset: int) -> None:
    content = bytearray(tar.read_bytes())
    content[offset] ^= 1
    tar.write_bytes(content)


def spoil_offsets(manifest: Manifest) -> None:
    path = manifest.root / manifest.shards[1].index
    table = np.load(path)
    table[0, 0] += 512
    np.save(path, table)


def spoil_counts(manifest: Manifest) -> None:
    path = manifest.root / manifest.shards[1].index
    table = np.load(path)
    table[0, 5] += 1
    np.save(path, table)


def spoil_digests(manifest: Manifest) -> None:
    path = manifest.root / manifest.shards[1].index
    table = np.load(path)
    table[0, 6] += 1
    np.save(path, table)


def tar_of(manifest: Manifest) -> Path:
    return manifest.shard_path(manifest.shards[1])


SPOILERS: dict[str, tuple[Callable[[Manifest], object], set[str]]] = {
    "missing": (lambda m: tar_of(m).unlink(), {"missing tar"}),
    "cut": (lambda m: tar_of(m).write_bytes(tar_of(m).read_bytes()[:2048]), {"size", "sha256", "unreadable tar"}),
    "picture": (
        lambda m: flip(tar_of(m), int(m.offsets(m.shards[1])[0, 0]) + 99),
        {"sha256", "damaged sample", "caption count"},
    ),
    "header": (lambda m: flip(tar_of(m), 3), {"sha256", "unreadable tar"}),
    "padding": (lambda m: flip(tar_of(m), tar_of(m).stat().st_size - 1), {"sha256", "unreadable tar"}),
    "offsets": (spoil_offsets, {"offsets"}),
    "counts": (spoil_counts, {"offsets"}),
    "digests": (spoil_digests, {"offsets"}),
    "no offsets": (lambda m: (m.root / m.shards[1].index).unlink(), {"offsets"}),
    "rewritten": (
        lambda m: rewrite(tar_of(m), [tiny_sample(99, 0, 1, "web", "tiny")]),
        {"size", "sha256", "sample count", "offsets", "caption count", "receipt", "ledger"},
    ),
}


def test_another_stored_size_is_named_and_an_unknown_one_is_none(tmp_path: Path) -> None:
    manifest = load_manifest(tiny_manifest(tmp_path, 4))
    for size_px, kinds in ((manifest.shards[0].short_side_px, []), (300, ["stored size"]), (None, [])):
        told = Manifest(manifest.root, (replace(manifest.shards[0], short_side_px=size_px),))
        assert [fault.kind for fault in verify.find_faults(told, decode=False)] == kinds


@pytest.mark.parametrize("name", SPOILERS)
def test_each_fault_is_named(tmp_path: Path, name: str) -> None:
    path = tiny_manifest(tmp_path, 9, samples_per_shard=3)
    manifest = load_manifest(path)
    spoil, expected = SPOILERS[name]
    spoil(manifest)
    faults = list(verify.find_faults(manifest, decode=True))
    assert {fault.kind for fault in faults} == expected
    tar = tar_of(manifest)
    beside = {receipt_path(tar), ledger_path(tar), manifest.root / manifest.shards[1].index}
    assert {fault.path for fault in faults} <= {tar, *beside}


def test_pictures_that_do_not_decode_and_records_that_do_not_fit_are_named(tmp_path: Path) -> None:
    good = tiny_sample(0, 0, 1, "web", "tiny")
    junk = b"\xff\xd8\xff\xe0 not a picture"
    broken = Sample("tiny_b", junk, good.record | {"key": "tiny_b", "sha256": hashlib.sha256(junk).hexdigest()})
    wider = Sample("tiny_c", good.jpeg, good.record | {"key": "tiny_c", "width": 999})
    captions = {"d": " ", "e": "...", "f": "a \ud800 cat", "g": "?"}
    mute = [
        Sample(f"tiny_{name}", good.jpeg, good.record | {"key": f"tiny_{name}", "captions": [text]})
        for name, text in captions.items()
    ]
    rewrite(tmp_path / "web" / "tiny-000-000000.tar", [good, broken, wider, *mute])
    index.index_shards([tmp_path / "web"], tmp_path / "train.json")
    manifest = load_manifest(tmp_path / "train.json")
    found = [
        (fault.kind, key) for fault in verify.find_faults(manifest, decode=True) for key in fault.detail.split()[1:2]
    ]
    records = [("record", f"tiny_{name}:") for name in captions]
    assert found == [("unreadable JPEG", "tiny_b:"), ("unreadable JPEG", "tiny_c:"), *records]
    assert [fault.kind for fault in verify.find_faults(manifest, decode=False)] == ["record"] * len(records)


def test_a_key_in_two_shards_is_named(tmp_path: Path) -> None:
    samples = [tiny_sample(number, 0, 1, "web", "tiny") for number in range(3)]
    rewrite(tmp_path / "web" / "tiny-000-000000.tar", samples[:2])
    rewrite(tmp_path / "web" / "tiny-000-000001.tar", samples[1:])
    index.index_shards([tmp_path / "web"], tmp_path / "train.json")
    faults = list(verify.find_faults(load_manifest(tmp_path / "train.json"), decode=False))
    assert [(fault.kind, fault.path.name, samples[1].key in fault.detail) for fault in faults] == [
        ("duplicate key", "tiny-000-000000.tar", True)
    ]


def test_two_workers_find_what_one_finds(tmp_path: Path) -> None:
    path = tiny_manifest(tmp_path, 9, samples_per_shard=3)
    flip(tar_of(load_manifest(path)), 3)
    faults = [list(verify.find_faults(load_manifest(path), decode=True, workers=workers)) for workers in (1, 2)]
    assert faults[0] == faults[1] != []


def test_exit_codes_and_last_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny_manifest(tmp_path, 4, samples_per_shard=2)
    assert verify.main([str(path), "--decode"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(path)
    tar_of(load_manifest(path)).unlink()
    assert verify.main([str(path)]) == 1
    output = capsys.readouterr()
    assert "fault: missing tar: " in output.out and "1 faults" in output.err
    assert verify.main([str(tmp_path / "nothing.json")]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_tables_of_an_earlier_version_are_named_until_they_are_written_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_manifest(tmp_path, 4, samples_per_shard=2)
    first = load_manifest(path).shards[0]
    tables = load_manifest(path).root / first.index
    np.save(tables, np.load(tables)[:, :6])
    assert verify.main([str(path)]) == 0
    assert "without digests: 1 of 2 shards" in capsys.readouterr().out
    index.index_shards([path.parent / Path(first.path).parent], path)
    assert verify.main([str(path)]) == 0 and "without digests" not in capsys.readouterr().out
