"""Whether a prompt and what is to be written after it fit into a language model's positions. L places, H width."""

from typing import Any

from torch import Tensor


def check_length(config: Any, embeddings_BLH: Tensor, max_new_tokens: int) -> None:
    """Raises ValueError for more positions than the model has. On a GPU, reading a position beyond its table would end
    the process's CUDA context; so a long conversation must not get there."""
    most = getattr(config, "max_position_embeddings", None)
    needed = embeddings_BLH.shape[1] + (0 if config.is_encoder_decoder else max_new_tokens - 1)  # the last is not read
    if most is not None and needed > most:
        raise ValueError(f"prompt: takes {needed} positions with the picture and what is written, and the language "
                         f"model has {most}; shorten it, or repeat fewer turns")  # fmt: skip
