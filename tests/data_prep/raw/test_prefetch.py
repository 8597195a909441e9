"""One item is prepared while another is worked on, in order, and what goes wrong comes in its place."""

import threading
from collections.abc import Iterator

import pytest

from data_prep.raw.prefetch import prefetch


def test_the_next_item_is_prepared_while_the_first_is_worked_on_and_no_more_than_two_wait() -> None:
    prepared: list[int] = []
    third = threading.Event()

    def prepare(item: int) -> int:
        prepared.append(item)
        if item == 2:
            third.set()
        return item * 10

    results = prefetch(range(5), prepare)
    assert next(results) == 0
    assert third.wait(10) and len(prepared) == 3  # one taken, one ready, one that waits for its place
    assert list(results) == [10, 20, 30, 40] and prepared == [0, 1, 2, 3, 4]


def test_errors_of_preparing_and_of_reading_come_after_the_results_before_them() -> None:
    def items() -> Iterator[int]:
        yield from (4, 2, 1)
        raise ValueError("the table ends in the middle")

    results = prefetch(items(), lambda item: 4 // item)
    assert [next(results), next(results), next(results)] == [1, 2, 4]
    with pytest.raises(ValueError, match="ends in the middle"):
        next(results)
    results = prefetch([1, 0, 1], lambda item: 4 // item)
    assert next(results) == 4
    with pytest.raises(ZeroDivisionError):
        next(results)
