"""Collectives that send nothing, to count what one of W ranks holds without the other ranks."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch import Tensor

from pipeline.distributed import collectives


@contextmanager
def replaced(module: ModuleType, functions: dict[str, Any]) -> Iterator[None]:
    """Inside the block, a module's functions of these names are replaced."""
    originals = {name: getattr(module, name) for name in functions}
    for name, function in functions.items():
        setattr(module, name, function)
    try:
        yield
    finally:
        for name, function in originals.items():
            setattr(module, name, function)


@contextmanager
def as_one_of(num_ranks: int) -> Iterator[None]:
    """Inside the block, gathers and exchanges of rows have the sizes of so many ranks, and values without meaning."""

    def gather_rows(local_BX: Tensor) -> Tensor:
        return local_BX.new_empty((num_ranks * local_BX.shape[0], *local_BX.shape[1:]))

    def exchange_rows(local_BX: Tensor, _wanted_B: Tensor) -> Tensor:
        _sent, received = local_BX.detach().clone(), local_BX.detach().clone()
        return received.clone()  # all three live at once in the real exchange, too

    with replaced(collectives, {"gather_rows": gather_rows, "exchange_rows": exchange_rows}):
        yield
