"""Samples to token batches: what each kind of language model reads and what it is scored on."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import QFormer as QFormerSettings
from pipeline.data import batch
from pipeline.data.stream import Sample
from pipeline.models.build import build_tokenizer

PIXELS = torch.zeros(3, 4, 4, dtype=torch.uint8)
CAPTIONS = ["a red picture", "the colour is dark blue number 7 8 9", "", "green"]


def samples(captions: list[str], seed: int = 0) -> list[Sample]:
    return [
        Sample(f"key{index}", PIXELS, text, random.Random(f"{seed}/{index}"), index % 2)
        for index, text in enumerate(captions)
    ]


def language_tokenizer(towers: Path, name: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(towers / name))


def real(tokens: Any, row: int) -> list[int]:
    ids: list[int] = tokens.ids[row][tokens.is_token[row]].tolist()
    return ids


def test_stage_1_reads_cls_caption_sep(towers: Path) -> None:
    tokenizer = build_tokenizer(QFormerSettings(bert=str(towers / "bert")))
    made = batch.collate_for_qformer(tokenizer, 6)(samples(CAPTIONS))
    for row, text in enumerate(CAPTIONS):
        words = tokenizer(text, add_special_tokens=False).input_ids[:4]
        assert real(made.target, row) == [tokenizer.cls_token_id, *words, tokenizer.sep_token_id]
    assert made.target.ids.shape == (4, 6) and made.context.ids.shape == (4, 0) and made.corrupt == 2
    assert (made.target.ids[~made.target.is_token] == tokenizer.pad_token_id).all()
    assert tokenizer.unk_token_id not in made.target.ids


def test_a_causal_model_is_scored_on_bos_caption_and_line_end(towers: Path) -> None:
    tokenizer = language_tokenizer(towers, "opt")
    made = batch.collate_for_causal(tokenizer, 6, "\n")(samples(CAPTIONS))
    [end] = tokenizer("\n", add_special_tokens=False).input_ids
    for row, text in enumerate(CAPTIONS):
        words = tokenizer(text, add_special_tokens=False).input_ids[:5]
        assert real(made.target, row) == [tokenizer.bos_token_id, *words, end]
    assert made.context.ids.shape == (4, 0)


def test_a_seq2seq_model_reads_a_prefix_and_is_scored_on_the_rest(towers: Path) -> None:
    tokenizer = language_tokenizer(towers, "t5")
    eos, splits = tokenizer.eos_token_id, Counter()
    for seed in range(300):
        made = batch.collate_for_seq2seq(tokenizer, 32)(samples(CAPTIONS, seed))
        for row, text in enumerate(CAPTIONS):
            words = tokenizer(text, add_special_tokens=False).input_ids
            prefix, suffix = real(made.context, row), real(made.target, row)
            assert prefix[-1] == eos and suffix[-1] == eos and prefix[:-1] + suffix[:-1] == words
            splits[row, len(prefix) - 1] += 1
    assert {split for row, split in splits if row == 0} == {1}  # 3 words: the middle is 1
    assert {split for row, split in splits if row == 1} == {1, 2, 3, 4}  # 8 or 9 words
    assert {split for row, split in splits if row in (2, 3)} == {0}  # nothing to split
    assert all(45 < splits[1, split] < 105 for split in (1, 2, 3, 4))  # evenly


def test_the_split_depends_on_the_sample_alone(towers: Path) -> None:
    collate = batch.collate_for_seq2seq(language_tokenizer(towers, "t5"), 32)
    together, alone = collate(samples(CAPTIONS)), [collate([sample]) for sample in samples(CAPTIONS)]
    assert [real(together.target, row) for row in range(4)] == [real(each.target, 0) for each in alone]


def test_image_ids_are_those_of_the_keys() -> None:
    def ids(keys: list[str]) -> list[int]:
        rows = [Sample(key, PIXELS, "", random.Random(0), 0) for key in keys]
        return batch.batch_of(rows, [[]] * len(rows), [[1]] * len(rows), 0).image_ids_B.tolist()

    made = ids(["a", "b", "a", "c"])
    assert made[0] == made[2] and len(set(made)) == 3 and ids(["c", "a"]) == [made[3], made[0]]


@pytest.mark.parametrize("name", ["opt", "t5"])
def test_captions_are_cut_to_the_longest_allowed(towers: Path, name: str) -> None:
    tokenizer = language_tokenizer(towers, name)
    text = [" ".join(["red"] * 40)]
    if name == "opt":
        assert batch.collate_for_causal(tokenizer, 32, "\n")(samples(text)).target.ids.shape == (1, 33)
    else:
        made = batch.collate_for_seq2seq(tokenizer, 32)(samples(text))
        assert made.context.ids.shape[1] + made.target.ids.shape[1] == 32 + 2
