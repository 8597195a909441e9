"""A fingerprint of frozen weights: whether a run goes on with the towers that it began with."""

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


def fingerprint(module: "nn.Module") -> str:
    """sha256 over each parameter's name, type, shape and the sum of its bits, read once where it lies.

    The sum is an integer's, so that no order of adding changes it; swapped elements within a tensor escape it.
    """
    import torch

    lines, sums = [], []
    for name, parameter in sorted(module.named_parameters()):
        lines.append(f"{name} {parameter.dtype} {tuple(getattr(parameter, 'ds_shape', parameter.shape))}")
        sums.append(_sum_of_bits(parameter.detach()))
    numbers = torch.stack(sums).tolist() if sums else []
    return hashlib.sha256(
        "\n".join(f"{line} {number}" for line, number in zip(lines, numbers, strict=True)).encode()
    ).hexdigest()


def _sum_of_bits(tensor: "Tensor") -> "Tensor":
    import torch

    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.contiguous().view(kind).sum(dtype=torch.int64)
