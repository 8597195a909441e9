"""Model FLOPs of a recipe's sample, and the share of its GPUs' peak that a speed reaches."""

import logging

from pipeline.config import Recipe
from pipeline.cost.dry_run import UnweightedRecipe, once
from pipeline.cost.gpus import gpu_of_cuda
from pipeline.cost.unweighted import mean_lengths

log = logging.getLogger(__name__)
CAPTION_TOKENS = 12  # mean of a web caption
NUM_PAIRS = 2  # the smallest batch that has negatives


def fewest_samples(recipe: Recipe) -> int:
    """Of a pass that has negatives, or a whole sequence of pairs."""
    return max(NUM_PAIRS, recipe.data.pairs_per_sequence)


def sample_flops(recipe: Recipe, lengths: tuple[int, int]) -> dict[str, float]:
    """FLOPs of one sample by part, forward and backward, with so many tokens of context and target.

    Each layer counts once, though activation checkpointing may repeat it; a frozen tower's backward pass has no
    products for its weights.
    """
    samples = fewest_samples(recipe)
    found = once(UnweightedRecipe(recipe).run(samples, lengths))
    return {part: flops / samples for part, flops in found.items()}


def utilisation_of_one_sample_a_second(recipe: Recipe, num_ranks: int, cuda_name: str | None) -> float | None:
    """The share of all ranks' bf16 peak that one sample a second is, with CAPTION_TOKENS tokens and no padding.

    None on a CPU, on a GPU that the table lacks, and for towers that cannot be counted without their weights.
    """
    gpu = gpu_of_cuda(cuda_name) if cuda_name else None
    if gpu is None:
        if cuda_name:
            log.warning("model FLOP utilisation is not logged: pipeline/cost/gpus.py has no %s", cuda_name)
        return None
    try:
        flops = sum(sample_flops(recipe, mean_lengths(recipe, CAPTION_TOKENS)).values())
    except ValueError as error:
        log.warning("model FLOP utilisation is not logged: %s", error)
        return None
    return flops / (num_ranks * gpu.peak_flops)
