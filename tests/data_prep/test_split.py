"""A held-out part: no copy of a held-out picture is trained on, every sample is on one side, and verify knows both."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_prep import verify
from data_prep.copies.sides import sides
from data_prep.index import index_shards
from data_prep.shards import tar_files
from data_prep.shards.ledger import Entry, ledger_path, write_ledger
from data_prep.shards.receipts import read_receipt, receipt_path, write_receipt
from data_prep.shards.tar_files import Sample
from data_prep.split import main
from pipeline.data.manifest import load_manifest
from pipeline.pictures.near_hashes import near_groups
from tests.support.tiny_shards import tiny_question_sample, tiny_sample, write_samples


def write_shard(tar: Path, samples: Sequence[Sample], phashes: Sequence[int | None]) -> None:
    """A finished raw shard whose ledger has these perceptual hashes."""
    write_samples(tar, list(samples))
    pairs = enumerate(zip(samples, phashes, strict=True))
    entries = [
        Entry(row, each.record["url"], "a", "kept", None, each.key, None, each.record["sha256"], phash)
        for row, (each, phash) in pairs
    ]
    write_ledger(ledger_path(tar), entries)


def renamed(sample: Sample, key: str) -> Sample:
    return sample._replace(key=key, record=sample.record | {"key": key})


def write_set(folder: Path) -> None:
    """Two folders of shards: 60 pictures; each of the first ten also as a copy, and each of the next ten has a near
    one."""
    samples = [tiny_sample(number, 0, 2, "human", "tiny") for number in range(60)]
    rng = np.random.default_rng(0)
    phashes = [int(each) for each in rng.integers(0, 2**63, 60, np.uint64)]
    phashes[59:] = [None]  # type: ignore[list-item]
    for start in range(0, 60, 20):
        chosen = slice(start, start + 20)
        write_shard(folder / "a" / f"tiny-000-{start:06d}.tar", samples[chosen], phashes[chosen])
    copies = [renamed(each, f"copy_{place}") for place, each in enumerate(samples[:10])]
    near = [renamed(tiny_sample(100 + n, 0, 1, "human", "tiny"), f"near_{n}") for n in range(10)]
    hashes = [*phashes[:10], *(each ^ 0b1001 for each in phashes[10:20])]
    write_shard(folder / "b" / "tiny-001-000000.tar", [*copies, *near], hashes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("split")
    write_set(folder)
    index_shards([folder / "a", folder / "b"], folder / "all.json")
    return folder


def keys(path: Path) -> list[str]:
    manifest, found = load_manifest(path), []
    for shard in manifest.shards:
        with (tar := manifest.shard_path(shard)).open("rb") as file:
            found += [tar_files.read_at(file, tar, row).key for row in manifest.offsets(shard)]
    return found


def parts(manifest: Path, *flags: object) -> tuple[list[str], list[str]]:
    assert main([str(manifest), "--share", "0.3", "--seed", "1", *map(str, flags)]) == 0
    return keys(manifest.with_suffix(".train.json")), keys(manifest.with_suffix(".validation.json"))


def test_every_sample_is_on_one_side_with_its_copies_and_near_copies(folder: Path) -> None:
    train, validation = parts(folder / "all.json")
    assert sorted(train + validation) == sorted(keys(folder / "all.json")) and not set(train) & set(validation)
    assert 23 <= len(validation) <= 25, "30% of 80, as groups have two pictures at most"
    names = [tiny_sample(number, 0, 1, "human", "tiny").key for number in range(20)]
    for number in range(10):
        assert (f"copy_{number}" in train) == (names[number] in train)
        assert (f"near_{number}" in train) == (names[10 + number] in train)


def test_both_parts_are_verified_and_written_the_same_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts(folder / "all.json")
    files = sorted([*folder.glob("all.*.json"), *folder.glob("all.*.index/*")])
    before = [path.read_bytes() for path in files]
    for name in ("train", "validation"):
        assert verify.main([str(folder / f"all.{name}.json"), "--decode"]) == 0, capsys.readouterr().out
    parts(folder / "all.json", "--workers", 2)
    assert [path.read_bytes() for path in files] == before
    manifest = json.loads((folder / "all.validation.json").read_text())
    assert manifest["samples"] == sum(shard["samples"] for shard in manifest["shards"])
    assert load_manifest(folder / "all.validation.json").digest() != load_manifest(folder / "all.train.json").digest()


def test_a_part_can_be_divided_again(folder: Path) -> None:
    train, _ = parts(folder / "all.json")
    again = parts(folder / "all.train.json", "--seed", 7)
    assert sorted(again[0] + again[1]) == sorted(train)
    assert verify.main([str(folder / "all.train.validation.json")]) == 0


def test_the_order_of_shards_changes_no_side(folder: Path) -> None:
    index_shards([folder / "b", folder / "a"], folder / "turned.json")
    assert sorted(parts(folder / "turned.json")[1]) == sorted(parts(folder / "all.json")[1])
    other = parts(folder / "all.json", "--seed", 2)[1]
    assert sorted(other) != sorted(parts(folder / "all.json")[1])


def test_verify_finds_another_table_of_a_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_set(tmp_path)
    index_shards([tmp_path / "a"], tmp_path / "m.json")
    parts(tmp_path / "m.json")
    manifest = load_manifest(tmp_path / "m.train.json")
    part = next(shard for shard in manifest.shards if shard.of_samples)
    table = np.load(manifest.root / part.index)
    whole = load_manifest(tmp_path / "m.json")
    other = whole.table(next(shard for shard in whole.shards if shard.path == part.path))[-len(table) :]
    assert not np.array_equal(other, table)
    for damage in (table[::-1], np.vstack([table[:-1], table[:1]]), table + 512, other):
        np.save(manifest.root / part.index, damage)
        assert verify.main([str(tmp_path / "m.train.json")]) == 1
        assert "fault: offsets:" in capsys.readouterr().out


def test_captioned_shards_need_the_ledgers_of_their_raw_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_set(tmp_path)
    index_shards([tmp_path / "a", tmp_path / "b"], tmp_path / "raw.json")
    for name in ("a", "b"):
        (tmp_path / "captioned" / name).mkdir(parents=True)
        for tar in sorted((tmp_path / name).glob("*.tar")):
            target = tmp_path / "captioned" / name / tar.name
            tar_files.write_shard(target, tar_files.read_samples(tar))
            write_receipt(target, replace(read_receipt(tar), stage="capfilt"))
    index_shards([tmp_path / "captioned" / "a", tmp_path / "captioned" / "b"], tmp_path / "m.json")
    assert main([str(tmp_path / "m.json"), "--share", "0.3", "--ledgers", str(tmp_path / "a")]) == 1
    assert "10 of 80 pictures are in no ledger" in capsys.readouterr().err
    assert not list(tmp_path.glob("m.*.json"))
    told = parts(tmp_path / "m.json", "--ledgers", tmp_path / "a", tmp_path / "b")
    assert told == parts(tmp_path / "raw.json")
    assert main([str(tmp_path / "m.json"), "--share", "0.3", "--without-near"]) == 0


def test_questions_are_counted_in_their_part(tmp_path: Path) -> None:
    samples = [tiny_question_sample(number, 0, 1 + number % 3, "tiny") for number in range(30)]
    write_shard(tmp_path / "a" / "tiny-000-000000.tar", samples, [None] * 30)
    index_shards([tmp_path / "a"], tmp_path / "m.json")
    _, validation = parts(tmp_path / "m.json")
    asked = {sample.key: len(sample.record["questions"]) for sample in samples}
    assert load_manifest(tmp_path / "m.validation.json").questions == sum(asked[key] for key in validation)


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--share", "0"], 2, "--share 0.0: must be between 0 and 1"),
        (["--share", "nan"], 2, "--share nan: must be"),
        (["--share", "1e-9"], 1, "no picture of .* would be in the part validation"),
        (["--share", "0.3", "--ledgers", "/nowhere"], 1, "--ledgers /nowhere: has no finished shard"),
    ],
)
def test_what_cannot_be_divided_is_named(
    flags: list[str], code: int, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    if code == 2:
        with pytest.raises(SystemExit) as ended:
            main([str(folder / "all.json"), *flags])
        assert ended.value.code == 2
    else:
        assert main([str(folder / "all.json"), *flags]) == code
    assert re.search(message, capsys.readouterr().err)


def plain_groups(hashes: list[int], bits_apart: int) -> list[int]:
    """Groups joined by every near pair, one at a time."""
    groups = list(range(len(hashes)))
    for one, first in enumerate(hashes):
        for other, second in enumerate(hashes):
            if (first ^ second).bit_count() <= bits_apart:
                old, new = groups[one], groups[other]
                groups = [new if each == old else each for each in groups]
    return groups


@pytest.mark.parametrize("seed", range(4))
def test_groups_are_those_of_a_plain_search_through_chains(seed: int) -> None:
    rng = np.random.default_rng(seed)
    hashes = [int(each) for each in rng.integers(0, 2**64, 40, np.uint64)]
    for _ in range(160):  # walks: each near its predecessor, far from the first
        flipped = sum(1 << int(bit) for bit in rng.choice(64, 4, replace=False))
        hashes.append(hashes[int(rng.integers(len(hashes)))] ^ flipped)
    found = near_groups(np.array(hashes, np.uint64), 4).tolist()
    plain = plain_groups(hashes, 4)
    assert len(set(zip(found, plain, strict=True))) == len(set(found)) == len(set(plain)) > 5


def test_a_share_of_the_pictures_is_held_out_and_no_large_group() -> None:
    rng = np.random.default_rng(3)
    content = rng.integers(0, 2**64, 20_000, np.uint64)
    phash = rng.integers(0, 2**64, 20_000, np.uint64)
    phash[:3000] = phash[0]
    for seed in range(3):
        found = sides(content, phash, np.ones(20_000, np.bool_), 4, 0.05, seed)
        assert not found.held_out[:3000].any() and found.in_large_groups in (0, 3000)
        assert 0.045 < found.held_out[3000:].mean() < 0.055
        order = rng.permutation(20_000)
        turned = sides(content[order], phash[order], np.ones(20_000, np.bool_), 4, 0.05, seed)
        assert (turned.held_out == found.held_out[order]).all()


def test_pictures_that_are_added_move_no_other_one() -> None:
    rng = np.random.default_rng(4)
    content, phash = (rng.integers(0, 2**64, 4000, np.uint64) for _ in range(2))
    has = np.ones(4000, np.bool_)
    small = sides(content[:2000], phash[:2000], has[:2000], 4, 0.5, 1)
    assert (sides(content, phash, has, 4, 0.5, 1).held_out[:2000] == small.held_out).all()


@pytest.mark.parametrize("seed", range(5))
def test_a_small_part_is_filled_to_its_number_by_whole_groups(seed: int) -> None:
    """5% of 200 pictures, where each has two copies or near ones: ten, to half a group. Few move when more come."""
    content, phash = (np.random.default_rng(seed).integers(0, 2**64, 300, np.uint64) for _ in range(2))
    content[1::3], phash[2::3] = content[::3], phash[::3]
    found = sides(content[:201], phash[:201], np.ones(201, np.bool_), 4, 0.05, seed)
    groups = found.held_out.reshape(67, 3)
    assert (groups.all(axis=1) == groups.any(axis=1)).all() and abs(int(found.held_out.sum()) - 10.05) <= 1.5
    later = sides(content, phash, np.ones(300, np.bool_), 4, 0.05, seed).held_out
    assert abs(int(later.sum()) - 15) <= 1.5 and int((later[:201] != found.held_out).sum()) <= 6


def test_a_tar_without_receipt_beside_has_no_ledger_to_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_set(tmp_path)
    index_shards([tmp_path / "a"], tmp_path / "m.json")
    receipt_path(tmp_path / "a" / "tiny-000-000000.tar").unlink()
    assert main([str(tmp_path / "m.json"), "--share", "0.3"]) == 1
    assert "has no receipt" in capsys.readouterr().err
