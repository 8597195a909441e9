"""The law of stage 1's exchange: what a rank sends for negatives stays bounded as the ranks grow."""

import pytest

from tests.benchmarks.exchange_bytes import measure


def test_what_a_rank_exchanges_is_bounded_by_its_batch_at_any_number_of_ranks() -> None:
    micro_size = 6
    rows = {ranks: measure(ranks, micro_size) for ranks in (2, 4)}
    for ranks, row in rows.items():
        # In all, each rank is sent B samples at most: the mean over ranks cannot be more. Draws fall on all alike.
        assert 0 < row["exchange"] <= row["bound"]
        assert row["exchange"] == pytest.approx(row["bound"] * (ranks - 1) / ranks, rel=0.4)
    assert rows[4]["bound"] == rows[2]["bound"]
    assert rows[4]["all_images"] == 3 * rows[2]["all_images"]  # what gathering would cost, grows
    assert rows[4]["gathers"] > 2 * rows[2]["gathers"]  # of small features and texts
