"""Collectives that send nothing, to count what one of W ranks holds without the other ranks."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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


@dataclass
class Sent:
    """Bytes that this rank would have sent."""

    gathered: int = 0
    exchanged: int = 0


@dataclass(frozen=True)
class _NoExchange:
    """An exchange that sends nothing. `number` is what the caller expects to be told."""

    number: int
    num_ranks: int
    sent: Sent

    def rows(self, local_BX: Tensor) -> Tensor:
        self.sent.exchanged += local_BX.nbytes * (self.num_ranks - 1) // self.num_ranks
        _sent, received = local_BX.detach().clone(), local_BX.detach().clone()
        return received.clone()  # all three live at once in the real exchange, too


@contextmanager
def as_one_of(num_ranks: int, number: int) -> Iterator[Sent]:
    """Inside the block, gathers and exchanges of rows have the sizes of so many ranks, and values without meaning.

    `number` is the one that goes to the host with an exchange. Laws of the traffic, W ranks: each rank sends a row that
    is gathered W-1 times, and a row for an exchange once in (W-1)/W of all cases; before an exchange, the wanted
    indices are gathered.
    """
    sent = Sent()

    def gather_rows(local_BX: Tensor) -> Tensor:
        sent.gathered += (num_ranks - 1) * local_BX.nbytes
        return local_BX.new_empty((num_ranks * local_BX.shape[0], *local_BX.shape[1:]))

    def start_exchange(wanted_B: Tensor, _number: Tensor) -> _NoExchange:
        sent.gathered += (num_ranks - 1) * wanted_B.nbytes
        return _NoExchange(number, num_ranks, sent)

    with replaced(collectives, {"gather_rows": gather_rows, "start_exchange": start_exchange}):
        yield sent
