"""The stage-1 bridge: a Q-Former with its text path, and the heads of the three losses (paper, section 3.2).

Shapes: B batch, Q queries, L text tokens, P image tokens, I image width, D width, E projection width, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.precision import at_least_fp32
from pipeline.models.qformer import PassWeights, QFormer
from pipeline.models.qformer_layer import KeysValues, QFormerShape
from pipeline.tokens import Tokens

INITIAL_TEMPERATURE = 0.07  # divides the logits of ITC; learnable


class Stage1Bridge(nn.Module):
    """Everything that stage 1 trains: `ln_vision`, Q-Former, projections, matching head, temperature, and the image
    encoder if it is trained."""

    def __init__(self, shape: QFormerShape, projection_width: int, vision: nn.Module | None = None) -> None:
        super().__init__()
        self.vision = vision
        self.ln_vision = nn.LayerNorm(shape.image_width, eps=1e-5)
        self.qformer = QFormer(shape, "write")
        self.vision_proj = nn.Linear(shape.width, projection_width)
        self.text_proj = nn.Linear(shape.width, projection_width)
        self.itm_head = nn.Linear(shape.width, 2)
        self.temperature = nn.Parameter(torch.tensor([INITIAL_TEMPERATURE]))  # 1-D: DeepSpeed broadcasts no 0-D

    def weights(self) -> PassWeights:
        """What the passes below share, within one step or for a model that is not trained."""
        return self.qformer.weights(self.ln_vision)

    def embed_queries(self, query_BQD: Tensor) -> Tensor:
        """ITC's image feature: each query's projection, unit length. [B, Q, E] fp32."""
        return functional.normalize(_in_fp32(self.vision_proj, query_BQD), dim=-1)

    def embed_text(self, cls_BD: Tensor) -> Tensor:
        """ITC's text feature: the projection of [CLS], unit length. [B, E] fp32."""
        return functional.normalize(_in_fp32(self.text_proj, cls_BD), dim=-1)

    def match(self, images: Sequence[tuple[list[KeysValues], int]], text: Tokens, weights: PassWeights) -> Tensor:
        """ITM: two-class logits, averaged over the queries. [B, 2] fp32, class 1 = match. See `encode_pairs`."""
        return _in_fp32(self.itm_head, self.qformer.encode_pairs(images, text, weights)).mean(dim=1)


def _in_fp32(head: nn.Linear, rows: Tensor) -> Tensor:
    """A head's product, never in less than fp32: it is small, and ITC's temperature magnifies its rounding."""
    with torch.autocast(rows.device.type, enabled=False):
        product: Tensor = head(at_least_fp32(rows))
    return product
