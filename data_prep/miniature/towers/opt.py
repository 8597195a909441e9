"""Trains the causal language tower: an OPT on text alone, as `description </s> text \\n`."""

from typing import Any

import numpy as np

from data_prep.miniature.towers.fitting import fit, mean_over_samples
from data_prep.miniature.towers.position_waves import start_from_waves
from data_prep.miniature.towers.settings import TextSettings
from data_prep.miniature.towers.text_samples import TextSample, text_batches
from data_prep.miniature.towers.vocabulary import opt_tokenizer

MAX_POSITIONS = 128
"""Enough for soft prompts, a question and its answer."""


def build_opt(settings: TextSettings) -> Any:
    """An OPTForCausalLM with new weights. Its tokenizer is `opt_tokenizer`."""
    from transformers import OPTConfig, OPTForCausalLM

    tokenizer = opt_tokenizer()
    config = OPTConfig(
        vocab_size=len(tokenizer), hidden_size=settings.width, num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads, ffn_dim=settings.ffn_width, word_embed_proj_dim=settings.width,
        max_position_embeddings=MAX_POSITIONS, dropout=0.0, attention_dropout=0.0,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = OPTForCausalLM(config)
    start_from_waves(model.model.decoder.embed_positions.weight, config.init_std)
    return model


def train_opt(settings: TextSettings, seed: int) -> Any:
    """An OPT trained from scratch to continue captions and to answer questions, in eval mode."""
    import torch

    torch.manual_seed(seed)
    rng = np.random.default_rng((seed, 0x097))
    model, tokenizer = build_opt(settings), opt_tokenizer()
    batches = text_batches(settings.batch_size, rng)

    def loss_of_step(_: int) -> Any:
        rows = [_tokens(sample, tokenizer) for sample in next(batches)]
        length = max(len(ids) for ids, _ in rows)
        ids = torch.full((len(rows), length), tokenizer.pad_token_id)
        labels = torch.full((len(rows), length), -100)
        mask = torch.zeros(len(rows), length, dtype=torch.long)
        for i, (row, num_given) in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            labels[i, num_given : len(row)] = ids[i, num_given : len(row)]
            mask[i, : len(row)] = 1
        logits = model(input_ids=ids, attention_mask=mask).logits
        return mean_over_samples(logits[:, :-1], labels[:, 1:])

    fit("opt", [(model.parameters(), 1.0)], loss_of_step, steps=settings.steps, learning_rate=settings.learning_rate)
    return model.eval()


def _tokens(sample: TextSample, tokenizer: Any) -> tuple[list[int], int]:
    """Token ids, and how many of them are given. All of a caption is scored, but only the answer of a question."""
    description = tokenizer(sample.description, add_special_tokens=False).input_ids
    prompt = tokenizer(sample.prompt).input_ids
    target = tokenizer(f"{sample.target}\n", add_special_tokens=False).input_ids
    is_question = sample.prompt.startswith("question")
    return description + prompt + target, len(description) + (len(prompt) if is_question else 0)
