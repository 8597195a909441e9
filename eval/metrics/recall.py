"""Recall at K of image-text retrieval from score matrices: ITC alone, or ITM + ITC over the top k of ITC.

A query's rank is the rank of its best-placed right answer. Ties: the candidate with the lower index comes first
(stable). The best and the worst rank over all orders of equal scores are given too. They keep the candidates: at the
border of the top k by ITC, ties are always decided by the stable rule.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RECALL_AT = (1, 5, 10)

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Ranks:
    """0-based rank of each query's best-placed right answer, and the first few of the gallery in order."""

    stable: Integers
    optimistic: Integers
    pessimistic: Integers
    first: Integers  # [queries, up to 10]


def rank_queries(
    itc: NDArray[np.floating],
    positives: Sequence[Integers],
    itm: NDArray[np.floating] | None = None,
    k: int | None = None,
) -> Ranks:
    """Rank the gallery of each query: `itc` and `itm` [queries, gallery], `positives` the right answers of each query.

    With `itm`, the candidates are the query's `k` best by ITC (all that have an ITM score when k is None); they are
    ordered by ITM + ITC, and everything else comes below them in ITC's order. Raises ValueError for a NaN where a score
    is needed, or a query without a right answer.
    """
    rows = []
    for query, right in enumerate(positives):
        if len(right) == 0:
            raise ValueError(f"text_image: query {query} has no right answer in the gallery; give every image a text")
        scores = itc[query].astype(np.float64)
        if np.isnan(scores).any():
            raise ValueError(f"itc: NaN in row {query}; every pair needs a score")
        if itm is not None:
            scores = _rerank(scores, itm[query].astype(np.float64), k, query)
        rows.append(_rank(scores, right))
    stable, optimistic, pessimistic, first = zip(*rows, strict=True)
    return Ranks(np.array(stable), np.array(optimistic), np.array(pessimistic), np.array(first))


def top_k(scores: NDArray[np.floating], k: int) -> Integers:
    """Indices of the k largest of a row, best first, equal ones in the order of their index; all when k is larger."""
    if k < len(scores):
        smallest = np.partition(scores, len(scores) - k)[len(scores) - k]
        kept = np.flatnonzero(scores >= smallest)
    else:
        kept = np.arange(len(scores))
    order: Integers = kept[np.argsort(-scores[kept], kind="stable")][:k]
    return order


def _rerank(itc: Floats, itm: Floats, k: int | None, query: int) -> Floats:
    """One row's scores in which every candidate lies above every other, and the others keep ITC's order."""
    candidate = ~np.isnan(itm)
    if k is not None:
        chosen = top_k(itc, k)
        if np.isnan(itm[chosen]).any():
            raise ValueError(f"itm: row {query} has no score for one of its top {k} by ITC; correct k_test or itm")
        candidate[:] = False
        candidate[chosen] = True
    if not candidate.any():
        raise ValueError(f"itm: row {query} has no score at all; score at least one candidate of each query")
    reranked = itm + itc
    others = ~candidate
    if others.any():
        reranked[others] = reranked[candidate].min() - 1 - (itc[others].max() - itc[others])
    return reranked


def _rank(scores: Floats, right: Integers) -> tuple[int, int, int, Integers]:
    best = scores[right].max()
    above, level = int((scores > best).sum()), scores == best
    first_right = int(right[scores[right] == best].min())
    wrong_level = level.copy()
    wrong_level[right] = False
    stable = above + int(wrong_level[:first_right].sum())
    first = top_k(scores, max(RECALL_AT))
    return stable, above, above + int(wrong_level.sum()), first


def chance_recall(positives: Sequence[Integers], gallery: int) -> dict[int, float]:
    """Expected recall in percent at each K of a random order."""
    counts = np.bincount([len(right) for right in positives])
    expected = {}
    for k in RECALL_AT:
        missed = [
            math.comb(gallery - right, k) / math.comb(gallery, k) if k <= gallery else 0.0
            for right in range(len(counts))
        ]
        expected[k] = 100 * (1 - float(counts @ np.array(missed)) / len(positives))
    return expected
