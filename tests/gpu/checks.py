"""What a part reports: values with their bounds, a JSON line each, and how it measures time."""

import json
import math
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Checks:
    """The checks of one part. A line is printed at once: what a part found before it ended too early is not lost.

    `device` is cuda or cpu; `tiny` asks for small sizes. Bounds of speed and memory count at real size on a GPU alone.
    """

    part: str
    device: str
    tiny: bool
    output: Path

    @property
    def is_real(self) -> bool:
        """Whether figures of speed and memory mean something."""
        return self.device == "cuda" and not self.tiny

    def report(self, check: str, value: Any, bound: str, ok: bool) -> None:
        shown = float(f"{value:.5g}") if isinstance(value, float) and math.isfinite(value) else value
        shown = str(shown) if isinstance(shown, float) and not math.isfinite(shown) else shown
        line = {"part": self.part, "check": check, "value": shown, "bound": bound, "ok": bool(ok)}
        print(json.dumps(line), flush=True)

    def is_true(self, check: str, ok: bool, value: Any = None) -> None:
        self.report(check, ok if value is None else value, "holds", ok)

    def at_most(self, check: str, value: float, bound: float) -> None:
        self.report(check, float(value), f"<= {bound:g}", value <= bound)

    def at_least(self, check: str, value: float, bound: float) -> None:
        self.report(check, float(value), f">= {bound:g}", value >= bound)

    def figure(self, check: str, value: float, *, least: float | None = None, most: float | None = None) -> None:
        """A speed or an amount of memory, with its bound on a GPU at real size; else it must only be a number."""
        if not self.is_real:
            self.report(check, float(value), "a number", math.isfinite(value))
        elif least is not None:
            self.at_least(check, value, least)
        else:
            assert most is not None, check
            self.at_most(check, value, most)

    @contextmanager
    def guarded(self, check: str) -> Iterator[None]:
        """An error within is a failed check; the part goes on after it."""
        try:
            yield
        except Exception as error:  # whatever a kernel, a compiler or a library raises
            traceback.print_exc(file=sys.stderr)
            text = " ".join(str(error).split())[:300]
            self.report(check, f"{type(error).__name__}: {text}", "no error", False)


def wait_for(device: str) -> None:
    """Until the device has done all that it was given."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], object], device: str, rounds: int = 10, warmup: int = 3) -> float:
    """The median time of one call, on a GPU by its own clock."""
    import torch

    for _ in range(warmup):
        work()
    wait_for(device)
    if device == "cpu":
        times = []
        for _ in range(rounds):
            started = time.perf_counter()
            work()
            times.append(time.perf_counter() - started)
        return statistics.median(times)
    events: list[Any] = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(rounds)]
    for begin, end in events:
        begin.record()
        work()
        end.record()
    wait_for(device)
    return statistics.median(begin.elapsed_time(end) / 1000 for begin, end in events)


def relative_error(found: Any, wanted: Any) -> float:
    """|found - wanted| / |wanted| of two lists of tensors, in fp64 on the CPU; NaN gives infinity."""
    import torch

    one, other = (
        torch.cat([each.detach().double().cpu().flatten() for each in tensors]) for tensors in (found, wanted)
    )
    error = float((one - other).norm() / other.norm().clamp_min(1e-300))
    return error if math.isfinite(error) else math.inf
