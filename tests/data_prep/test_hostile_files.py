"""A thousand spoilt tars, pictures, JSONs and parquets: no command crashes, hangs, writes elsewhere, or loses count."""

import hashlib
import io
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from data_prep import capfilt, duplicates, index, verify
from data_prep.captioning.capfilt_plan import Plan, Selection
from data_prep.captioning.captioner import SamplingSettings
from data_prep.captioning.shared_work import caption_shards
from data_prep.shards import sample_json, tar_files
from data_prep.shards.receipts import finished_shards, read_receipt, receipt_path
from data_prep.shards.ustar import BLOCK, HashingFile, write_member
from data_prep.tables.formats import table_rows
from pipeline.command_line import finish
from tests.data_prep.test_duplicates import download_pictures, jpeg, picture
from tests.support import hostile_files
from tests.support.hostile_files import Rng
from tests.support.tiny_captioning_models import save_tiny_blip, save_tiny_clip

SEED = 20261122
TIMES = 1000
MAKING = {"sampling": {"seed": 0}, "models": {"captioner": "b", "ranker": "c"}}


class Workshop:
    """A pristine data set of every kind of file, a copy of it to spoil, and the commands that meet the copy."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.pristine, self.world = folder, folder / "pristine", folder / "world"
        options = capfilt.parse(
            ["--input", "x", "--output", "y", "--captioner", str(save_tiny_blip(folder / "blip", num_layers=1)),
             "--ranker", str(save_tiny_clip(folder / "clip")), "--device", "cpu", "--decode-threads", "1"]
        )  # fmt: skip
        self.models = capfilt.Models(options, SamplingSettings(num_captions=2, max_length=7))
        pictures = {f"{number}.jpg": jpeg(picture(number, 40)) for number in range(4)}
        download_pictures(self.pristine, "raw", pictures, 2)
        for name in ("raw-images", "raw.csv"):
            (shutil.rmtree if name.endswith("images") else Path.unlink)(self.pristine / name)
        self.caption(self.pristine)
        assert index.main([str(self.pristine / "captioned"), "--output", str(self.pristine / "train.json")]) == 0
        assert duplicates.main([str(self.pristine / "raw"), "--output", str(self.pristine / "drops")]) == 0
        pq.write_table(pa.table({"url": ["http://a/b"] * 9, "caption": ["words"] * 9}), self.pristine / "t.parquet")

    def caption(self, root: Path) -> int:
        """CapFilt with real (tiny) models, loaded once for all runs."""
        plan = Plan(root / "captioned", MAKING, Selection())
        return finish(lambda: bool(caption_shards(finished_shards(root / "raw"), plan, self.models, 30.0)) * 0)

    def renew(self) -> None:
        shutil.rmtree(self.world, ignore_errors=True)
        shutil.copytree(self.pristine, self.world)

    def forget_captions(self) -> None:
        shutil.rmtree(self.world / "captioned")

    def index(self, *folders: str) -> int:
        return index.main([*(str(self.world / each) for each in folders), "--output", str(self.world / "train.json")])

    def verify(self) -> int:
        return verify.main([str(self.world / "train.json"), "--decode"])

    def reselect(self, *more: str) -> int:
        places = ["--input", str(self.world / "raw"), "--output", str(self.world / "captioned")]
        return capfilt.main([*places, "--reselect", "--top-k", "1", *more])

    def duplicates(self) -> int:
        return duplicates.main([str(self.world / "raw"), "--output", str(self.world / "drops")])

    def read_table(self) -> int:
        return finish(lambda: len(list(table_rows(self.world / "t.parquet", "url", "caption"))) * 0)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Workshop(tmp_path_factory.mktemp("around") / "workshop")  # `outside` looks at all around it, each time
    torch.set_num_threads(before)


def pick(rng: Rng, folder: Path, pattern: str) -> Path:
    return rng.choice(sorted(folder.glob(pattern)))


def reseal(tar: Path) -> None:
    """A receipt that vouches for the tar as it is: the spoiler was its maker."""
    content = tar.read_bytes()
    told = replace(read_receipt(tar), tar_sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    receipt_path(tar).write_text(json.dumps(asdict(told)))


def rebuild(tar: Path, spoil: Callable[[bytes, bytes], tuple[bytes, bytes]]) -> None:
    """The tar with its first sample's (picture, JSON) spoilt, resealed."""
    samples = [(each.key, each.jpeg, sample_json.encode_record(each.record)) for each in tar_files.read_samples(tar)]
    key, picture_, text = samples[0]
    samples[0] = (key, *spoil(picture_, text))
    content = io.BytesIO()
    for key, picture_, text in samples:
        write_member(HashingFile(content), f"{key}.jpg", picture_)
        write_member(HashingFile(content), f"{key}.json", text)
    tar.write_bytes(content.getvalue() + bytes(2 * BLOCK))
    reseal(tar)


def spoil_tar(rng: Rng, work: Workshop) -> list[Callable[[], int]]:
    folder = rng.choice(("raw", "captioned"))
    tar = pick(rng, work.world / folder, "*.tar")
    way = rng.choice((hostile_files.any_bytes, hostile_files.spoil_member))
    tar.write_bytes(way(rng, tar.read_bytes()))
    if rng.random() < 0.7:
        reseal(tar)
    if folder == "captioned":
        return [work.verify, lambda: work.index("captioned"), work.verify]
    work.forget_captions()
    return [lambda: work.caption(work.world), lambda: work.index("raw"), work.verify]


def spoil_picture(rng: Rng, work: Workshop) -> list[Callable[[], int]]:
    """Inside a shard whose digests are all right, so that only decoding can tell."""

    def spoil(picture_: bytes, text: bytes) -> tuple[bytes, bytes]:
        spoilt = hostile_files.spoil_picture(rng, picture_)
        record = json.loads(text) | {"sha256": hashlib.sha256(spoilt).hexdigest()}
        return spoilt, sample_json.encode_record(record)

    rebuild(pick(rng, work.world / "raw", "*.tar"), spoil)
    work.forget_captions()
    return [lambda: work.caption(work.world), lambda: work.index("raw"), work.verify]


def spoil_record(rng: Rng, work: Workshop) -> list[Callable[[], int]]:
    way = rng.choice((hostile_files.spoil_json, hostile_files.spoil_json, hostile_files.any_bytes))
    rebuild(pick(rng, work.world / "raw", "*.tar"), lambda picture_, text: (picture_, way(rng, text)))
    work.forget_captions()
    return [lambda: work.caption(work.world), lambda: work.index("raw"), work.verify]


def spoil_json(rng: Rng, work: Workshop) -> list[Callable[[], int]]:
    path = pick(rng, work.world, rng.choice(("raw/*.receipt.json", "captioned/*.receipt.json", "train.json")))
    way = rng.choice((hostile_files.spoil_json, hostile_files.spoil_json, hostile_files.any_bytes))
    path.write_bytes(way(rng, path.read_bytes()))
    if path.name == "train.json":
        return [work.verify]
    return [lambda: work.caption(work.world), lambda: work.index("captioned"), work.verify, work.duplicates]


def spoil_manifest_entry(rng: Rng, work: Workshop) -> list[Callable[[], int]]:
    content = json.loads((work.world / "train.json").read_text())
    entry = json.dumps(content["shards"][0]).encode()
    spoilt = hostile_files.spoil_json(rng, entry)
    text = json.dumps(content).encode().replace(entry, spoilt)
    (work.world / "train.json").write_bytes(text)
    return [work.verify]


def spoil_parquet(rng: Rng, work: Workshop) -> list[Callable[[], int]]:
    kinds = ("raw/*.ledger.parquet", "captioned/*.candidates.parquet", "drops/*.drops.parquet", "t.parquet")
    path = pick(rng, work.world, rng.choice(kinds))
    if rng.random() < 0.75:
        path.write_bytes(hostile_files.any_bytes(rng, path.read_bytes()))
    else:
        table = pq.read_table(path)
        name = rng.choice(table.column_names)
        odd = rng.choice((pa.nulls(len(table)), pa.array([1.5] * len(table)), pa.array([["x"]] * len(table)), None))
        without = table.drop_columns([name])
        pq.write_table(without if odd is None else without.append_column(name, odd), path)
    drops = ("--drops", str(work.world / "drops"))
    return [work.duplicates, work.reselect, lambda: work.reselect(*drops), work.read_table]


def spoil_offsets(rng: Rng, work: Workshop) -> list[Callable[[], int]]:
    path = pick(rng, work.world, "train.index/*.npy")
    path.write_bytes(hostile_files.any_bytes(rng, path.read_bytes()))
    return [work.verify]


def spoil_kind(rng: Rng, work: Workshop) -> list[Callable[[], int]]:
    """A symbolic link, a device, a pipe, a folder or nothing in a file's place."""
    path = rng.choice(sorted(path for path in work.world.rglob("*") if path.is_file()))
    hostile_files.replace_by_other_kind(rng, path)
    runs = [work.verify, lambda: work.caption(work.world), work.reselect, work.duplicates, work.read_table]
    return [*runs, lambda: work.index("captioned"), work.verify]


SPOILERS = (
    spoil_tar, spoil_tar, spoil_picture, spoil_picture, spoil_record, spoil_record, spoil_json, spoil_manifest_entry,
    spoil_parquet, spoil_parquet, spoil_offsets, spoil_kind,
)  # fmt: skip


def outside(work: Workshop) -> dict[str, tuple[int, int]]:
    """Every file that no command has a reason to touch, with size and time."""
    paths = [path for path in work.folder.parent.rglob("*") if work.world not in (path, *path.parents)]
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in paths if not path.is_dir()}


def check_counts(work: Workshop) -> int:
    """Every captioned shard accounts for the raw one's samples; returns how many it dropped."""
    dropped = 0
    for tar in finished_shards(work.world / "captioned"):
        made, given = read_receipt(tar), read_receipt(work.world / "raw" / tar.name)
        assert made.samples + sum(made.dropped.values()) == given.samples
        assert made.dropped.keys() <= {"undecodable_picture", "no_caption_survived"}
        dropped += made.dropped.get("undecodable_picture", 0)
    return dropped


def test_spoilt_files_are_named_or_counted_and_do_no_harm(
    workshop: Workshop, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # which alone took most of the time; no power is cut here
    untouched, outcomes, named, undecodable = outside(workshop), Counter[str](), 0, 0
    for number in range(TIMES):
        rng, spoil = random.Random(SEED + number), SPOILERS[number % len(SPOILERS)]
        workshop.renew()
        for run in spoil(rng, workshop):
            capsys.readouterr()
            code = run()
            text = capsys.readouterr()
            lines = text.err.splitlines()
            assert (code, len(lines)) in ((0, 0), (1, 1)), f"case {number}: {code}, {lines}"
            outcomes[f"{spoil.__name__}: {'named' if code else 'passed'}"] += 1
            if code:
                assert str(workshop.world) in lines[0], f"case {number}: names no file: {lines[0]}"
                named += 1
        assert outside(workshop) == untouched, f"case {number}: a file outside changed"
        if spoil in (spoil_tar, spoil_picture, spoil_record):
            undecodable += check_counts(workshop)
    assert {spoil.__name__ for spoil in SPOILERS} <= {name.partition(":")[0] for name in outcomes}
    assert named > TIMES / 2 and undecodable > TIMES / 20, f"{named} named, {undecodable} undecodable: {outcomes}"
