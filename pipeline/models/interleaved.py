"""Sequences of several pictures and texts through a language model: its inputs, and its head on scored places alone.

Shapes: B pairs, Q soft prompts, S sequences, M places of the longest, H width of the language model.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pipeline.config import Recipe
from pipeline.models.token_losses import packed_loss_sum
from pipeline.tokens import Interleaved, Places, Tokens, true_places


def embedded(embed_tokens: Any, prompts_BQH: Tensor, sequences: Interleaved) -> Tensor:
    """The sequences' embeddings [S, M, H], with each pair's soft prompts at its places."""
    texts_SMH = embed_tokens(sequences.text.ids)
    rows_RH = _in_order(prompts_BQH, sequences.pairs).flatten(0, 1)
    places = true_places(sequences.is_prompt, len(rows_RH))
    return torch.where(sequences.is_prompt[..., None], places.pad(rows_RH.to(texts_SMH.dtype)), texts_SMH)


def _in_order(prompts_BQH: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """The soft prompts of all sequences, one after the other. The gradient of an index would have no fixed order."""
    if sum(after - first for first, after in pairs) == len(prompts_BQH):  # each is in one sequence
        return prompts_BQH
    return torch.cat([prompts_BQH[first:after] for first, after in pairs])


@contextmanager
def head_at(model: Any, places: Places) -> Iterator[None]:
    """Within, the model's head reads these places alone: logits are [1, places, vocabulary], its largest tensor.

    transformers' `logits_to_keep` takes the same places of every sequence.
    """
    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _head, inputs: (places.pack(inputs[0])[None], *inputs[1:]))
    try:
        yield
    finally:
        handle.remove()


def causal_loss_sum(
    model: Any, embeddings_SMH: Tensor, sequences: Interleaved, target: Tokens, weights_B: Tensor | None
) -> Tensor:
    """The cross-entropy of every pair's target. Padding comes last, where causal attention hides it."""
    with head_at(model, true_places(sequences.predicts, target.count)):
        output = model(inputs_embeds=embeddings_SMH, attention_mask=None, use_cache=False)
    return packed_loss_sum(output.logits[0], target, weights_B)


def check_positions(tower: Any, recipe: Recipe) -> None:
    """Raises ValueError when a sequence may not fit the positions of the model, where it has a table of them."""
    assert recipe.language is not None
    pairs, prompts = recipe.data.pairs_per_sequence, recipe.qformer.num_query_tokens
    most = getattr(tower.model.config, "max_position_embeddings", None)
    text = recipe.data.max_text_tokens
    if tower.kind == "seq2seq" and recipe.language.prompt:  # the prompt and the text have so many each
        text *= 2
    end = len(tower.tokenizer(recipe.language.end_text, add_special_tokens=False).input_ids)
    places = pairs * (prompts + text + end)
    if pairs > 1 and most is not None and places > most:
        raise ValueError(
            f"data.pairs_per_sequence {pairs}: each has {prompts} soft prompts, {text} tokens of text and {end} of its "
            f"end, {places} in all, and the language model has {most} positions; lower it, or data.max_text_tokens"
        )
