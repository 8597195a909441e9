"""Samples to batches: stack the pixels, tokenise and pad the captions to the batch's longest."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.data.stream import Sample
from pipeline.tokens import Tokens, pad_tokens


@dataclass(frozen=True)
class Batch:
    """A micro batch. `context` is text that is read but not scored (only a seq2seq LM has some); `target` is scored.

    `frozen_BPI` are the image encoder's tokens, once it has run.
    """

    pixels_B3SS: Tensor
    image_ids_B: Tensor
    context: Tokens
    target: Tokens
    corrupt: int
    frozen_BPI: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """All of them."""
        texts = [self.context.ids, self.context.is_token, self.target.ids, self.target.is_token]
        frozen = [] if self.frozen_BPI is None else [self.frozen_BPI]
        return [self.pixels_B3SS, self.image_ids_B, *texts, *frozen]

    def pin_memory(self) -> "Batch":
        """In page-locked memory, from which a GPU copies while the host goes on. torch's loader calls it."""
        return Batch(
            self.pixels_B3SS.pin_memory(),
            self.image_ids_B.pin_memory(),
            self.context.pin_memory(),
            self.target.pin_memory(),
            self.corrupt,
            None if self.frozen_BPI is None else self.frozen_BPI.pin_memory(),
        )

    def to(self, device: str) -> "Batch":
        return Batch(
            self.pixels_B3SS.to(device, non_blocking=True),
            self.image_ids_B.to(device, non_blocking=True),
            self.context.to(device),
            self.target.to(device),
            self.corrupt,
            None if self.frozen_BPI is None else self.frozen_BPI.to(device, non_blocking=True),
        )


Collate = Callable[[Sequence[Sample]], Batch]


def _batch(samples: Sequence[Sample], contexts: list[list[int]], targets: list[list[int]], padding_id: int) -> Batch:
    digests = (hashlib.sha256(sample.key.encode()).digest() for sample in samples)
    return Batch(
        torch.stack([sample.pixels_3SS for sample in samples]),
        torch.tensor([int.from_bytes(digest[:8], "little", signed=True) for digest in digests]),
        pad_tokens(contexts, padding_id),
        pad_tokens(targets, padding_id),
        sum(sample.corrupt for sample in samples),
    )


def collate_for_qformer(tokenizer: Any, max_tokens: int) -> Collate:
    """Stage 1: the target is [CLS] caption [SEP], at most `max_tokens` long."""

    def collate(samples: Sequence[Sample]) -> Batch:
        texts = [sample.caption for sample in samples]
        targets = tokenizer(texts, truncation=True, max_length=max_tokens).input_ids
        return _batch(samples, [[] for _ in samples], targets, tokenizer.pad_token_id)

    return collate


def collate_for_causal(tokenizer: Any, max_tokens: int, end_text: str) -> Collate:
    """Stage 2, decoder-only LM: the target is BOS caption "\\n" (the tokenizer adds BOS where the model has one)."""

    def collate(samples: Sequence[Sample]) -> Batch:
        end = tokenizer(end_text, add_special_tokens=False).input_ids
        texts = [sample.caption for sample in samples]
        targets = [ids + end for ids in tokenizer(texts, truncation=True, max_length=max_tokens).input_ids]
        return _batch(samples, [[] for _ in samples], targets, tokenizer.pad_token_id)

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
        return _batch(samples, contexts, targets, tokenizer.pad_token_id)

    return collate
