"""Verification also tells what lies beside the tars, and what the manifest says of itself, from what was made."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from data_prep import index, split, verify
from data_prep.captioning.capfilt_plan import Plan, Selection
from data_prep.captioning.captioned_shard import Candidates
from data_prep.captioning.selection import Candidate
from data_prep.captioning.shared_work import caption_shards
from data_prep.captioning.side_table import side_table_path
from data_prep.shards.ledger import Entry, ledger_path, write_ledger
from data_prep.shards.receipts import finished_shards, receipt_path
from data_prep.shards.tar_files import Sample
from pipeline.data.manifest import load_manifest
from tests.support.tiny_shards import write_tiny_shards

MAKING = {"sampling": {"seed": 0, "num_captions": 2}, "models": {"captioner": "b", "ranker": "c"}}


def written_captions(target: Path, samples: list[Sample]) -> Candidates:
    for number, sample in enumerate(samples):
        web = [Candidate(0, sample.record["captions"][0], "web", 0.2)]
        yield (
            sample,
            [*web, Candidate(1, f"a picture of thing {number}", "synthetic", 0.3), Candidate(2, "x", "synthetic", 0.1)],
        )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """web/ with raw shards, captioned/ made of them, train.json over both: two captioned shards, then two raw ones."""
    folder = tmp_path_factory.mktemp("made")
    tars = write_tiny_shards(folder / "web", 6, samples_per_shard=3)
    caption_shards(tars, Plan(folder / "captioned", MAKING, Selection()), written_captions, 30.0)
    human = {"captions_per_sample": 2, "caption_source": "human", "source": "coco"}
    write_tiny_shards(folder / "coco", 4, seed=1, samples_per_shard=2, **human)  # type: ignore[arg-type]
    index.index_shards([folder / "captioned", folder / "coco"], folder / "train.json")
    return folder


@pytest.fixture
def world(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "world")
    return tmp_path / "world"


def faults_of(world: Path, capsys: pytest.CaptureFixture[str]) -> list[tuple[str, str]]:
    """(kind, file name) of each fault that the command names."""
    capsys.readouterr()
    code = verify.main([str(world / "train.json")])
    lines = [line.split(": ") for line in capsys.readouterr().out.splitlines() if line.startswith("fault: ")]
    assert code == (1 if lines else 0)
    return [(kind, Path(path).name) for _, kind, path, *_ in lines]


def test_what_the_commands_made_is_sound(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert faults_of(world, capsys) == []


def forge(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Of the manifest."""

    def spoil(world: Path) -> None:
        content = json.loads((world / "train.json").read_text())
        change(content)
        (world / "train.json").write_text(json.dumps(content))

    return spoil


def forge_first(**fields: Any) -> Callable[[Path], None]:
    """Of the manifest's first shard."""
    return forge(lambda content: content["shards"][0].update(fields))


def forge_provenance(**fields: Any) -> Callable[[Path], None]:
    return forge(lambda content: content["shards"][0]["provenance"].update(fields))


def captioned(world: Path) -> Path:
    return world / "captioned" / "tiny-000-000000.tar"


def raw(world: Path) -> Path:
    return world / "coco" / "coco-000-000001.tar"


def edit_table(path: Path, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    import pyarrow as pa

    table = pq.read_table(path)
    pq.write_table(pa.Table.from_pylist(change(table.to_pylist()), schema=table.schema), path)


def lose_a_row(world: Path) -> None:
    edit_table(side_table_path(captioned(world)), lambda rows: rows[:-1])


def keep_another(world: Path) -> None:
    edit_table(side_table_path(captioned(world)), lambda rows: [rows[0] | {"caption": "forged words"}, *rows[1:]])


def take_anothers_table(world: Path) -> None:
    other = captioned(world).with_name("tiny-000-000001.tar")
    shutil.copy(side_table_path(other), side_table_path(captioned(world)))


def claim_a_drop(world: Path) -> None:
    rows = pq.read_table(ledger_path(raw(world))).to_pylist()
    write_ledger(
        ledger_path(raw(world)), [*(Entry(**row) for row in rows), Entry(9, "u", "c", "dropped", "x", "k", None)]
    )


def move_out(world: Path) -> None:
    away = world.parent / "away.tar"
    captioned(world).rename(away)
    captioned(world).symlink_to(away)


TABLE, LEDGER = "tiny-000-000000.candidates.parquet", "coco-000-000001.ledger.parquet"
RECEIPT, TAR = "tiny-000-000000.receipt.json", "tiny-000-000000.tar"
SPOILERS: dict[str, tuple[Callable[[Path], object], list[tuple[str, str]]]] = {
    "no side table": (lambda w: side_table_path(captioned(w)).unlink(), [("side table", TABLE)]),
    "no parquet": (lambda w: side_table_path(captioned(w)).write_bytes(b"junk"), [("side table", TABLE)]),
    "a candidate less": (lose_a_row, [("side table", TABLE)]),
    "another caption": (keep_another, [("side table", TABLE)]),
    "another shard's": (take_anothers_table, [("side table", TABLE)]),
    "no receipt": (lambda w: receipt_path(captioned(w)).unlink(), [("receipt", RECEIPT)]),
    "forged seed": (forge_provenance(seed=999), [("receipt", RECEIPT)]),
    "forged models": (forge_provenance(models={"captioner": "x"}), [("receipt", RECEIPT)]),
    "forged source": (forge_first(source="coco"), [("source", TAR), ("source", TAR)]),
    "forged samples": (forge(lambda c: c.update(samples=1)), [("totals", "train.json")]),
    "forged captions": (forge(lambda c: c.update(captions=1)), [("totals", "train.json")]),
    "forged drops": (forge(lambda c: c.update(dropped={})), [("totals", "train.json")]),
    "no ledger": (lambda w: ledger_path(raw(w)).unlink(), [("ledger", LEDGER)]),
    "spoilt ledger": (lambda w: ledger_path(raw(w)).write_bytes(b"PAR1"), [("ledger", LEDGER)]),
    "short ledger": (lambda w: edit_table(ledger_path(raw(w)), lambda rows: rows[1:]), [("ledger", LEDGER)]),
    "turned ledger": (lambda w: edit_table(ledger_path(raw(w)), lambda rows: rows[::-1]), [("ledger", LEDGER)]),
    "another drop": (claim_a_drop, [("ledger", LEDGER)]),
    "a tar elsewhere": (move_out, [("symlink", TAR)]),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILERS)
def test_each_fault_is_named(world: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    spoil, expected = SPOILERS[name]
    spoil(world)
    assert faults_of(world, capsys) == expected


def test_shards_without_samples_are_accounted_for(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What they dropped is in the manifest, and audited, though no reader meets them."""

    def no_captions(target: Path, samples: list[Sample]) -> Candidates:
        yield from ((sample, [Candidate(0, "x", "web", 0.1)]) for sample in samples)

    making = {"sampling": {"seed": 0, "num_captions": 0}, "models": MAKING["models"]}
    tars = finished_shards(world / "web")
    caption_shards(tars[1:], Plan(world / "captioned", making, Selection()), no_captions, 30.0)
    assert index.main([str(world / "captioned"), str(world / "coco"), "--output", str(world / "train.json")]) == 0
    manifest = json.loads((world / "train.json").read_text())
    assert [shard["path"] for shard in manifest["shards"]] == [
        "captioned/tiny-000-000000.tar", "coco/coco-000-000000.tar", "coco/coco-000-000001.tar",
    ]  # fmt: skip
    assert [shard["path"] for shard in manifest["empty_shards"]] == ["captioned/tiny-000-000001.tar"]
    assert manifest["dropped"] == {"coco": {}, "tiny": {"no_caption_survived": 3}}
    assert faults_of(world, capsys) == []
    capsys.readouterr()
    assert verify.main([str(world / "train.json")]) == 0
    assert "dropped from tiny: 3 no_caption_survived" in capsys.readouterr().out
    (world / "captioned" / "tiny-000-000001.receipt.json").unlink()
    assert faults_of(world, capsys) == [("receipt", "tiny-000-000001.receipt.json")]
    forge(lambda content: content["empty_shards"].clear())(world)
    assert faults_of(world, capsys) == [("totals", "train.json")]


def test_manifests_of_before_are_still_read(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forge(lambda content: [content.pop(name) for name in ("dropped", "empty_shards")])(world)
    assert faults_of(world, capsys) == []


def test_files_beside_a_tar_are_compared_with_all_of_it_also_for_a_part(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--share", "0.5", "--seed", "3", "--ledgers", str(world / "web"))
    assert split.main([str(world / "train.json"), *flags]) == 0
    parts = [world / "train.train.json", world / "train.validation.json"]
    listed = [{shard.path: shard for shard in load_manifest(part).shards} for part in parts]
    path = captioned(world).relative_to(world).as_posix()
    assert all(each[path].of_samples == 3 for each in listed)  # both have some of this shard
    for part in parts:
        assert verify.main([str(part)]) == 0, capsys.readouterr().out
    edit_table(side_table_path(captioned(world)), lambda rows: rows[:-1])
    for part in parts:
        assert verify.main([str(part)]) == 1
        assert "fault: side table: " in capsys.readouterr().out
