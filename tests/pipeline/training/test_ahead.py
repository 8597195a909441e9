"""What is prepared ahead is what a step needs, in order; a loader's error waits until its batch is asked for."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from pipeline.data.batch import Batch
from pipeline.training.ahead import Ahead
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
