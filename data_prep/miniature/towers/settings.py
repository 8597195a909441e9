"""Defines the size and the training of every tower: the numbers from which `making` makes them.

Every number is part of the digest by which a finished tower is recognised, so a change makes that tower again.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class TextSettings:
    """Size and training of a text tower with one kind of layer: the BERT and the OPT."""

    width: int
    layers: int
    heads: int
    ffn_width: int
    batch_size: int
    steps: int
    learning_rate: float


@dataclass(frozen=True)
class T5Settings:
    """Size and training of the T5."""

    distance_learning_share: float = 10.0
    """The factor for the learning rate of the relative position biases."""
    tied: int = 1
    """1: the head has the weights of the embeddings; 0: weights of its own."""
    width: int = 96
    encoder_layers: int = 3
    decoder_layers: int = 2
    heads: int = 4
    ffn_width: int = 256
    batch_size: int = 48
    steps: int = 600
    learning_rate: float = 2e-3


@dataclass(frozen=True)
class BlipSettings:
    """Size and training of the captioner; its vision tower has the size of the ranker's."""

    text_width: int = 128
    text_layers: int = 3
    text_heads: int = 4
    batch_size: int = 64
    """The number of pictures, each with one of its captions."""
    steps: int = 800
    learning_rate: float = 2e-3


@dataclass(frozen=True)
class ClipSettings:
    """Size and training of the ranker."""

    image_size_px: int = 64
    patch_size_px: int = 16
    projection_width: int = 96
    """The width of the embeddings of pictures and texts."""
    vision_width: int = 128
    vision_layers: int = 4
    vision_heads: int = 4
    text_width: int = 128
    text_layers: int = 2
    text_heads: int = 4
    groups: int = 2000
    """The number of groups of scenes that are drawn for training."""
    groups_per_batch: int = 32
    junk_texts: int = 16
    """The number of junk texts among the captions of a batch."""
    dense_weight: float = 1.0
    """The weight of the auxiliary loss."""
    steps: int = 500
    learning_rate: float = 2e-3


BERT = TextSettings(width=128, layers=4, heads=4, ffn_width=256, batch_size=64, steps=250, learning_rate=1e-3)
"""The Q-Former takes the shape of this BERT."""
OPT = TextSettings(width=96, layers=4, heads=4, ffn_width=384, batch_size=48, steps=1000, learning_rate=1.5e-3)
CLIP = ClipSettings()
BLIP = BlipSettings()
T5 = T5Settings()
