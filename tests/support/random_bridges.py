"""Small random bridges and batches in float64, drawn so that every weight matters to every loss."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from pipeline.data.batch import Batch
from pipeline.models.qformer_layer import QFormerShape
from pipeline.models.stage1 import Stage1Bridge
from pipeline.models.stage2 import Stage2Bridge
from pipeline.tokens import pad_tokens

SHAPE = QFormerShape(
    width=24,
    num_layers=4,
    num_heads=3,
    ffn_width=40,
    vocabulary=50,
    max_positions=40,
    layer_norm_eps=1e-12,
    initializer_range=0.02,
    image_width=20,
    num_query_tokens=5,
    cross_attention_every=2,
    dropout=0.0,
)
PROJECTION_WIDTH = 12
IMAGE_TOKENS = 7
CLS, SEP, PAD, DECODE = 2, 3, 0, SHAPE.vocabulary - 1

Bridge = TypeVar("Bridge", bound=nn.Module)


def randomise(bridge: Bridge, seed: int) -> Bridge:
    """Large weights: with those of training's start, attention is nearly uniform and hides faults."""
    generator = torch.Generator().manual_seed(seed)
    bridge.double()
    with torch.no_grad():
        for name, parameter in bridge.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if name == "temperature":
                parameter.fill_(0.2)
            elif parameter.ndim == 1:
                parameter.copy_(noise * 0.2 + (1.0 if name.endswith("weight") else 0.0))  # a norm's weight, a bias
            else:
                parameter.copy_(noise * 0.3)
    return bridge


def random_stage1(seed: int = 0) -> Stage1Bridge:
    return randomise(Stage1Bridge(SHAPE, PROJECTION_WIDTH), seed)


def random_stage2(language_width: int, seed: int = 0, reads_questions: bool = False) -> Stage2Bridge:
    return randomise(Stage2Bridge(SHAPE, language_width, reads_questions=reads_questions), seed)


def random_images(count: int, seed: int = 0) -> Tensor:
    """Frozen features [count, P, I]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, IMAGE_TOKENS, SHAPE.image_width, generator=generator, dtype=torch.float64)


def random_text(length: int, generator: torch.Generator) -> list[int]:
    """[CLS] words [SEP] of `length` tokens in all; of one token, [CLS] alone."""
    words = torch.randint(4, DECODE, (max(0, length - 2),), generator=generator).tolist()
    return [CLS, *words, SEP][: max(1, length)]


def random_batch(lengths: Sequence[int], seed: int = 0, image_ids: Sequence[int] | None = None) -> Batch:
    """A stage-1 batch, a text of each length; its "pixels" are frozen features, for an identity as vision tower."""
    generator = torch.Generator().manual_seed(seed)
    texts = [random_text(length, generator) for length in lengths]
    ids = torch.tensor(list(image_ids if image_ids is not None else range(100, 100 + len(lengths))))
    return Batch(
        random_images(len(lengths), seed), ids, pad_tokens([[] for _ in texts], PAD), pad_tokens(texts, PAD), 0
    )
