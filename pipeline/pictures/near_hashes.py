"""Finds 64-bit hashes that differ in few bits: within one set (`first_near`, `near_groups`) and between two sets
(`near_pairs`).

Within one set: two hashes that differ in at most D bits, cut into D + M blocks, agree in at least M of them. So for
every choice of M blocks the hashes are sorted by these blocks alone, and those that agree there are compared. M is
chosen large enough to keep chance agreements few. The order in which pairs are met changes nothing.

`near_pairs`: hashes at most 4 bits apart agree in at least one of five bands. Each band of the small set is sorted once
and looked up for every hash of the large set. E evaluation hashes, T training hashes.
"""

from collections.abc import Iterator
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

BITS = 64
MOST_BITS_APART = 4
"""Two pictures count as copies up to here; `near_pairs` can search no further."""
BAND_STARTS = (0, 13, 26, 39, 52)
BAND_BITS = 13  # of all bands but the last, which has the twelve that are left
Hashes = NDArray[np.uint64]


def first_near(hashes: NDArray[np.uint64], bits_apart: int) -> NDArray[np.int64]:
    """int64 [n]: the smallest position whose hash differs in at most `bits_apart` bits from this one's (its own if none
    comes earlier). Needs about 60 bytes a hash."""
    values, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    best = first.astype(np.int64)
    if bits_apart:
        for mask in _masks(len(values), bits_apart):
            for one, other in _pairs(values, mask, bits_apart):
                np.minimum.at(best, one, first[other])
                np.minimum.at(best, other, first[one])
    return best[inverse]


def near_groups(hashes: NDArray[np.uint64], bits_apart: int) -> NDArray[np.int64]:
    """int64 [n]: the group of each hash. Near hashes are in one group, and so are those that a chain of near ones
    joins. Needs about 60 bytes a hash."""
    values, inverse = np.unique(hashes, return_inverse=True)
    parents = np.arange(len(values))
    if bits_apart:
        for mask in _masks(len(values), bits_apart):
            for one, other in _pairs(values, mask, bits_apart):
                _join(parents, one, other)
    return _roots(parents, np.arange(len(values)))[inverse]


def _join(parents: NDArray[np.int64], one: NDArray[np.int64], other: NDArray[np.int64]) -> None:
    """Put the groups of each pair together, under the smaller of their roots."""
    while True:
        roots, others = _roots(parents, one), _roots(parents, other)
        apart = roots != others
        if not apart.any():
            return
        pairs = np.sort([roots[apart], others[apart]], axis=0)
        np.minimum.at(parents, pairs[1], pairs[0])


def _roots(parents: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """The root above each place, which is noted as its parent."""
    roots = parents[places]
    while (parents[roots] != roots).any():
        roots = parents[roots]
    parents[places] = roots
    return roots


def _masks(count: int, bits_apart: int) -> Iterator[np.uint64]:
    """Every choice of blocks that near hashes may agree in, as the mask of their bits."""
    needed = max(1, count).bit_length() - 1
    chosen = next(m for m in range(1, BITS) if BITS * m // (bits_apart + m) >= min(needed, BITS // 2))
    bounds = [BITS * i // (bits_apart + chosen) for i in range(bits_apart + chosen + 1)]
    blocks = [(1 << end) - (1 << start) for start, end in pairwise(bounds)]
    for choice in combinations(blocks, chosen):
        yield np.uint64(sum(choice))


def _pairs(
    values: NDArray[np.uint64], mask: np.uint64, bits_apart: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Places of distinct values that agree under the mask and are near, by their distance in the sorted table."""
    order = np.argsort(values & mask, kind="stable")
    ordered = values[order]
    masked = ordered & mask
    places = np.arange(len(values))
    for step in range(1, len(values)):
        places = places[places < len(values) - step]
        places = places[masked[places] == masked[places + step]]
        if not len(places):
            return
        near = places[np.bitwise_count(ordered[places] ^ ordered[places + step]) <= bits_apart]
        yield order[near], order[near + step]


def near_pairs(evaluation_E: Hashes, training_T: Hashes, bits: int = MOST_BITS_APART) -> Iterator[tuple[int, int]]:
    """(e, t) of hashes at most `bits` (0 to 4) apart, in order of t, each pair once."""
    assert 0 <= bits <= MOST_BITS_APART
    found, mask = set[tuple[int, int]](), np.uint64((1 << BAND_BITS) - 1)
    for shift in map(np.uint64, BAND_STARTS):
        own = (evaluation_E >> shift) & mask
        order = np.argsort(own, kind="stable")
        wanted = (training_T >> shift) & mask
        first = np.searchsorted(own[order], wanted, "left")
        count = np.searchsorted(own[order], wanted, "right") - first
        t = np.repeat(np.arange(len(training_T)), count)
        within = np.arange(len(t)) - np.repeat(np.cumsum(count) - count, count)
        e = order[np.repeat(first, count) + within]
        near = np.bitwise_count(evaluation_E[e] ^ training_T[t]) <= bits
        found.update(zip(e[near].tolist(), t[near].tolist(), strict=True))
    yield from sorted(found, key=lambda pair: (pair[1], pair[0]))
