"""The Querying Transformer: BERT layers shared by query and text rows, cross-attention to the image for query rows.

Shapes: B batch, Q queries, L text tokens with padding, T real text tokens of the batch, P image tokens, I image width,
D width, H heads, d width of a head, V vocabulary. Paper, section 3.1. Post-LN BERT; text rows and query rows have each
their own FFN; every other layer the query rows attend to the image between self-attention and FFN. What a pass computes
once (the image's keys and values, the queries' keys and values) later passes reuse.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models import attention_masks
from pipeline.models.precision import at_least_fp32, for_products
from pipeline.models.qformer_layer import (
    KeysValues,
    Layer,
    LayerWeights,
    QFormerShape,
    Readers,
    neighbours,
)
from pipeline.tokens import FullPlaces, Places, Tokens


@dataclass(frozen=True)
class PassWeights:
    """The products that passes share: each layer's, and of the image the weights of keys and values and the bias of
    values, for each layer with cross-attention."""

    layers: list[LayerWeights]
    image: list[tuple[Tensor, Tensor, Tensor]]
    image_norm_eps: float


class TextEmbeddings(nn.Module):
    """BERT's word and position embeddings, without token types."""

    def __init__(self, shape: QFormerShape) -> None:
        super().__init__()
        self.word = nn.Embedding(shape.vocabulary, shape.width, padding_idx=0)
        self.position = nn.Embedding(shape.max_positions, shape.width)

    def forward(self, ids_T: Tensor, positions_T: Tensor) -> Tensor:
        embedded: Tensor = self.word(ids_T) + self.position(positions_T)
        return embedded


class LanguageHead(nn.Module):
    """BERT's prediction head: transform, then the word embeddings (tied) and a bias."""

    def __init__(self, shape: QFormerShape) -> None:
        super().__init__()
        self.transform = nn.Linear(shape.width, shape.width)
        self.layer_norm = nn.LayerNorm(shape.width, eps=shape.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(shape.vocabulary))

    def forward(self, rows_TD: Tensor, word_VD: Tensor) -> Tensor:
        hidden = self.layer_norm(functional.gelu(self.transform(rows_TD)))
        return functional.linear(hidden, word_VD, self.bias)


TextPath = Literal["none", "read", "write"]


class QFormer(nn.Module):
    """Learned queries that read an image. The text path: `none`; `read` beside the queries, as questions in fine-tuning
    for VQA; or `write` as well, as in stage 1.

    A text that is only read ends before the last layer's FFN: nothing would depend on its output.
    """

    def __init__(self, shape: QFormerShape, text: TextPath) -> None:
        super().__init__()
        self.shape = shape
        self.query_tokens = nn.Parameter(torch.empty(1, shape.num_query_tokens, shape.width))
        self.layer_norm = nn.LayerNorm(shape.width, eps=shape.layer_norm_eps)  # of the embeddings
        self.dropout = nn.Dropout(shape.dropout)
        self.text_embeddings = TextEmbeddings(shape) if text != "none" else None
        self.language_head = LanguageHead(shape) if text == "write" else None
        text_ffns = {"none": 0, "read": shape.num_layers - 1, "write": shape.num_layers}[text]
        self.layers = nn.ModuleList(
            Layer(shape, index % shape.cross_attention_every == 0, index < text_ffns)
            for index in range(shape.num_layers)
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

    def weights(self, norm: nn.LayerNorm) -> PassWeights:
        """The weights of all products, cast to their number format once for all passes.

        `norm`, the bridge's LayerNorm of the image's tokens, is normalisation without weights, then a weight and a
        bias. These two are folded into the image's products. So the backward pass needs no gradient of a frozen
        encoder's tokens: a third of those products' work.
        """
        attentions = [layer.cross_attention for layer in self._layers() if layer.cross_attention is not None]
        weights, biases = list[Tensor](), list[Tensor]()
        for each in attentions:
            with torch.autocast(norm.bias.device.type, enabled=False):
                biases += [each.key.bias, torch.addmv(each.value.bias, each.value.weight, norm.bias)]
            weights += [for_products(linear.weight * norm.weight) for linear in (each.key, each.value)]
        # A bias of keys adds as much to all of a row's logits: softmax does not see it. Its gradient is zero.
        of_values = torch.split(for_products(torch.cat(biases)), self.shape.width)[1::2]
        image = list(zip(weights[0::2], weights[1::2], of_values, strict=True))
        return PassWeights([layer.weights() for layer in self._layers()], image, norm.eps)

    def project_image(self, tokens_BPI: Tensor, weights: PassWeights) -> list[KeysValues]:
        """Keys and values of the image for each layer with cross-attention."""
        return self.project_plain(self.plain_image(tokens_BPI, weights), weights)

    def plain_image(self, tokens_BPI: Tensor, weights: PassWeights) -> Tensor:
        """The image's tokens normalised, without a weight, in the products' number format."""
        if not torch.is_autocast_enabled(tokens_BPI.device.type):
            tokens_BPI = at_least_fp32(tokens_BPI)  # of an fp16 tower; autocast would cast once more
        with torch.autocast(tokens_BPI.device.type, enabled=False):
            plain_BPI = functional.layer_norm(tokens_BPI, tokens_BPI.shape[-1:], eps=weights.image_norm_eps)
        return for_products(plain_BPI)

    def project_plain(self, plain_BPI: Tensor, weights: PassWeights) -> list[KeysValues]:
        """`project_image` of what `plain_image` gave.

        Of a trained encoder by one product for all of them: its backward pass adds up in fp32. Of a frozen one by a
        product each: so no gradients are joined, which are as large as all keys and values.
        """
        attention = self._layers()[0].self_attention
        if plain_BPI.requires_grad:
            bias_X = torch.cat([part for _, _, bias in weights.image for part in (torch.zeros_like(bias), bias)])
            weight_XI = torch.cat([part for key, value, _ in weights.image for part in (key, value)])
            parts = attention.heads(functional.linear(plain_BPI, weight_XI, bias_X))
            return list(zip(parts[0::2], parts[1::2], strict=True))
        return [
            (
                attention.as_heads(functional.linear(plain_BPI, key)),
                attention.as_heads(functional.linear(plain_BPI, value, bias)),
            )
            for key, value, bias in weights.image
        ]

    def _embed_queries(self, batch: int) -> Tensor:
        """[B*Q, D]; each entry has dropout of its own."""
        embedded: Tensor = self.dropout(self.layer_norm(self.query_tokens).expand(batch, -1, -1)).flatten(0, 1)
        return embedded

    def _embed_texts(self, texts: Sequence[Tokens], places: Sequence[Places]) -> Tensor:
        """Packed, by one lookup: its gradient is as large as the vocabulary."""
        assert self.text_embeddings is not None, "this Q-Former has no text path"
        pairs = list(zip(texts, places, strict=True))
        ids_T = torch.cat([text.ids.flatten()[where.flat_R] for text, where in pairs])
        positions_T = torch.cat([where.flat_R % max(1, text.ids.shape[1]) for text, where in pairs])
        rows_TD: Tensor = self.dropout(self.layer_norm(self.text_embeddings(ids_T, positions_T)))
        return rows_TD

    def encode_queries(self, image: list[KeysValues], weights: PassWeights) -> tuple[Tensor, list[KeysValues]]:
        """Queries read the image, without text. Returns [B, Q, D] and each layer's query keys and values (for ITG)."""
        batch = image[0][0].shape[0]
        readers = [Readers(batch * self.shape.num_query_tokens, FullPlaces(batch))]
        rows, cache = self._run(self._embed_queries(batch), readers[0].num_rows, readers, [(image, batch)], weights)
        return torch.unflatten(rows, 0, (batch, -1)), cache

    def encode_text(self, text: Tokens, weights: PassWeights) -> Tensor:
        """Text reads text alone, both ways; its [CLS]: [B, D]. The last layer makes no other rows."""
        [rows_BD] = self.encode_texts(text, None, [], weights)
        return rows_BD

    def decode_text(self, text: Tokens, query_cache: list[KeysValues], weights: PassWeights) -> Tensor:
        """Text reads the queries (their keys and values of `encode_queries`) and earlier text: [T, D], packed."""
        [rows_TD] = self.encode_texts(None, text, query_cache, weights)
        return rows_TD

    def encode_texts(
        self, read: Tokens | None, written: Tokens | None, query_cache: list[KeysValues], weights: PassWeights
    ) -> Sequence[Tensor]:
        """The rows of `encode_text` and of `decode_text`, or of one of them. In one pass: they share products, whose
        gradients then need not be added up."""
        parts: list[tuple[Tokens, Tensor, bool]] = []
        if read is not None:
            parts.append((read, attention_masks.text_only(read.is_token), False))
        if written is not None:
            mask = attention_masks.causal_after_queries(self.shape.num_query_tokens, written.is_token)
            parts.append((written, mask, True))
        places = [text.places() for text, _, _ in parts]
        rows_TD = self._embed_texts([text for text, _, _ in parts], places)
        readers = []
        for (_, mask, writes), where in zip(parts, places, strict=True):
            bias = attention_masks.as_bias(mask, rows_TD)
            readers.append(Readers(len(where.flat_R), where, bias, writes, None if writes else 1))
        rows, _ = self._run(rows_TD, 0, readers, None, weights, query_cache)
        return neighbours(rows, [each.num_wanted for each in readers])

    def encode_pairs(
        self, images: Sequence[tuple[list[KeysValues], int]], text: Tokens, weights: PassWeights
    ) -> Tensor:
        """Queries and text read each other, queries the image: the query rows, [B, Q, D].

        Each part of `images` is for so many of the B texts, in order: as many neighbouring texts for each of the part's
        images.
        """
        batch, queries = text.ids.shape[0], self.shape.num_query_tokens
        text_places = text.places()
        rows = torch.cat([self._embed_queries(batch), self._embed_texts([text], [text_places])])
        bias = attention_masks.as_bias(attention_masks.queries_and_text(queries, text.is_token), rows)
        places = _after_queries(text_places, queries)  # packed: all query rows, then all text rows
        readers = [Readers(len(rows), places, bias, first=queries)]
        rows, _ = self._run(rows, batch * queries, readers, images, weights)
        return torch.unflatten(rows, 0, (batch, -1))

    def _run(
        self,
        rows: Tensor,
        num_query_rows: int,
        readers: list[Readers],
        images: Sequence[tuple[list[KeysValues], int]] | None,
        weights: PassWeights,
        query_cache: Sequence[KeysValues] = (),
    ) -> tuple[Tensor, list[KeysValues]]:
        """All layers; also each layer's keys and values of the first readers."""
        inner, cross, cache = [replace(each, first=None) for each in readers], count(), []
        for index, (layer, product) in enumerate(zip(self._layers(), weights.layers, strict=True)):
            read = None
            if images is not None and layer.cross_attention is not None:
                at = next(cross)
                read = [(image[at], entries) for image, entries in images]
            now = readers if index + 1 == len(self.layers) else inner
            rows, own = layer.read(
                rows, product, num_query_rows, now, read, query_cache[index] if query_cache else None
            )
            cache.append(own)
        return rows, cache

    def predict_tokens(self, rows_TD: Tensor) -> Tensor:
        """Logits of the token after each row, in the products' number format: [T, V]."""
        assert self.text_embeddings is not None and self.language_head is not None
        logits: Tensor = self.language_head(rows_TD, self.text_embeddings.word.weight)
        return logits


def _after_queries(text: Places, num_queries: int) -> Places:
    """All query rows, then all text rows, where each entry has its queries before its text."""
    batch, length = text.source_BN.shape
    rows = num_queries + length
    entries_B1 = torch.arange(batch, device=text.flat_R.device)[:, None]
    queries_Q = torch.arange(num_queries, device=entries_B1.device)
    texts_T = text.flat_R + (text.flat_R // max(1, length) + 1) * num_queries
    flat_R = torch.cat([(entries_B1 * rows + queries_Q).flatten(), texts_T])
    source_BN = torch.cat([entries_B1 * num_queries + queries_Q, text.source_BN + batch * num_queries], dim=1)
    return Places(flat_R, source_BN)
