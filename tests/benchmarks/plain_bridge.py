"""The Q-Former's passes in batches as LAVIS has them: every text padded to 32 tokens, the image projected in each pass.

Shapes: B pairs, Q queries, L tokens, R rows, P image tokens, I image width, D width. `weights` are the tensors of a
production bridge by their names in its state dict.
"""

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.config import Objectives
from pipeline.models.qformer_layer import QFormerShape
from pipeline.objectives import contrastive, matching
from pipeline.tokens import Tokens

KeysValues = tuple[Tensor, Tensor]
PADDED_TOKENS = 32  # `max_txt_len` of LAVIS' pre-training recipes
LN_VISION_EPS = 1e-5


class PlainBridge:
    """BERT with queries, straight down; nothing is shared but what LAVIS' cache shares, the queries of ITG."""

    def __init__(self, weights: dict[str, Tensor], shape: QFormerShape) -> None:
        self.weights, self.shape = weights, shape

    def linear(self, name: str, rows: Tensor) -> Tensor:
        return functional.linear(rows, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def norm(self, name: str, rows: Tensor, eps: float) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return functional.layer_norm(rows, weight.shape, weight, bias, eps)

    def image(self, frozen_BPI: Tensor) -> Tensor:
        return self.norm("ln_vision", frozen_BPI, LN_VISION_EPS)

    def embed(self, batch: int, ids_BL: Tensor | None, with_queries: bool) -> Tensor:
        parts = [self.weights["qformer.query_tokens"].expand(batch, -1, -1)] if with_queries else []
        if ids_BL is not None:
            positions = self.weights["qformer.text_embeddings.position.weight"][: ids_BL.shape[1]]
            parts.append(functional.embedding(ids_BL, self.weights["qformer.text_embeddings.word.weight"]) + positions)
        return self.norm("qformer.layer_norm", torch.cat(parts, dim=1), self.shape.layer_norm_eps)

    def attend(
        self, name: str, rows_BRD: Tensor, source: Tensor, mask: Tensor | None, past: KeysValues | None = None
    ) -> tuple[Tensor, KeysValues]:
        batch, heads = len(rows_BRD), self.shape.num_heads
        query, key, value = (
            self.linear(f"{name}.{part}", rows).view(batch, -1, heads, self.shape.width // heads).transpose(1, 2)
            for part, rows in (("query", rows_BRD), ("key", source), ("value", source))
        )
        if past:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        context = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        output = self.linear(f"{name}.output", context.transpose(1, 2).reshape(rows_BRD.shape))
        return self.norm(f"{name}.layer_norm", rows_BRD + output, self.shape.layer_norm_eps), (key, value)

    def feed(self, name: str, rows_BRD: Tensor) -> Tensor:
        hidden = self.linear(f"{name}.output", functional.gelu(self.linear(f"{name}.intermediate", rows_BRD)))
        return self.norm(f"{name}.layer_norm", rows_BRD + hidden, self.shape.layer_norm_eps)

    def encode(
        self,
        rows_BRD: Tensor,
        num_queries: int,
        image_BPI: Tensor | None,
        mask: Tensor | None,
        past: list[KeysValues] | None = None,
    ) -> tuple[Tensor, list[KeysValues]]:
        """All layers over rows that begin with so many queries; each layer's keys and values too."""
        cache = []
        for index in range(self.shape.num_layers):
            layer = f"qformer.layers.{index}"
            earlier = past[index] if past else None
            rows_BRD, keys_values = self.attend(f"{layer}.self_attention", rows_BRD, rows_BRD, mask, earlier)
            cache.append(keys_values)
            queries, text = rows_BRD[:, :num_queries], rows_BRD[:, num_queries:]
            if image_BPI is not None and index % self.shape.cross_attention_every == 0:
                queries, _ = self.attend(f"{layer}.cross_attention", queries, image_BPI, None)
            fed = [self.feed(f"{layer}.query_ffn", queries)] if num_queries else []
            fed += [self.feed(f"{layer}.text_ffn", text)] if text.shape[1] else []
            rows_BRD = torch.cat(fed, dim=1)
        return rows_BRD, cache

    def soft_prompts(self, frozen_BPI: Tensor) -> Tensor:
        """Stage 2's: [B, Q, H]."""
        queries = self.embed(len(frozen_BPI), None, with_queries=True)
        rows, _ = self.encode(queries, queries.shape[1], self.image(frozen_BPI), None)
        return self.linear("language_projection", rows)


def stage1_loss(
    plain: PlainBridge, frozen_BPI: Tensor, text: Tokens, decode_token_id: int, settings: Objectives, seed: int
) -> Tensor:
    """The sum of the three losses on one rank, images all different, in LAVIS' order of passes."""
    text = text.padded_to(PADDED_TOKENS)
    batch, queries, temperature = len(frozen_BPI), plain.shape.num_query_tokens, plain.weights["temperature"]
    image = plain.image(frozen_BPI)
    query_rows, cache = plain.encode(plain.embed(batch, None, with_queries=True), queries, image, None)
    real = text.is_token
    text_rows, _ = plain.encode(plain.embed(batch, text.ids, with_queries=False), 0, None, real[:, None, None])

    image_BQE = functional.normalize(plain.linear("vision_proj", query_rows), dim=-1)
    text_BE = functional.normalize(plain.linear("text_proj", text_rows[:, 0]), dim=-1)
    image_to_text = contrastive.similarities(image_BQE, text_BE.detach())
    text_to_image = contrastive.similarities(image_BQE.detach(), text_BE).T
    ids = torch.arange(batch)
    targets = contrastive.targets(ids, ids, 0, settings.label_smoothing, image_to_text.dtype)
    itc = contrastive.itc_loss(image_to_text, text_to_image, temperature, targets)

    same = ids[:, None] == ids[None]
    uniform = torch.rand((2, batch, batch), generator=torch.Generator().manual_seed(seed))
    scaled = (image_to_text.detach() / temperature.detach(), text_to_image.detach() / temperature.detach())
    texts, images = (
        matching.hard_negatives(scores, same, draws, settings.negatives)
        for scores, draws in zip(scaled, uniform, strict=True)
    )
    pair_ids, pair_real = (torch.cat([rows, rows[texts], rows]) for rows in (text.ids, real))
    pair_image = torch.cat([image, image, image[images]])
    mask = torch.cat([pair_real.new_ones((3 * batch, queries)), pair_real], dim=1)[:, None, None]
    rows, _ = plain.encode(plain.embed(3 * batch, pair_ids, with_queries=True), queries, pair_image, mask)
    labels = torch.zeros(3 * batch, dtype=torch.int64)
    labels[:batch] = matching.MATCH
    itm = matching.itm_loss(plain.linear("itm_head", rows[:, :queries]).mean(dim=1), labels)

    decoded = torch.cat([torch.full_like(text.ids[:, :1], decode_token_id), text.ids[:, 1:]], dim=1)
    causal = torch.ones((PADDED_TOKENS, PADDED_TOKENS), dtype=torch.bool).tril() & real[:, None]
    mask = torch.cat([real.new_ones((batch, PADDED_TOKENS, queries)), causal], dim=2)[:, None]
    rows, _ = plain.encode(plain.embed(batch, decoded, with_queries=False), 0, None, mask, cache)
    hidden = functional.gelu(plain.linear("qformer.language_head.transform", rows))
    hidden = plain.norm("qformer.language_head.layer_norm", hidden, plain.shape.layer_norm_eps)
    word = plain.weights["qformer.text_embeddings.word.weight"]
    logits = functional.linear(hidden, word, plain.weights["qformer.language_head.bias"])
    labels = decoded[:, 1:].masked_fill(~real[:, 1:], -100).flatten()
    itg = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels, label_smoothing=settings.label_smoothing)
    return settings.itc_weight * itc + settings.itm_weight * itm + settings.itg_weight * itg
