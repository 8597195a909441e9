"""The stage-2 bridge: the Q-Former's query path and a linear layer into the language model (paper, section 3.3).

Shapes: B batch, Q queries, P image tokens, I image width, H language model width.
"""

from torch import Tensor, nn

from pipeline.models.qformer import QFormer
from pipeline.models.qformer_layer import QFormerShape


class Stage2Bridge(nn.Module):
    """Everything that stage 2 trains: `ln_vision`, the query path, the projection to soft prompts, and the image
    encoder if it is trained."""

    def __init__(self, shape: QFormerShape, language_width: int, vision: nn.Module | None = None) -> None:
        super().__init__()
        self.vision = vision
        self.ln_vision = nn.LayerNorm(shape.image_width, eps=1e-5)
        self.qformer = QFormer(shape, has_text=False)
        self.language_projection = nn.Linear(shape.width, language_width)

    def forward(self, image_BPI: Tensor) -> Tensor:
        """The image encoder's tokens -> soft prompts for the language model. [B, Q, H]."""
        weights = self.qformer.weights(self.ln_vision)
        query_BQD, _ = self.qformer.encode_queries(self.qformer.project_image(image_BPI, weights), weights)
        prompts: Tensor = self.language_projection(query_BQD)
        return prompts
