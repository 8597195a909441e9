"""Work shared out to processes: results in order, what a process raises, and one that is killed."""

import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from data_prep.shards.processes import map_in_order
from tests.support.small_memory import memory_group, use_up_memory


def slow_first(number: int) -> tuple[int, int]:
    time.sleep(0.2 if number == 0 else 0)
    return number, os.getpid()


def fails_at(bad: int, number: int) -> int:
    if number == bad:
        raise ValueError(f"item {number} is bad")
    return number


def killed(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def without_memory(group: Path, number: int) -> int:
    use_up_memory(group)
    return number


def test_results_keep_the_order_and_come_from_other_processes() -> None:
    results = list(map_in_order(slow_first, range(6), workers=2))
    assert [number for number, _ in results] == list(range(6))
    assert os.getpid() not in {process for _, process in results}


@pytest.mark.parametrize("workers", [1, 2])
def test_what_an_item_raises_is_raised_after_the_results_before_it(workers: int) -> None:
    results = map_in_order(partial(fails_at, 2), range(5), workers)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="item 2 is bad"):
        next(results)


LINE = r"2 processes: one was killed by signal 9, .* memory .*fewer \(--workers\)"


def test_a_killed_process_ends_the_work_with_a_line() -> None:
    with pytest.raises(ValueError, match=LINE):
        list(map_in_order(killed, range(3), workers=2))


def test_so_does_one_that_the_kernel_kills_for_memory() -> None:
    with memory_group() as group, pytest.raises(ValueError, match=LINE):
        list(map_in_order(partial(without_memory, group), range(3), workers=2))
