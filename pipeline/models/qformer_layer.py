"""One layer of the Q-Former: self-attention that all rows share, cross-attention to the image, an FFN for each kind.

Rows are packed: one [R, D] tensor holds those of all batch entries, without padding. Only attention sees padding.
Shapes: B batch, Q queries, N rows of an entry with padding, P image tokens, R, T packed rows (T of text), D width,
H heads, d width of a head, I image width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.precision import for_products
from pipeline.tokens import Places, pick_rows

KeysValues = tuple[Tensor, Tensor]  # [B, H, rows, d] each
Product = tuple[Tensor, Tensor]  # weight and bias of a linear layer, in the products' number format


def products_of(groups: Sequence[Sequence[nn.Linear]]) -> list[Product]:
    """A product for each group, whose linear layers stand side by side. All biases are cast in one piece."""
    weights = [
        group[0].weight if len(group) == 1 else torch.cat([linear.weight for linear in group]) for group in groups
    ]
    biases = for_products(torch.cat([linear.bias for group in groups for linear in group]))
    parts = torch.split(biases, [weight.shape[0] for weight in weights])
    return [(for_products(weight), bias) for weight, bias in zip(weights, parts, strict=True)]


@dataclass(frozen=True)
class QFormerShape:
    """Sizes of a Q-Former; all but the image's and the queries' are those of the BERT it starts from."""

    width: int
    num_layers: int
    num_heads: int
    ffn_width: int
    vocabulary: int
    max_positions: int
    layer_norm_eps: float
    initializer_range: float
    image_width: int
    num_query_tokens: int
    cross_attention_every: int
    dropout: float


class Attention(nn.Module):
    """Multi-head attention with BERT's output projection, residual and LayerNorm."""

    def __init__(self, shape: QFormerShape, source_width: int) -> None:
        super().__init__()
        self.num_heads, self.dropout_p = shape.num_heads, shape.dropout
        self.query = nn.Linear(shape.width, shape.width)
        self.key = nn.Linear(source_width, shape.width)
        self.value = nn.Linear(source_width, shape.width)
        self.output = nn.Linear(shape.width, shape.width)
        self.dropout = nn.Dropout(shape.dropout)
        self.layer_norm = nn.LayerNorm(shape.width, eps=shape.layer_norm_eps)

    def heads(self, projected_BNX: Tensor) -> list[Tensor]:
        """Each D-wide part of the last axis as heads: [B, H, N, d]."""
        return [self.as_heads(part) for part in torch.split(projected_BNX, self.output.in_features, dim=2)]

    def as_heads(self, projected_BND: Tensor) -> Tensor:
        """The last axis as heads: [B, H, N, d]. Its gradient is a view, that of a split a copy."""
        return torch.unflatten(projected_BND, 2, (self.num_heads, -1)).transpose(1, 2)

    def attend(self, queries_BHNd: Tensor, keys_values: KeysValues, mask: Tensor | None) -> Tensor:
        """What each query row reads: [B, N, D]."""
        dropout_p = self.dropout_p if self.training else 0.0
        read = functional.scaled_dot_product_attention(queries_BHNd, *keys_values, attn_mask=mask, dropout_p=dropout_p)
        return read.transpose(1, 2).flatten(2)

    def finish(self, read_RD: Tensor, rows_RD: Tensor, output: Product) -> Tensor:
        """Output projection, dropout, residual and LayerNorm."""
        normed: Tensor = self.layer_norm(rows_RD + self.dropout(functional.linear(read_RD, *output)))
        return normed

    def attend_images(
        self, rows_RD: Tensor, query: Product, output: Product, images: Sequence[tuple[KeysValues, int]]
    ) -> Tensor:
        """Query rows read images. Each part of `images` is for so many entries, in order: as many neighbours for each
        of the part's images. Their rows are those of one entry here, so no key is copied for each."""
        entries = sum(count for _, count in images)
        rows_of_parts = [count * (rows_RD.shape[0] // entries) for _, count in images]
        parts = torch.split(functional.linear(rows_RD, *query), rows_of_parts)
        read = []
        for part_SD, (keys_values, _) in zip(parts, images, strict=True):
            queries_BHNd = self.as_heads(torch.unflatten(part_SD, 0, (keys_values[0].shape[0], -1)))
            read.append(self.attend(queries_BHNd, keys_values, None).flatten(0, 1))
        return self.finish(read[0] if len(read) == 1 else torch.cat(read), rows_RD, output)


class FeedForward(nn.Module):
    """BERT's FFN with exact-erf GELU, residual and LayerNorm."""

    def __init__(self, shape: QFormerShape) -> None:
        super().__init__()
        self.intermediate = nn.Linear(shape.width, shape.ffn_width)
        self.output = nn.Linear(shape.ffn_width, shape.width)
        self.dropout = nn.Dropout(shape.dropout)
        self.layer_norm = nn.LayerNorm(shape.width, eps=shape.layer_norm_eps)

    def parts(self) -> list[list[nn.Linear]]:
        """Its linear layers, each by itself."""
        return [[self.intermediate], [self.output]]

    def forward(self, rows_RD: Tensor, intermediate: Product, output: Product) -> Tensor:
        hidden = functional.linear(functional.gelu(functional.linear(rows_RD, *intermediate)), *output)
        normed: Tensor = self.layer_norm(rows_RD + self.dropout(hidden))
        return normed


@dataclass(frozen=True)
class LayerWeights:
    """A layer's products, cast once for all passes; None where the layer or the stage has none."""

    joined: Product  # queries, keys and values of self-attention
    output: Product
    cross: tuple[Product, Product] | None  # queries and output; keys and values are the image's
    query_ffn: tuple[Product, Product]
    text_ffn: tuple[Product, Product] | None


class Layer(nn.Module):
    """One layer, with a method for each pass. `cross_attention` and `text_ffn` are None where there are none."""

    def __init__(self, shape: QFormerShape, has_cross_attention: bool, has_text_ffn: bool) -> None:
        super().__init__()
        self.self_attention = Attention(shape, shape.width)
        self.cross_attention = Attention(shape, shape.image_width) if has_cross_attention else None
        self.query_ffn = FeedForward(shape)
        self.text_ffn = FeedForward(shape) if has_text_ffn else None

    def weights(self) -> LayerWeights:
        """What the passes below take."""
        own, cross, text = self.self_attention, self.cross_attention, self.text_ffn
        groups = [[own.query, own.key, own.value], [own.output], *self.query_ffn.parts()]
        groups += [] if cross is None else [[cross.query], [cross.output]]
        groups += [] if text is None else text.parts()
        found = iter(products_of(groups))
        return LayerWeights(
            joined=next(found),
            output=next(found),
            query_ffn=(next(found), next(found)),
            cross=None if cross is None else (next(found), next(found)),
            text_ffn=None if text is None else (next(found), next(found)),
        )

    def read_image(
        self, rows_RD: Tensor, weights: LayerWeights, batch: int, image: KeysValues | None
    ) -> tuple[Tensor, KeysValues]:
        """Query rows alone [B*Q, D]. Also returns their keys and values in self-attention, for ITG."""
        own = self.self_attention
        queries, keys, values = own.heads(torch.unflatten(functional.linear(rows_RD, *weights.joined), 0, (batch, -1)))
        rows_RD = own.finish(own.attend(queries, (keys, values), None).flatten(0, 1), rows_RD, weights.output)
        if image is not None:
            rows_RD = self._cross(rows_RD, weights, [(image, batch)])
        return self.query_ffn(rows_RD, *weights.query_ffn), (keys, values)

    def read_text(
        self, rows_TD: Tensor, weights: LayerWeights, places: Places, mask: Tensor, before: KeysValues | None
    ) -> Tensor:
        """Text rows alone; they also read the rows `before` them, of which keys and values are given."""
        own = self.self_attention
        queries, keys, values = own.heads(places.pad(functional.linear(rows_TD, *weights.joined)))
        if before is not None:
            keys, values = (torch.cat(pair, dim=2) for pair in zip(before, (keys, values), strict=True))
        rows_TD = own.finish(places.pack(own.attend(queries, (keys, values), mask)), rows_TD, weights.output)
        return self._feed_text(rows_TD, weights)

    def read_text_for_first(self, rows_TD: Tensor, weights: LayerWeights, places: Places, mask: Tensor) -> Tensor:
        """Text rows alone, of which each entry's first one goes on: [B, D]."""
        own = self.self_attention
        queries, keys, values = own.heads(places.pad(functional.linear(rows_TD, *weights.joined)))
        read_BD = own.attend(queries[:, :, :1], (keys, values), mask).flatten(0, 1)
        return self._feed_text(own.finish(read_BD, pick_rows(rows_TD, places.source_BN[:, 0]), weights.output), weights)

    def read_both(
        self,
        rows_RD: Tensor,
        weights: LayerWeights,
        num_query_rows: int,
        places: Places,
        mask: Tensor,
        images: Sequence[tuple[KeysValues, int]] | None,
        is_last: bool,
    ) -> Tensor:
        """All query rows, then all text rows; they read each other. After the last layer the query rows alone."""
        own = self.self_attention
        queries, keys, values = own.heads(places.pad(functional.linear(rows_RD, *weights.joined)))
        if is_last:
            num_queries = num_query_rows // queries.shape[0]
            read_RD = own.attend(queries[:, :, :num_queries], (keys, values), mask).flatten(0, 1)
            rows_RD = rows_RD[:num_query_rows]
        else:
            read_RD = places.pack(own.attend(queries, (keys, values), mask))
        rows_RD = own.finish(read_RD, rows_RD, weights.output)
        query_rows, text_rows = torch.split(rows_RD, [num_query_rows, rows_RD.shape[0] - num_query_rows])
        if images is not None:
            query_rows = self._cross(query_rows, weights, images)
        query_rows = self.query_ffn(query_rows, *weights.query_ffn)
        return query_rows if is_last else torch.cat([query_rows, self._feed_text(text_rows, weights)])

    def _cross(self, rows_RD: Tensor, weights: LayerWeights, images: Sequence[tuple[KeysValues, int]]) -> Tensor:
        assert self.cross_attention is not None and weights.cross is not None
        return self.cross_attention.attend_images(rows_RD, *weights.cross, images)

    def _feed_text(self, rows_TD: Tensor, weights: LayerWeights) -> Tensor:
        assert self.text_ffn is not None and weights.text_ffn is not None, "this Q-Former has no text path"
        fed: Tensor = self.text_ffn(rows_TD, *weights.text_ffn)
        return fed
