"""Trains the Q-Former's starting point: a BERT on masked words of captions and questions."""

from typing import Any

import numpy as np

from data_prep.miniature.language import describe
from data_prep.miniature.scenes import draw_scene
from data_prep.miniature.towers.fitting import fit
from data_prep.miniature.towers.position_waves import start_from_waves
from data_prep.miniature.towers.settings import TextSettings

MASKED_SHARE = 0.25
MAX_POSITIONS = 64
INITIAL_DEVIATION = 0.06
"""The standard deviation of new weights, also of the Q-Former. BERT-base's 0.02 is for rows six times as wide."""


def build_bert(settings: TextSettings, tokenizer: Any) -> Any:
    """A BertForMaskedLM with fresh weights."""
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=settings.width, num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads, intermediate_size=settings.ffn_width,
        max_position_embeddings=MAX_POSITIONS, pad_token_id=tokenizer.pad_token_id,
        initializer_range=INITIAL_DEVIATION,
    )  # fmt: skip
    model = BertForMaskedLM(config)
    start_from_waves(model.bert.embeddings.position_embeddings.weight, config.initializer_range)
    return model


def train_bert(settings: TextSettings, tokenizer: Any, seed: int) -> Any:
    """A BERT trained from scratch on masked captions, in eval mode."""
    import torch

    torch.manual_seed(seed)
    rng = np.random.default_rng((seed, 0xBE27))
    model = build_bert(settings, tokenizer)

    def loss_of_step(_: int) -> Any:
        captions = [describe(draw_scene(rng, held_out="never"), rng) for _ in range(settings.batch_size)]
        encoded = tokenizer(captions, padding=True, return_tensors="pt")
        ids = encoded.input_ids
        masked = torch.from_numpy(rng.random(tuple(ids.shape)) < MASKED_SHARE)
        masked &= encoded.attention_mask.bool() & (ids != tokenizer.cls_token_id) & (ids != tokenizer.sep_token_id)
        masked[:, 1] |= ~masked.any(dim=1)
        given = ids.masked_fill(masked, tokenizer.mask_token_id)
        labels = ids.masked_fill(~masked, -100)
        return model(input_ids=given, attention_mask=encoded.attention_mask, labels=labels).loss

    fit("bert", [(model.parameters(), 1.0)], loss_of_step, steps=settings.steps, learning_rate=settings.learning_rate)
    return model.eval()
