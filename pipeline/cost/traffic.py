"""Bytes that one rank sends over the network in one optimizer step, by purpose.

Laws of the ring algorithms, W ranks, X bytes of the whole: a gather or a scatter sends X (W-1)/W, a reduction to all
twice that. Left out: a few integers a step to agree on, and what is logged.
"""

from dataclasses import dataclass

from pipeline.cost.gpus import Gpu
from pipeline.cost.states import FP32, Tensors
from pipeline.cost.zero_policy import ZeroPolicy
from pipeline.distributed.rehearsal import Sent

GRADIENTS, WEIGHTS = "gradients reduced", "weights gathered"
NETWORK_SHARE = 0.8  # of the network's bandwidth, in large messages: an assumption


@dataclass(frozen=True)
class Transfer:
    """What a rank sends in a step. `within_node`: never over the network between nodes. `direct`: to the rank that
    wants it; else round a ring, which leaves each node through one rank's port at a time, another one for each part."""

    purpose: str
    num_bytes: int
    within_node: bool = False
    direct: bool = False


def gradients_and_weights(
    bridge: Tensors, language: Tensors | None, policy: ZeroPolicy, num_ranks: int, passes: int
) -> list[Transfer]:
    """DeepSpeed's own; `language` is one that is sharded.

    ZeRO-3's gathers are the most there can be: what is used again soon is not always let go of in between.
    """
    ring, whole, gradients = (
        (num_ranks - 1) / num_ranks,
        FP32 * bridge.elements,
        policy.gradient_bytes * bridge.elements,
    )
    if policy.stage < 3:
        reductions = passes if policy.stage == 2 else 1
        return [
            Transfer(GRADIENTS, int(2 * ring * gradients * reductions)),
            Transfer(WEIGHTS, int(ring * whole)),
        ]
    sizes = (*bridge.matrices, *bridge.vectors)
    kept = FP32 * sum(size for size in sizes if size <= policy.persistence_threshold)
    gathered = whole - kept
    transfers = [
        Transfer("gradients scattered", int(ring * gradients * passes)),
        Transfer("weights gathered, forward", int(ring * (gathered * passes + kept))),
        _backward("weights gathered, backward", gathered, policy, num_ranks, passes),
    ]
    if language:
        sizes = (*language.matrices, *language.vectors)
        share = sum(size for size in sizes if size > policy.persistence_threshold) / max(1, sum(sizes))
        moved = language.num_bytes * share
        # A frozen weight's copy within the node stays good: only the run's first pass gathers over nodes.
        transfers.append(_backward("language model gathered", 2 * moved, policy, num_ranks, passes))
    return transfers


def _backward(purpose: str, num_bytes: float, policy: ZeroPolicy, num_ranks: int, passes: int) -> Transfer:
    within_node = policy.hpz_ranks > 1
    ranks = policy.hpz_ranks if within_node else num_ranks
    return Transfer(purpose, int(num_bytes * passes * (ranks - 1) / ranks), within_node)


def stage1_features(sent: Sent, passes: int) -> list[Transfer]:
    """What the task itself sends. ITC's gathers grow with the ranks; the exchange of negatives' features does not."""
    return [
        Transfer("ITC features and texts gathered", sent.gathered * passes),
        Transfer("negatives' image features exchanged", sent.exchanged * passes, direct=True),
    ]


def seconds_of(transfer: Transfer, gpu: Gpu, num_gpus: int, gpus_per_node: int, node_network: float) -> float:
    """Time of a transfer when all ranks send at once; `node_network`: bytes a second out of a node."""
    inside = transfer.num_bytes / (gpu.within_node * NETWORK_SHARE)
    if transfer.within_node or num_gpus <= gpus_per_node:
        return inside
    leaving = float(transfer.num_bytes)  # of a whole node, each of whose ranks sends as much
    if transfer.direct:
        leaving *= gpus_per_node * (num_gpus - gpus_per_node) / (num_gpus - 1)
    return max(inside, leaving / (node_network * NETWORK_SHARE))


def exposed_shares(
    seconds: dict[str, float], policy: ZeroPolicy, elements: int, ahead_s: float, backward_s: float
) -> dict[str, float]:
    """Of purposes that arithmetic may hide, the share of the time that it does not hide. `seconds` by purpose.

    Gradients and weights are sent while the next batch goes through a frozen encoder (`training/ahead.py`, `ahead_s`).
    With overlap_comm gradients are sent during the backward pass instead, but for the last bucket: at the end of that
    pass DeepSpeed waits for the device, before the next batch can begin.
    """
    reduced, gathered = seconds.get(GRADIENTS, 0.0), seconds.get(WEIGHTS, 0.0)
    if not policy.overlaps_backward:
        share = _left(reduced + gathered, ahead_s)
        return {GRADIENTS: share, WEIGHTS: share}
    early = 1 - min(1.0, policy.reduce_bucket_size / max(1, elements))
    left = 1 - early + early * _left(early * reduced, backward_s)
    return {GRADIENTS: left, WEIGHTS: _left(gathered, ahead_s)}


def _left(seconds: float, hidden_s: float) -> float:
    return max(0.0, 1 - hidden_s / seconds) if seconds else 0.0
