"""Nucleus sampling that can be repeated: each draw is a pure function of (seed, key, sample number) and the logits.

The rules and their order are those of transformers' sampling branch: repetition penalty, minimum length, top p.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor

SORTED_FIRST = 512
"""Almost every nucleus of a trained captioner is smaller. Sorting all 30,000 words for each token takes a fifth of the
decoding time."""


def draw_table(seed: int, keys: list[str], num_samples: int, num_draws: int) -> Tensor:
    """float64 [len(keys) * num_samples, num_draws] in [0, 1): the random numbers of each sample of each key."""
    rows = []
    for key in keys:
        for number in range(num_samples):
            digest = hashlib.sha256(f"{seed}\n{key}\n{number}".encode()).digest()
            rows.append(np.random.default_rng(int.from_bytes(digest, "little")).random(num_draws))
    return torch.from_numpy(np.stack(rows))


def penalise_repetition(logits_NV: Tensor, tokens_NT: Tensor, penalty: float) -> Tensor:
    """Lower the logits of tokens that a sequence already has: divide positive ones, multiply negative ones (CTRL)."""
    found_NT = logits_NV.gather(1, tokens_NT)
    return logits_NV.scatter(1, tokens_NT, torch.where(found_NT < 0, found_NT * penalty, found_NT / penalty))


def draw_token(logits_NV: Tensor, top_p: float, uniform_N: Tensor) -> Tensor:
    """int64 [N]: for each row a token of its nucleus, the smallest set of tokens with `top_p` of the probability.

    `uniform_N`, in [0, 1), selects the token by inverting the cumulative distribution of the set, most likely token
    first. The whole vocabulary is sorted only for rows whose set is larger than SORTED_FIRST tokens.
    """
    probability_NV = logits_NV.softmax(-1)
    likeliest_NK, order_NK = probability_NV.topk(min(SORTED_FIRST, logits_NV.shape[-1]))
    cumulative_NK = likeliest_NK.double().cumsum(-1)
    token_N = _invert(cumulative_NK, order_NK, top_p, uniform_N)
    wide_N = cumulative_NK[:, -1] < top_p
    if bool(wide_N.any()):
        sorted_MV, order_MV = probability_NV[wide_N].sort(dim=-1, descending=True, stable=True)
        token_N[wide_N] = _invert(sorted_MV.double().cumsum(-1), order_MV, top_p, uniform_N[wide_N])
    return token_N


def _invert(cumulative_NK: Tensor, order_NK: Tensor, top_p: float, uniform_N: Tensor) -> Tensor:
    """The token at which the cumulative distribution passes `uniform_N` times its value where it reaches `top_p`."""
    last_N1 = (cumulative_NK < top_p).sum(-1, keepdim=True).clamp(max=cumulative_NK.shape[-1] - 1)
    target_N1 = uniform_N[:, None].to(cumulative_NK) * cumulative_NK.gather(1, last_N1)
    position_N1 = torch.searchsorted(cumulative_NK, target_N1, right=True)
    return order_NK.gather(1, torch.minimum(position_N1, last_N1)).squeeze(1)
