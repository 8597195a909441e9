"""Recall against a plain sort; candidates, ties and chance by hand."""

import numpy as np
import pytest

from eval.metrics.recall import chance_recall, rank_queries, top_k


def plain_order(itc: np.ndarray, itm: np.ndarray | None, k: int) -> list[int]:
    """The gallery in order: candidates by ITM + ITC, then the rest by ITC; equal scores by index."""
    by_itc = sorted(range(len(itc)), key=lambda place: (-itc[place], place))
    if itm is None:
        return by_itc
    candidates = sorted(by_itc[:k], key=lambda place: (-(itm[place] + itc[place]), place))
    return candidates + by_itc[k:]


@pytest.mark.parametrize("levels", [3, 100000])
@pytest.mark.parametrize("k", [1, 4, 1000])
def test_ranks_equal_those_of_a_plain_sort(levels: int, k: int) -> None:
    rng = np.random.default_rng(0)
    texts, images = 60, 20
    text_image = rng.permutation(np.arange(texts) % images)
    itc = (rng.integers(levels, size=(images, texts)) / levels).astype(np.float32)
    full_itm = rng.integers(levels, size=(images, texts)) / levels * 8 - 4
    positives = [np.flatnonzero(text_image == image) for image in range(images)]
    itm = np.full(itc.shape, np.nan)
    for image in range(images):
        chosen = sorted(range(texts), key=lambda place: (-itc[image, place], place))[:k]
        itm[image, chosen] = full_itm[image, chosen]
    for matrix in (None, itm):
        ranks = rank_queries(itc, positives, matrix, k)
        for image in range(images):
            order = plain_order(itc[image].astype(float), None if matrix is None else itm[image], k)
            assert ranks.stable[image] == min(order.index(text) for text in positives[image].tolist())
            assert ranks.first[image].tolist() == order[:10]
            assert ranks.optimistic[image] <= ranks.stable[image] <= ranks.pessimistic[image]


def test_with_k_extra_itm_scores_make_no_candidates() -> None:
    itc = np.array([[0.9, 0.5, 0.1]])
    itm = np.array([[-5.0, -1.0, 9.0]])
    assert rank_queries(itc, [np.array([2])], itm, k=2).stable.tolist() == [2]
    assert rank_queries(itc, [np.array([2])], itm).stable.tolist() == [0]


def test_a_candidate_without_itm_score_is_refused() -> None:
    with pytest.raises(ValueError, match="row 0 has no score for one of its top 2"):
        rank_queries(np.array([[0.9, 0.5]]), [np.array([0])], np.array([[1.0, np.nan]]), k=2)


def test_a_row_without_any_itm_score_is_refused() -> None:
    with pytest.raises(ValueError, match="row 1 has no score at all"):
        rank_queries(np.eye(2), [np.array([0]), np.array([1])], np.array([[1.0, 2.0], [np.nan, np.nan]]))


def test_ties_give_a_range_and_the_lower_index_goes_first() -> None:
    ranks = rank_queries(np.zeros((2, 4)), [np.array([2]), np.array([0, 3])])
    assert (ranks.stable.tolist(), ranks.optimistic.tolist(), ranks.pessimistic.tolist()) == ([2, 0], [0, 0], [3, 2])


def test_top_k_keeps_the_lowest_indices_of_equal_scores() -> None:
    assert top_k(np.array([1.0, 2.0, 1.0, 2.0, 1.0]), 3).tolist() == [1, 3, 0]


def test_chance_equals_the_recall_of_random_scores() -> None:
    rng = np.random.default_rng(0)
    positives = [np.arange(2), np.arange(5)] * 4000
    ranks = rank_queries(rng.random((8000, 30)), positives)
    for at, expected in chance_recall(positives, 30).items():
        assert 100 * (ranks.stable < at).mean() == pytest.approx(expected, abs=1.5)
    assert chance_recall([np.array([0])], 5)[10] == 100
