"""Bootstrap intervals of any metric that is a function of sums over samples, resampled by cluster (image)."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
LEVEL = 0.95
DRAWS = 20_000  # at once, in memory that a core's cache holds
LEAST = 10  # clusters: fewer give intervals that are too narrow (with five images, 91% of them hold the truth)

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def sums_by_cluster(values: Floats, clusters: Sequence[Any] | NDArray[Any]) -> Floats:
    """Rows of `values` [samples, S] added up by cluster: [clusters, S]."""
    _, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    order = np.argsort(cluster, kind="stable")
    starts = np.flatnonzero(np.diff(cluster[order], prepend=-1))
    sums: Floats = np.add.reduceat(values[order], starts, axis=0)
    return sums


def interval(
    sums: Floats,
    statistic: Callable[[Floats], Floats],
    *,
    support: Integers | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[Floats, Floats]:
    """95% percentile interval of `statistic`. Whole clusters are drawn: the samples of one image are not independent.

    `sums` is [clusters, S]; `statistic` maps totals [R, S] to values [R, M]. `support` [M]: how many clusters hold
    samples of each value, when not all do. Returns low [M] and high [M], NaN for values with fewer than LEAST clusters;
    the same seed gives the same interval.
    """
    clusters, totals = len(sums), _resampled(sums, seed, resamples)
    with np.errstate(invalid="ignore", divide="ignore"):
        resampled = statistic(totals)
    counts = np.full(resampled.shape[1], clusters) if support is None else support
    low, high = np.full((2, len(counts)), np.nan)
    for count in np.unique(counts[counts >= LEAST]):
        tail, chosen = tail_probability(int(count)), counts == count
        low[chosen], high[chosen] = np.nanquantile(resampled[:, chosen], [tail, 1 - tail], axis=0)
    return low, high


def _resampled(sums: Floats, seed: int, resamples: int) -> Floats:
    """Totals of each resample, [resamples, S]. DRAWS bounds how many are made at once, and changes none."""
    rng, clusters = np.random.default_rng(seed), len(sums)
    totals = np.empty((resamples, sums.shape[1]))
    at_once = max(1, DRAWS // clusters)
    for first in range(0, resamples, at_once):
        rows = min(at_once, resamples - first)
        drawn = rng.integers(clusters, size=(rows, clusters)) + clusters * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * clusters).reshape(rows, clusters)
        totals[first : first + rows] = counts @ sums
    return totals


def tail_probability(clusters: int) -> float:
    """The share that a percentile interval leaves out on each side: 2.5% with many clusters, less with few.

    Resamples of few clusters vary less than their source. The smaller share makes the interval as wide as Student's
    interval for a mean (Hesterberg 2015, "expanded percentile").
    """
    from scipy.special import ndtr, stdtrit

    margin = (1 - LEVEL) / 2
    return float(ndtr(np.sqrt(clusters / (clusters - 1)) * stdtrit(clusters - 1, margin)))


def ratio_of_sums(totals: Floats) -> Floats:
    """The first half of the sums divided by the second: means, where the second half counts."""
    half = totals.shape[-1] // 2
    ratio: Floats = totals[..., :half] / totals[..., half:]
    return ratio
