"""What is prepared ahead is what a step needs, in order; a loader's error waits until its batch is asked for."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.config import load_recipe
from pipeline.data.batch import Batch
from pipeline.training.ahead import Ahead
from pipeline.training.faults import LossScale
from pipeline.training.step import train_step
from tests.support.random_bridges import random_batch


class Encoder(nn.Module):
    """Twice the pixels; it remembers the batches that it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, pixels: Tensor) -> Tensor:
        self.seen.append(pixels.shape[0])
        return pixels * 2


def sized_batches(sizes: list[int], fault_after: int | None = None) -> Iterator[Batch]:
    for number, size in enumerate(sizes):
        if number == fault_after:
            raise ValueError("a damaged shard")
        yield random_batch([4] * size, seed=size)


def run(ahead: Ahead) -> Iterator[int]:
    """Train as a step does, without a model: the sizes of the micro batches, after each is done."""
    for step in ahead.steps():
        for part, batch in enumerate(step):
            taken = ahead.take(batch)
            assert taken.frozen_BPI is not None and torch.equal(taken.frozen_BPI, batch.pixels_B3SS * 2)
            assert torch.equal(taken.target.ids, batch.target.ids)
            ahead.begin_after(step, part)
            yield len(batch.image_ids_B)


def test_each_micro_batch_is_encoded_once_and_one_ahead() -> None:
    encoder = Encoder()
    ahead, done = Ahead(sized_batches([1, 2, 3, 4, 5]), 2, torch.device("cpu"), encoder), []
    for size in run(ahead):
        done.append(size)
        assert encoder.seen == [1, 2, 3, 4][: size + 1]
    assert done == [1, 2, 3, 4]  # the fifth is no whole step


def test_an_error_of_the_next_step_comes_after_this_step() -> None:
    ahead, done = Ahead(sized_batches([1, 2, 3], fault_after=2), 1, torch.device("cpu"), Encoder()), []
    with pytest.raises(ValueError, match="a damaged shard"):
        for size in run(ahead):
            done.append(size)
    assert done == [1, 2]


class Engine:
    """What a step asks of DeepSpeed, noted in order."""

    def __init__(self, said: list[str]) -> None:
        self.said, self.device, self.module = said, torch.device("cpu"), SimpleNamespace(loss_scale=LossScale())
        self.weight = nn.Parameter(torch.ones(1))
        self.optimizer: Any = torch.optim.SGD([{"params": [self.weight], "factor": 1.0}], lr=0.1)
        self.optimizer.overflow = False

    def __call__(self, _batch: Batch, _place: object) -> dict[str, Tensor]:
        return {"loss": (self.weight * 2).sum()}

    def backward(self, loss: Tensor) -> None:
        self.said.append("backward")
        loss.backward()

    def step(self) -> None:
        self.said.append("step")


def test_a_step_lets_the_next_batch_begin_when_gradients_are_there_and_before_it_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The order that hides the network behind the encoder on a GPU."""
    said: list[str] = []
    ahead = Ahead(sized_batches([1, 2]), 1, torch.device("cpu"), Encoder())
    monkeypatch.setattr(ahead, "watch", lambda loss: loss.register_hook(lambda _: said.append("watched")))
    monkeypatch.setattr(ahead, "begin_after", lambda *_: said.append("next begins"))
    recipe = load_recipe(Path("pipeline/recipes/stage1_vitg.yaml"), [])
    progress: Any = SimpleNamespace(step=0, recent_losses=[])
    train_step(Engine(said), next(ahead.steps()), [None], recipe, progress, ahead)  # type: ignore[list-item]
    assert said == ["backward", "watched", "next begins", "step"]
