"""Bootstrap intervals: coverage, clusters, repeatability; paired differences."""

import numpy as np
import pytest

from eval.metrics.bootstrap import interval, ratio_of_sums, sums_by_cluster
from eval.scoring.tables import Table, means_table

KEY = ("accuracy", "rule", "overall")


def draw(rng: np.random.Generator, kind: str) -> tuple[np.ndarray, np.ndarray, float]:
    """A synthetic set of 200 images: samples that are alike within an image, its clusters, and the true mean."""
    sizes = rng.integers(1, 8, size=200) if kind == "uneven" else np.full(200, 5)
    clusters = np.repeat(np.arange(200), sizes)
    if kind == "normal":
        return rng.normal(50, 10, 200)[clusters] + rng.normal(0, 1, len(clusters)), clusters, 50.0
    chance = rng.beta(2, 2, 200)  # of an image's questions to be answered well
    return 100.0 * (rng.random(len(clusters)) < chance[clusters]), clusters, 50.0


@pytest.mark.parametrize("kind", ["normal", "binary", "uneven"])
def test_intervals_cover_the_true_mean_as_often_as_they_say(kind: str) -> None:
    """Of 1,000 synthetic sets 93 to 97 in 100."""
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(1000):
        values, clusters, truth = draw(rng, kind)
        sums = sums_by_cluster(np.column_stack([values, np.ones(len(values))]), clusters)
        low, high = interval(sums, ratio_of_sums, seed=trial, resamples=300)
        covered += bool(low[0] <= truth <= high[0])
    assert 930 <= covered <= 970


def test_sums_by_cluster_equal_a_plain_loop() -> None:
    rng = np.random.default_rng(1)
    values, clusters = rng.normal(size=(50, 3)), rng.choice(list("xyzw"), size=50)
    expected = np.array([values[clusters == name].sum(axis=0) for name in "wxyz"])
    assert np.allclose(sums_by_cluster(values, clusters), expected)


def test_subset_means_and_the_same_rows_twice() -> None:
    values = np.array([[1.0, 1.0], [2.0, 2.0], [6.0, 6.0]])
    member = np.array([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    rows = [means_table([KEY, KEY], values, member, [0, 1, 2], 2).rows() for _ in range(2)]
    assert [row["value"] for row in rows[0]] == [3.0, 3.5]
    assert rows[0] == rows[1]


def paired(rng: np.random.Generator, gain: float, images: int = 100) -> tuple[Table, Table]:
    """Two runs on the same images of three questions: the images differ much more than the runs."""
    of_image, clusters = np.repeat(rng.normal(50, 20, images), 3), np.repeat(np.arange(images), 3)
    tables = []
    for shift in (gain, 0.0):
        values = (of_image + shift + rng.normal(0, 2, len(clusters)))[:, None]
        tables.append(means_table([KEY], values, np.ones_like(values), clusters, 4))
    return tables[0], tables[1]


def test_a_difference_is_seen_in_pairs_where_the_intervals_overlap() -> None:
    mine, other = paired(np.random.default_rng(2), 1.0)
    [row], [first], [second] = mine.difference_rows(other), mine.rows(), other.rows()
    assert row["value"] == pytest.approx(first["value"] - second["value"], abs=1e-3)
    assert first["low"] < second["high"]  # apart they say nothing,
    assert 0 < row["low"] < 1.0 < row["high"]  # in pairs they do


@pytest.mark.parametrize("images", [10, 30, 100])
def test_paired_intervals_cover_no_difference_as_often_as_they_say(images: int) -> None:
    """Of 1,000 pairs of runs 93 to 97 in 100, of few images too."""
    rng = np.random.default_rng(3)
    pairs = [paired(rng, 0.0, images) for _ in range(1000)]
    covered = sum(row["low"] <= 0 <= row["high"] for mine, other in pairs for row in mine.difference_rows(other))
    assert 930 <= covered <= 970
    [same] = pairs[0][0].difference_rows(pairs[0][0])
    assert (same["value"], same["low"], same["high"]) == (0, 0, 0)


def test_intervals_of_a_subset_in_few_of_many_images_cover_as_often_as_they_say() -> None:
    """A question type that ten of 300 images have; what nine have has no interval."""
    rng = np.random.default_rng(5)
    member = np.zeros((300, 2))
    member[:10, 0] = member[:9, 1] = 1
    covered = 0
    for _ in range(1000):
        values = np.repeat(rng.normal(50, 10, 300)[:, None], 2, axis=1)
        table = means_table([KEY, KEY], values, member, np.arange(300), 4)
        ten, nine = table.rows()
        covered += ten["low"] <= 50 <= ten["high"]
        assert nine["low"] is None and nine["high"] is None
    assert 930 <= covered <= 970
    [_, nine] = table.difference_rows(table)
    assert nine["value"] == 0 and nine["low"] is None


@pytest.mark.parametrize("images", [1, 9])
def test_few_images_have_no_interval(images: int) -> None:
    mine, other = paired(np.random.default_rng(4), 1.0, images)
    for row in (*mine.rows(), *mine.difference_rows(other)):
        assert row["value"] is not None and row["low"] is None and row["high"] is None
