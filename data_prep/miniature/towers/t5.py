"""Trains the encoder-decoder language tower: a T5 (v1.1: gated GELU, untied head) on text alone."""

from typing import Any

import numpy as np

from data_prep.miniature.towers.fitting import fit, mean_over_samples
from data_prep.miniature.towers.settings import T5Settings
from data_prep.miniature.towers.text_samples import text_batches
from data_prep.miniature.towers.vocabulary import t5_tokenizer

NEIGHBOUR_BIAS = 4.0
"""The number added to the attention logit of a neighbour at the start of training."""


def build_t5(settings: T5Settings) -> Any:
    """A T5ForConditionalGeneration with new weights. Its tokenizer is `t5_tokenizer`."""
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = t5_tokenizer()
    config = T5Config(
        vocab_size=len(tokenizer), d_model=settings.width, d_kv=settings.width // settings.heads,
        d_ff=settings.ffn_width, num_layers=settings.encoder_layers, num_decoder_layers=settings.decoder_layers,
        num_heads=settings.heads, feed_forward_proj="gated-gelu", tie_word_embeddings=bool(settings.tied),
        dropout_rate=0.0,
        relative_attention_num_buckets=32, relative_attention_max_distance=64,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    _look_at_neighbours(model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight)
    return model


def train_t5(settings: T5Settings, seed: int) -> Any:
    """A T5 trained from scratch to continue captions and to answer questions, in eval mode."""
    import torch

    torch.manual_seed(seed)
    rng = np.random.default_rng((seed, 0x75))
    model, tokenizer = build_t5(settings), t5_tokenizer()
    batches = text_batches(settings.batch_size, rng)

    def loss_of_step(_: int) -> Any:
        samples = next(batches)
        given = tokenizer([f"{s.description} {s.prompt}" for s in samples], padding=True, return_tensors="pt")
        target = tokenizer([s.target for s in samples], padding=True, return_tensors="pt")
        labels = target.input_ids.masked_fill(target.attention_mask == 0, -100)
        logits = model(input_ids=given.input_ids, attention_mask=given.attention_mask, labels=labels).logits
        return mean_over_samples(logits, labels)

    distances = [p for name, p in model.named_parameters() if "relative_attention_bias" in name]
    others = [p for name, p in model.named_parameters() if "relative_attention_bias" not in name]
    groups = [(others, 1.0), (distances, settings.distance_learning_share)]
    fit("t5", groups, loss_of_step, steps=settings.steps, learning_rate=settings.learning_rate)
    return model.eval()


def _look_at_neighbours(bias: Any) -> None:
    """Let one head start at the word before and one at the word after: "red" and "circle" are joined sooner."""
    import torch

    num_buckets = bias.shape[0]
    with torch.no_grad():
        bias[1, 0] = NEIGHBOUR_BIAS
        bias[num_buckets // 2 + 1, 1] = NEIGHBOUR_BIAS
