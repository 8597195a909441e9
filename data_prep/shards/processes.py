"""Runs a function on many items in several processes; the results keep the order of the items."""

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
"""Option of prctl(2): the signal that this process receives when its parent dies."""


def add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers",
        metavar="N",
        type=positive,
        default=1,
        help="processes; each reads one shard at a time (default: 1)",
    )


def end_with_parent() -> None:
    """Let the kernel kill this process when its parent dies, for whatever reason. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _begin() -> None:
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C: the parent stops the work


def map_in_order(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """`function` of each item, in order. Several workers are processes, and each takes the next item when it is free.

    An error of `function` is raised here, and no further item is started. Raises ValueError when a process is killed.
    """
    if workers == 1:
        yield from map(function, items)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin)
    try:
        yield from pool.map(function, items)
    except BrokenProcessPool as error:
        raise ValueError(
            f"{workers} processes: one was killed by signal 9, most likely because memory ran out; run again with "
            "fewer (--workers), or with more memory"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
