"""Decides which pictures are held out: a share of them by hash, with all their copies and near copies on one side.

Pure functions of the pictures' hashes and of the seed. The order of pictures changes nothing. A picture keeps its side
when others are added, unless they join its group to another one. Of a part that is filled, those at its edge move too.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.pictures.near_hashes import near_groups

LARGE_GROUP = 10
"""Near copies: a group of more is never held out when it is more than a tenth of the wanted part. Chains of pages of
text on white can join thousands of pictures."""
FILLED = 1_000
"""A wanted part of fewer pictures is filled to its number: a fixed threshold would miss it by 3% and more."""
_ODD, _MIX_1, _MIX_2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@dataclass(frozen=True)
class Sides:
    """Which pictures are held out; how many are in training only because their group is large."""

    held_out: NDArray[np.bool_]
    in_large_groups: int


def sides(
    content: NDArray[np.uint64], phash: NDArray[np.uint64], has_phash: NDArray[np.bool_], bits_apart: int, share: float,
    seed: int,
) -> Sides:  # fmt: skip
    """`content` [n] is 64 bits of each picture's sha256; `phash` is valid where `has_phash`."""
    distinct, first, which = np.unique(content, return_index=True, return_inverse=True)
    groups = np.arange(len(distinct))
    hashed = np.flatnonzero(has_phash[first])
    near = near_groups(phash[first[hashed]], bits_apart)
    roots = np.full(int(near.max(initial=-1)) + 1, len(distinct))
    np.minimum.at(roots, near, hashed)
    groups[hashed] = roots[near]
    sizes = np.bincount(groups[which], minlength=len(distinct))
    # The root of a group has its smallest content, as `distinct` is sorted.
    hashes, wanted = _mixed(distinct[groups], seed), share * len(content)
    large = sizes[groups] > max(LARGE_GROUP, wanted / 10)
    limit = np.uint64(min(int(share * 2.0**64), 2**64 - 1))
    if wanted < FILLED:
        first_of_group = groups == np.arange(len(distinct))
        limit = _filling(hashes[first_of_group], (sizes * ~large)[first_of_group], wanted)
    chosen = hashes < limit
    return Sides((chosen & ~large)[which], int((chosen & large)[which].sum()))


def _filling(hashes: NDArray[np.uint64], sizes: NDArray[np.int64], wanted: float) -> np.uint64:
    """The threshold below which the groups with these hashes have nearest to `wanted` pictures together."""
    order = np.argsort(hashes)
    filled = np.concatenate([[0], np.cumsum(sizes[order])])
    return np.uint64([*hashes[order], 2**64 - 1][int(np.abs(filled - wanted).argmin())])


def _mixed(values: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Each value as another one, by the seed (splitmix64): all bits of it depend on all bits of both."""
    mixed = values.copy()
    for _ in range(2):
        mixed += np.uint64((seed * int(_ODD) + int(_ODD)) % 2**64)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * _MIX_1
        mixed = (mixed ^ (mixed >> np.uint64(27))) * _MIX_2
        mixed ^= mixed >> np.uint64(31)
    return mixed
