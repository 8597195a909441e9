"""What a GPU's fused kernels keep for the way back, in the place of a CPU's own ways to do the same.

Shapes: B batch, H heads, M query rows, N key rows, E width of a head.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class GpuKernels(TorchFunctionMode):
    """Attention keeps its inputs, output and a row's log-sum-exp, no weights; dropout a byte an element.

    What cross-entropies do is done within `losses()`.
    """

    def __init__(self, losses: Callable[[], AbstractContextManager[None]]) -> None:
        super().__init__()
        self.losses = losses

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        options = options or {}
        if function is functional.scaled_dot_product_attention:
            return _attention(*arguments, **options)
        if function is functional.dropout:
            return _dropout(*arguments, **options)
        if function is functional.cross_entropy:
            with self.losses():
                return function(*arguments, **options)
        return function(*arguments, **options)


def _attention(
    queries_BHME: Tensor,
    keys_BHNE: Tensor,
    values_BHNE: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    rows = [queries_BHME, keys_BHNE, values_BHNE]
    if torch.is_autocast_enabled("cpu"):
        rows = [each.to(torch.get_autocast_dtype("cpu")) for each in rows]
    if enable_gqa:
        times = queries_BHME.shape[1] // keys_BHNE.shape[1]
        rows[1:] = [each.repeat_interleave(times, dim=1) for each in rows[1:]]
    bias = None
    if attn_mask is not None:
        values = attn_mask.to(rows[0].dtype)
        bias = values.expand(*rows[0].shape[:3], rows[1].shape[2])
    # Dropout's draws are repeated from a seed, which takes no memory.
    attended: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
        *rows, bias, any(each.requires_grad for each in rows), dropout_p * 0, is_causal, scale=scale
    )[0]
    return attended


def _dropout(values: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    assert not inplace, "no tower drops out in place"
    return torch.native_dropout(values, p, True)[0] if training and p else values
