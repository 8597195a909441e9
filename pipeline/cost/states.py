"""Bytes of weights, gradients, AdamW's moments and DeepSpeed's buffers that one rank holds, under a ZeRO policy."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from pipeline.cost.zero_policy import ALIGNMENT, ZeroPolicy

FP32 = 4  # bytes


@dataclass(frozen=True)
class Tensors:
    """Sizes of a module's parameters: elements of each, of those with 2 dimensions and of the others, and bytes."""

    matrices: tuple[int, ...]
    vectors: tuple[int, ...]
    num_bytes: int

    @property
    def elements(self) -> int:
        return sum(self.matrices) + sum(self.vectors)


def tensors_of(module: nn.Module, without: nn.Module | None = None) -> Tensors:
    """Each parameter once, but not those of `without`; bytes with those of its buffers."""
    others = {id(parameter) for parameter in without.parameters()} if without else set()
    parameters = [parameter for parameter in module.parameters() if id(parameter) not in others]
    matrices = tuple(p.numel() for p in parameters if p.ndim >= 2)
    vectors = tuple(p.numel() for p in parameters if p.ndim < 2)
    return Tensors(matrices, vectors, _bytes_of([*parameters, *module.buffers()]))


def _bytes_of(tensors: Iterable[Tensor]) -> int:
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


@dataclass(frozen=True)
class BridgeStates:
    """Bytes a rank holds of what is trained. `host` is what offloading puts into the host's memory."""

    weights: int
    gradients: int
    moments: int
    buckets: int
    host: int = 0


def bridge_states(bridge: Tensors, policy: ZeroPolicy, num_ranks: int) -> BridgeStates:
    """fp32 weights, gradients, two moments of the bridge, and the buckets that gradients are sent in.

    ZeRO-1 and 2 copy a rank's part of the weights though they are fp32 already; ZeRO-1 keeps all gradients to the end
    of a step, 2 and 3 a rank's part. Under ZeRO-3 all of the bridge's weights may be gathered at once.
    """
    whole = FP32 * bridge.elements
    buckets = FP32 * policy.reduce_buckets * policy.reduce_bucket_size
    if policy.stage == 3:
        part = FP32 * sum(-(-size // num_ranks) for size in (*bridge.matrices, *bridge.vectors))
        gathered = min(whole, FP32 * policy.max_live_parameters)
        on_device = (part + gathered, part, 2 * part)
    else:
        part = FP32 * sum(_padded(sum(group), num_ranks) for group in (bridge.matrices, bridge.vectors)) // num_ranks
        on_device = (part * num_ranks + part, whole + part if policy.stage == 1 else part, 2 * part)
    weights, gradients, moments = on_device
    if policy.offloads_optimizer:
        return BridgeStates(weights - part, gradients - part, 0, buckets, host=4 * part)
    return BridgeStates(weights, gradients, moments, buckets)


def _padded(elements: int, num_ranks: int) -> int:
    unit = ALIGNMENT * num_ranks
    return -(-elements // unit) * unit


def sharded_language(language: Tensors, policy: ZeroPolicy, num_ranks: int) -> tuple[int, int]:
    """Bytes a rank holds of a language model under ZeRO-3: its part (with hpZ a node's, too), and what is gathered."""
    width = language.num_bytes / max(1, language.elements)  # bytes an element
    part = language.num_bytes / num_ranks
    if policy.hpz_ranks > 1:
        part += language.num_bytes / policy.hpz_ranks
    live = min(language.elements, policy.max_live_parameters + policy.prefetch_bucket_size)
    return int(part), int(live * width)
