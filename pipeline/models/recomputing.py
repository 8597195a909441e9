"""Layers that keep only their input for the backward pass, and compute the rest again there."""

from functools import partial
from typing import Any


def checkpoint_layers(model: Any) -> None:
    """Of a model of transformers: change each layer in place.

    transformers' own switch acts in training mode alone, and a frozen tower stays in evaluation mode. Loss and gradient
    are equal to the bit; of the bytes that 12 layers keep, a sixth is left.
    """
    from torch.utils.checkpoint import checkpoint
    from transformers.modeling_layers import GradientCheckpointingLayer

    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)  # type: ignore[method-assign]
