"""What a rank sends: torch.distributed's collectives watched, and their bytes by the laws of the ring algorithms."""

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

    def others(options: dict[str, Any]) -> tuple[int, int]:
        ranks = dist.get_world_size(options.get("group"))
        return ranks - 1, ranks

    def of_all_reduce(tensor: Tensor, *_: Any, **options: Any) -> float:
        rest, ranks = others(options)
        return 2 * _size(tensor) * rest / ranks

    def of_all_gather(_out: Any, own: Tensor, *_: Any, **options: Any) -> float:
        return _size(own) * others(options)[0]

    def of_reduce_scatter(_out: Tensor, whole: Tensor, *_: Any, **options: Any) -> float:
        rest, ranks = others(options)
        return _size(whole) * rest / ranks

    def of_exchange(
        _out: Tensor, own: Tensor, _received: Any = None, sent_rows: Any = None, *_: Any, **__: Any
    ) -> float:
        row = _size(own) / max(1, own.shape[0])
        return row * sum(rows for rank, rows in enumerate(sent_rows) if rank != dist.get_rank())

    laws: dict[str, Any] = {
        "all_reduce": of_all_reduce,
        "all_gather": of_all_gather,
        "all_gather_into_tensor": of_all_gather,
        "reduce_scatter_tensor": of_reduce_scatter,
        "all_to_all_single": of_exchange,
    }
    with ExitStack() as stack:
        for name, law in laws.items():
            original = getattr(dist, name)

            def watched(
                *arguments: Any, _name: str = name, _law: Any = law, _original: Any = original, **more: Any
            ) -> Any:
                sent[_name] += _law(*arguments, **more)
                return _original(*arguments, **more)

            stack.enter_context(mock.patch.object(dist, name, watched))
        yield sent
