"""Captions and questions as samples of their own: each once an epoch, with its own draws; damage is passed over."""

import json
import random
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.index import index_shards
from data_prep.shards import tar_files
from data_prep.shards.receipts import Receipt, write_receipt
from pipeline.config import Data, SampleKind, parse_recipe
from pipeline.data.captions import clean_caption, clean_question
from pipeline.data.loader import build_loader, open_source
from pipeline.data.manifest import Manifest, Shard, load_manifest
from pipeline.data.mixture import build_order
from pipeline.data.order import SampleOrder
from pipeline.data.prompted import collate_prompted_causal
from pipeline.data.records import read_record
from pipeline.data.stream import Sample, SampleStream
from pipeline.data.transforms import decode, random_resized_crop
from tests.support.tiny_shards import tiny_question_sample, tiny_sample, write_tiny_ledger, write_tiny_shards
from tests.support.tiny_towers import bpe_tokenizer, tiny_recipe

PICTURES, PER_SHARD, SIZE_PX, SEED = 11, 4, 16, 3


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Pictures with 0 to 3 captions, or, in every third shard, with 0 to 3 questions."""
    for place, start in enumerate(range(0, PICTURES, PER_SHARD)):
        make: Any = (
            tiny_question_sample
            if place == 2
            else lambda number, seed, count, source: tiny_sample(number, seed, count, "human", source)
        )
        samples = [make(number, 0, (number + 1) % 4, "tiny") for number in range(start, min(start + 4, PICTURES))]
        tar = tmp_path / "shards" / f"tiny-000-{place:06d}.tar"
        tar.parent.mkdir(exist_ok=True)
        totals = tar_files.write_shard(tar, samples)
        write_tiny_ledger(tar, samples)
        receipt = Receipt("download", "t", "c", totals.sha256, totals.bytes, totals.samples, totals.captions, 0)
        write_receipt(tar, receipt.__class__(**{**vars(receipt), "questions": totals.questions}))
    index_shards([tmp_path / "shards"], tmp_path / "train.json")
    return load_manifest(tmp_path / "train.json")


def stream_of(manifest: Manifest, sample: SampleKind, seed: int = SEED) -> SampleStream:
    data = Data(manifest=Path("none"), sample=sample, shuffle_shards=2)
    return SampleStream(manifest, build_order(manifest, data, seed), data, SIZE_PX)


def epoch_of(stream: SampleStream, epoch: int = 0) -> list[Sample]:
    return [stream[epoch, position] for position in range(stream.order.samples)]


def read_plainly(manifest: Manifest) -> dict[str, tuple[bytes, dict[str, Any]]]:
    """Key -> JPEG and JSON, as tarfile finds them."""
    content = {}
    for shard in manifest.shards:
        with tarfile.open(manifest.shard_path(shard)) as tar:
            members = [tar.extractfile(member).read() for member in tar]  # type: ignore[union-attr]
        content |= {
            json.loads(text)["key"]: (jpeg, json.loads(text))
            for jpeg, text in zip(members[::2], members[1::2], strict=True)
        }
    return content


def test_each_caption_comes_once_an_epoch_with_a_crop_of_its_own(manifest: Manifest) -> None:
    stream, content = stream_of(manifest, "caption"), read_plainly(manifest)
    wanted = Counter((key, clean_caption(text)) for key, (_, record) in content.items() for text in record["captions"])
    assert wanted.total() == manifest.captions == stream.order.samples == 12
    orders = []
    for epoch in (0, 1):
        samples = epoch_of(stream, epoch)
        orders.append([(sample.key, sample.caption) for sample in samples])
        assert Counter(orders[-1]) == wanted
        for sample in samples:
            jpeg, record = content[sample.key]
            which = [clean_caption(text) for text in record["captions"]].index(sample.caption)
            rng = random.Random(f"{SEED}/{epoch}/{sample.key}/caption {which}")
            rng.choice([0])  # the only text
            assert torch.equal(sample.pixels_3SS, random_resized_crop(decode(jpeg), SIZE_PX, (0.5, 1.0), True, rng))
    assert orders[0] != orders[1]
    assert epoch_of(stream_of(manifest, "caption"))[5].caption == orders[0][5][1]
    assert stream_of(manifest, "caption")[0, 7].rng.random() == stream[0, 7].rng.random()


def test_each_question_comes_once_an_epoch_with_an_answer_drawn_by_its_count(manifest: Manifest) -> None:
    stream, content = stream_of(manifest, "question"), read_plainly(manifest)
    asked = Counter(
        (key, clean_question(each["question"]))
        for key, (_, record) in content.items()
        for each in record.get("questions", [])
    )
    answers: Counter[tuple[str, bool]] = Counter()
    for epoch in range(60):
        samples = epoch_of(stream, epoch)
        assert Counter((sample.key, sample.question) for sample in samples) == asked
        answers.update((sample.question, sample.caption in ("grey", "yes", "no")) for sample in samples)
    assert asked.total() == manifest.questions == 6 and set(answers) >= {("is it dark?", True)}
    colours = answers["which colour is it?", False] + answers["which colour is it?", True]
    assert 0.1 < answers["which colour is it?", True] / colours < 0.3  # 2 of 10 said grey
    assert answers["is it dark?", False] == 0


def test_texts_of_a_damaged_picture_are_replaced_by_those_of_the_next_row_and_counted(manifest: Manifest) -> None:
    """Shard 0 has pictures of 1, 2, 3 and 0 captions. The second is damaged: two samples go to the third's."""
    stream, whole = stream_of(manifest, "caption"), {}
    for position, sample in enumerate(epoch_of(stream)):
        whole[stream.order.locate(0, position)] = sample
    for row, bytes_after in ((1, 8), (2, 0)):
        jpg_offset = int(manifest.offsets(manifest.shards[0])[row][0])
        with manifest.shard_path(manifest.shards[0]).open("rb+") as file:
            file.seek(jpg_offset)
            file.write(b"damage")
        after, same = epoch_of(stream_of(manifest, "caption")), epoch_of(stream_of(manifest, "caption"))
        stands_in = {1: 3, 2: 4} if row == 1 else {1: 0, 2: 0, 3: 0, 4: 0, 5: 0}  # number of the sample in the shard
        for position, sample in enumerate(after):
            shard, number = stream.order.locate(0, position)
            taken = number if shard else stands_in.get(number, number)
            wanted = whole[shard, taken]
            assert (sample.key, sample.caption) == (wanted.key, wanted.caption)
            assert torch.equal(sample.pixels_3SS, wanted.pixels_3SS)
            assert torch.equal(sample.pixels_3SS, same[position].pixels_3SS)
        corrupt = sum(sample.corrupt for sample in after)
        assert corrupt == (2 if row == 1 else 2 * 2 + 3), bytes_after  # a row without captions is none


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=12).filter(any))
def test_a_number_leads_to_its_row_and_then_to_every_other_row_with_texts(counts: list[int]) -> None:
    class Counted(Manifest):
        def counts(self, shard: Shard) -> Any:
            return np.stack([np.zeros(shard.samples, np.int64), np.array(counts)], axis=1)

    manifest = Counted(Path("none"), (Shard("0.tar", "0.npy", "x", 1, "d", len(counts), 0, questions=sum(counts)),))
    order, data = SampleOrder(manifest, 0, 1, "question"), Data(manifest=Path("none"), sample="question")
    stream = SampleStream(manifest, order, data, SIZE_PX)
    plain = [(row, which) for row, count in enumerate(counts) for which in range(count)]
    assert sorted(order.locate(0, position)[1] for position in range(order.samples)) == list(range(len(plain)))
    for number, (row, which) in enumerate(plain):
        round_from_row = [each % len(counts) for each in range(row, row + len(counts))]
        assert list(stream._rows(0, number)) == [
            (each, which % counts[each]) for each in round_from_row if counts[each]
        ]


@pytest.mark.parametrize("sample", ["caption", "question"])
def test_a_resume_on_two_ranks_has_the_batches_of_one_rank(manifest: Manifest, sample: SampleKind) -> None:
    def keys(world_size: int, first_step: int) -> list[list[tuple[str, str, int]]]:
        language = {"name": "x", "precision": "fp32", "prompt": "{}" if sample == "question" else ""}
        content = {
            "stage": 2,
            "language": language,
            "vision": {"name": "x", "image_size_px": 8},
            "data": {"manifest": str(manifest.root / "train.json"), "num_workers": 0, "sample": sample},
            "batch": {"global_size": 4, "micro_size": 4 // world_size},
            "run": {"output": "none", "steps": 7},
        }
        recipe = parse_recipe(content)

        def collate(samples: Any) -> Any:
            return [(each.key, each.caption + each.question, int(each.pixels_3SS.sum())) for each in samples]

        ranks = [
            list(build_loader(recipe, open_source(recipe, world_size), collate, rank, world_size, first_step))
            for rank in range(world_size)
        ]
        return [[each for micro in step for each in micro] for step in zip(*ranks, strict=True)]  # type: ignore[union-attr]

    alone = keys(1, 0)
    assert len(alone) == 7 and keys(2, 0) == alone and keys(2, 5) == alone[5:] == keys(1, 5)


def test_a_million_questions_take_little_memory_and_any_one_is_found_at_once(tmp_path: Path) -> None:
    """1.4 million questions of 108,000 pictures in 108 shards, as Visual Genome's."""
    counts = np.full((1_000, 6), 13, np.int64)
    np.save(tmp_path / "0.npy", counts)
    shards = [Shard(f"{i}.tar", "0.npy", "vg", 1, str(i), 1_000, 13_000, questions=13_000) for i in range(108)]
    manifest = Manifest(tmp_path, tuple(shards))
    data = Data(manifest=Path("none"), sample="question", source_weights={"vg": 1.5})
    for weights in (None, {"vg": 1.5}):
        order = build_order(manifest, data.model_copy(update={"source_weights": weights}), 0)
        assert order.samples == 1_404_000 * (1.5 if weights else 1)
        stream = SampleStream(manifest, order, data, SIZE_PX)
        places = [order.locate(7, order.samples // 2 + step) for step in range(1_000)]
        found = [(shard, *next(stream._rows(shard, number))) for shard, number in places]
        assert len(set(found)) == 1_000 and len({shard for shard, *_ in found}) <= 65
        assert all(
            row == number // 13 and which == number % 13
            for (_, number), (_, row, which) in zip(places, found, strict=True)
        )


def test_a_source_without_questions_is_left_out_of_a_mixture_of_questions(tmp_path: Path) -> None:
    shards = [Shard("0.tar", "0.npy", "coco", 1, "a", 5, 25), Shard("1.tar", "1.npy", "vg", 1, "b", 5, 0, questions=9)]
    data = Data(manifest=Path("none"), sample="question", source_weights={"vg": 2.0})
    order = build_order(Manifest(tmp_path, tuple(shards)), data, 0)
    assert order.samples == 18 and {order.locate(0, position)[0] for position in range(18)} == {1}


def test_a_source_may_have_a_weight_in_the_loss(tmp_path: Path, towers: Path) -> None:
    for source in ("vg", "vqav2"):
        write_tiny_shards(tmp_path / source, 3, questions_per_sample=2, source=source)
    index_shards([tmp_path / "vg", tmp_path / "vqav2"], tmp_path / "train.json")
    manifest, tokenizer = load_manifest(tmp_path / "train.json"), bpe_tokenizer()
    for weights in (None, {"vg": 0.25}):
        data = Data(manifest=Path("none"), sample="question", loss_weights=weights)
        samples = epoch_of(SampleStream(manifest, build_order(manifest, data, 0), data, SIZE_PX))
        batch = collate_prompted_causal(tokenizer, 32, "\n", "{} Answer:")(samples)
        if weights is None:
            assert batch.loss_weights_A is None and len(batch.tensors()) == 6
            continue
        assert batch.loss_weights_A is not None and len(batch.to("meta").tensors()) == 7
        wanted = [0.25 if sample.key.startswith("vg_") else 1.0 for sample in samples]
        assert batch.loss_weights_A.tolist() == wanted and set(wanted) == {0.25, 1.0}
    with pytest.raises(ValueError, match=r"data\.loss_weights\.gqa: the manifest has no such source"):
        build_order(manifest, data.model_copy(update={"loss_weights": {"gqa": 2.0}}), 0)
    stage1 = tiny_recipe(towers, tmp_path / "train.json", tmp_path, 1)
    with pytest.raises(ValueError, match=r"data\.loss_weights: stage 1 compares samples"):
        parse_recipe(stage1 | {"data": {"manifest": "m.json", "loss_weights": {"vg": 0.5}}})


def test_tables_without_counts_or_with_others_are_named(
    tmp_path: Path, manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    content: dict[str, Any] = {
        "stage": 1,
        "vision": {"name": "x"},
        "data": {"manifest": str(manifest.root / "train.json"), "sample": "caption"},
        "batch": {"global_size": 2, "micro_size": 2},
        "run": {"output": "none", "steps": 7},
    }
    stream = stream_of(manifest, "caption")
    table, shard = manifest.root / manifest.shards[0].index, stream.order.locate(0, 0)[0]
    path, whole = manifest.root / manifest.shards[shard].index, np.load(table)
    changed = np.load(path)
    changed[0, 4] += 1
    np.save(path, changed)
    assert stream_of(manifest, "caption")[0, 0].corrupt == 1, "another shard stands in"
    assert "captions are in its table" in caplog.text
    np.save(table, whole[:, :4])
    with pytest.raises(ValueError, match="has no counts of captions and questions"):
        open_source(parse_recipe(content), 1)
    content["data"] = {"urls": "http://x/a.tar", "sample": "caption"}
    with pytest.raises(ValueError, match="sample 'caption': needs a manifest"):
        parse_recipe(content)


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ({"key": "k", "captions": ["a"]}, "no questions"),
        ({"key": "k", "questions": [{"question": "q", "answers": {"a": 1}}]}, "no question 1 with answers"),
        ({"key": "k", "questions": [0, {"question": "q", "answers": {}}]}, "no question 1 with answers"),
        ({"key": "k", "questions": [0, {"question": "q", "answers": {"a": 0}}]}, "not counted from 1"),
        ({"key": "k", "questions": [0, {"question": "q", "answers": {"a": True}}]}, "not counted from 1"),
        ({"key": "k", "questions": [0, {"question": ["q"], "answers": {"a": 1}}]}, "no question 1 with answers"),
    ],
)
def test_a_question_that_cannot_be_trained_on_is_a_fault_of_its_sample(record: Any, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        read_record(json.dumps(record).encode(), "question", 1)


def test_hostile_json_is_a_fault_and_a_long_question_is_cut() -> None:
    with pytest.raises(ValueError, match="nested too deep"):
        read_record(b"[" * 1_000_000)
    with pytest.raises(ValueError, match="no caption 2"):
        read_record(b'{"key": "k", "captions": ["a", "b"]}', "caption", 2)
    words = " ".join(map(str, range(5_000)))
    assert clean_question(words) == " ".join(map(str, range(50)))
    assert clean_question('What\'s "on" the U.S. flag; (left)?') == "what's on the us flag left?"


def test_questions_of_a_tiny_shard_are_indexed(tmp_path: Path) -> None:
    write_tiny_shards(tmp_path / "shards", 3, questions_per_sample=2)
    index_shards([tmp_path / "shards"], tmp_path / "train.json")
    assert stream_of(load_manifest(tmp_path / "train.json"), "question").order.samples == 6
