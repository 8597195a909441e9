"""Decides which pictures are dropped: placeholders, copies, near copies, and pictures of an evaluation.

Pure functions of the hashes of all pictures in one fixed order; the first of equal or near pictures stays.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.copies.picture_hashes import Hashes
from pipeline.pictures.near_hashes import first_near

REASONS = ("", "placeholder_picture", "evaluation_picture", "duplicate_picture", "near_duplicate_picture")
"""The reasons by code. If several apply to a picture, it is counted under the first of them."""
PLACEHOLDER, EVALUATION, DUPLICATE, NEAR = 1, 2, 3, 4


@dataclass(frozen=True)
class Rules:
    """Which rules apply. `exact` and `near` drop copies; `placeholder_urls` drops pictures with at least so many URLs
    (0: off). Two hashes that differ in at most `bits_apart` of 64 bits are near, also for evaluation pictures."""

    exact: bool = True
    near: bool = True
    placeholder_urls: int = 10
    bits_apart: int = 4
    """Half of the bits of a hash are set, so two hashes always differ in an even number of bits."""


@dataclass(frozen=True)
class Verdicts:
    """For each picture a code of REASONS, and the position of the picture that it repeats (or of the evaluation
    picture)."""

    code: NDArray[np.int8]
    like: NDArray[np.int64]


def judge(hashes: Hashes, evaluation: NDArray[np.uint64], rules: Rules) -> Verdicts:
    """The verdicts on all pictures. A picture is compared with every earlier one, kept or not, so the result depends
    only on the order of the pictures. Peak memory is about 100 bytes for each picture."""
    verdicts = Verdicts(np.zeros(len(hashes), np.int8), np.arange(len(hashes)))
    own = np.arange(len(hashes))
    if rules.near or len(evaluation):
        with_hash = np.flatnonzero(hashes.has_phash)
        first = first_near(np.concatenate([evaluation, hashes.phash[with_hash]]), rules.bits_apart)[len(evaluation) :]
        leaks = first < len(evaluation)
        if rules.near:
            others = np.full(len(hashes), -1)
            others[with_hash[~leaks]] = with_hash[first[~leaks] - len(evaluation)]
            _mark(verdicts, (others >= 0) & (others < own), NEAR, others)
    if rules.exact or rules.placeholder_urls:
        _, first_copy, group = np.unique(hashes.content, return_index=True, return_inverse=True)
        if rules.exact:
            _mark(verdicts, first_copy[group] < own, DUPLICATE, first_copy[group])
    if len(evaluation):
        which = np.full(len(hashes), -1)
        which[with_hash[leaks]] = first[leaks]
        _mark(verdicts, which >= 0, EVALUATION, which)
    if rules.placeholder_urls:
        placeholders = _urls_of_groups(group, hashes.urls) >= rules.placeholder_urls
        _mark(verdicts, placeholders[group], PLACEHOLDER, first_copy[group])
    return verdicts


def _mark(verdicts: Verdicts, chosen: NDArray[np.bool_], code: int, like: NDArray[np.int64]) -> None:
    """Set the code and the repeated picture of the chosen ones; a later call overwrites an earlier one."""
    verdicts.code[chosen] = code
    verdicts.like[chosen] = like[chosen]


def _urls_of_groups(group: NDArray[np.int64], urls: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The number of different URLs of the pictures of each group."""
    order = np.lexsort((urls, group))
    ordered_group, ordered_urls = group[order], urls[order]
    is_new = np.ones(len(order), np.bool_)
    is_new[1:] = (np.diff(ordered_group) != 0) | (ordered_urls[1:] != ordered_urls[:-1])
    counts: NDArray[np.int64] = np.bincount(ordered_group[is_new])
    return counts
