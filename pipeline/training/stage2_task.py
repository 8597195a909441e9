"""Stage 2's step: a micro batch to the frozen language model's loss on the caption after soft prompts (section 3.3)."""

import torch
from torch import Tensor, nn

from pipeline.data.batch import Batch
from pipeline.models.language import LanguageTower
from pipeline.models.precision import autocast
from pipeline.models.stage2 import Stage2Bridge
from pipeline.models.vision import VisionTower
from pipeline.training.faults import INITIAL_SCALE, LossScale
from pipeline.training.task import StepPlace, Towers


class Stage2Task(nn.Module):
    """The bridge is the only submodule, unless the language model is sharded: then that one is in the engine, too."""

    def __init__(
        self,
        bridge: Stage2Bridge,
        vision: VisionTower | None,
        language: LanguageTower,
        precision: str,
        sharded: bool = False,
    ) -> None:
        super().__init__()
        if sharded:
            self.language_model: nn.Module = language.model
        self.bridge, self.precision = bridge, precision
        self.towers = Towers(vision, language=language)
        self.loss_scale = LossScale()
        if language.model.dtype == torch.float16:
            self.loss_scale = LossScale(INITIAL_SCALE, dynamic=True)

    def train(self, mode: bool = True) -> "Stage2Task":
        """Sets the bridge's mode; a frozen tower has no training mode."""
        super().train(mode)
        self.towers.language.model.eval()
        return self

    @staticmethod
    def num_scored_tokens(batch: Batch) -> int:
        """Every real token of the target."""
        return batch.target.num_real()

    def forward(self, batch: Batch, place: StepPlace) -> dict[str, Tensor]:
        """The mean cross-entropy a token, `loss`. The mean over ranks and micro batches is the joined batch's loss.

        Its gradient is to be that of `loss` times `loss_scale`; the bridge gets it unscaled.
        """
        with autocast(batch.pixels_B3SS.device.type, self.precision):  # the language model holds its own precision
            prompts_BQH = self.bridge(self.towers.image_tokens(batch, self.bridge.vision), batch.question)
        if prompts_BQH.requires_grad and self.loss_scale.value != 1:
            # Unscale where the gradient leaves the fp16 tower: the bridge has fp32 weights and needs no scaling.
            prompts_BQH = prompts_BQH.float()
            prompts_BQH.register_hook(lambda gradient: gradient / self.loss_scale.value)
        texts = batch.context, batch.target, batch.loss_weights_B
        loss = self.towers.language.loss_sum(prompts_BQH, *texts) * place.token_weight
        return {"loss": loss, "language_loss": loss, "language_nll": loss}
