"""What the queries look at: the shares of their attention to the image tokens, watched in a model's own passes.

Shapes: B batch, Q queries, P image tokens, G patches on a side of the picture, R rows, D width, H heads, d width of a
head.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.models.qformer import QFormer
from pipeline.models.qformer_layer import Attention, KeysValues, Layer, Product

MOST_OTHER_TOKENS = 16
"""CLS and registers that an encoder puts before its patches."""


@contextmanager
def watched(qformer: QFormer) -> Iterator[list[Tensor]]:
    """The list gets a tensor [B, Q, P] from each layer with cross-attention in each pass inside: the softmax, averaged
    over heads. The passes are those of one thread, and their entries have an image each."""
    found: list[Tensor] = []
    layers = [cast(Layer, layer).cross_attention for layer in qformer.layers]
    attentions = [each for each in layers if each is not None]
    for attention in attentions:
        attention.attend_images = _watching(attention, found)  # type: ignore[method-assign]
    try:
        yield found
    finally:
        for attention in attentions:
            del attention.attend_images


def _watching(attention: Attention, found: list[Tensor]) -> Any:
    plain = attention.attend_images

    def attend_images(
        rows_RD: Tensor,
        cast_RD: Tensor,
        query: Product,
        output: Product,
        images: Sequence[tuple[KeysValues, int]],
    ) -> Tensor:
        [((keys_BHPd, _), entries)] = images
        queries_BHQd = attention.as_heads(torch.unflatten(functional.linear(cast_RD, *query), 0, (entries, -1)))
        with torch.autocast(rows_RD.device.type, enabled=False):
            logits_BHQP = queries_BHQd.float() @ keys_BHPd.float().transpose(2, 3) / math.sqrt(keys_BHPd.shape[3])
            found.append(logits_BHQP.softmax(dim=3).mean(dim=1))
        return plain(rows_RD, cast_RD, query, output, images)

    return attend_images


def on_grid(shares_BQP: Tensor) -> Tensor:
    """The patches as a square over the picture, [B, Q, G, G]. Other tokens, which come first, are left out.

    Raises ValueError for tokens that are no square of patches.
    """
    tokens = shares_BQP.shape[2]
    side = math.isqrt(tokens)
    if tokens - side * side > MOST_OTHER_TOKENS:
        raise ValueError(
            f"vision.name: its {tokens} image tokens are no square of patches; attention cannot be laid on the picture"
        )
    return torch.unflatten(shares_BQP[:, :, -side * side :], 2, (side, side))
