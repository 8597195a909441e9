"""What a process spends its time on: seconds by kind, by the host's clock, or by the GPU's stream for collectives."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
COMMUNICATION = "communication"


class Stopwatch:
    """Adds up what is measured; a measure inside another is not counted twice."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.events: list[tuple[Any, Any]] = []
        self.running = False

    @contextmanager
    def measure(self, kind: str) -> Iterator[None]:
        """Time on the host."""
        if self.running:
            yield
            return
        self.running, began = True, time.perf_counter()
        try:
            yield
        finally:
            self.running = False
            self.seconds[kind] += time.perf_counter() - began

    @contextmanager
    def communicate(self) -> Iterator[None]:
        """The time of a collective: on a GPU, the time for which its stream waits; this needs no synchronisation."""
        import torch

        if self.running or not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            with self.measure(COMMUNICATION):
                yield
            return
        self.running = True
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        try:
            yield
        finally:
            self.running = False
            end.record()
            self.events.append((begin, end))

    def collective(self, function: Callable[P, R]) -> Callable[P, R]:
        """The function, measured as communication."""

        @wraps(function)
        def measured(*arguments: P.args, **options: P.kwargs) -> R:
            with self.communicate():
                return function(*arguments, **options)

        return measured

    def take(self) -> dict[str, float]:
        """Seconds by kind since the last time. On a GPU, call it when the stream's work is done."""
        for begin, end in self.events:
            end.synchronize()
            self.seconds[COMMUNICATION] += begin.elapsed_time(end) / 1000
        taken = dict(self.seconds)
        self.seconds.clear()
        self.events.clear()
        return taken


STOPWATCH = Stopwatch()
"""One for the process, as a logger is."""
BACKEND_COLLECTIVES = (
    "all_reduce", "reduce", "broadcast", "all_gather", "all_gather_into_tensor", "reduce_scatter_tensor", "barrier",
)  # fmt: skip


def watch(backend: Any) -> None:
    """Measure the collectives of a backend object, such as DeepSpeed's. For those that run in the background, only
    the time to start them counts."""
    for name in BACKEND_COLLECTIVES:
        setattr(backend, name, STOPWATCH.collective(getattr(backend, name)))
