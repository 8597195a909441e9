"""Bytes that one rank sends over the network in one optimizer step, by purpose.

Laws of the ring algorithms, W ranks, X bytes of the whole: a gather or a scatter sends X (W-1)/W, a reduction to all
twice that. Left out: a few integers a step to agree on, and what is logged.
"""

from dataclasses import dataclass

from pipeline.config import Recipe
from pipeline.cost.states import FP32, Tensors
from pipeline.cost.zero_policy import ZeroPolicy

INT64, BOOL = 8, 1  # bytes


@dataclass(frozen=True)
class Transfer:
    """What a rank sends in a step. `within_node`: never over the network between nodes."""

    purpose: str
    num_bytes: int
    within_node: bool = False


@dataclass(frozen=True)
class Features:
    """Sizes that stage 1's exchanges depend on, of one sample."""

    image_tokens: int
    image_width: int
    text_tokens: int


def gradients_and_weights(
    bridge: Tensors, language: Tensors | None, policy: ZeroPolicy, num_ranks: int, passes: int
) -> list[Transfer]:
    """DeepSpeed's own; `language` is one that is sharded.

    ZeRO-3's gathers are the most there can be: what is used again soon is not always let go of in between.
    """
    ring, whole = (num_ranks - 1) / num_ranks, FP32 * bridge.elements
    if policy.stage < 3:
        reductions = passes if policy.stage == 2 else 1
        return [
            Transfer("gradients reduced", int(2 * ring * whole * reductions)),
            Transfer("weights gathered", int(ring * whole)),
        ]
    sizes = (*bridge.matrices, *bridge.vectors)
    kept = FP32 * sum(size for size in sizes if size <= policy.persistence_threshold)
    gathered = whole - kept
    transfers = [
        Transfer("gradients scattered", int(ring * whole * passes)),
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


def stage1_features(recipe: Recipe, features: Features, num_ranks: int, passes: int) -> list[Transfer]:
    """ITC's gathers grow with the ranks; the exchange of the chosen negatives' image features does not."""
    samples, others = recipe.batch.micro_size * passes, num_ranks - 1
    of_image = recipe.qformer.num_query_tokens * recipe.qformer.projection_width * FP32
    of_text = recipe.qformer.projection_width * FP32 + features.text_tokens * (INT64 + BOOL) + 2 * INT64
    image = features.image_tokens * features.image_width * FP32
    return [
        Transfer("ITC features and texts gathered", samples * others * (of_image + of_text)),
        Transfer("negatives' image features exchanged", int(samples * image * others / num_ranks)),
    ]


def gathering_all_images(recipe: Recipe, features: Features, num_ranks: int, passes: int) -> int:
    """What a rank would send if every rank were given all image features: what the exchange is there to avoid."""
    image = features.image_tokens * features.image_width * FP32
    return recipe.batch.micro_size * passes * (num_ranks - 1) * image
