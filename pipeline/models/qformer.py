"""The Querying Transformer: BERT layers shared by query and text rows, cross-attention to the image for query rows.

Shapes: B batch, Q queries, L text tokens, P image tokens, D width, H heads, d width of a head, I image width.
Paper, section 3.1. Post-LN BERT; text rows and query rows have each their own FFN; every other layer the query rows
attend to the image between self-attention and FFN. What a pass computes once (the image's keys and values, the queries'
keys and values) later passes reuse.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models import attention_masks
from pipeline.models.precision import at_least_fp32

KeysValues = tuple[Tensor, Tensor]  # [B, H, rows, d] each


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

    def _heads(self, rows_BRD: Tensor) -> Tensor:
        batch, rows, _ = rows_BRD.shape
        return rows_BRD.view(batch, rows, self.num_heads, -1).transpose(1, 2)

    def keys_values(self, source_BRX: Tensor) -> KeysValues:
        return self._heads(self.key(source_BRX)), self._heads(self.value(source_BRX))

    def forward(self, rows_BRD: Tensor, keys_values: KeysValues, mask: Tensor | None) -> Tensor:
        """Rows attend to keys and values. Of these there may be G for k*G rows: batch entry i uses those of i mod G."""
        keys, values = keys_values
        batch, rows, width = rows_BRD.shape
        queries = self._heads(self.query(rows_BRD))
        groups = batch // keys.shape[0]
        if groups > 1:  # fold the groups into the query axis instead of copying keys and values
            queries = queries.view(groups, -1, *queries.shape[1:]).permute(1, 2, 0, 3, 4).flatten(2, 3)
        context = functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, dropout_p=self.dropout_p if self.training else 0.0
        )
        if groups > 1:
            context = context.view(*context.shape[:2], groups, rows, -1).permute(2, 0, 1, 3, 4).flatten(0, 1)
        context_BRD = context.transpose(1, 2).reshape(batch, rows, width)
        normed: Tensor = self.layer_norm(rows_BRD + self.dropout(self.output(context_BRD)))
        return normed


class FeedForward(nn.Module):
    """BERT's FFN with exact-erf GELU, residual and LayerNorm."""

    def __init__(self, shape: QFormerShape) -> None:
        super().__init__()
        self.intermediate = nn.Linear(shape.width, shape.ffn_width)
        self.output = nn.Linear(shape.ffn_width, shape.width)
        self.dropout = nn.Dropout(shape.dropout)
        self.layer_norm = nn.LayerNorm(shape.width, eps=shape.layer_norm_eps)

    def forward(self, rows_BRD: Tensor) -> Tensor:
        hidden = self.output(functional.gelu(self.intermediate(rows_BRD)))
        normed: Tensor = self.layer_norm(rows_BRD + self.dropout(hidden))
        return normed


class Layer(nn.Module):
    """One layer. `cross_attention` and `text_ffn` are None where the layer or the stage has none."""

    def __init__(self, shape: QFormerShape, has_cross_attention: bool, has_text: bool) -> None:
        super().__init__()
        self.self_attention = Attention(shape, shape.width)
        self.cross_attention = Attention(shape, shape.image_width) if has_cross_attention else None
        self.query_ffn = FeedForward(shape)
        self.text_ffn = FeedForward(shape) if has_text else None

    def feed_text(self, rows_BLD: Tensor) -> Tensor:
        assert self.text_ffn is not None, "a stage-2 Q-Former has no text path"
        fed: Tensor = self.text_ffn(rows_BLD)
        return fed


class TextEmbeddings(nn.Module):
    """BERT's word and position embeddings, without token types."""

    def __init__(self, shape: QFormerShape) -> None:
        super().__init__()
        self.word = nn.Embedding(shape.vocabulary, shape.width, padding_idx=0)
        self.position = nn.Embedding(shape.max_positions, shape.width)

    def forward(self, ids_BL: Tensor) -> Tensor:
        positions_L = torch.arange(ids_BL.shape[1], device=ids_BL.device)
        embedded: Tensor = self.word(ids_BL) + self.position(positions_L)
        return embedded


class LanguageHead(nn.Module):
    """BERT's prediction head: transform, then the word embeddings (tied) and a bias."""

    def __init__(self, shape: QFormerShape) -> None:
        super().__init__()
        self.transform = nn.Linear(shape.width, shape.width)
        self.layer_norm = nn.LayerNorm(shape.width, eps=shape.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(shape.vocabulary))

    def forward(self, rows_BLD: Tensor, word_VD: Tensor) -> Tensor:
        hidden = self.layer_norm(functional.gelu(self.transform(rows_BLD)))
        return at_least_fp32(functional.linear(hidden, word_VD, self.bias))


class QFormer(nn.Module):
    """Learned queries that read an image; with `has_text`, the text rows of stage 1 as well."""

    def __init__(self, shape: QFormerShape, has_text: bool) -> None:
        super().__init__()
        self.shape = shape
        self.query_tokens = nn.Parameter(torch.empty(1, shape.num_query_tokens, shape.width))
        self.layer_norm = nn.LayerNorm(shape.width, eps=shape.layer_norm_eps)  # of the embeddings
        self.dropout = nn.Dropout(shape.dropout)
        self.text_embeddings = TextEmbeddings(shape) if has_text else None
        self.language_head = LanguageHead(shape) if has_text else None
        self.layers = nn.ModuleList(
            Layer(shape, index % shape.cross_attention_every == 0, has_text) for index in range(shape.num_layers)
        )
        self.initialise()

    def initialise(self) -> None:
        """Normal weights of BERT's own deviation (0.02 in BERT-base), zero biases; the queries too."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=self.shape.initializer_range)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.query_tokens, std=self.shape.initializer_range)

    def _layers(self) -> list[Layer]:
        return [cast(Layer, layer) for layer in self.layers]

    def project_image(self, image_BPI: Tensor) -> list[KeysValues]:
        """Keys and values of the image for each layer with cross-attention, once for all passes that use them."""
        return [layer.cross_attention.keys_values(image_BPI) for layer in self._layers() if layer.cross_attention]

    def _embed_queries(self, batch: int) -> Tensor:
        embedded: Tensor = self.dropout(self.layer_norm(self.query_tokens).expand(batch, -1, -1))
        return embedded

    def _embed_text(self, ids_BL: Tensor) -> Tensor:
        assert self.text_embeddings is not None, "a stage-2 Q-Former has no text path"
        embedded: Tensor = self.dropout(self.layer_norm(self.text_embeddings(ids_BL)))
        return embedded

    def encode_queries(self, image: list[KeysValues]) -> tuple[Tensor, list[KeysValues]]:
        """Queries read the image, without text. Returns [B, Q, D] and each layer's query keys and values (for ITG)."""
        rows_BQD = self._embed_queries(image[0][0].shape[0])
        images, cache = iter(image), []
        for layer in self._layers():
            cache.append(layer.self_attention.keys_values(rows_BQD))
            rows_BQD = layer.self_attention(rows_BQD, cache[-1], None)
            if layer.cross_attention:
                rows_BQD = layer.cross_attention(rows_BQD, next(images), None)
            rows_BQD = layer.query_ffn(rows_BQD)
        return rows_BQD, cache

    def encode_text(self, ids_BL: Tensor, is_token_BL: Tensor) -> Tensor:
        """Text reads text alone, both ways: [B, L, D]."""
        rows_BLD, mask = self._embed_text(ids_BL), attention_masks.text_only(is_token_BL)
        for layer in self._layers():
            rows_BLD = layer.self_attention(rows_BLD, layer.self_attention.keys_values(rows_BLD), mask)
            rows_BLD = layer.feed_text(rows_BLD)
        return rows_BLD

    def encode_pairs(self, image: list[KeysValues], ids_BL: Tensor, is_token_BL: Tensor) -> Tensor:
        """Queries and text read each other, queries the image: the query rows, [B, Q, D].

        `image` may hold G images for B = k*G texts: text i goes with image i mod G.
        """
        queries = self.shape.num_query_tokens
        rows: Tensor = torch.cat([self._embed_queries(ids_BL.shape[0]), self._embed_text(ids_BL)], dim=1)
        mask, images = attention_masks.queries_and_text(queries, is_token_BL), iter(image)
        for index, layer in enumerate(self._layers()):
            rows = layer.self_attention(rows, layer.self_attention.keys_values(rows), mask)
            query_rows, text_rows = rows[:, :queries], rows[:, queries:]
            if layer.cross_attention:
                query_rows = layer.cross_attention(query_rows, next(images), None)
            query_rows = cast(Tensor, layer.query_ffn(query_rows))
            if index + 1 == len(self.layers):
                return query_rows  # nothing reads the last layer's text rows
            rows = torch.cat([query_rows, layer.feed_text(text_rows)], dim=1)
        raise AssertionError("a Q-Former has at least one layer")

    def decode_text(self, ids_BL: Tensor, is_token_BL: Tensor, query_cache: list[KeysValues]) -> Tensor:
        """Text reads the queries (their keys and values of `encode_queries`) and earlier text: logits [B, L, V]."""
        assert self.text_embeddings is not None and self.language_head is not None
        rows_BLD = self._embed_text(ids_BL)
        mask = attention_masks.causal_after_queries(self.shape.num_query_tokens, is_token_BL)
        for layer, (query_keys, query_values) in zip(self._layers(), query_cache, strict=True):
            keys, values = layer.self_attention.keys_values(rows_BLD)
            joined = torch.cat([query_keys, keys], dim=2), torch.cat([query_values, values], dim=2)
            rows_BLD = layer.feed_text(layer.self_attention(rows_BLD, joined, mask))
        logits: Tensor = self.language_head(rows_BLD, self.text_embeddings.word.weight)
        return logits
