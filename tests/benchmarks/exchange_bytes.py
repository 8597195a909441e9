"""Bytes a rank sends in stage 1's step as the ranks grow: gathers of ITC's features, exchange of chosen negatives.

    python -m tests.benchmarks.exchange_bytes [--ranks 2 4 8 16] [--micro-size 6]

Real gloo ranks on this machine, tiny tensors in float64. The exchange is bounded by B samples' features; the drawn
negatives decide how much of it leaves a rank, (W-1)/W of it in the mean.
"""

import argparse
from typing import Any

from tests.support.counted_traffic import counted_traffic
from tests.support.gloo_ranks import run_on_ranks
from tests.support.random_bridges import DECODE, IMAGE_TOKENS, SHAPE, random_batch, random_stage1

FLOAT64 = 8  # bytes


def sent_in_a_step(micro_size: int, steps: int) -> dict[str, float]:
    """Bytes that this rank sends in a step, by collective: the mean of some steps, each with draws of its own."""
    from torch import nn

    from pipeline.config import Objectives
    from pipeline.distributed import process_group
    from pipeline.training.stage1_task import Stage1Task
    from pipeline.training.task import StepPlace

    rank = process_group.rank()
    vision: Any = nn.Identity()  # a batch's "pixels" are frozen features
    task = Stage1Task(random_stage1(), vision, Objectives(), DECODE, "fp32").eval()
    first = 100 + rank * micro_size
    batch = random_batch([9] * micro_size, seed=rank, image_ids=range(first, first + micro_size))
    with counted_traffic() as sent:
        for step in range(steps):
            task(batch, StepPlace(rank, 1.0, 9, step))["loss"].backward()
    return {name: size / steps for name, size in sent.items()}


def measure(num_ranks: int, micro_size: int, steps: int = 4) -> dict[str, float]:
    """Means over ranks: gathers, exchange, the most of one rank's exchange, and what gathering all images sends."""
    answers = run_on_ranks(num_ranks, sent_in_a_step, micro_size, steps)
    exchanged = [answer["all_to_all_single"] for answer in answers]
    image = IMAGE_TOKENS * SHAPE.image_width * FLOAT64
    return {
        "ranks": num_ranks,
        "gathers": sum(answer["all_gather"] for answer in answers) / num_ranks,
        "exchange": sum(exchanged) / num_ranks,
        "largest_exchange": max(exchanged),
        "bound": micro_size * image,
        "all_images": micro_size * image * (num_ranks - 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--micro-size", type=int, default=6)
    options = parser.parse_args()
    columns = ["ranks", "gathers", "exchange", "largest_exchange", "bound", "all_images"]
    print(" ".join(f"{column:>16}" for column in columns), "   bytes a rank sends in a step")
    for num_ranks in options.ranks:
        row = measure(num_ranks, options.micro_size)
        print(" ".join(f"{row[column]:>16.0f}" for column in columns), flush=True)


if __name__ == "__main__":
    main()
