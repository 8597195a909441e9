"""Marks of pictures in a text: where soft prompts stand, and that one mark at the beginning changes nothing."""

import pytest
import torch

from pipeline.models.language import Decoding, LanguageTower
from pipeline.models.marked_text import pieces_of, with_pictures

TEXTS = ["a photo of", "a picture of the colour red", "a"]


def soft_prompts(language: LanguageTower, count: int) -> torch.Tensor:
    return torch.randn(count, 5, language.width, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("text", "count", "pieces"),
    [
        ("a photo of", 1, ["", "a photo of"]),
        ("<image> a photo of", 1, ["", "a photo of"]),
        ("one <image> two  <image>", 2, ["one", "two ", ""]),
        ("<image><image>", 2, ["", "", ""]),
    ],
)
def test_a_text_falls_into_pieces(text: str, count: int, pieces: list[str]) -> None:
    assert pieces_of(text, count) == pieces


@pytest.mark.parametrize(("text", "count"), [("a photo of", 2), ("<image> a <image>", 1), ("<image>", 3)])
def test_a_mark_too_few_or_too_many_is_refused(text: str, count: int) -> None:
    with pytest.raises(ValueError, match=f"marks <image> for {count} pictures; write one for each"):
        pieces_of(text, count)


@pytest.mark.parametrize("mark", ["", "<image> "])
def test_one_picture_before_the_text_is_read_as_without_marks(language: LanguageTower, mark: str) -> None:
    prompts, pictures = soft_prompts(language, 3), [[0], [1], [2]]
    side = "left" if language.kind == "causal" else "right"
    wanted, wanted_mask = language._read(prompts, TEXTS, None, Decoding(), side)
    marked = [mark + text for text in TEXTS]
    found, mask = with_pictures(language.embed_tokens, language.tokenizer, prompts, marked, pictures, side)
    for row in range(3):  # padding stands at the end of soft prompts or before them
        assert torch.equal(found[row][mask[row].bool()], wanted[row][wanted_mask[row].bool()])
    decoding = Decoding(num_beams=3, max_new_tokens=6, min_new_tokens=3)
    assert language.generate(prompts, marked, decoding, pictures) == language.generate(prompts, TEXTS, decoding)


def test_each_picture_stands_where_its_mark_stands(language: LanguageTower) -> None:
    prompts, tokenizer = soft_prompts(language, 2), language.tokenizer
    text = "red <image> a photo <image> blue"
    [found], [mask] = with_pictures(language.embed_tokens, tokenizer, prompts, [text], [[1, 0]], "left")
    red, photo, blue = (tokenizer(each, add_special_tokens=False).input_ids for each in ("red", "a photo", "blue"))
    special = [tokenizer.eos_token_id] if language.kind == "seq2seq" else [tokenizer.bos_token_id]
    red, blue = (special + red, blue) if language.kind == "causal" else (red, blue + special)
    red_, photo_, blue_ = (language.embed_tokens(torch.tensor(ids)) for ids in (red, photo, blue))
    assert torch.equal(found, torch.cat([red_, prompts[1], photo_, prompts[0], blue_])) and mask.all()


def test_texts_with_other_numbers_of_pictures_are_written_together(language: LanguageTower) -> None:
    prompts, decoding = soft_prompts(language, 4), Decoding(num_beams=2, max_new_tokens=6, min_new_tokens=3)
    texts = ["<image> a photo <image> of", "a photo", "red <image><image> <image> blue", "<image> a photo <image> of"]
    pictures = [[0, 1], [2], [1, 2, 3], [1, 0]]
    together = language.generate(prompts, texts, decoding, pictures)
    alone = [
        language.generate(prompts, [text], decoding, [numbers])[0]
        for text, numbers in zip(texts, pictures, strict=True)
    ]
    assert together == alone and len(set(together)) > 1


@pytest.mark.parametrize("pictures", [None, [[0], [0, 0]]])
def test_a_prompt_that_the_model_has_no_positions_for_is_one_line(
    language: LanguageTower, pictures: list[list[int]] | None
) -> None:
    if language.kind == "seq2seq":
        pytest.skip("T5 has relative positions, without a table")
    most = language.model.config.max_position_embeddings
    texts = ["a", ("<image> " * 2 if pictures else "") + "red " * most]
    with pytest.raises(ValueError, match=f"prompt '.*red red.*are more than the language model's {most} positions"):
        language.generate(soft_prompts(language, 2), texts, Decoding(num_beams=2), pictures)
