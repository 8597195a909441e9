"""Which pairs share a sequence, and that training's sequence is the one that a prompt with `<image>` marks makes."""

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.config import Language
from pipeline.data.batch import Batch, Collate, collate_for_causal, collate_for_seq2seq
from pipeline.data.pairs import Layout, in_sequences
from pipeline.data.prompted import collate_prompted_causal, collate_prompted_seq2seq, num_special
from pipeline.data.stream import Sample
from pipeline.models.interleaved import embedded
from pipeline.models.language import LanguageTower, build_language
from pipeline.models.marked_text import with_pictures

NUM_PROMPTS = 3
TOLD = [("web", "a red picture"), ("coco", "dark blue"), ("web", "green"), ("web", "a photo of the number 7")]


def samples() -> list[Sample]:
    pixels = [torch.full((3, 4, 4), number, dtype=torch.uint8) for number in range(len(TOLD))]
    return [
        Sample(f"key{number}", pixels[number], text, random.Random(number), 0, source=source)
        for number, (source, text) in enumerate(TOLD)
    ]


@pytest.fixture(scope="module", params=["t5", "opt"])
def language(request: pytest.FixtureRequest, towers: Path) -> LanguageTower:
    return build_language(Language(name=str(towers / request.param), precision="fp32"), "cpu")


def collate_of(language: LanguageTower, prompt: str) -> Collate:
    tokenizer, seq2seq = language.tokenizer, language.kind == "seq2seq"
    if prompt and seq2seq:
        return collate_prompted_seq2seq(tokenizer, 32, prompt)
    if prompt:
        return collate_prompted_causal(tokenizer, 32, "\n", prompt)
    return collate_for_seq2seq(tokenizer, 32) if seq2seq else collate_for_causal(tokenizer, 32, "\n")


def packed(language: LanguageTower, prompt: str = "", pairs: int = 2) -> Batch:
    layout = Layout(pairs, NUM_PROMPTS, num_special(language.tokenizer), language.kind == "seq2seq")
    return in_sequences(collate_of(language, prompt), layout)(samples())


def test_neighbours_of_a_source_share_a_sequence(language: LanguageTower) -> None:
    for pairs, causal in ((2, [(0, 1), (1, 3), (3, 4)]), (3, [(0, 1), (1, 4)])):
        batch = packed(language, pairs=pairs)
        assert batch.pixels_B3SS[:, 0, 0, 0].tolist() == [1, 0, 2, 3]  # coco's, then web's in their order
        assert batch.interleaved
        grown = [(first, place + 1) for first, after in causal for place in range(first, after)]
        wanted = grown if language.kind == "seq2seq" else causal  # for each pair one, with those before it
        assert list(batch.interleaved.pairs) == wanted


@pytest.mark.parametrize("prompt", ["", "a picture of"])
def test_a_sequence_is_what_a_prompt_with_marks_makes(language: LanguageTower, prompt: str) -> None:
    """The earlier picture with its whole text, then the picture and what its model continues."""
    batch = packed(language, prompt)
    assert batch.interleaved
    prompts = torch.randn(4, NUM_PROMPTS, language.width)
    sequences = embedded(language.model.get_input_embeddings(), prompts, batch.interleaved)
    if language.kind == "seq2seq":
        ids = batch.context.ids[2][batch.context.is_token[2]].tolist()[:-1]  # EOS is added to both
        begun = language.tokenizer.decode(ids)
        text = f"<image> {prompt} a red picture <image> {begun}".replace("  ", " ")
    else:
        text = f"<image> {prompt} a red picture\n<image> {prompt} green\n".replace("  ", " ")
    [wanted], _ = with_pictures(
        language.model.get_input_embeddings(), language.tokenizer, prompts, [text], [[1, 2]], "right"
    )
    row = next(place for place, each in enumerate(batch.interleaved.pairs) if each == (1, 3))
    found: Tensor = sequences[row][batch.interleaved.text.is_token[row]]
    assert torch.equal(found, wanted)


def test_every_target_is_scored_from_the_place_before_it(language: LanguageTower) -> None:
    if language.kind == "seq2seq":
        return
    batch = packed(language, "a picture of")
    assert batch.interleaved
    ids, predicts = batch.interleaved.text.ids, batch.interleaved.predicts
    assert ids[:, 1:][predicts[:, :-1]].tolist() == batch.target.ids[batch.target.is_token].tolist()
    begins = [language.tokenizer.bos_token_id in row for row in ids.tolist()]
    assert begins == [True] * 3 and (ids == language.tokenizer.bos_token_id).sum() == 3  # BOS once a sequence
