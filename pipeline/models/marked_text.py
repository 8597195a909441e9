"""Texts with marks for their pictures: the soft prompts of each picture stand where its mark stands.

Shapes: B texts, N pictures, Q soft prompts, M places of the longest text with its pictures, H width of the language
model.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

MARK = "<image>"
PicturesOf = Sequence[Sequence[int]]
"""Of each text, the numbers of its pictures."""


def pieces_of(text: str, num_pictures: int) -> list[str]:
    """The text before, between and after its marks, without one space on each side of a mark.

    A text without a mark has one before it. Raises ValueError when there is not one mark for each picture.
    """
    if MARK not in text and num_pictures == 1:
        return ["", text]
    first, *others = text.split(MARK)
    pieces = [first.removesuffix(" ")] + [each.removeprefix(" ").removesuffix(" ") for each in others[:-1]]
    pieces += [each.removeprefix(" ") for each in others[-1:]]
    if len(others) != num_pictures:
        raise ValueError(
            f"prompt {text!r:.80}: has {len(others)} marks {MARK} for {num_pictures} pictures; write one for each"
        )
    return pieces


def with_pictures(
    embed_tokens: Any,
    tokenizer: Any,
    prompts_NQH: Tensor,
    texts: Sequence[str],
    pictures_of: PicturesOf,
    padding_side: str,
) -> tuple[Tensor, Tensor]:
    """Embeddings [B, M, H] and attention mask [B, M]. `pictures_of` [B] says which of the N pictures a text has.

    With one mark at the beginning, a row is what one picture before its text gives. The tokenizer's first special
    token stands before the first text. Raises ValueError as `pieces_of`.
    """
    before, after = _special_ids(tokenizer)
    rows = []
    for text, pictures in zip(texts, pictures_of, strict=True):
        pieces, parts, begun = pieces_of(text, len(pictures)), [], False
        for place, piece in enumerate(pieces):
            if place:
                parts.append(prompts_NQH[pictures[place - 1]].to(embed_tokens.weight.dtype))
            ids = tokenizer(piece, add_special_tokens=False).input_ids if piece else []
            last = place == len(pieces) - 1
            if not begun and (ids or last):
                ids, begun = before + ids, True
            ids = ids + after if last else ids
            parts.append(embed_tokens(torch.tensor(ids, dtype=torch.int64, device=prompts_NQH.device)))
        rows.append(torch.cat(parts))
    longest = max(map(len, rows))

    def padded(row: Tensor, *others: int) -> Tensor:
        missing = longest - len(row)
        return functional.pad(row, (*others, *((missing, 0) if padding_side == "left" else (0, missing))))

    mask_BM = torch.stack([padded(torch.ones(len(row), dtype=torch.int64, device=row.device)) for row in rows])
    return torch.stack([padded(row_MH, 0, 0) for row_MH in rows]), mask_BM


def check_length(config: Any, mask_BM: Tensor, texts: Sequence[str], new_tokens: int) -> None:
    """Raises ValueError when a text does not fit the positions of the model, where it has a table of them."""
    most = getattr(config, "max_position_embeddings", None)
    taken = 0 if config.is_encoder_decoder else new_tokens
    if most is None or mask_BM.shape[1] + taken <= most:
        return
    lengths_B = mask_BM.sum(dim=1)
    row = int(lengths_B.argmax())
    if int(lengths_B[row]) + taken > most:
        written = f", and {taken} that are to be written," if taken else ""
        raise ValueError(
            f"prompt {texts[row]!r:.80}: its {int(lengths_B[row])} tokens and soft prompts{written} are more than the "
            f"language model's {most} positions; shorten it"
        )


def _special_ids(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after a text."""
    bare, whole = tokenizer("a", add_special_tokens=False).input_ids, tokenizer("a").input_ids
    start = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return whole[:start], whole[start + len(bare) :]
