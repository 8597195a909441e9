"""The Querying Transformer as plainly as it can be written: one sample, one joint attention, explicit masks.

Shapes: Q queries, L text tokens (padded), R = Q + L rows, P image tokens, S attended rows, D width, I image width.
`weights` are the tensors of a production bridge by their names in its state dict. Paper, section 3.1; BERT, post-LN.
"""

import math

import torch
from torch import Tensor

from pipeline.models.qformer_layer import QFormerShape

Weights = dict[str, Tensor]


def linear(weights: Weights, name: str, rows: Tensor) -> Tensor:
    return rows @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def layer_norm(weights: Weights, name: str, rows: Tensor, eps: float) -> Tensor:
    centred = rows - rows.mean(dim=-1, keepdim=True)
    variance = (centred**2).mean(dim=-1, keepdim=True)
    return centred / torch.sqrt(variance + eps) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def gelu(rows: Tensor) -> Tensor:
    return rows * 0.5 * (1 + torch.erf(rows / math.sqrt(2)))


def attend(
    weights: Weights, name: str, rows_RD: Tensor, source_SX: Tensor, allowed_RS: Tensor, shape: QFormerShape
) -> Tensor:
    """Multi-head attention of rows to source rows, output projection, residual, LayerNorm."""
    query, key, value = (
        linear(weights, f"{name}.{part}", rows)
        for part, rows in (("query", rows_RD), ("key", source_SX), ("value", source_SX))
    )
    width = shape.width // shape.num_heads
    contexts = []
    for head in range(shape.num_heads):
        columns = slice(head * width, (head + 1) * width)
        scores_RS = query[:, columns] @ key[:, columns].T / math.sqrt(width)
        weights_RS = torch.softmax(scores_RS.masked_fill(~allowed_RS, float("-inf")), dim=1)
        contexts.append(weights_RS @ value[:, columns])
    output_RD = linear(weights, f"{name}.output", torch.cat(contexts, dim=1))
    return layer_norm(weights, f"{name}.layer_norm", rows_RD + output_RD, shape.layer_norm_eps)


def feed(weights: Weights, name: str, rows_RD: Tensor, shape: QFormerShape) -> Tensor:
    """FFN, residual, LayerNorm."""
    hidden = linear(weights, f"{name}.output", gelu(linear(weights, f"{name}.intermediate", rows_RD)))
    return layer_norm(weights, f"{name}.layer_norm", rows_RD + hidden, shape.layer_norm_eps)


def encode(weights: Weights, shape: QFormerShape, image_PI: Tensor, ids_L: Tensor, allowed_RR: Tensor) -> Tensor:
    """Query and text rows through all layers, [R, D]: joint self-attention, image for queries, an FFN for each kind."""
    queries = shape.num_query_tokens
    embedded = weights["qformer.query_tokens"][0]
    if len(ids_L):
        word, position = (
            weights["qformer.text_embeddings.word.weight"],
            weights["qformer.text_embeddings.position.weight"],
        )
        embedded = torch.cat([embedded, word[ids_L] + position[: len(ids_L)]])
    rows_RD = layer_norm(weights, "qformer.layer_norm", embedded, shape.layer_norm_eps)
    whole_image = torch.ones(queries, len(image_PI), dtype=torch.bool)
    for index in range(shape.num_layers):
        layer = f"qformer.layers.{index}"
        rows_RD = attend(weights, f"{layer}.self_attention", rows_RD, rows_RD, allowed_RR, shape)
        query_QD, text_LD = rows_RD[:queries], rows_RD[queries:]
        if index % shape.cross_attention_every == 0:
            query_QD = attend(weights, f"{layer}.cross_attention", query_QD, image_PI, whole_image, shape)
        rows_RD = feed(weights, f"{layer}.query_ffn", query_QD, shape)
        if len(ids_L) and (index + 1 < shape.num_layers or "qformer.language_head.bias" in weights):
            # Nothing reads the last layer's text rows unless text is written.
            rows_RD = torch.cat([rows_RD, feed(weights, f"{layer}.text_ffn", text_LD, shape)])
    return rows_RD


def contrastive_mask(num_queries: int, is_token_L: Tensor) -> Tensor:
    """Queries see queries, text sees real text. [R, R], True = may attend."""
    is_query = [True] * num_queries + [False] * len(is_token_L)
    is_real = [True] * num_queries + is_token_L.tolist()
    rows = range(len(is_query))
    return torch.tensor([[is_query[i] == is_query[j] and is_real[j] for j in rows] for i in rows])


def matching_mask(num_queries: int, is_token_L: Tensor) -> Tensor:
    """All see all queries and all real text."""
    is_real = [True] * num_queries + is_token_L.tolist()
    return torch.tensor([is_real for _ in is_real])


def generation_mask(num_queries: int, is_token_L: Tensor) -> Tensor:
    """Queries see queries; a token sees all queries and the real tokens up to itself."""
    is_query = [True] * num_queries + [False] * len(is_token_L)
    is_real = [True] * num_queries + is_token_L.tolist()
    rows = range(len(is_query))
    return torch.tensor([[is_query[j] or (not is_query[i] and j <= i and is_real[j]) for j in rows] for i in rows])
