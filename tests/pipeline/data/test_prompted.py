"""Prompts that are read and not scored: ids are those of one string, and the score begins where the prompt ends."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import Language, QFormer
from pipeline.data.batch import Batch
from pipeline.data.prompted import collate_prompted_causal, collate_prompted_seq2seq, questions_for_qformer
from pipeline.data.stream import Sample
from pipeline.models.build import build_tokenizer
from pipeline.models.language import build_language
from tests.support.tiny_towers import bpe_tokenizer, save_tiny_opt, word_tokenizer

PIXELS = torch.zeros(3, 4, 4, dtype=torch.uint8)
CAPTIONS = ["a red picture", "the colour is dark blue, number 7 8 9", "", "green", "it's -- odd", "red " * 40]
QUESTION = "Question: {} Answer:"
ASKED = [("which colour is it?", "dark blue"), ("is it?", "yes"), ("what is " * 30 + "it?", "a number"), ("", "2")]
LONG_ANSWER = ("which?", "red " * 40)


def samples(captions: list[str]) -> list[Sample]:
    return [Sample(f"key{index}", PIXELS, text, random.Random(0), 0) for index, text in enumerate(captions)]


def asked(pairs: list[tuple[str, str]]) -> list[Sample]:
    return [Sample("key", PIXELS, answer, random.Random(0), 0, question) for question, answer in pairs]


def rows(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """(context, target) of each row."""
    both = (batch.context, batch.target)
    cut = [[ids[real].tolist() for ids, real in zip(text.ids, text.is_token, strict=True)] for text in both]
    return list(zip(*cut, strict=True))


def test_a_prompted_caption_has_the_ids_of_one_string_and_bos_and_prompt_alone_are_context() -> None:
    tokenizer = bpe_tokenizer()
    made = rows(collate_prompted_causal(tokenizer, 32, "\n", "a photo of")(samples(CAPTIONS)))
    prompt = tokenizer("a photo of").input_ids
    assert tokenizer.convert_ids_to_tokens(prompt) == ["</s>", "a", "Ġphoto", "Ġof"]
    for caption, (context, target) in zip(CAPTIONS, made, strict=True):
        whole = tokenizer(f"a photo of {caption}\n").input_ids
        assert context == prompt and context + target == whole[:32]
        if len(whole) <= 32:
            assert tokenizer.decode(target, clean_up_tokenization_spaces=False) == f" {caption}\n"
    assert tokenizer.convert_ids_to_tokens(made[3][1])[0] == "Ġgreen"  # with its space: not the token of "green"
    assert len(made[5][1]) == 28 and made[5][1][-1] != tokenizer("\n").input_ids[-1]  # a long one loses its end


def test_a_question_is_context_to_the_end_of_answer_colon_and_a_long_one_loses_its_begin() -> None:
    tokenizer, most = bpe_tokenizer(), 24
    made = rows(collate_prompted_causal(tokenizer, most, "\n", QUESTION)(asked([*ASKED, LONG_ANSWER])))
    [bos], end = tokenizer("").input_ids, tokenizer("\n", add_special_tokens=False).input_ids
    for (question, answer), (context, target) in zip([*ASKED, LONG_ANSWER], made, strict=True):
        whole = tokenizer(f"Question: {question} Answer: {answer}\n").input_ids
        assert context[0] == bos and tokenizer.decode(context).endswith("Answer:") and len(context + target) <= most
        if answer == LONG_ANSWER[1]:  # of the question nothing is left, and of the answer its begin
            assert tokenizer.decode(context) == "</s> Answer:" and len(context + target) == most
            assert target == tokenizer(f" {answer}").input_ids[1 : 1 + len(target)]
            continue
        assert tokenizer.decode(target, clean_up_tokenization_spaces=False) == f" {answer}\n" and target[-1:] == end
        assert context[1:] + target == whole[1:][-(most - 1) :]
    assert len(made[2][0]) + len(made[2][1]) == most  # the long question


def test_a_seq2seq_model_reads_the_prompt_and_decodes_the_whole_text(towers: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(towers / "t5"))
    eos = tokenizer.eos_token_id
    for context, target in rows(collate_prompted_seq2seq(tokenizer, 32, "a picture of")(samples(CAPTIONS))):
        assert context == tokenizer("a picture of").input_ids and target[-1] == eos and len(target) <= 32
    made = rows(collate_prompted_seq2seq(tokenizer, 12, QUESTION)(asked(ASKED)))
    for (question, answer), (context, target) in zip(ASKED, made, strict=True):
        assert target == tokenizer(answer).input_ids  # which ends with EOS
        assert context == tokenizer(f"Question: {question} Answer:").input_ids[-12:]


def test_the_qformer_gets_the_question_or_the_whole_prompt_and_both_travel_with_the_batch(
    towers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, tokenizer = build_tokenizer(QFormer(bert=str(towers / "bert"))), bpe_tokenizer()
    for template in ("{}", QUESTION):
        questions = questions_for_qformer(reader, 16, template)
        batch = collate_prompted_causal(tokenizer, 32, "\n", QUESTION, questions)(asked(ASKED))
        assert batch.question is not None
        for (question, _), ids, real in zip(ASKED, batch.question.ids, batch.question.is_token, strict=True):
            text = reader(template.replace("{}", question), add_special_tokens=False).input_ids
            assert ids[real].tolist() == [reader.cls_token_id, *text[:14], reader.sep_token_id]
        moved, pinned = batch.to("meta"), list[torch.Tensor]()
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)  # noqa: B023
        assert len(moved.tensors()) == 8 and all(tensor.is_meta for tensor in moved.tensors())
        again = batch.pin_memory()
        assert len(pinned) == 8 and again.question is not None and again.question.count == batch.question.count
    assert collate_prompted_causal(tokenizer, 32, "\n", QUESTION)(asked(ASKED)).question is None


@pytest.mark.parametrize("kind", ["captions", "questions"])
def test_the_loss_is_transformers_own_with_bos_and_prompt_ignored(tmp_path: Path, kind: str) -> None:
    """As LAVIS has it: one string, right padding, labels -100 on as many tokens as the prompt alone has."""
    language = build_language(Language(name=save_tiny_opt(tmp_path / "opt", bpe=True), precision="fp32"), "cpu")
    template = "a photo of" if kind == "captions" else QUESTION
    batch = collate_prompted_causal(language.tokenizer, 64, "\n", template)(
        samples(CAPTIONS[:5]) if kind == "captions" else asked([ASKED[0], ASKED[1], ASKED[3]])
    )
    texts = CAPTIONS[:5] if kind == "captions" else [ASKED[0][1], ASKED[1][1], ASKED[3][1]]
    prompts = ["a photo of"] * 5 if kind == "captions" else [QUESTION.replace("{}", ASKED[i][0]) for i in (0, 1, 3)]
    whole = language.tokenizer(
        [f"{prompt} {text}\n" for prompt, text in zip(prompts, texts, strict=True)], padding=True, return_tensors="pt"
    )
    labels = whole.input_ids.masked_fill(whole.attention_mask == 0, -100)
    for row, prompt in zip(labels, prompts, strict=True):
        row[: len(language.tokenizer(prompt).input_ids)] = -100
    soft_BQH = torch.randn(len(texts), 4, language.width, generator=torch.Generator().manual_seed(0))
    embeddings = torch.cat([soft_BQH, language.model.get_input_embeddings()(whole.input_ids)], dim=1)
    mask = torch.cat([torch.ones(len(texts), 4), whole.attention_mask], dim=1)
    theirs = language.model(
        inputs_embeds=embeddings,
        attention_mask=mask,
        labels=torch.cat([torch.full((len(texts), 4), -100), labels], dim=1),
    ).loss
    ours = language.loss_sum(soft_BQH, batch.context, batch.target) / batch.target.num_real()
    assert batch.target.num_real() == int((labels != -100).sum())
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_tokenizer_that_joins_prompt_and_text_is_refused_and_so_is_a_prompt_without_room() -> None:
    from tokenizers import pre_tokenizers

    joins: Any = word_tokenizer(["<pad>", "</s>", "<unk>"], "</s> $A")
    joins.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")  # "a\n" is one word
    for tokenizer in (joins, word_tokenizer(["<pad>", "</s>", "<unk>"], "</s> $A </s>")):
        with pytest.raises(ValueError, match=r"language\.prompt 'a photo of': the tokenizer joins"):
            collate_prompted_causal(tokenizer, 32, "\n", "a photo of")
    with pytest.raises(ValueError, match=r"data\.max_text_tokens 4: language\.prompt 'a photo of' takes 4"):
        collate_prompted_causal(bpe_tokenizer(), 4, "\n", "a photo of")
    collate_prompted_causal(bpe_tokenizer(), 5, "\n", "a photo of")
