"""The stage-2 bridge: the Q-Former's query path and a linear layer into the language model (paper, section 3.3).

Shapes: B batch, Q queries, P image tokens, I image width, H language model width.
"""

from torch import Tensor, nn

from pipeline.models.qformer import QFormer
from pipeline.models.qformer_layer import QFormerShape
from pipeline.tokens import Tokens


class Stage2Bridge(nn.Module):
    """Everything that stage 2 trains: `ln_vision`, the query path, the projection to soft prompts, the image encoder if
    it is trained, the text path if the Q-Former reads questions, and LoRA's matrices, which the language model runs."""

    def __init__(
        self,
        shape: QFormerShape,
        language_width: int,
        vision: nn.Module | None = None,
        reads_questions: bool = False,
        lora: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.vision, self.lora = vision, lora
        self.ln_vision = nn.LayerNorm(shape.image_width, eps=1e-5)
        self.qformer = QFormer(shape, "read" if reads_questions else "none")
        self.language_projection = nn.Linear(shape.width, language_width)

    def forward(self, image_NPI: Tensor, question: Tokens | None = None, image_of_B: Tensor | None = None) -> Tensor:
        """The image encoder's tokens -> soft prompts for the language model. [B, Q, H].

        With a `question` [B, L] for each, queries and question read each other. `image_of_B` says which of N images
        an entry has; without it, each has its own.
        """
        weights = self.qformer.weights(self.ln_vision)
        image = self.qformer.project_image(image_NPI, weights)
        if question is None:
            query_BQD, _ = self.qformer.encode_queries(image, weights)
            query_BQD = query_BQD if image_of_B is None else query_BQD[image_of_B]
        else:
            if image_of_B is not None:
                image = [(keys[image_of_B], values[image_of_B]) for keys, values in image]
            query_BQD = self.qformer.encode_pairs([(image, len(question.ids))], question, weights)
        prompts: Tensor = self.language_projection(query_BQD)
        return prompts
