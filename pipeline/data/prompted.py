"""Samples to batches of fine-tuning: a prompt that is read and not scored, then the whole caption or answer.

A template is the recipe's `language.prompt`; its `{}`, if it has one, stands for the sample's question.
"""

from collections.abc import Callable, Sequence
from typing import Any

from pipeline.data.batch import Batch, Collate, batch_of
from pipeline.data.stream import Sample
from pipeline.tokens import Tokens, tokenise

Questions = Callable[[Sequence[Sample]], Tokens]
HOLE = "{}"


def _filled(template: str, samples: Sequence[Sample]) -> list[str]:
    return [template.replace(HOLE, sample.question) for sample in samples]


def _pairs(template: str, samples: Sequence[Sample]) -> tuple[list[str], list[str]]:
    """The prompt and the text of every text of every sample."""
    prompts = _filled(template, samples)
    pairs = [(prompt, text) for prompt, sample in zip(prompts, samples, strict=True) for text, _ in sample.texts()]
    return [prompt for prompt, _ in pairs], [text for _, text in pairs]


def questions_for_qformer(tokenizer: Any, max_tokens: int, template: str) -> Questions:
    """What the Q-Former reads: [CLS] text [SEP], at most `max_tokens` long. The template `{}` is the question alone."""

    def questions(samples: Sequence[Sample]) -> Tokens:
        return tokenise(tokenizer, _filled(template, samples), max_tokens)

    return questions


def collate_prompted_causal(
    tokenizer: Any, max_tokens: int, end_text: str, template: str, questions: Questions | None = None
) -> Collate:
    """Decoder-only LM: the context is BOS and prompt, the target the caption or answer and `end_text`.

    All of it is tokenised as one string, so the first word scored has its space before it. As many of its tokens as BOS
    and prompt alone have are context. Both have at most `max_tokens` together: a long target loses its end, and then a
    long question its begin; what the template has after the question stays.

    Raises ValueError when the tokenizer joins prompt and text, or the prompt leaves no token for a text.
    """
    begin = num_special(tokenizer)
    kept = begin + len(tokenizer(template.rpartition(HOLE)[2], add_special_tokens=False).input_ids)
    _check_template(tokenizer, max_tokens, end_text, template, kept)

    def cut(ids: list[int], num_context: int) -> tuple[list[int], list[int]]:
        context, target = ids[:num_context], ids[num_context:][: max_tokens - kept]
        excess = max(0, len(context) + len(target) - max_tokens)
        return context[:begin] + context[begin + excess :], target

    def collate(samples: Sequence[Sample]) -> Batch:
        prompts, told = _pairs(template, samples)
        texts = [f"{prompt} {text}{end_text}" for prompt, text in zip(prompts, told, strict=True)]
        counts = map(len, tokenizer(prompts).input_ids)
        rows = [cut(ids, count) for ids, count in zip(tokenizer(texts).input_ids, counts, strict=True)]
        contexts, targets = [context for context, _ in rows], [target for _, target in rows]
        asked = questions(samples) if questions else None
        return batch_of(samples, contexts, targets, tokenizer.pad_token_id, asked)

    return collate


def num_special(tokenizer: Any) -> int:
    """Tokens that the tokenizer puts before a text: BOS, where the model has one."""
    return len(tokenizer("").input_ids)


def _check_template(tokenizer: Any, max_tokens: int, end_text: str, template: str, kept: int) -> None:
    prompt = template.replace(HOLE, "a")
    alone, whole = tokenizer(prompt).input_ids, tokenizer(f"{prompt} a{end_text}").input_ids
    end = tokenizer(end_text, add_special_tokens=False).input_ids
    if whole[: len(alone)] != alone or whole[-len(end) :] != end or len(whole) < len(alone) + len(end):
        raise ValueError(
            f"language.prompt {template!r}: the tokenizer joins prompt, text or language.end_text {end_text!r}; use "
            "another prompt or language model"
        )
    if kept >= max_tokens:
        raise ValueError(
            f"data.max_text_tokens {max_tokens}: language.prompt {template!r} takes {kept} of them, and the text needs "
            "some; raise it"
        )


def collate_prompted_seq2seq(
    tokenizer: Any, max_tokens: int, template: str, questions: Questions | None = None
) -> Collate:
    """Encoder-decoder LM: the context is the prompt, the target the whole caption or answer; EOS on both.

    Each has at most `max_tokens`: a long question loses its begin, a long target its end.
    """

    def collate(samples: Sequence[Sample]) -> Batch:
        eos = [tokenizer.eos_token_id]
        prompts, told = _pairs(template, samples)
        contexts = tokenizer(prompts, add_special_tokens=False).input_ids
        targets = tokenizer(told, add_special_tokens=False).input_ids
        return batch_of(
            samples,
            [ids[max(0, len(ids) - max_tokens + 1) :] + eos for ids in contexts],
            [ids[: max_tokens - 1] + eos for ids in targets],
            tokenizer.pad_token_id,
            questions(samples) if questions else None,
        )

    return collate
