"""The manifest lists finished shards alone, points at their samples, and is the same every time."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep import index, verify
from data_prep.shards import tar_files
from data_prep.shards.receipts import Receipt, read_receipt, receipt_path, write_receipt
from pipeline.data.manifest import load_manifest, question_sets
from pipeline.files import sha256_of
from tests.support.tiny_shards import write_tiny_shards


def test_a_reader_seeks_to_every_sample_of_several_folders(tmp_path: Path) -> None:
    tars = write_tiny_shards(tmp_path / "web", 7, samples_per_shard=4)
    tars += write_tiny_shards(
        tmp_path / "coco", 3, seed=1, captions_per_sample=5, caption_source="human", source="coco"
    )
    index.index_shards([tmp_path / "web", tmp_path / "coco"], tmp_path / "train.json")
    manifest = load_manifest(tmp_path / "train.json")
    assert [manifest.shard_path(shard) for shard in manifest.shards] == tars
    assert (manifest.samples, manifest.captions) == (10, 7 + 15)
    assert [shard.source for shard in manifest.shards] == ["tiny", "tiny", "coco"]
    for shard, tar in zip(manifest.shards, tars, strict=True):
        with tar.open("rb") as file:
            found = [tar_files.read_at(file, tar, row) for row in manifest.offsets(shard)]
        assert found == list(tar_files.read_samples(tar))
        assert shard.sha256 == sha256_of(tar) and shard.provenance["stage"] == "download"


def test_the_same_shards_give_the_same_bytes_wherever_they_lie_and_whoever_indexes_them(tmp_path: Path) -> None:
    contents = []
    for workers, name in enumerate(("one", "two"), start=1):
        write_tiny_shards(tmp_path / name / "web", 5, samples_per_shard=2)
        index.index_shards([tmp_path / name / "web"], tmp_path / name / "train.json", workers)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.suffix in (".json", ".npy"))
        contents.append([(path.relative_to(tmp_path / name), path.read_bytes()) for path in files])
    assert contents[0] == contents[1]


def test_a_tar_without_receipt_is_ignored_and_old_and_half_written_tables_go(tmp_path: Path) -> None:
    tars = write_tiny_shards(tmp_path / "web", 6, samples_per_shard=2)
    index.index_shards([tmp_path / "web"], tmp_path / "train.json")
    receipt_path(tars[1]).unlink()
    for left in (tmp_path / ".train.json.1.partial", tmp_path / "train.index" / ".a.npy.2.partial"):
        left.write_bytes(b"of a killed indexer")
    index.index_shards([tmp_path / "web"], tmp_path / "train.json")
    manifest = load_manifest(tmp_path / "train.json")
    assert [manifest.shard_path(shard) for shard in manifest.shards] == [tars[0], tars[2]]
    assert len(list((tmp_path / "train.index").iterdir())) == 2 and not list(tmp_path.glob(".train*"))


@pytest.mark.parametrize(
    ("folder", "output"),
    [
        ("sub/../web", "train.json"),
        ("web", "sub/../train.json"),
        ("link/web", "train.json"),
        ("web", "link/train.json"),
        ("link/web", "link/sub/../train.json"),
    ],
)
def test_ways_around_and_links_to_the_root_give_the_manifest_of_the_straight_way(
    tmp_path: Path, folder: str, output: str
) -> None:
    root = tmp_path / "root"
    write_tiny_shards(root / "web", 4, samples_per_shard=2)
    (root / "sub").mkdir()
    (root / "link").symlink_to(root)
    assert index.main([str(root / "web"), "--output", str(root / "train.json")]) == 0
    straight = (root / "train.json").read_text()
    (root / "train.json").unlink()
    assert index.main([str(root / folder), "--output", str(root / output)]) == 0
    assert (root / "train.json").read_text() == straight
    assert verify.main([str(root / output)]) == 0


def test_a_folder_may_be_a_link_to_another_disk(tmp_path: Path) -> None:
    write_tiny_shards(tmp_path / "disk", 4, samples_per_shard=2)
    (tmp_path / "house").mkdir()
    (tmp_path / "house" / "web").symlink_to(tmp_path / "disk")
    output = tmp_path / "house" / "train.json"
    assert index.main([str(tmp_path / "house" / "web"), "--output", str(output)]) == 0
    assert all(shard.path.startswith("web/") for shard in load_manifest(output).shards)
    assert verify.main([str(output)]) == 0


@pytest.mark.parametrize(
    "fault", ["empty", "missing", "outside", "linked", "twice", "again", "cut", "gone", "hollow", "yaml"]
)
def test_a_fault_is_one_line_and_exit_1(tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str) -> None:
    tar = write_tiny_shards(tmp_path / "web", 2)[0]
    (tmp_path / "empty").mkdir()
    folders, output = [str(tmp_path / "web")], tmp_path / "train.json"
    if fault in ("empty", "missing"):
        folders.append(str(tmp_path / fault))
    elif fault == "outside":
        output = tmp_path / "elsewhere" / "train.json"
    elif fault == "linked":
        tar.rename(tmp_path / "away.tar")
        tar.symlink_to(tmp_path / "away.tar")
    elif fault == "twice":
        folders *= 2
    elif fault == "again":
        (tmp_path / "link").symlink_to(tmp_path / "web")
        folders.append(str(tmp_path / "link"))
    elif fault == "yaml":
        output = tmp_path / "train.yaml"
    elif fault == "cut":
        tar.write_bytes(tar.read_bytes()[:-512])
    elif fault == "gone":
        tar.unlink()
    elif fault == "hollow":
        totals = tar_files.write_shard(tar, [])
        write_receipt(tar, Receipt("capfilt", "", "", totals.sha256, totals.bytes, 0, 0, 0))
    assert index.main([*folders, "--output", str(output)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and (str(tmp_path) in lines[0])
    assert not output.exists()


def test_the_counts_of_captions_and_questions_stand_beside_the_places(tmp_path: Path) -> None:
    write_tiny_shards(tmp_path / "coco", 3, captions_per_sample=5, caption_source="human", source="coco")
    write_tiny_shards(tmp_path / "vqa", 4, samples_per_shard=3, source="vqa", questions_per_sample=2)
    assert index.main([str(tmp_path / "coco"), str(tmp_path / "vqa"), "--output", str(tmp_path / "train.json")]) == 0
    manifest = load_manifest(tmp_path / "train.json")
    assert (manifest.samples, manifest.captions, manifest.questions) == (7, 15, 8)
    assert [manifest.counts(shard).tolist() for shard in manifest.shards] == [[[5, 0]] * 3, [[0, 2]] * 3, [[0, 2]]]
    assert [manifest.offsets(shard).shape for shard in manifest.shards] == [(3, 4), (3, 4), (1, 4)]
    assert question_sets(manifest.shards) == {"vqav2_train2014": 8}
    assert verify.main([str(tmp_path / "train.json")]) == 0


def test_a_table_of_an_earlier_version_gives_places_but_no_counts(tmp_path: Path) -> None:
    write_tiny_shards(tmp_path / "web", 3)
    assert index.main([str(tmp_path / "web"), "--output", str(tmp_path / "train.json")]) == 0
    content = json.loads((tmp_path / "train.json").read_text())
    table = tmp_path / content["shards"][0]["index"]
    places = np.load(table)[:, :4]
    np.save(table, places)
    del content["questions"], content["shards"][0]["questions"]
    (tmp_path / "train.json").write_text(json.dumps(content))
    manifest = load_manifest(tmp_path / "train.json")
    assert np.array_equal(manifest.offsets(manifest.shards[0]), places)
    assert verify.main([str(tmp_path / "train.json")]) == 0
    with pytest.raises(ValueError, match=r"\.npy: has no counts of captions and questions.* run `python -m data_prep"):
        manifest.counts(manifest.shards[0])


def test_a_receipt_with_other_counts_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tar = write_tiny_shards(tmp_path / "vqa", 2, questions_per_sample=2)[0]
    write_receipt(tar, replace(read_receipt(tar), questions=5))
    assert index.main([str(tmp_path / "vqa"), "--output", str(tmp_path / "train.json")]) == 1
    assert "has 0 captions and 4 questions, but its receipt says 0 and 5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            lambda content: content["shards"].append(content["shards"][0] | {"path": "web/copy.tar"}),
            "is the same shard",
        ),
        (lambda content: content["shards"][0].update(samples=1 << 50), "do not fit into its"),
        (lambda content: content["shards"][0].update(captions=1 << 50), "do not fit into its"),
    ],
    ids=["twice", "samples", "captions"],
)
def test_a_manifest_that_cannot_be_is_refused(
    change: Callable[[dict[str, Any]], None], named: str, tmp_path: Path
) -> None:
    write_tiny_shards(tmp_path / "web", 4, samples_per_shard=2)
    index.index_shards([tmp_path / "web"], tmp_path / "train.json")
    content = json.loads((tmp_path / "train.json").read_text())
    change(content)
    (tmp_path / "train.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=named):
        load_manifest(tmp_path / "train.json")


def test_a_name_that_a_manifest_cannot_hold_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny_shards(tmp_path / "shards", 2)
    assert index.main([str(tmp_path / "shards"), "--output", str(tmp_path / "a\x1b.json")]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "has unprintable characters; rename it" in line
