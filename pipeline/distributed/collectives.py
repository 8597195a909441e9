"""Every collective of the project. W ranks, B rows a rank. Gradients flow through `Exchange.rows` alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.distributed import process_group
from pipeline.distributed.stopwatch import COMMUNICATION, STOPWATCH


class RankFaultError(ValueError):
    """An error of this rank, the first of the ranks that have one: this rank prints it."""


class OtherRankFaultError(ValueError):
    """An error of another rank, which prints it."""


@contextmanager
def together() -> Iterator[None]:
    """A block without collectives in which a ValueError or OSError on one rank ends every rank: else the others would
    wait for ever. Raises RankFaultError on the first such rank, OtherRankFaultError on the rest."""
    fault: Exception | None = None
    try:
        yield
    except OtherRankFaultError:  # of `check_others`: the rank that it names is among the failed ones
        pass
    except (ValueError, OSError) as error:
        fault = error
        process_group.tell_fault()
    except Exception:
        process_group.tell_fault()
        raise
    failed = [rank for rank, row in enumerate(gather_integers([int(fault is not None)])) if row[0]]
    if not failed:
        return
    if fault is not None and (_alone() or failed[0] == dist.get_rank()):
        raise RankFaultError(str(fault)) from fault
    raise OtherRankFaultError(f"rank {failed[0]} failed; see its output")


def check_others() -> None:
    """In a long block of `together`, between two pieces of its work. Raises OtherRankFaultError, without a collective,
    once a rank has failed in it: that rank would wait until this one has done all of its work."""
    failed = process_group.told_fault()
    if failed is not None:
        raise OtherRankFaultError(f"rank {failed} failed; see its output")


def _alone() -> bool:
    return not dist.is_initialized() or dist.get_world_size() == 1


@STOPWATCH.collective
def barrier() -> None:
    """Wait for every rank."""
    if not _alone():
        dist.barrier()


@STOPWATCH.collective
def gather_rows(local_BX: Tensor) -> Tensor:
    """[B, ...] of every rank, in rank order: [W*B, ...]. The same B everywhere. No gradient flows, to no rank."""
    local_BX = local_BX.detach().contiguous()
    if _alone():
        return local_BX
    all_WBX = local_BX.new_empty((dist.get_world_size() * local_BX.shape[0], *local_BX.shape[1:]))
    dist.all_gather(list(all_WBX.chunk(dist.get_world_size())), local_BX)
    return all_WBX


def gather_integers(values: list[int]) -> list[list[int]]:
    """The same number of integers of every rank, in rank order. Hosts alone talk: no GPU is waited for."""
    if _alone():
        return [values]
    everyone = torch.empty((dist.get_world_size(), len(values)), dtype=torch.int64)
    with STOPWATCH.measure(COMMUNICATION):
        dist.all_gather(list(everyone), torch.tensor(values), group=process_group.host_group())
    return [[int(value) for value in row] for row in everyone.tolist()]


@STOPWATCH.collective
def mean_over_ranks(values_N: Tensor) -> Tensor:
    """Elementwise mean over ranks, for logging. No gradient flows."""
    values_N = values_N.detach().clone()
    if not _alone():
        dist.all_reduce(values_N)
        values_N /= dist.get_world_size()
    return values_N


def any_rank(flag: bool) -> bool:
    """True on every rank when it is true on one."""
    return any(row[0] for row in gather_integers([int(flag)]))


@dataclass
class Exchange:
    """Rows of the joined batch on their way to the ranks that want them; see `start_exchange`."""

    wanted_B: Tensor
    wanted_WB: Tensor
    sizes: "HostNumbers"

    @property
    def number(self) -> int:
        """The number that was sent to the host with the sizes."""
        return self.sizes.values()[0]

    @STOPWATCH.collective
    def rows(self, local_BX: Tensor) -> Tensor:
        """out[i] = joined[wanted[i]], joined = all ranks' rows in rank order.

        Every rank is sent just the rows that it wants: the bytes that a rank receives do not grow with W. If `local_BX`
        has a gradient, those of the sent rows come back the same way, and are added up over all ranks.
        """
        if _alone():
            return local_BX[self.wanted_B]
        own, rows = dist.get_rank(), local_BX.shape[0]
        counts = self.sizes.values()[1:]
        send_counts, receive_counts = counts[: len(counts) // 2], counts[len(counts) // 2 :]
        from_rank_WB = self.wanted_WB // rows
        mine = torch.nonzero_static((from_rank_WB == own).flatten(), size=sum(send_counts))[:, 0]
        sent = local_BX[self.wanted_WB.flatten()[mine] % rows]
        received: Tensor = _AllToAll.apply(sent, send_counts, receive_counts)  # type: ignore[no-untyped-call]
        return received[torch.argsort(torch.argsort(from_rank_WB[own], stable=True))]


class _AllToAll(torch.autograd.Function):
    """Rows to each rank, by counts, in rank order; in the backward pass their gradients from each."""

    @staticmethod
    def forward(ctx: Any, sent_SX: Tensor, send_counts: list[int], receive_counts: list[int]) -> Tensor:
        ctx.counts = send_counts, receive_counts
        received_RX = sent_SX.new_empty((sum(receive_counts), *sent_SX.shape[1:]))
        dist.all_to_all_single(received_RX, sent_SX, receive_counts, send_counts)
        return received_RX

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        [gradient_RX] = gradients
        send_counts, receive_counts = ctx.counts
        returned_SX = gradient_RX.new_empty((sum(send_counts), *gradient_RX.shape[1:]))
        with STOPWATCH.measure(COMMUNICATION):
            dist.all_to_all_single(returned_SX, gradient_RX.contiguous(), send_counts, receive_counts)
        return returned_SX, None, None


def start_exchange(wanted_B: Tensor, number: Tensor) -> Exchange:
    """Begin to ask all ranks for rows of the joined batch, by global index: int64 in [0, W*B), B of them on every rank.

    What the host must know, the sizes of what it sends and receives, goes there in the background, and so does a
    `number` of the caller's: the host waits for both when they are used. Give the device other work in between.
    """
    if _alone():
        return Exchange(wanted_B, wanted_B[None], HostNumbers(number[None]))
    world, own = dist.get_world_size(), dist.get_rank()
    wanted_WB = gather_rows(wanted_B[None])
    from_rank_WB = wanted_WB // wanted_B.shape[0]
    send_counts = (from_rank_WB == own).sum(dim=1)
    receive_counts = (from_rank_WB[own] == torch.arange(world, device=wanted_B.device)[:, None]).sum(dim=1)
    return Exchange(wanted_B, wanted_WB, HostNumbers(torch.cat([number[None], send_counts, receive_counts])))


class HostNumbers:
    """Integers of a device's tensor on their way to the host."""

    def __init__(self, values_N: Tensor) -> None:
        self._copy = values_N.to("cpu", non_blocking=True)
        self._copied = torch.cuda.Event() if values_N.is_cuda else None  # type: ignore[no-untyped-call]
        if self._copied:
            self._copied.record()

    def values(self) -> list[int]:
        """The integers, once they have come."""
        if self._copied:
            self._copied.synchronize()
        return [int(value) for value in self._copy.tolist()]
