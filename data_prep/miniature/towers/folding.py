"""Folds the ranker's norm before its blocks into its embeddings: BLIP's and EVA's vision towers have no such norm."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Embeddings:
    """What a ViT adds up before its blocks, C numbers for each of P patches and the class token."""

    kernel_C3pp: Any
    positions_PC: Any
    """Of the class token, then of the patches. It holds the bias of the patches' kernel, too."""
    class_token_C: Any


def fold_first_norm(clip_vision: Any, pixels_B3SS: Any) -> Embeddings:
    """The embeddings of a CLIP vision tower without its norm: exact for the class token, else with its mean scale.

    `pixels_B3SS` are normalised pictures; they show the mean scale.
    """
    import torch

    embeddings, norm = clip_vision.embeddings, clip_vision.pre_layrnorm
    with torch.no_grad():
        scale = (norm.weight / embeddings(pixels_B3SS)[:, 1:].std(dim=-1, unbiased=False).mean())[:, None]

        def centred(columns: Any) -> Any:
            return scale * (columns - columns.mean(dim=0, keepdim=True))

        kernel, positions = embeddings.patch_embedding.weight, embeddings.position_embedding.weight
        folded = centred(positions.T).T + norm.bias
        first = norm(embeddings.class_embedding + positions[0])
        return Embeddings(centred(kernel.flatten(1)).view_as(kernel), folded, first - folded[0])
