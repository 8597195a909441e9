"""The configurations of the paper's language models and of BERT-base, as folders without weights."""

from pathlib import Path
from typing import Any

OPT = {"vocab_size": 50272, "num_attention_heads": 32, "num_hidden_layers": 32, "do_layer_norm_before": True}
FLAN_T5 = {
    "vocab_size": 32128,
    "decoder_start_token_id": 0,
    "d_kv": 64,
    "num_layers": 24,
    "feed_forward_proj": "gated-gelu",
}
SIZES: dict[str, dict[str, Any]] = {
    "opt2.7b": {**OPT, "hidden_size": 2560, "word_embed_proj_dim": 2560, "ffn_dim": 10240},
    "opt6.7b": {**OPT, "hidden_size": 4096, "word_embed_proj_dim": 4096, "ffn_dim": 16384},
    "flant5xl": {**FLAN_T5, "d_model": 2048, "d_ff": 5120, "num_heads": 32},
    "flant5xxl": {**FLAN_T5, "d_model": 4096, "d_ff": 10240, "num_heads": 64},
}


def save_configs(root: Path) -> None:
    """Write ROOT/bert and ROOT/NAME for each language model."""
    from transformers import BertConfig, OPTConfig, T5Config

    BertConfig().save_pretrained(root / "bert")
    for name, size in SIZES.items():
        config_class: Any = OPTConfig if name.startswith("opt") else T5Config
        config_class(**size).save_pretrained(root / name)
