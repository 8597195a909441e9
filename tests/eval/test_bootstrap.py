"""Bootstrap intervals: coverage, clusters, repeatability."""

import numpy as np

from eval.metrics.bootstrap import interval, mean_with_interval, sums_by_cluster


def test_intervals_cover_the_true_mean_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        of_image = rng.normal(50, 10, size=80)
        clusters = np.repeat(np.arange(80), 5)  # five samples of an image are nearly the same
        values = of_image[clusters] + rng.normal(0, 1, size=400)
        sums = sums_by_cluster(np.column_stack([values, np.ones(400)]), clusters)
        low, high = interval(sums, lambda totals: totals[:, :1] / totals[:, 1:], seed=trial, resamples=200)
        covered += bool(low[0] <= 50 <= high[0])
    assert 0.90 <= covered / 300 <= 0.98


def test_sums_by_cluster_equal_a_plain_loop() -> None:
    rng = np.random.default_rng(1)
    values, clusters = rng.normal(size=(50, 3)), rng.choice(list("xyzw"), size=50)
    expected = np.array([values[clusters == name].sum(axis=0) for name in "wxyz"])
    assert np.allclose(sums_by_cluster(values, clusters), expected)


def test_subset_means_and_the_same_seed_twice() -> None:
    values = np.array([[1.0, 1.0], [2.0, 2.0], [6.0, 6.0]])
    member = np.array([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    first = mean_with_interval(values, member, [0, 1, 2])
    assert first[0].tolist() == [3.0, 3.5]
    for once, again in zip(first, mean_with_interval(values, member, [0, 1, 2]), strict=True):
        assert np.array_equal(once, again)
