"""Texts of held-out pictures in training: what the model writes, and with another picture."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import pipeline
from data_prep.index import index_shards
from pipeline.config import load_recipe
from pipeline.data.batch import Batch, batch_of
from pipeline.data.stream import Sample
from pipeline.models.build import build_tokenizer
from pipeline.training import checkpoint
from pipeline.training.sample_texts import SHARE, SampleTexts
from pipeline.training.stage1_task import WRITTEN
from pipeline.weights import native
from tests.reference.qformer import layer_norm
from tests.reference.stage1 import LN_VISION_EPS, generation_logits
from tests.support.gloo_ranks import run_on_ranks
from tests.support.tiny_runs import ROOT, train_here, write_recipe
from tests.support.tiny_shards import COLOURS, tiny_manifest, write_tiny_shards


def pixels_alone(samples: Sequence[Sample]) -> Batch:
    return batch_of(samples, [[] for _ in samples], [[] for _ in samples], 0)


SPEED = ("_per_s", "_share", "memory_mib")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample_texts")
    tiny_manifest(folder / "data", 24)
    tiny_manifest(folder / "held_out", 12, samples_per_shard=8)
    write_tiny_shards(folder / "vqa", 12, questions_per_sample=2, source="vqa")
    index_shards([folder / "vqa"], folder / "vqa.json")
    return folder


def train(
    folder: Path, towers: Path, name: str, ranks: int, shown: int, zero: str = "zero1", stage: int = 2, **changed: Any
) -> Path:
    """Four steps, measured after two and after four; returns the run folder."""
    held_out: dict[str, Any] = {"every_steps": 2, "samples": 8, "sample_texts": shown}
    held_out["manifest"] = str(folder / "held_out" / "train.json")
    run = {"zero": str(ROOT / "ds_configs" / f"{zero}.json"), "steps": 4} | changed.pop("run", {})
    arguments = write_recipe(
        folder, towers, folder / "data" / "train.json", name, stage, "opt" if stage == 2 else None,
        batch={"global_size": 4, "micro_size": 4 // ranks}, run=run,
        validation=held_out, **changed,
    )  # fmt: skip
    for code, _, errors in run_on_ranks(ranks, train_here, arguments):
        assert code == 0, errors
    return folder / name


def rows_of(run: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / f"{name}.jsonl").read_text().splitlines()]


def unhurried(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what differs from one time to the next."""
    return [
        {name: value for name, value in line.items() if not name.endswith(SPEED)} for line in rows_of(run, "metrics")
    ]


@pytest.fixture(scope="module")
def captioned(folder: Path, towers: Path) -> Path:
    return train(folder, towers, "shown", 1, 8)


def test_they_are_what_the_checkpoint_writes_of_these_pictures(captioned: Path) -> None:
    rows = rows_of(captioned, "samples")
    assert [row["step"] for row in rows] == [2] * 8 + [4] * 8
    last, keys = rows[8:], [row["key"] for row in rows[8:]]
    assert len(set(keys)) == 8 and keys == [row["key"] for row in rows[:8]]
    assert [row["other_key"] for row in last] == [*keys[1:], keys[0]]
    model = pipeline.load(captioned)
    pictures = SampleTexts(model.recipe, pixels_alone).pictures
    for row, own, other in zip(last, pictures, [*pictures[1:], pictures[0]], strict=True):
        how: dict[str, Any] = {"num_beams": 1, "max_new_tokens": 20, "min_new_tokens": 1}
        assert [row["text"], row["text_of_other"]] == model.caption([own, other], **how)
        assert any(word in row["reference"] for word in ("red", "green", "blue", "yellow")) and not row["question"]
    differing = sum(row["text"] != row["text_of_other"] for row in last) / 8
    assert differing > 0
    measured = [line for line in rows_of(captioned, "metrics") if line.get("split") == "validation"]
    assert measured[-1][SHARE] == differing


def test_they_change_nothing_that_is_trained(captioned: Path, folder: Path, towers: Path) -> None:
    """Dropout is on: a number drawn more would change every later loss."""
    plain = train(folder, towers, "not shown", 1, 0)
    assert not (plain / "samples.jsonl").exists()
    assert unhurried(captioned) == unhurried(plain)
    last: list[dict[str, Tensor]] = [
        load_file(checkpoint.folder_of(run, 4) / native.FILE_NAME) for run in (captioned, plain)
    ]
    assert all(torch.equal(tensor, last[1][name]) for name, tensor in last[0].items())


def test_tensorboard_has_the_texts_at_each_step_and_the_pictures_once(captioned: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(captioned / "tensorboard"), {"images": 0, "tensors": 0})
    events.Reload()
    texts = events.Tensors("samples/texts/text_summary")
    assert [each.step for each in texts] == [2, 4]
    table, rows = texts[-1].tensor_proto.string_val[0].decode(), rows_of(captioned, "samples")[8:]
    assert all(f"{row['key']} | {row['text']} | {row['text_of_other']} |" in table for row in rows)
    assert len(events.Tags()["images"]) == 8
    assert all(len(events.Images(tag)) == 1 for tag in events.Tags()["images"])
    scalars = set(events.Tags()["scalars"])
    assert {"loss/total", "loss/language", "perplexity/language", "optimizer/lr", "optimizer/gradient_norm"} <= scalars
    assert {"speed/samples_per_s", "speed/data_share", "data/samples", "validation/loss"} <= scalars
    assert f"validation/{SHARE}" in scalars and all("/" in tag for tag in scalars)


@pytest.mark.parametrize("layout", ["replicated", "sharded"])
def test_two_ranks_write_them_once_also_where_weights_are_spread(
    folder: Path, towers: Path, layout: str, captioned: Path
) -> None:
    """Weights are those of one rank up to rounding, which greedy texts of random models may feel: so few may differ."""
    zero = "zero3" if layout == "sharded" else "zero1"
    runs = [
        train(folder, towers, f"{layout} {ranks}", ranks, 8, at, run={"layout": how}, qformer={"dropout": 0.0})
        for ranks, at, how in ((1, "zero1", "replicated"), (2, zero, layout))
    ]
    one, two = (rows_of(run, "samples") for run in runs)
    assert [row["key"] for row in one] == [row["key"] for row in two] and len(one) == 16
    assert sum(a != b for a, b in zip(one, two, strict=True)) <= 2


def test_a_resumed_run_has_each_step_once(folder: Path, towers: Path) -> None:
    run = train(folder, towers, "resumed", 1, 2)
    whole = (run / "samples.jsonl").read_text()
    (checkpoint.folder_of(run, 4) / "COMPLETE").unlink()
    with (run / "samples.jsonl").open("a") as file:
        file.write('{"step": 4, "key"')
    assert train(folder, towers, "resumed", 1, 2) == run
    assert (run / "samples.jsonl").read_text() == whole


def test_of_questions_each_picture_is_asked_the_same_with_the_other_soft_prompts(folder: Path, towers: Path) -> None:
    """The Q-Former reads the question too: that of the text, also with the other picture."""
    asked = {"data": {"sample": "question", "answers": "all"}, "qformer": {"question": "question"}}
    arguments = write_recipe(
        folder, towers, folder / "vqa.json", "asked", 2, "t5", batch={"global_size": 4, "micro_size": 4},
        validation={"manifest": str(folder / "vqa.json"), "every_steps": 2, "samples": 8, "sample_texts": 6,
                    "on_training_data": True}, **asked,
    )  # fmt: skip
    [(code, _, errors)] = run_on_ranks(1, train_here, [*arguments, "--set", "language.prompt='question : {} answer :'"])
    assert code == 0, errors
    last = rows_of(folder / "asked", "samples")[6:]
    model = pipeline.load(folder / "asked")
    pictures = dict(zip([row["key"] for row in last], SampleTexts(model.recipe, pixels_alone).pictures, strict=True))
    for row in last:
        shown = [pictures[row["key"]], pictures[row["other_key"]]]
        how: dict[str, Any] = {"num_beams": 1, "length_penalty": 1.0}
        assert [row["text"], row["text_of_other"]] == model.answer(shown, row["question"], **how)
        assert row["reference"] in (*COLOURS, "yes", "no")


def test_they_come_from_the_seed(folder: Path) -> None:
    recipe = load_recipe(folder / "shown.yaml")
    drawn = [
        [row.key for row in SampleTexts(load_recipe(folder / "shown.yaml", [f"seed={seed}"]), pixels_alone)._samples]
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2] and recipe.seed == 1


@pytest.fixture(scope="module")
def stage1(folder: Path, towers: Path) -> Path:
    return train(folder, towers, "stage1", 1, 4, stage=1, qformer={"dropout": 0.0}, run={"steps": 12})


def test_stage_1_writes_them_with_the_head_that_itg_trains(stage1: Path) -> None:
    """Token by token they are the reference's, with the checkpoint's weights; so of the other picture, too."""
    rows = rows_of(stage1, "samples")
    assert [row["step"] for row in rows] == [step for step in range(2, 14, 2) for _ in range(4)]
    recipe, tensors = native.read_weights(stage1)[:2]
    model, tokenizer = pipeline.load(stage1).model, build_tokenizer(recipe.qformer)
    pictures = SampleTexts(recipe, pixels_alone).pictures
    for row, own, other in zip(rows[-4:], pictures, [*pictures[1:], pictures[0]], strict=True):
        for text, pixels in ((row["text"], own), (row["text_of_other"], other)):
            [frozen_PI] = model.encode_images(pixels[None])
            image_PI = layer_norm(tensors, "ln_vision", frozen_PI, LN_VISION_EPS)
            ids, shape = [tokenizer.bos_token_id], model.bridge.qformer.shape
            while len(ids) <= WRITTEN and ids[-1] != tokenizer.sep_token_id:
                real_L = torch.ones(len(ids), dtype=torch.bool)
                ids.append(int(generation_logits(tensors, shape, image_PI, torch.tensor(ids), real_L)[-1].argmax()))
            assert text == tokenizer.decode(ids[1:]).removesuffix(" [SEP]") and "[SEP]" not in text
        assert row["reference"]
    measured = [line for line in rows_of(stage1, "metrics") if line.get("split") == "validation"]
    assert measured[-1][SHARE] == sum(row["text"] != row["text_of_other"] for row in rows[-4:]) / 4


def test_stage_1_writes_the_same_on_two_ranks_and_nothing_without_itg(stage1: Path, folder: Path, towers: Path) -> None:
    spread = train(folder, towers, "spread", 2, 4, "zero3", 1, qformer={"dropout": 0.0}, run={"steps": 2})
    assert rows_of(spread, "samples") == rows_of(stage1, "samples")[:4]
    bare = train(folder, towers, "bare", 1, 4, stage=1, objectives={"itg_weight": 0.0}, run={"steps": 2})
    assert not (bare / "samples.jsonl").exists()
