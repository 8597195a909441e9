"""Batches reach the GPU from page-locked memory: torch's loader finds our methods, and they pin every tensor."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data._utils.pin_memory import pin_memory

from pipeline.data.batch import Batch
from pipeline.tokens import pad_tokens


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in the fields of a dataclass, and in theirs."""
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors_in(getattr(value, field.name))


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tensors that a page-locked copy was made of; here, without a GPU, the copy is an ordinary one."""
    copies: list[int] = []

    def copied(tensor: Tensor, *_device: Any) -> Tensor:
        copy = tensor.clone()
        copies.append(id(copy))
        kept.append(copy)  # so that no other object takes its number
        return copy

    kept: list[Tensor] = []
    monkeypatch.setattr(Tensor, "pin_memory", copied)
    return copies


def test_torchs_loader_pins_every_tensor_of_a_batch(pinned: list[int]) -> None:
    pixels, frozen = torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.ones(2, 5, 6)
    batch = Batch(pixels, torch.arange(2), pad_tokens([[1], [2, 3]], 0), pad_tokens([[4, 5], [6]], 0), 3, frozen)
    found = pin_memory(batch)
    assert isinstance(found, Batch) and found.corrupt == 3 and found.target.count == 3
    before, after = list(tensors_in(batch)), list(tensors_in(found))
    assert len(before) == len(after) == len(batch.tensors()) == 7
    assert all(id(tensor) in pinned for tensor in after)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_every_tensor_of_a_batch_is_known_and_moved() -> None:
    batch = Batch(
        torch.zeros(1, 3, 2, 2), torch.arange(1), pad_tokens([[1]], 0), pad_tokens([[2]], 0), 0, torch.ones(1, 2)
    )
    assert {id(each) for each in batch.tensors()} == {id(each) for each in tensors_in(batch)}
    moved = list(tensors_in(batch.to("meta")))
    assert len(moved) == 7 and {each.device.type for each in moved} == {"meta"}
