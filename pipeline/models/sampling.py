"""Nucleus sampling that can be repeated: a row's draws depend on its own seed, not on the rows beside it.

Shapes: B rows, V vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class Nucleus:
    """A logits processor of transformers: leaves one token of each row, which greedy search takes.

    It is drawn from the smallest set of tokens with `top_p` of the probability.
    """

    def __init__(self, top_p: float, temperature: float, seeds: Sequence[int]) -> None:
        self.top_p, self.temperature = top_p, temperature
        self.generators = [np.random.default_rng(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002  (transformers' signature)
        likely_BV, order_BV = (scores.double() / self.temperature).softmax(-1).sort(descending=True, stable=True)
        before_BV = likely_BV.cumsum(-1) - likely_BV
        kept_BV = likely_BV * (before_BV < self.top_p)
        uniform_B = torch.tensor([each.random() for each in self.generators], device=scores.device, dtype=torch.double)
        reached_BV = kept_BV.cumsum(-1) > uniform_B[:, None] * kept_BV.sum(-1, keepdim=True)
        drawn_B1 = order_BV.gather(1, reached_BV.to(torch.uint8).argmax(-1, keepdim=True))
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn_B1, 0.0)


def check_sampling(top_p: float | None, temperature: float | None, seed: int | None) -> None:
    """Raises ValueError in one line for values that no draw can have."""
    if top_p is None:
        if temperature is not None or seed is not None:
            raise ValueError("--temperature, --seed: are of nucleus sampling; give --top-p (top_p) as well")
        return
    if not 0 < top_p <= 1:
        raise ValueError(f"--top-p (top_p) {top_p}: is a share of the probability; give more than 0 and at most 1")
    if temperature is not None and not 0 < temperature < float("inf"):
        raise ValueError(f"--temperature {temperature}: is not a finite number above 0; give, for example, 1")
