"""Samples to batches: stack the pixels, tokenise and pad the captions to the batch's longest."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pipeline.data.stream import Sample
from pipeline.tokens import Interleaved, Tokens, pad_tokens


@dataclass(frozen=True)
class Batch:
    """A micro batch. `context` is text that the language model reads and is not scored on; `target` is scored.

    `frozen_BPI` are the image encoder's tokens, once it has run. `question` is what the Q-Former reads beside its
    queries: [CLS] text [SEP], where the recipe asks for it (`qformer.question`). A sample has one context and target,
    or as many as `answers` says: A in all, sample by sample. `loss_weights_A` are factors on their losses, where one
    is not 1. `interleaved` are the sequences of several pairs that the language model reads, if it does
    (`data.pairs_per_sequence`); then context and target are what each pair has in them.
    """

    pixels_B3SS: Tensor
    image_ids_B: Tensor
    context: Tokens
    target: Tokens
    corrupt: int
    frozen_BPI: Tensor | None = None
    question: Tokens | None = None
    loss_weights_A: Tensor | None = None
    answers: tuple[int, ...] | None = None
    interleaved: Interleaved | None = None

    def tensors(self) -> list[Tensor]:
        """All of them."""
        found: list[Tensor] = []

        def note(tensor: Tensor) -> Tensor:
            found.append(tensor)
            return tensor

        self._each(note)
        return found

    def pin_memory(self) -> "Batch":
        """In page-locked memory, from which a GPU copies while the host goes on. torch's loader calls it."""
        return self._each(lambda tensor: tensor.pin_memory())

    def to(self, device: str) -> "Batch":
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch with every tensor of it changed."""

        def changed(value: Any) -> Any:
            if is_dataclass(value) and not isinstance(value, type):
                return replace(value, **{field.name: changed(getattr(value, field.name)) for field in fields(value)})
            return change(value) if isinstance(value, Tensor) else value

        batch: Batch = changed(self)
        return batch


Collate = Callable[[Sequence[Sample]], Batch]


def batch_of(
    samples: Sequence[Sample],
    contexts: list[list[int]],
    targets: list[list[int]],
    padding_id: int,
    question: Tokens | None = None,
) -> Batch:
    """Samples stacked, and the token ids of all their texts padded to the longest.

    Samples of one picture have one image id.
    """
    weights = [sample.loss_weight * share for sample in samples for _, share in sample.texts()]
    answers = tuple(len(sample.answers) for sample in samples)
    digests = (hashlib.sha256(sample.key.encode()).digest() for sample in samples)
    return Batch(
        torch.stack([sample.pixels_3SS for sample in samples]),
        torch.tensor([int.from_bytes(digest[:8], "little", signed=True) for digest in digests]),
        pad_tokens(contexts, padding_id),
        pad_tokens(targets, padding_id),
        sum(sample.corrupt for sample in samples),
        question=question,
        loss_weights_A=torch.tensor(weights) if set(weights) != {1.0} else None,
        answers=answers if any(answers) else None,
    )


def collate_for_qformer(tokenizer: Any, max_tokens: int) -> Collate:
    """Stage 1: the target is [CLS] caption [SEP], at most `max_tokens` long."""

    def collate(samples: Sequence[Sample]) -> Batch:
        texts = [sample.caption for sample in samples]
        targets = tokenizer(texts, truncation=True, max_length=max_tokens).input_ids
        return batch_of(samples, [[] for _ in samples], targets, tokenizer.pad_token_id)

    return collate


def collate_for_causal(tokenizer: Any, max_tokens: int, end_text: str) -> Collate:
    """Stage 2, decoder-only LM: the target is BOS caption "\\n" (the tokenizer adds BOS where the model has one)."""

    def collate(samples: Sequence[Sample]) -> Batch:
        end = tokenizer(end_text, add_special_tokens=False).input_ids
        texts = [sample.caption for sample in samples]
        targets = [ids + end for ids in tokenizer(texts, truncation=True, max_length=max_tokens).input_ids]
        return batch_of(samples, [[] for _ in samples], targets, tokenizer.pad_token_id)

    return collate


def collate_for_seq2seq(tokenizer: Any, max_tokens: int) -> Collate:
    """Stage 2, encoder-decoder LM: a prefix of the caption to the encoder, the rest is the target; EOS on both.

    The caption is split at a random token between its first and its middle (paper, section 3.3).
    """

    def collate(samples: Sequence[Sample]) -> Batch:
        texts = [sample.caption for sample in samples]
        rows = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=max_tokens).input_ids
        splits = [
            sample.rng.randint(1, len(ids) // 2) if len(ids) > 1 else 0
            for sample, ids in zip(samples, rows, strict=True)
        ]
        eos = [tokenizer.eos_token_id]
        contexts = [ids[:split] + eos for ids, split in zip(rows, splits, strict=True)]
        targets = [ids[split:] + eos for ids, split in zip(rows, splits, strict=True)]
        return batch_of(samples, contexts, targets, tokenizer.pad_token_id)

    return collate
