"""What a rank sends: torch.distributed's collectives watched, and their bytes by the laws of the ring algorithms."""

import inspect
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from torch import Tensor


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


@contextmanager
def counted_traffic() -> Iterator[dict[str, float]]:
    """Bytes that this rank sends to others, by collective, of the group that each call names (all ranks by default)."""
    import torch.distributed as dist

    sent: dict[str, float] = defaultdict(float)

    def of_all_reduce(given: dict[str, Any], ranks: int) -> float:
        return 2 * _size(given["tensor"]) * (ranks - 1) / ranks

    def of_all_gather(given: dict[str, Any], ranks: int) -> float:
        return _size(given["tensor" if "tensor" in given else "input_tensor"]) * (ranks - 1)

    def of_reduce_scatter(given: dict[str, Any], ranks: int) -> float:
        return _size(given["input"]) * (ranks - 1) / ranks

    def of_exchange(given: dict[str, Any], _ranks: int) -> float:
        row = _size(given["input"]) / max(1, given["input"].shape[0])
        return row * sum(rows for rank, rows in enumerate(given["input_split_sizes"]) if rank != dist.get_rank())

    laws: dict[str, Any] = {
        "all_reduce": of_all_reduce,
        "all_gather": of_all_gather,
        "all_gather_into_tensor": of_all_gather,
        "reduce_scatter_tensor": of_reduce_scatter,
        "all_to_all_single": of_exchange,
    }
    with ExitStack() as stack:
        for name, law in laws.items():
            stack.enter_context(mock.patch.object(dist, name, _watched(getattr(dist, name), name, law, sent)))
        yield sent


def _watched(original: Any, name: str, law: Any, sent: dict[str, float]) -> Any:
    import torch.distributed as dist

    def watched(*arguments: Any, **options: Any) -> Any:
        given = inspect.signature(original).bind(*arguments, **options).arguments
        sent[name] += law(given, dist.get_world_size(given.get("group")))
        return original(*arguments, **options)

    return watched
