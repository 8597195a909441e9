"""Decodes many captions of an image with BLIP's text decoder; the keys and values of the image are computed once.

transformers' own `generate(num_return_sequences=S)` repeats the image's tokens S times, projects cross-attention keys
and values for each copy, and has no SDPA for BLIP. Here the modules of the loaded decoder are called directly. The keys
and values of an image are projected once, and its S samples are S times as many queries of one attention.

Shapes: B images, S samples an image, N = B*S sequences (the samples of an image side by side), L new and T cached
tokens, P image tokens, H heads, D width of a head, W width of the decoder, V words, E width of the image encoder.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


@dataclass
class DecoderState:
    """What decoding keeps from token to token: for each layer the keys and values of the image and of the tokens."""

    cross: list[tuple[Tensor, Tensor]]
    """For each layer [B, H, P, D] keys and values."""
    past: list[tuple[Tensor, Tensor]]
    """For each layer [N, H, capacity, D] keys and values, filled up to `length`."""
    length: int = 0


class FoldedDecoder:
    """Decodes step by step with the modules of a `BlipTextLMHeadModel`; it has no weights of its own."""

    def __init__(self, decoder: Any) -> None:
        self.embeddings = decoder.bert.embeddings
        self.layers = decoder.bert.encoder.layer
        self.head = decoder.cls
        self.num_heads = int(decoder.config.num_attention_heads)

    def start(self, image_BPE: Tensor, capacity: int) -> DecoderState:
        """Project the keys and values of each image once; make room for `capacity` tokens of one sequence per image."""
        cross, past = [], []
        for layer in self.layers:
            attention = layer.crossattention.self
            cross.append((self._heads(attention.key(image_BPE)), self._heads(attention.value(image_BPE))))
            key_BHPD = cross[-1][0]
            room = (key_BHPD.shape[0], self.num_heads, capacity, key_BHPD.shape[-1])
            past.append((key_BHPD.new_zeros(room), key_BHPD.new_zeros(room)))
        return DecoderState(cross, past)

    def widen(self, state: DecoderState, num_samples: int) -> None:
        """Turn one sequence per image into `num_samples`, which share what was decoded so far (the prompt)."""
        state.past = [
            (key.repeat_interleave(num_samples, 0), value.repeat_interleave(num_samples, 0))
            for key, value in state.past
        ]

    def advance(self, state: DecoderState, tokens_NL: Tensor) -> Tensor:
        """Append tokens to every sequence; returns the last layer's output [N, W] at the last of them.

        The first call may append several tokens (the prompt), every later one appends one.
        """
        length = tokens_NL.shape[1]
        assert length == 1 or state.length == 0
        hidden_NLW = self.embeddings(input_ids=tokens_NL, past_key_values_length=state.length)
        for layer, cross, past in zip(self.layers, state.cross, state.past, strict=True):
            hidden_NLW = self._attend_to_tokens(layer.attention, hidden_NLW, past, state.length)
            hidden_NLW = self._attend_to_image(layer.crossattention, hidden_NLW, cross)
            hidden_NLW = layer.feed_forward_chunk(hidden_NLW)
        state.length += length
        last_NW: Tensor = hidden_NLW[:, -1]
        return last_NW

    def logits(self, hidden_NW: Tensor) -> Tensor:
        """[N, W] -> [N, V], float32: the scores of the token that follows."""
        logits_NV: Tensor = self.head(hidden_NW)
        return logits_NV.float()

    def _attend_to_tokens(self, block: Any, hidden_NLW: Tensor, past: tuple[Tensor, Tensor], start: int) -> Tensor:
        """Causal self-attention over the cached and the new tokens; the new ones are added to the cache in place."""
        attention, end = block.self, start + hidden_NLW.shape[1]
        key_NHTD, value_NHTD = past
        key_NHTD[:, :, start:end] = self._heads(attention.key(hidden_NLW))
        value_NHTD[:, :, start:end] = self._heads(attention.value(hidden_NLW))
        context_NHLD = scaled_dot_product_attention(
            self._heads(attention.query(hidden_NLW)),
            key_NHTD[:, :, :end],
            value_NHTD[:, :, :end],
            is_causal=start == 0,
        )
        output: Tensor = block.output(context_NHLD.transpose(1, 2).flatten(2), hidden_NLW)
        return output

    def _attend_to_image(self, block: Any, hidden_NLW: Tensor, cross: tuple[Tensor, Tensor]) -> Tensor:
        """Cross-attention: all samples of an image are queries of one attention over the tokens of that image."""
        key_BHPD, value_BHPD = cross
        num_sequences, length, _ = hidden_NLW.shape
        folded = hidden_NLW.reshape(key_BHPD.shape[0], -1, hidden_NLW.shape[-1])  # [B, S*L, W]
        context = scaled_dot_product_attention(self._heads(block.self.query(folded)), key_BHPD, value_BHPD)
        context_NLW = context.transpose(1, 2).reshape(num_sequences, length, -1)
        output: Tensor = block.output(context_NLW, hidden_NLW)
        return output

    def _heads(self, states: Tensor) -> Tensor:
        """[X, L, W] -> [X, H, L, D]"""
        return states.view(*states.shape[:2], self.num_heads, -1).transpose(1, 2)
