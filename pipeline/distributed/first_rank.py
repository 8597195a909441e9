"""What rank 0 has and every rank needs: plain values, and the content of tensors. Collective."""

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Value = TypeVar("Value")


def from_first_rank(value: Value) -> Value:
    """Rank 0's value, made of numbers, texts, lists and dicts, on every rank."""
    if not dist.is_initialized():
        return value
    sent = [value]
    dist.broadcast_object_list(sent, src=0)
    return sent[0]


def copy_from_first_rank(tensor: Tensor) -> Tensor:
    """A tensor on this rank's device, of the same shape and type everywhere, with rank 0's content."""
    tensor = tensor.contiguous()
    if dist.is_initialized():
        dist.broadcast(tensor.view(-1).view(torch.uint8), src=0)
    return tensor
