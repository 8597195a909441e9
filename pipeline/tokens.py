"""Padded token ids, and which of them are real: the form in which data gives texts to models."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """int64 ids [B, L] and bool is_token [B, L]; usually padded on the right. L may be 0."""

    ids: Tensor
    is_token: Tensor

    def to(self, device: str) -> "Tokens":
        return Tokens(self.ids.to(device, non_blocking=True), self.is_token.to(device, non_blocking=True))

    def then(self, later: "Tokens") -> "Tokens":
        """Row by row, these and then the later ones (padding between them stays where it is)."""
        return Tokens(torch.cat([self.ids, later.ids], dim=1), torch.cat([self.is_token, later.is_token], dim=1))

    def rows(self, chosen: Sequence[int], length: int) -> "Tokens":
        """Some rows, cut to `length` tokens, the longest of them."""
        places = torch.as_tensor(chosen, device=self.ids.device)
        return Tokens(self.ids[places, :length], self.is_token[places, :length])

    def padded_to(self, length: int) -> "Tokens":
        """The same rows with padding up to `length`, which must not be shorter."""
        missing = length - self.ids.shape[1]
        assert missing >= 0, f"{self.ids.shape[1]} tokens do not fit {length}"
        return Tokens(
            torch.nn.functional.pad(self.ids, (0, missing)), torch.nn.functional.pad(self.is_token, (0, missing))
        )


def pad_tokens(rows: list[list[int]], padding_id: int) -> Tokens:
    """Rows of unequal length, padded on the right to the longest."""
    longest = max((len(row) for row in rows), default=0)
    ids = torch.full((len(rows), longest), padding_id, dtype=torch.int64)
    is_token = torch.zeros((len(rows), longest), dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
        is_token[index, : len(row)] = True
    return Tokens(ids, is_token)
