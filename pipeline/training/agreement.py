"""What ranks must know of one another before a step: tokens, lengths, and flags such as that one is to stop."""

import hashlib

from pipeline.data.batch import Batch
from pipeline.distributed import collectives, process_group
from pipeline.training.task import StepPlace, Task


def agree(
    task: Task, batches: list[Batch], seed: int, step: int, *flags: bool
) -> tuple[list[StepPlace], tuple[bool, ...]]:
    """What each micro batch must know of all ranks', and for each flag whether any has it. One gather between hosts."""
    own = [number for b in batches for number in (task.num_scored_tokens(b), *b.target.ids.shape)]
    everyone = collectives.gather_integers([*own, *map(int, flags)])
    tokens = sum(sum(row[: len(own) : 3]) for row in everyone)
    weight = len(everyone) * len(batches) / max(1, tokens)
    places = []
    for part in range(len(batches)):
        texts, longest = (max(row[3 * part + number] for row in everyone) for number in (1, 2))
        negatives = seed_of(seed, step, part, "negatives")
        places.append(StepPlace(process_group.rank(), weight, longest, negatives, len(everyone), texts))
    return places, tuple(any(row[len(own) + flag] for row in everyone) for flag in range(len(flags)))


def seed_of(*parts: object) -> int:
    """A seed that is a function of its parts alone."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:7], "little")
