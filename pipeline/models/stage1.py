"""The stage-1 bridge: a Q-Former with its text path, and the heads of the three losses (paper, section 3.2).

Shapes: B batch, Q queries, L text tokens, P image tokens, I image width, D width, E projection width, V vocabulary.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.precision import at_least_fp32
from pipeline.models.qformer import KeysValues, QFormer, QFormerShape

INITIAL_TEMPERATURE = 0.07  # divides the logits of ITC; learnable


class Stage1Bridge(nn.Module):
    """Everything that stage 1 trains: `ln_vision`, Q-Former, projections, matching head, temperature."""

    def __init__(self, shape: QFormerShape, projection_width: int) -> None:
        super().__init__()
        self.ln_vision = nn.LayerNorm(shape.image_width, eps=1e-5)
        self.qformer = QFormer(shape, has_text=True)
        self.vision_proj = nn.Linear(shape.width, projection_width)
        self.text_proj = nn.Linear(shape.width, projection_width)
        self.itm_head = nn.Linear(shape.width, 2)
        self.temperature = nn.Parameter(torch.tensor([INITIAL_TEMPERATURE]))  # 1-D: DeepSpeed broadcasts no 0-D

    def project_image(self, frozen_BPI: Tensor) -> list[KeysValues]:
        """The frozen tower's tokens, normalised in fp32, as each cross-attention layer's keys and values."""
        with torch.autocast(frozen_BPI.device.type, enabled=False):
            normalised = self.ln_vision(frozen_BPI)
        return self.qformer.project_image(normalised)

    def embed_queries(self, query_BQD: Tensor) -> Tensor:
        """ITC's image feature: each query's projection, unit length. [B, Q, E] fp32."""
        return functional.normalize(at_least_fp32(self.vision_proj(query_BQD)), dim=-1)

    def embed_text(self, ids_BL: Tensor, is_token_BL: Tensor) -> Tensor:
        """ITC's text feature: the projection of [CLS], unit length. [B, E] fp32."""
        cls_BD = self.qformer.encode_text(ids_BL, is_token_BL)[:, 0]
        return functional.normalize(at_least_fp32(self.text_proj(cls_BD)), dim=-1)

    def match(self, image: list[KeysValues], ids_BL: Tensor, is_token_BL: Tensor) -> Tensor:
        """ITM: two-class logits, averaged over the queries. [B, 2] fp32, class 1 = match."""
        query_BQD = self.qformer.encode_pairs(image, ids_BL, is_token_BL)
        return at_least_fp32(self.itm_head(query_BQD)).mean(dim=1)
