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
from pipeline.tokens import Places

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
        parts = torch.split(projected_BNX, self.output.in_features, dim=2)
        return [torch.unflatten(part, 2, (self.num_heads, -1)).transpose(1, 2) for part in parts]

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
        """Query rows read images. Each part of `images` is for so many entries, in order: entry i of a part reads image
        i modulo the part's images."""
        entries = sum(count for _, count in images)
        [queries_BHQd] = self.heads(torch.unflatten(functional.linear(rows_RD, *query), 0, (entries, -1)))
        read = [
            self._attend_in_groups(queries, keys_values)
            for queries, (keys_values, _) in zip(torch.split(queries_BHQd, [n for _, n in images]), images, strict=True)
        ]
        return self.finish((read[0] if len(read) == 1 else torch.cat(read)).flatten(0, 1), rows_RD, output)

    def _attend_in_groups(self, queries_BHQd: Tensor, keys_values: KeysValues) -> Tensor:
        """Fold k groups of entries that read the same images into the rows of one: nothing is copied k times."""
        images = keys_values[0].shape[0]
        groups = queries_BHQd.shape[0] // images
        if groups == 1:
            return self.attend(queries_BHQd, keys_values, None)
        folded = torch.unflatten(queries_BHQd, 0, (groups, images)).permute(1, 2, 0, 3, 4).flatten(2, 3)
        read = self.attend(folded, keys_values, None)
        return torch.unflatten(read, 1, (groups, -1)).transpose(0, 1).flatten(0, 1)


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
        rows_RD = own.finish(places.pack(own.attend(queries, (keys, values), mask)), rows_RD, weights.output)
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
