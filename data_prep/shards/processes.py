"""Runs a function over many items in several processes, its results in the items' order."""

import argparse
import ctypes
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from pipeline.command_line import positive

Item = TypeVar("Item")
Result = TypeVar("Result")

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal to get when the parent dies."""


def add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers", metavar="N", type=positive, default=1, help="processes; each reads one shard at a time; default 1"
    )


def end_with_parent() -> None:
    """Have this process killed when the one that started it dies, however that ends. Only Linux can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _begin() -> None:
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the keyboard: the parent stops the work


def map_in_order(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """`function` of each item, in order; beyond one worker in processes of their own, which take items as they come.

    What `function` raises is raised here, and no further item is begun. Raises ValueError when a process is killed.
    """
    if workers == 1:
        yield from map(function, items)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin)
    try:
        yield from pool.map(function, items)
    except BrokenProcessPool as error:
        raise ValueError(
            "a worker process was killed, perhaps for its memory; run again with fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
