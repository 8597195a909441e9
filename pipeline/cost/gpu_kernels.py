"""What a GPU's fused kernels keep for the backward pass, put in the place of the CPU's kernels.

Shapes: B batch, H heads, M query rows, N key rows, E width of a head.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.distributed.rehearsal import replaced


@contextmanager
def gpu_kernels(losses: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Within: attention keeps its inputs, output and a row's log-sum-exp, no weights; dropout a byte an element.

    Cross-entropies run within `losses()`. Functions are replaced, not watched by a mode of torch's: that would be off
    in the backward pass, where checkpointed layers run again.
    """
    cross_entropy = functional.cross_entropy

    def watched_cross_entropy(*arguments: Any, **options: Any) -> Tensor:
        with losses():
            return cross_entropy(*arguments, **options)

    kernels = {
        "scaled_dot_product_attention": _attention,
        "dropout": _dropout,
        "cross_entropy": watched_cross_entropy,
    }
    with replaced(functional, kernels):
        yield


def _attention(
    queries_BHME: Tensor,
    keys_BHNE: Tensor,
    values_BHNE: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,  # noqa: ARG001  (draws are repeated from a seed, which takes no memory)
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
    attended: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
        *rows, bias, any(each.requires_grad for each in rows), 0.0, is_causal, scale=scale
    )[0]
    return attended


def _dropout(values: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    assert not inplace, "no tower drops out in place"
    return torch.native_dropout(values, p, True)[0] if training and p else values
