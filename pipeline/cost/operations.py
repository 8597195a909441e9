"""One operation of a step as a GPU runs it: kind, kernels, FLOPs, and the bytes that it reads and writes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

PRODUCT, ATTENTION, POINTWISE, OTHER = "product", "attention", "pointwise", "other"

ALLOCATIONS = frozenset({"empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "lift_fresh"})
WRITES_ONLY = frozenset({"copy_", "fill_", "zero_", "normal_", "uniform_"})  # does not read the tensor it changes
PICKS = frozenset({"embedding", "index", "gather", "index_select"})  # reads as much as it gives out, not the whole
PICKS_BACK = frozenset({"embedding_dense_backward", "index_put", "index_put_", "index_add", "scatter_add"})
CHANGES_SOME = frozenset({"scatter_"})  # of the tensor it changes, as much as it is given; it does not read it
ROW_WISE = frozenset(
    {
        *("native_layer_norm", "native_layer_norm_backward", "_softmax", "_softmax_backward_data", "mean"),
        *("_log_softmax", "_log_softmax_backward_data", "native_dropout", "native_dropout_backward", "amax"),
        *("_to_copy", "copy_", "clone", "cat", "constant_pad_nd", "linalg_vector_norm", "fill_", "zero_"),
        *("index_select", "index_copy_", "slice_backward", "stack", "gather"),
        *("zeros", "ones", "full", "new_zeros", "new_ones", "zeros_like", "ones_like", "full_like", "arange"),
    }
)
"""Beside torch's pointwise operations: what a compiler puts into one kernel with its neighbours, by rows."""
KERNELS = {
    "native_layer_norm_backward": 2,  # of the rows, and of weight and bias
    "_scaled_dot_product_efficient_attention_backward": 2,  # row sums of output times gradient first
    "embedding_dense_backward": 5,  # sorts the ids
    "index_put_": 5,
    "index_put": 6,
    "slice_backward": 2,  # fills with zeros first
    "sort": 4,
    "nll_loss_backward": 2,  # fills with zeros first
}
"""How many kernels CUDA launches where it is not one (torch's own sources)."""


@dataclass(frozen=True)
class Operation:
    """One call that launches kernels. `reads` and `writes`: bytes by storage."""

    name: str
    part: str
    kind: str
    is_cast: bool
    in_fp32: bool
    flops: float
    kernels: int
    reads: dict[int, int]
    writes: dict[int, int]

    @property
    def num_bytes(self) -> int:
        return sum(self.reads.values()) + sum(self.writes.values())


def operation_of(
    function: Any, inputs: tuple[Any, ...], out: Any, part: str, flops: float, storage_id: Callable[[Tensor], int]
) -> Operation | None:
    """What `function` costs that took `inputs` and gave `out`. None when it launches nothing: a view, an allocation."""
    name = function._schema.name.removeprefix("aten::")
    read = [tensor for tensor in tree_leaves(inputs) if isinstance(tensor, Tensor)]
    written = [tensor for tensor in tree_leaves(out) if isinstance(tensor, Tensor)]
    if function.namespace == "prim" or name in ALLOCATIONS or not written:
        return None
    storages = {storage_id(tensor) for tensor in read}
    if not function._schema.is_mutable and all(storage_id(tensor) in storages for tensor in written):
        return None
    is_cast = name in ("_to_copy", "copy_") and any(tensor.dtype != written[0].dtype for tensor in read)
    if name in WRITES_ONLY:
        read = read[1:]
    reads, writes = (_bytes_by_storage(tensors, storage_id) for tensors in (read, written))
    if name in PICKS:  # of what it picks from, as much as it gives out
        source = storage_id(read[0])
        reads[source] = min(reads[source], sum(writes.values()))
    elif name in CHANGES_SOME:
        reads = _bytes_by_storage(read[1:], storage_id)
        writes = {storage_id(written[0]): _bytes_by_storage(read[-1:], storage_id).popitem()[1]}
    elif name in PICKS_BACK:
        writes = _bytes_by_storage([*written[:1], *read[:1]], storage_id)
    return Operation(
        name,
        part,
        _kind(function, name, flops),
        is_cast,
        written[0].dtype == torch.float32,
        flops,
        KERNELS.get(name, 1),
        reads,
        writes,
    )


def _kind(function: Any, name: str, flops: float) -> str:
    if "attention" in name:
        return ATTENTION
    if flops:
        return PRODUCT
    return POINTWISE if torch.Tag.pointwise in function.tags or name in ROW_WISE else OTHER


def _bytes_by_storage(tensors: list[Tensor], storage_id: Callable[[Tensor], int]) -> dict[int, int]:
    """Of each storage what these tensors cover. Slices that begin at places of their own add up, as the queries, keys
    and values of one product do; of those that begin at one place the largest counts. What expand() repeats counts
    once."""
    found: dict[int, dict[int, int]] = {}
    wholes: dict[int, int] = {}
    for tensor in tensors:
        elements = 1
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
            elements *= size if stride else 1
        key, place = storage_id(tensor), int(tensor.storage_offset())
        slices = found.setdefault(key, {})
        slices[place] = max(slices.get(place, 0), elements * tensor.element_size() if tensor.numel() else 0)
        wholes[key] = tensor.untyped_storage().nbytes()
    return {key: min(sum(slices.values()), wholes[key]) for key, slices in found.items()}
