"""The names of one tensor in three formats: ours, LAVIS (the authors' `.pth`), transformers' folders.

LAVIS names follow BERT's and tie the ITG head's decoder to the word embeddings; transformers has no ITG head and no
temperature. Both keep text and query FFNs as `intermediate`/`output` and `intermediate_query`/`output_query`.
"""

import re
from collections.abc import Iterable

LAYER_PARTS = {
    "self_attention.query": "attention.self.query",
    "self_attention.key": "attention.self.key",
    "self_attention.value": "attention.self.value",
    "self_attention.output": "attention.output.dense",
    "self_attention.layer_norm": "attention.output.LayerNorm",
    "cross_attention.query": "crossattention.self.query",
    "cross_attention.key": "crossattention.self.key",
    "cross_attention.value": "crossattention.self.value",
    "cross_attention.output": "crossattention.output.dense",
    "cross_attention.layer_norm": "crossattention.output.LayerNorm",
    "query_ffn.intermediate": "intermediate_query.dense",
    "query_ffn.output": "output_query.dense",
    "query_ffn.layer_norm": "output_query.LayerNorm",
    "text_ffn.intermediate": "intermediate.dense",
    "text_ffn.output": "output.dense",
    "text_ffn.layer_norm": "output.LayerNorm",
}
"""Ours -> LAVIS's, within one layer of the Q-Former."""

LAVIS_PARTS = {
    "qformer.query_tokens": "query_tokens",
    "qformer.layer_norm": "Qformer.bert.embeddings.LayerNorm",
    "qformer.text_embeddings.word": "Qformer.bert.embeddings.word_embeddings",
    "qformer.text_embeddings.position": "Qformer.bert.embeddings.position_embeddings",
    "qformer.language_head.transform": "Qformer.cls.predictions.transform.dense",
    "qformer.language_head.layer_norm": "Qformer.cls.predictions.transform.LayerNorm",
    "qformer.language_head.bias": "Qformer.cls.predictions.bias",
    "temperature": "temp",
}
"""Ours -> LAVIS's, outside the layers; what is not listed has the same name in both."""

HUGGINGFACE_PARTS = {
    "qformer.query_tokens": "query_tokens",
    "qformer.layer_norm": "qformer.layernorm",
    "qformer.text_embeddings.word": "embeddings.word_embeddings",
    "qformer.text_embeddings.position": "embeddings.position_embeddings",
    "ln_vision": "vision_model.post_layernorm",
    "vision_proj": "vision_projection",
    "text_proj": "text_projection",
}
NOT_IN_HUGGINGFACE = ("qformer.language_head.", "temperature")
"""Ours that transformers has no place for: the ITG head and ITC's temperature."""

ENCODER = "vision.encoder.model."
"""Before the own names of an image encoder that is trained, in a bridge."""

LAYER = re.compile(r"qformer\.layers\.(\d+)\.(\w+\.\w+)\.(weight|bias)")


def lavis_name(name: str, language_kind: str | None = None) -> str:
    """The LAVIS name of one of our tensors; `language_kind` tells `opt_proj` (causal) from `t5_proj` (seq2seq)."""
    layer = LAYER.fullmatch(name)
    if layer:
        return f"Qformer.bert.encoder.layer.{layer[1]}.{LAYER_PARTS[layer[2]]}.{layer[3]}"
    if name.startswith("language_projection."):
        return name.replace("language_projection", "t5_proj" if language_kind == "seq2seq" else "opt_proj")
    return _outside_layers(name, LAVIS_PARTS)


def huggingface_name(name: str) -> str | None:
    """transformers' name of one of our tensors, or None where it has no place for it."""
    if name.startswith(NOT_IN_HUGGINGFACE):
        return None
    layer = LAYER.fullmatch(name)
    if layer:
        part = LAYER_PARTS[layer[2]].replace("attention.self.", "attention.attention.")
        return f"qformer.encoder.layer.{layer[1]}.{part}.{layer[3]}"
    return _outside_layers(name, HUGGINGFACE_PARTS)


def _outside_layers(name: str, parts: dict[str, str]) -> str:
    module, _, kind = name.rpartition(".")
    if name in parts:
        return parts[name]
    return f"{parts[module]}.{kind}" if module in parts else name


def inverse(names: Iterable[tuple[str, str | None]]) -> dict[str, str]:
    """Theirs -> ours, from pairs (ours, theirs)."""
    return {theirs: ours for ours, theirs in names if theirs is not None}
