"""Run a function in N real gloo processes of one process group, and return what each rank returned."""

import io
import multiprocessing
import os
import random
import socket
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

PRELOADED = ["tests.support.preloaded"]
"""Imported once, in a server process that starts no thread; every rank is a fresh fork of it."""


def free_port(count: int = 1) -> int:
    """The first of `count` neighbouring TCP ports that nobody listens on.

    They are below those that Linux gives to clients by itself: so no connection takes one before it is used.
    """
    while True:
        first = random.SystemRandom().randrange(10_000, 29_000)
        with ExitStack() as opened, suppress(OSError):
            for port in range(first, first + count):
                opened.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first


def _pack(value: object) -> bytes:
    """Tensors by value: torch's own pickling would hand over memory that dies with the rank."""
    import torch

    content = io.BytesIO()
    torch.save(value, content)
    return content.getvalue()


def _unpack(content: bytes) -> Any:
    import torch

    return torch.load(io.BytesIO(content), weights_only=False)


def _rank_main(
    rank: int, num_ranks: int, port: int, report: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(num_ranks),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    import torch

    from pipeline.distributed import process_group

    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # Linux's own, as in a process that a launcher started
    try:
        process_group.initialise()
        report.send_bytes(_pack((True, function(*arguments))))
    except BaseException:
        report.send_bytes(_pack((False, traceback.format_exc())))
        os._exit(1)  # leaving the group politely would wait for ranks that wait for this one
    process_group.shut_down()


def _start(
    num_ranks: int, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> tuple[list[BaseProcess], list[Connection]]:
    """The ranks' processes, and where each reports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    port, processes, reports = free_port(), [], []
    for rank in range(num_ranks):
        report, sender = context.Pipe(duplex=False)
        process = context.Process(target=_rank_main, args=(rank, num_ranks, port, sender, function, arguments))
        process.start()
        sender.close()
        processes.append(process)
        reports.append(report)
    return processes, reports


def ends_of_ranks(
    num_ranks: int, function: Callable[..., int], *arguments: Any, deadline_s: float = 300.0
) -> list[int]:
    """The exit codes of ranks in which `function` returned them; -N of one that signal N killed. In rank order.

    Raises AssertionError when a rank has not ended at the deadline; no process outlives the call.
    """
    processes, _reports = _start(num_ranks, _leave_with, (function, *arguments))
    deadline = time.monotonic() + deadline_s
    try:
        for process in processes:
            process.join(timeout=max(0.0, deadline - time.monotonic()))
        codes = [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.join()
    assert None not in codes, f"not all ranks ended in {deadline_s} s: {codes}"
    return [code for code in codes if code is not None]


def _leave_with(function: Callable[..., int], *arguments: Any) -> None:
    os._exit(function(*arguments))


def run_on_ranks(num_ranks: int, function: Callable[..., Any], *arguments: Any, deadline_s: float = 300.0) -> list[Any]:
    """`function(*arguments)` in `num_ranks` processes that have joined one gloo group; results in rank order.

    The function must stand at the top of a module. Raises AssertionError with the first failing rank's traceback, or
    when a rank has not answered at the deadline; no process outlives the call.
    """
    deadline = time.monotonic() + deadline_s
    processes, reports = _start(num_ranks, function, arguments)
    results: dict[int, Any] = {}
    try:
        while len(results) < num_ranks:
            waited = [report for rank, report in enumerate(reports) if rank not in results]
            ready = wait(waited, timeout=max(0.0, deadline - time.monotonic()))
            assert ready, f"ranks {sorted(set(range(num_ranks)) - set(results))} did not answer in {deadline_s} s"
            for report in ready:
                assert isinstance(report, Connection)
                rank = reports.index(report)
                try:
                    succeeded, value = _unpack(report.recv_bytes())
                except EOFError:
                    raise AssertionError(f"rank {rank} died without an answer") from None
                assert succeeded, f"rank {rank} failed:\n{value}"
                results[rank] = value
        for process in processes:
            process.join(timeout=max(0.0, deadline - time.monotonic()))
    finally:
        for process in processes:
            process.kill()
            process.join()
    return [results[rank] for rank in range(num_ranks)]
