"""Stage 2's step: a micro batch to the frozen language model's loss on the caption after soft prompts (section 3.3).

Shapes: B samples, Q soft prompts, H width of the language model, A texts: B, or all answers to B questions.
"""

from collections.abc import Sequence
from itertools import groupby, pairwise

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

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
        asks: bool = False,
    ) -> None:
        """With `asks` a sample is a question, and the loss a mean over questions, not over tokens."""
        super().__init__()
        if sharded:
            self.language_model: nn.Module = language.model
        self.bridge, self.precision, self.asks = bridge, precision, asks
        self.towers = Towers(vision, language=language)
        self.loss_scale = LossScale()
        if language.model.dtype == torch.float16:
            self.loss_scale = LossScale(INITIAL_SCALE, dynamic=True)
            for parameter in bridge.lora.parameters() if bridge.lora else ():
                parameter.register_hook(self._unscaled)  # type: ignore[no-untyped-call]

    def train(self, mode: bool = True) -> "Stage2Task":
        """Sets the bridge's mode; a frozen tower has no training mode."""
        super().train(mode)
        self.towers.language.model.eval()
        if self.bridge.lora is not None:  # the language model holds it, too, and only its dropout has a mode
            self.bridge.lora.train(mode)
        return self

    def _unscaled(self, gradient: Tensor) -> Tensor:
        """A gradient as it leaves the fp16 tower for what has fp32 weights."""
        return gradient / self.loss_scale.value

    @staticmethod
    def num_scored_tokens(batch: Batch) -> int:
        """Every real token of the target."""
        return batch.target.num_real()

    def forward(self, batch: Batch, place: StepPlace | None) -> dict[str, Tensor]:
        """The mean cross-entropy, `loss`: a token's, or, where samples are questions, that of a whole answer.

        The mean over ranks and micro batches is the joined batch's loss. `language_nll` is always a token's; it is left
        out where questions have several answers.

        Its gradient is to be that of `loss` times `loss_scale`; the bridge gets it unscaled. Without a place there is
        no loss: only the soft prompts, `prompts`, of which text is written.
        """
        with autocast(batch.pixels_B3SS.device.type, self.precision):  # the language model holds its own precision
            prompts_BQH = self.bridge(self.towers.image_tokens(batch, self.bridge.vision), batch.question)
        if place is None:
            return {"prompts": prompts_BQH}
        if prompts_BQH.requires_grad and self.loss_scale.value != 1:
            # Unscale where the gradient leaves the fp16 tower: the bridge has fp32 weights and needs no scaling.
            prompts_BQH = prompts_BQH.float()
            prompts_BQH.register_hook(self._unscaled)
        if batch.answers is None:
            texts = batch.interleaved or batch.context, batch.target, batch.loss_weights_A
            loss_sum = self.towers.language.loss_sum(prompts_BQH, *texts)
        else:
            loss_sum = self._answers_loss_sum(prompts_BQH, batch, batch.answers, place.most_texts)
        loss_a_token = loss_sum * place.token_weight
        loss = loss_sum / len(batch.image_ids_B) if self.asks else loss_a_token
        return {"loss": loss, "language_loss": loss} | ({} if batch.answers else {"language_nll": loss_a_token})

    def _answers_loss_sum(self, prompts_BQH: Tensor, batch: Batch, answers: Sequence[int], most_texts: int) -> Tensor:
        """The weighted loss of all answers: sum over a of weight_a * (-log p(answer_a | its question's soft prompts)).

        Image encoder and Q-Former ran once for each question; the language model runs once for each answer, B at a
        time. Only one such part is in memory: the backward pass computes each again. All ranks have the same number
        of parts, that of the rank with most texts, since a sharded language model gathers its weights in each.
        """
        language, size, total = self.towers.language, len(answers), sum(answers)
        parts = -(-max(most_texts, total) // size)
        weights_A = batch.loss_weights_A
        if weights_A is None:
            weights_A = torch.ones(total, device=prompts_BQH.device)
        of_A = [sample for sample, count in enumerate(answers) for _ in range(count)]

        def loss_of(prompts_BQH: Tensor, begin: int, end: int) -> Tensor:
            empty = begin == end  # more parts than texts: the first text stands in, with weight 0
            some = slice(0, 1) if empty else slice(begin, end)
            weights = weights_A[some] * (not empty)
            repeated_AQH = _repeated(prompts_BQH, of_A[some])
            loss: Tensor = language.loss_sum(repeated_AQH, batch.context[some], batch.target[some], weights)
            return loss

        if parts == 1:
            return loss_of(prompts_BQH, 0, total)
        random = self.bridge.lora is not None  # its dropout
        cuts = [total * part // parts for part in range(parts + 1)]
        losses = [
            checkpoint(loss_of, prompts_BQH, begin, end, use_reentrant=False, preserve_rng_state=random)
            for begin, end in pairwise(cuts)
        ]
        return torch.stack(losses).sum()


def _repeated(prompts_BQH: Tensor, of_A: Sequence[int]) -> Tensor:
    """The soft prompts of each text's sample, [A, Q, H]. The gradient of an index would be added up in any order."""
    counts = [(sample, len(list(same))) for sample, same in groupby(of_A)]
    return torch.cat([prompts_BQH[sample : sample + 1].expand(count, -1, -1) for sample, count in counts])
