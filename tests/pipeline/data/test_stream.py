"""Samples by seeking: what a plain reading of the tar gives; draws from (seed, epoch, key); damage is passed over."""

import json
import os
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.index import index_shards
from pipeline.config import Data, SampleKind
from pipeline.data.captions import clean_caption
from pipeline.data.manifest import Manifest, load_manifest
from pipeline.data.mixture import build_order
from pipeline.data.order import SampleOrder
from pipeline.data.records import read_record
from pipeline.data.stream import Sample, SampleStream, UnreadableShardError
from pipeline.data.transforms import decode, random_resized_crop
from tests.support.tiny_shards import tiny_manifest, tiny_sample, write_samples

SAMPLES, SIZE_PX, SEED = 22, 16, 3


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return load_manifest(tiny_manifest(tmp_path, SAMPLES, samples_per_shard=8, captions_per_sample=3))


def stream_of(manifest: Manifest, seed: int = SEED) -> SampleStream:
    return SampleStream(manifest, SampleOrder(manifest, seed, 2), Data(manifest=Path("none")), SIZE_PX)


def read_plainly(manifest: Manifest) -> dict[tuple[int, int], tuple[bytes, dict[str, object]]]:
    """(shard, row) -> JPEG and JSON, in the order in which tarfile finds them."""
    content = {}
    for number, shard in enumerate(manifest.shards):
        with tarfile.open(manifest.shard_path(shard)) as tar:
            members = [tar.extractfile(member).read() for member in tar]  # type: ignore[union-attr]
        for row in range(0, len(members), 2):
            content[number, row // 2] = members[row], json.loads(members[row + 1])
    return content


def damage(manifest: Manifest, shard: int, row: int, *, json_too: bool = False) -> None:
    jpg_offset, _, json_offset, _ = manifest.offsets(manifest.shards[shard])[row]
    with manifest.shard_path(manifest.shards[shard]).open("rb+") as file:
        file.seek(int(json_offset if json_too else jpg_offset))
        file.write(b"damage")


def equal(one: Sample, other: Sample) -> bool:
    same = (one.key, one.caption, one.corrupt) == (other.key, other.caption, other.corrupt)
    return same and torch.equal(one.pixels_3SS, other.pixels_3SS)


def test_seeking_gives_what_a_plain_reading_gives(manifest: Manifest) -> None:
    stream, content = stream_of(manifest), read_plainly(manifest)
    for epoch in (0, 1):
        for position in range(SAMPLES):
            sample, (picture, record) = stream[epoch, position], content[stream.order.locate(epoch, position)]
            rng = random.Random(f"{SEED}/{epoch}/{record['key']}")
            caption = clean_caption(rng.choice(record["captions"]))  # type: ignore[arg-type]
            pixels = random_resized_crop(decode(picture), SIZE_PX, (0.5, 1.0), True, rng)
            assert (sample.key, sample.caption, sample.corrupt) == (record["key"], caption, 0)
            assert torch.equal(sample.pixels_3SS, pixels)
    assert len(content) == SAMPLES


def test_draws_depend_on_seed_epoch_and_key_alone(manifest: Manifest, tmp_path: Path) -> None:
    """The same pictures in other shards, in another order of reading, give the same crops and captions."""
    other = load_manifest(tiny_manifest(tmp_path / "other", SAMPLES, samples_per_shard=5, captions_per_sample=3))
    first = {sample.key: sample for sample in (stream_of(manifest)[0, position] for position in range(SAMPLES))}
    second = {sample.key: sample for sample in (stream_of(other)[0, position] for position in range(SAMPLES))}
    assert first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    for changed in (stream_of(manifest, SEED + 1), None):
        places = [(0, position) if changed else (1, position) for position in range(SAMPLES)]
        third = {sample.key: sample for sample in (map((changed or stream_of(manifest)).__getitem__, places))}
        assert sum(equal(first[key], third[key]) for key in first) < SAMPLES / 4


def test_captions_are_drawn_evenly_over_epochs(manifest: Manifest) -> None:
    stream, counts = stream_of(manifest), {}
    for epoch in range(40):
        for position in range(SAMPLES):
            word = stream[epoch, position].caption.split()[0]
            kind = word if word in ("a", "the") else "other"
            counts[kind] = counts.get(kind, 0) + 1
    assert sum(counts.values()) == 880 and all(abs(count - 880 / 3) < 60 for count in counts.values())


def test_damaged_samples_are_counted_and_replaced_alike_everywhere(manifest: Manifest) -> None:
    whole = {stream_of(manifest).order.locate(0, p): stream_of(manifest)[0, p] for p in range(SAMPLES)}
    damage(manifest, 1, 3)
    damage(manifest, 1, 4, json_too=True)
    damage(manifest, 0, 7)  # the last row of its shard: the first stands in
    damage(manifest, 2, 5)
    tar = manifest.shard_path(manifest.shards[2])
    tar.write_bytes(tar.read_bytes()[: int(manifest.offsets(manifest.shards[2])[5][0]) + 4])  # the last row cut off
    stands_in = {(1, 3): ((1, 5), 2), (1, 4): ((1, 5), 1), (0, 7): ((0, 0), 1), (2, 5): ((2, 0), 1)}
    one, other = stream_of(manifest), stream_of(manifest)
    for position in reversed(range(SAMPLES)):
        place, sample = one.order.locate(0, position), one[0, position]
        source, corrupt = stands_in.get(place, (place, 0))
        assert (sample.key, sample.caption, sample.corrupt) == (whole[source].key, whole[source].caption, corrupt)
        assert torch.equal(sample.pixels_3SS, whole[source].pixels_3SS) and equal(sample, other[0, position])


def test_another_shard_of_the_same_size_and_layout_is_never_trained_on(manifest: Manifest) -> None:
    """Each sample of it is sound, and none is what was indexed: those of the next shard stand in, and are counted."""
    tar = manifest.shard_path(manifest.shards[0])
    content = tar.read_bytes()
    swapped = content.replace(b"picture", b"drawing")  # in the captions
    tar.write_bytes(swapped)
    assert len(swapped) == len(content) and swapped != content
    keys = {record["key"] for (shard, _), (_, record) in read_plainly(manifest).items() if shard == 0}
    stream = stream_of(manifest)
    samples = [stream[0, position] for position in range(SAMPLES)]
    assert not keys & {sample.key for sample in samples}
    there = [position for position in range(SAMPLES) if stream.order.locate(0, position)[0] == 0]
    assert all(samples[position].corrupt for position in there)


def test_a_table_of_an_earlier_version_cannot_tell(manifest: Manifest) -> None:
    for shard in manifest.shards:
        path = manifest.root / shard.index
        np.save(path, np.load(path)[:, :6])
    stream = stream_of(manifest)
    assert not any(stream[0, position].corrupt for position in range(SAMPLES))


def test_another_picture_beside_a_sound_json_is_passed_over(manifest: Manifest) -> None:
    """The bytes of one that decodes."""
    content = read_plainly(manifest)
    sizes = {place: len(picture) for place, (picture, _) in content.items() if place[0] == 0}
    small, large = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
    offset = int(manifest.offsets(manifest.shards[0])[large[1], 0])
    with manifest.shard_path(manifest.shards[0]).open("rb+") as file:
        file.seek(offset)
        file.write(content[small][0].ljust(sizes[large], b"\0"))
    decode(content[small][0].ljust(sizes[large], b"\0"))
    stream = stream_of(manifest)
    [position] = [each for each in range(SAMPLES) if stream.order.locate(0, each) == large]
    assert stream[0, position].corrupt == 1 and stream[0, position].key != content[large][1]["key"]


@pytest.mark.parametrize("kind", ["image", "caption"])
def test_a_text_that_no_tokenizer_takes_is_passed_over(kind: SampleKind, tmp_path: Path) -> None:
    """Half a character ended a run in the tokenizer; empty captions, and those of marks alone, were trained on."""
    spoilt = [["a \ud800 cat"], ["", "..."], [" ", "a red cat", "?!"], ["\ud83d"], ["a blue dog"]]
    samples = [tiny_sample(number, 0, len(texts), "web", "tiny") for number, texts in enumerate(spoilt)]
    for sample, texts in zip(samples, spoilt, strict=True):
        sample.record["captions"] = texts
    write_samples(tmp_path / "web" / "tiny-000-000000.tar", samples)
    index_shards([tmp_path / "web"], tmp_path / "train.json")
    manifest, data = load_manifest(tmp_path / "train.json"), Data(manifest=Path("none"), sample=kind)
    stream = SampleStream(manifest, build_order(manifest, data, SEED), data, SIZE_PX)
    found = [stream[epoch, position] for epoch in range(9) for position in range(stream.order.samples)]
    assert {sample.caption for sample in found} == {"a red cat", "a blue dog"}
    assert sum(sample.corrupt > 0 for sample in found) == 9 * (3 if kind == "image" else 6)


@pytest.mark.parametrize("record", [{"captions": [None, 7]}, {"key": "\udfff", "captions": ["a cat"]}])
def test_what_is_no_text_is_no_caption_and_no_key(record: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"no key|no caption with"):
        read_record(json.dumps({"key": "k"} | record).encode())


def huge(path: Path) -> None:
    table = np.load(path)
    table[:, 1] = 1 << 60
    np.save(path, table)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


SPOIL_SHARD: dict[str, tuple[str, Callable[[Path], object]]] = {
    "missing": ("path", Path.unlink),
    "a pipe": ("path", pipe),
    "empty": ("path", lambda path: path.write_bytes(b"")),
    "replaced by a larger one": ("path", lambda path: path.write_bytes(path.read_bytes() * 2)),
    "no table": ("index", lambda path: path.write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr': " + b"(" * 200)),
    "a table of other numbers": ("index", lambda path: np.save(path, np.full((8, 6), np.inf))),
    "huge sizes": ("index", huge),
    "negative offsets": ("index", lambda path: np.save(path, np.full((8, 6), -5))),
}


@pytest.mark.parametrize("kind", ["image", "caption"])
@pytest.mark.parametrize("spoilt", SPOIL_SHARD)
def test_one_file_does_not_end_a_run(manifest: Manifest, spoilt: str, kind: SampleKind) -> None:
    name, spoil = SPOIL_SHARD[spoilt]
    spoil(manifest.root / getattr(manifest.shards[1], name))
    data = Data(manifest=Path("none"), sample=kind)
    stream = SampleStream(manifest, build_order(manifest, data, SEED), data, SIZE_PX)
    lost = [place for place in range(stream.order.samples) if stream.order.locate(0, place)[0] == 1]
    first = json.loads(read_plainly_one(manifest, 2))
    for place in (lost[0], lost[-1]):
        sample = stream[0, place]
        assert sample.key == first["key"] and sample.corrupt >= 1


def read_plainly_one(manifest: Manifest, shard: int) -> bytes:
    """The JSON of a shard's first sample."""
    with tarfile.open(manifest.shard_path(manifest.shards[shard])) as tar:
        return tar.extractfile(tar.getmembers()[1]).read()  # type: ignore[union-attr]


def test_a_disk_that_is_gone_ends_in_one_line(manifest: Manifest) -> None:
    paths = [manifest.shard_path(shard) for shard in manifest.shards]
    for path in paths:
        path.unlink()
    stream = stream_of(manifest)
    position = next(p for p in range(SAMPLES) if stream.order.locate(0, p)[0] == 1)
    with pytest.raises(UnreadableShardError) as error:
        stream[0, position]
    line = str(error.value)
    assert str(paths[1]) in line and "in 3 tries" in line and "No such file" in line and "\n" not in line


def test_few_files_are_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.data.stream.MAX_OPEN_TARS", 2)
    manifest = load_manifest(tiny_manifest(tmp_path, 10, samples_per_shard=2))
    stream = stream_of(manifest)
    keys = {stream[0, position].key for position in range(10)}
    assert len(keys) == 10 and len(stream._files) == 2


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ('A "Red" (small) #1: Box*~; yes!', "a red small 1 box yes"),
        ("it's a dog, running.", "it's a dog, running"),
        ("  many\tspaces\nhere  ", "many spaces here"),
        ("...", ""),
        (" ".join(map(str, range(70))), " ".join(map(str, range(50)))),
    ],
)
def test_captions_are_cleaned_as_the_papers(caption: str, cleaned: str) -> None:
    assert clean_caption(caption) == cleaned
