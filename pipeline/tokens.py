"""Padded token ids, and which of them are real: the form in which data gives texts to models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Places:
    """Where the R rows of a packed tensor [R, X] stand in a padded one [B, N, X].

    `flat_R` counts b * N + n. `source_BN` is for each place [B, N] the packed row that stands there; where none does,
    it is some row.
    """

    flat_R: Tensor
    source_BN: Tensor

    @property
    def batch(self) -> int:
        return self.source_BN.shape[0]

    def pad(self, packed_RX: Tensor) -> Tensor:
        """[R, X] -> [B, N, X]. Where no row stands there is a copy of some row, whose gradient is dropped: mask it."""
        padded: Tensor = _Pad.apply(packed_RX, self.flat_R, self.source_BN.flatten())  # type: ignore[no-untyped-call]
        return torch.unflatten(padded, 0, self.source_BN.shape)

    def pack(self, padded_BNX: Tensor) -> Tensor:
        """[B, N, X] -> [R, X]."""
        return pick_rows(padded_BNX.flatten(0, 1), self.flat_R)

    def pick_first(self, packed_RX: Tensor, number: int) -> Tensor:
        """The first `number` rows of each entry, none of which has fewer: [B * number, X]."""
        return pick_rows(packed_RX, self.source_BN[:, :number].flatten())


@dataclass(frozen=True)
class FullPlaces:
    """The same where every entry has as many rows: [B * N, X] and [B, N, X] are views of one another."""

    batch: int

    def pad(self, packed_RX: Tensor) -> Tensor:
        return torch.unflatten(packed_RX, 0, (self.batch, -1))

    def pack(self, padded_BNX: Tensor) -> Tensor:
        return padded_BNX.flatten(0, 1)


def pick_rows(rows_MX: Tensor, chosen_R: Tensor) -> Tensor:
    """Some rows, none of them twice: [R, X]."""
    picked: Tensor = _Pick.apply(rows_MX, chosen_R)  # type: ignore[no-untyped-call]
    return picked


class _Pad(torch.autograd.Function):
    """Two copies of rows, forward and backward. torch's own index_select would add up gradients, atomically."""

    @staticmethod
    def forward(context: Any, packed_RX: Tensor, flat_R: Tensor, source_M: Tensor) -> Tensor:
        context.save_for_backward(flat_R)
        return packed_RX.index_select(0, source_M)

    @staticmethod
    def backward(context: Any, gradient_MX: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        [flat_R] = context.saved_tensors
        return gradient_MX.index_select(0, flat_R), None, None


class _Pick(torch.autograd.Function):
    """The same the other way; the gradient is zero where no row is picked."""

    @staticmethod
    def forward(context: Any, rows_MX: Tensor, chosen_R: Tensor) -> Tensor:
        context.save_for_backward(chosen_R)
        context.num_rows = rows_MX.shape[0]
        return rows_MX.index_select(0, chosen_R)

    @staticmethod
    def backward(context: Any, gradient_RX: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        [chosen_R] = context.saved_tensors
        zeros_MX = gradient_RX.new_zeros(context.num_rows, gradient_RX.shape[1])
        return zeros_MX.index_copy_(0, chosen_R, gradient_RX), None


def true_places(mask_BN: Tensor, count: int | None) -> Places:
    """Where a mask is true. With `count`, how often that is, the host need not wait for the device."""
    flat = mask_BN.flatten()
    found = flat.nonzero() if count is None else torch.nonzero_static(flat, size=count)
    source_BN = (flat.cumsum(0) - 1).clamp(min=0).view(mask_BN.shape)
    return Places(found[:, 0], source_BN)


@dataclass(frozen=True)
class Tokens:
    """int64 ids [B, L] and bool is_token [B, L]; usually padded on the right. L may be 0.

    `count` is the number of real tokens, where the host knows it.
    """

    ids: Tensor
    is_token: Tensor
    count: int | None = None

    def to(self, device: str) -> "Tokens":
        return Tokens(self.ids.to(device, non_blocking=True), self.is_token.to(device, non_blocking=True), self.count)

    def pin_memory(self) -> "Tokens":
        """In page-locked memory, from which a GPU copies while the host goes on."""
        return Tokens(self.ids.pin_memory(), self.is_token.pin_memory(), self.count)

    def num_real(self) -> int:
        """The number of real tokens; the host waits for the device if it does not know it."""
        return int(self.is_token.sum()) if self.count is None else self.count

    def places(self) -> Places:
        """Where the real tokens are."""
        return true_places(self.is_token, self.count)

    def then(self, later: "Tokens") -> "Tokens":
        """Row by row, these and then the later ones (padding between them stays where it is)."""
        return Tokens(
            torch.cat([self.ids, later.ids], dim=1),
            torch.cat([self.is_token, later.is_token], dim=1),
            _sum([self.count, later.count]),
        )

    def rows(self, chosen: Sequence[int], length: int) -> "Tokens":
        """Some rows, cut to `length` tokens, the longest of them."""
        places = torch.as_tensor(chosen, device=self.ids.device)
        return Tokens(self.ids[places, :length], self.is_token[places, :length])

    def __getitem__(self, some: slice) -> "Tokens":
        """Some neighbouring rows, padded as before."""
        return Tokens(self.ids[some], self.is_token[some])

    def padded_to(self, length: int) -> "Tokens":
        """The same rows with padding up to `length`, which must not be shorter."""
        missing = length - self.ids.shape[1]
        assert missing >= 0, f"{self.ids.shape[1]} tokens do not fit {length}"
        return Tokens(functional.pad(self.ids, (0, missing)), functional.pad(self.is_token, (0, missing)), self.count)


@dataclass(frozen=True)
class Interleaved:
    """Sequences of pictures and texts [S, M], padded on the right, in which a language model reads several pairs.

    In `text`, `is_token` is true for soft prompts, too; `is_prompt` says where these stand, and `predicts` the places
    before the tokens that a causal model is scored on. `pairs`: each sequence's first pair, and the one after its last.
    """

    text: Tokens
    is_prompt: Tensor
    predicts: Tensor
    pairs: tuple[tuple[int, int], ...]


Given = Tokens | Interleaved
"""What a language model reads before it is scored."""


def stack_tokens(parts: Sequence[Tokens]) -> Tokens:
    """The rows of all parts, which are padded to the same length."""
    return Tokens(
        torch.cat([part.ids for part in parts]),
        torch.cat([part.is_token for part in parts]),
        _sum([part.count for part in parts]),
    )


def in_turn(first: Tokens, second: Tokens) -> Tokens:
    """A row of the one, then a row of the other; both are padded to the same length."""
    return Tokens(
        torch.stack([first.ids, second.ids], dim=1).flatten(0, 1),
        torch.stack([first.is_token, second.is_token], dim=1).flatten(0, 1),
        _sum([first.count, second.count]),
    )


def close_up(context: Tokens, target: Tokens) -> tuple[Tokens, Tokens]:
    """The text of each row, its padding at the end, and the last places of it, in which `is_token` says what is scored.

    Where all contexts are of one length, as without any, these places are the target's. Otherwise they are all places,
    and rows are closed up on the device, so that no padding stands between a row's context and its target.
    """
    text = context.then(target)
    if context.ids.numel() in (0, context.count):
        return text, target
    scored_BL = torch.cat([torch.zeros_like(context.is_token), target.is_token], dim=1)
    order_BL = torch.argsort((~text.is_token).to(torch.int8), dim=1, stable=True)
    closed = Tokens(text.ids.gather(1, order_BL), text.is_token.gather(1, order_BL), text.count)
    return closed, Tokens(closed.ids, scored_BL.gather(1, order_BL), target.count)


def _sum(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def pad_tokens(rows: list[list[int]], padding_id: int) -> Tokens:
    """Rows of unequal length, padded on the right to the longest."""
    longest = max((len(row) for row in rows), default=0)
    ids = torch.full((len(rows), longest), padding_id, dtype=torch.int64)
    is_token = torch.zeros((len(rows), longest), dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
        is_token[index, : len(row)] = True
    return Tokens(ids, is_token, sum(map(len, rows)))


def tokenise(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> Tokens:
    """Texts with the tokenizer's own special tokens, at most `max_tokens` long, padded on the right."""
    return pad_tokens(tokenizer(list(texts), truncation=True, max_length=max_tokens).input_ids, tokenizer.pad_token_id)
