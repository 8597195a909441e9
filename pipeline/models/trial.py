"""One small pass through a frozen tower before a run: a model that cannot serve is an error at once, in one line.

A recipe can name any timm or transformers model, but not every one can serve. A list of architectures would grow old.
"""

from typing import Any

import torch
from torch import Tensor

from pipeline.config import Language, Vision
from pipeline.models.language import Decoding, LanguageTower
from pipeline.models.loading import first_line
from pipeline.models.vision import TrainedVision, VisionTower
from pipeline.tokens import Tokens

NUM_PROMPTS = 2
MAX_DIFFERENCE = 0.05  # of two passes over one picture, relative to the largest value; kernels may sum in any order


@torch.no_grad()
def try_vision(tower: VisionTower | TrainedVision, settings: Vision) -> None:
    """Encode one picture twice. Raises ValueError when that fails, or gives no fixed sequence of tokens."""
    side = settings.image_size_px
    values = torch.arange(3 * side * side, device=tower.get_buffer("mean").device) % 251
    pixels_B3SS = values.to(torch.uint8).view(1, 3, side, side)
    training = tower.training
    tower.eval()
    try:
        tokens, again = tower(pixels_B3SS), tower(pixels_B3SS)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # every architecture has its own kinds
        raise ValueError(
            f"vision.name {settings.name!r}: cannot encode a picture of {side} px ({first_line(error)}); set another "
            "vision.image_size_px, or name a plain ViT"
        ) from error
    tower.train(training)
    fault = _fault_of_tokens(tokens, again, tower.width)
    if fault:
        raise ValueError(f"vision.name {settings.name!r}: cannot serve as the image encoder, {fault}; name a plain ViT")


def _fault_of_tokens(tokens: Any, again: Any, width: int) -> str | None:
    if not isinstance(tokens, Tensor) or tokens.ndim != 3 or tokens.shape[2] != width:
        found = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
        return f"its blocks give {found}, not tokens of its width {width}"
    if not bool(tokens.isfinite().all()):
        return "its tokens are not finite numbers"
    if tokens.shape != again.shape or (tokens - again).abs().max() > MAX_DIFFERENCE * tokens.abs().max():
        return "it gives other tokens for the same picture each time"
    return None


def try_language(tower: LanguageTower, settings: Language) -> None:
    """Score two tokens after soft prompts, with a gradient, and write two. Raises ValueError when that fails."""
    embeddings = tower.model.get_input_embeddings().weight
    prompts_BQH = embeddings.new_zeros((1, NUM_PROMPTS, tower.width)).requires_grad_()
    ids_BL = torch.full((1, 2), tower.tokenizer.eos_token_id or 0, device=embeddings.device)
    text = Tokens(ids_BL, torch.ones_like(ids_BL, dtype=torch.bool))
    try:
        loss = tower.loss_sum(prompts_BQH, text, text)
        [gradient] = torch.autograd.grad(loss, prompts_BQH)
        tower.generate(prompts_BQH.detach(), ["a photo of"], Decoding(num_beams=2, max_new_tokens=2))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # every architecture has its own kinds
        raise ValueError(
            f"language.name {settings.name!r} in {settings.precision}: does not work with soft prompts "
            f"({first_line(error)}); name a causal or seq2seq language model of transformers that takes inputs_embeds"
        ) from error
    if not bool(loss.isfinite() and gradient.isfinite().all()):
        raise ValueError(
            f"language.precision {settings.precision!r}: the loss or gradient of {settings.name!r} is not finite; use "
            "another precision"
        )
