"""What the steps of both stages share: the place of a micro batch in its step, and the frozen towers."""

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from pipeline.data.batch import Batch
from pipeline.models.fingerprint import fingerprint
from pipeline.training.faults import LossScale


@dataclass(frozen=True)
class StepPlace:
    """What a micro batch must know of the whole step.

    `token_weight` is ranks x accumulation / scored tokens of the whole step. A summed token loss times this weight,
    averaged over ranks and micro batches, is the mean over all the step's tokens. `most_texts` is how many texts this
    micro batch has on the rank where it has most.
    """

    rank: int
    token_weight: float
    longest_target: int
    negatives_seed: int
    ranks: int = 1
    most_texts: int = 0

    def step_tokens(self, passes: int) -> float:
        """Scored tokens of the whole step."""
        return self.ranks * passes / self.token_weight


@dataclass(frozen=True)
class Towers:
    """Frozen models, hidden from torch's module tree so that no engine partitions, casts or saves them.

    `vision` is None where the image encoder is trained: it is then a part of the bridge.
    """

    vision: nn.Module | None
    language: Any = None

    def image_tokens(self, batch: Batch, trained: nn.Module | None) -> Tensor:
        """The image encoder's tokens of a micro batch; those of a frozen one may have been made ahead. [B, P, I]."""
        if batch.frozen_BPI is not None:
            return batch.frozen_BPI
        vision = self.vision or trained
        assert vision is not None, "an encoder is either frozen or trained"
        tokens_BPI: Tensor = vision(batch.pixels_B3SS)
        return tokens_BPI

    def fingerprints(self) -> dict[str, str]:
        """A fingerprint of each tower's weights, to notice when they have changed."""
        found = {"vision": fingerprint(self.vision)} if self.vision else {}
        return found | ({"language": fingerprint(self.language.model)} if self.language else {})


def vision_of(task: Any) -> nn.Module:
    """A task's image encoder, frozen or trained."""
    vision: nn.Module = task.towers.vision or task.bridge.vision
    return vision


class Task(Protocol):
    """A stage, as the training loop sees it: an nn.Module whose parameters are the bridge's."""

    bridge: nn.Module
    towers: Towers
    loss_scale: LossScale

    @staticmethod
    def num_scored_tokens(batch: Batch) -> int:
        """Tokens over which the stage's token loss is a mean."""

    def __call__(self, batch: Batch, place: StepPlace) -> dict[str, Tensor]:
        """Named losses and measures; `loss` is what is minimised."""
