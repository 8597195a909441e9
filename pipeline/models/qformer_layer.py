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
from pipeline.tokens import FullPlaces, Places

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
        self,
        rows_RD: Tensor,
        cast_RD: Tensor,
        query: Product,
        output: Product,
        images: Sequence[tuple[KeysValues, int]],
    ) -> Tensor:
        """Query rows, and these in the products' number format, read images. Each part of `images` is for so many
        entries, in order: as many neighbours for each of the part's images. Their rows are those of one entry here, so
        no key is copied for each."""
        entries = sum(count for _, count in images)
        rows_of_parts = [count * (rows_RD.shape[0] // entries) for _, count in images]
        parts = neighbours(functional.linear(cast_RD, *query), rows_of_parts)
        read = []
        for part_SD, (keys_values, _) in zip(parts, images, strict=True):
            queries_BHNd = self.as_heads(torch.unflatten(part_SD, 0, (keys_values[0].shape[0], -1)))
            read.append(self.attend(queries_BHNd, keys_values, None).flatten(0, 1))
        return self.finish(together(read), rows_RD, output)


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

    def products(self, rows_RD: Tensor, intermediate: Product, output: Product) -> Tensor:
        """All but what `finish` does."""
        return functional.linear(functional.gelu(functional.linear(rows_RD, *intermediate)), *output)

    def finish(self, hidden_RD: Tensor, rows_RD: Tensor) -> Tensor:
        """Dropout, residual and LayerNorm."""
        normed: Tensor = self.layer_norm(rows_RD + self.dropout(hidden_RD))
        return normed


@dataclass(frozen=True)
class Readers:
    """Neighbouring rows of a pass that one call of attention serves: they read one another where `bias` lets them.

    Those `after_queries` read the queries of their entry, too. Of the last layer's output only the `first` rows of each
    entry are wanted; None: all.
    """

    num_rows: int
    places: Places | FullPlaces
    bias: Tensor | None = None
    after_queries: bool = False
    first: int | None = None

    @property
    def num_wanted(self) -> int:
        return self.num_rows if self.first is None else self.first * self.places.batch


@dataclass(frozen=True)
class LayerWeights:
    """A layer's products, cast once for all passes; None where the layer or the stage has none."""

    joined: Product  # queries, keys and values of self-attention
    output: Product
    cross: tuple[Product, Product] | None  # queries and output; keys and values are the image's
    query_ffn: tuple[Product, Product]
    text_ffn: tuple[Product, Product] | None


class Layer(nn.Module):
    """One layer. `cross_attention` and `text_ffn` are None where there are none."""

    def __init__(self, shape: QFormerShape, has_cross_attention: bool, has_text_ffn: bool) -> None:
        super().__init__()
        self.self_attention = Attention(shape, shape.width)
        self.cross_attention = Attention(shape, shape.image_width) if has_cross_attention else None
        self.query_ffn = FeedForward(shape)
        self.text_ffn = FeedForward(shape) if has_text_ffn else None

    def weights(self) -> LayerWeights:
        """What `read` takes."""
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

    def read(
        self,
        rows_RD: Tensor,
        weights: LayerWeights,
        num_query_rows: int,
        readers: Sequence[Readers],
        images: Sequence[tuple[KeysValues, int]] | None,
        queries: KeysValues | None,
    ) -> tuple[Tensor, KeysValues]:
        """All query rows, then all text rows. `queries` are keys and values of another pass, for readers after them.

        Also returns the keys and values of the first readers.
        """
        read_RD, kept_RD, first = self._attend(rows_RD, weights.joined, num_query_rows, readers, queries)
        rows_RD = self.self_attention.finish(read_RD, kept_RD, weights.output)
        cast_RD = for_products(rows_RD)
        query_rows, text_rows = _kinds(rows_RD, num_query_rows)
        query_cast, text_cast = (query_rows, text_rows) if cast_RD is rows_RD else _kinds(cast_RD, num_query_rows)
        fed: list[tuple[FeedForward, Tensor, Tensor]] = []
        if query_rows is not None and query_cast is not None:
            if images is not None:
                assert self.cross_attention is not None and weights.cross is not None
                query_cast = query_rows = self.cross_attention.attend_images(
                    query_rows, query_cast, *weights.cross, images
                )
            fed.append((self.query_ffn, query_rows, self.query_ffn.products(query_cast, *weights.query_ffn)))
        if text_rows is not None and text_cast is not None:
            assert self.text_ffn is not None and weights.text_ffn is not None, "this Q-Former has no text path"
            fed.append((self.text_ffn, text_rows, self.text_ffn.products(text_cast, *weights.text_ffn)))
        # After all products, so that a compiler makes one kernel of these.
        return together([ffn.finish(hidden, rows) for ffn, rows, hidden in fed]), first

    def _attend(
        self,
        rows_RD: Tensor,
        joined: Product,
        num_query_rows: int,
        readers: Sequence[Readers],
        queries: KeysValues | None,
    ) -> tuple[Tensor, Tensor, KeysValues]:
        """Self-attention: what the wanted rows read, these rows, and the first readers' keys and values."""
        own, sizes = self.self_attention, [each.num_rows for each in readers]
        read: list[Tensor] = []
        kept: list[Tensor] = []
        found: list[KeysValues] = []
        joined_RX = functional.linear(rows_RD, *joined)
        for part_SX, part_SD, each in zip(
            neighbours(joined_RX, sizes), neighbours(rows_RD, sizes), readers, strict=True
        ):
            asking, keys, values = own.heads(each.places.pad(part_SX))
            found.append((keys, values))
            if each.after_queries:
                assert queries is not None
                keys, values = (torch.cat(pair, dim=2) for pair in zip(queries, (keys, values), strict=True))
            if each.first is None:
                read.append(each.places.pack(own.attend(asking, (keys, values), each.bias)))
                kept.append(part_SD)
            else:
                assert isinstance(each.places, Places), "where nothing is padded, all rows are wanted"
                read.append(own.attend(asking[:, :, : each.first], (keys, values), each.bias).flatten(0, 1))
                leading = num_query_rows  # a view, where the first rows of all entries come before all others
                kept.append(part_SD[:leading] if leading else each.places.pick_first(part_SD, each.first))
        all_wanted = all(each.first is None for each in readers)
        return together(read), rows_RD if all_wanted else together(kept), found[0]


def _kinds(rows_RX: Tensor, num_query_rows: int) -> tuple[Tensor | None, Tensor | None]:
    """The query rows and the text rows; None where there are none."""
    num_text_rows = rows_RX.shape[0] - num_query_rows
    if not num_query_rows:
        return None, rows_RX
    if not num_text_rows:
        return rows_RX, None
    query_rows, text_rows = torch.split(rows_RX, [num_query_rows, num_text_rows])
    return query_rows, text_rows


def neighbours(rows_RX: Tensor, sizes: list[int]) -> Sequence[Tensor]:
    """Neighbouring rows, so many in each part. One part is no view, whose gradient would be copied."""
    return [rows_RX] if len(sizes) == 1 else torch.split(rows_RX, sizes)


def together(parts: list[Tensor]) -> Tensor:
    """The other way."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
