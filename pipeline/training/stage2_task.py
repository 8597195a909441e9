"""Stage 2's step: a micro batch to the frozen language model's loss on the caption after soft prompts (section 3.3)."""

from torch import Tensor, nn

from pipeline.data.batch import Batch
from pipeline.models.language import LanguageTower
from pipeline.models.precision import autocast
from pipeline.models.stage2 import Stage2Bridge
from pipeline.models.vision import VisionTower
from pipeline.training.task import StepPlace, Towers


class Stage2Task(nn.Module):
    """The bridge is the only submodule: both frozen towers stay outside the engine."""

    def __init__(self, bridge: Stage2Bridge, vision: VisionTower, language: LanguageTower, precision: str) -> None:
        super().__init__()
        self.bridge, self.precision = bridge, precision
        self.towers = Towers(vision=vision, language=language)

    @staticmethod
    def num_scored_tokens(batch: Batch) -> int:
        """Every real token of the target."""
        return int(batch.target.is_token.sum())

    def forward(self, batch: Batch, place: StepPlace) -> dict[str, Tensor]:
        """The mean cross-entropy a token, `loss`. The mean over ranks and micro batches is the joined batch's loss."""
        with autocast(batch.pixels_B3SS.device.type, self.precision):  # the language model holds its own precision
            prompts_BQH = self.bridge(self.towers.vision(batch.pixels_B3SS))
        loss = self.towers.language.loss_sum(prompts_BQH, batch.context, batch.target) * place.token_weight
        return {"loss": loss, "language_loss": loss}
