"""How far a long command is, on stderr: one line that rewrites itself; without a terminal, a plain line a minute."""

import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

Item = TypeVar("Item")
EVERY_S = 60.0
EVERY_S_IN_TERMINAL = 1.0
WINDOW_S = 300.0  # over which the rate is taken: work comes in waves


class ProgressLine:
    """Say N of M, rate and time left while the block runs; a thread does it, also while one piece of work takes long.

    Without a total or a unit it says what is known. With `shown` False, as on all ranks but one, it is silent.
    """

    def __init__(
        self, what: str, total: int | None = None, unit: str = "", *, done: int = 0, shown: bool = True
    ) -> None:
        self.what, self.total, self.unit, self.done, self.note = what, total, unit, done, ""
        self.in_terminal = sys.stderr.isatty()
        self._begun = time.monotonic()
        self._marks = deque([(self._begun, done)])  # when, and how much was done then
        self._end, self._lock = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._show, daemon=True, name="progress") if shown else None

    def advance(self, count: int = 1) -> None:
        """So much more is done."""
        with self._lock:
            self.done += count

    def skip(self, count: int) -> None:
        """So much was done before, or by others: it does not count in the rate."""
        with self._lock:
            self.done += count
            self._marks = deque((at, done + count) for at, done in self._marks)

    def follow(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, each counted when the next one is asked for."""
        with self:
            for item in items:
                yield item
                self.advance()

    def text(self) -> str:
        """Such as `captioning: 1,234 of 10,000 pictures (12%), 20.5 a second, 7 min left`."""
        now = time.monotonic()
        with self._lock:
            while len(self._marks) > 1 and now - self._marks[1][0] >= WINDOW_S:
                self._marks.popleft()
            since, before = self._marks[0]
            done, rate = self.done, (self.done - before) / max(now - since, 1e-9)
            self._marks.append((now, done))
        parts = []
        if self.unit and self.total is None:
            parts.append(f"{done:,} {self.unit}")
        elif self.unit:
            parts.append(f"{done:,} of {self.total:,} {self.unit} ({100 * done // max(1, self.total or 0)}%)")
        if rate > 0:
            parts.append(f"{rate:,.1f} a second" if rate >= 1 else f"{_duration(1 / rate)} each")
        if rate > 0 and self.total is not None:
            parts.append(f"{_duration(max(0, self.total - done) / rate)} left")
        else:
            parts.append(f"{_duration(now - self._begun)} so far")
        return f"{self.what}: {', '.join([*parts, *([self.note] if self.note else [])])}"

    def _show(self) -> None:
        while not self._end.wait(EVERY_S_IN_TERMINAL if self.in_terminal else EVERY_S):
            if self.in_terminal:
                print(f"\r{self.text()}\x1b[K", end="", file=sys.stderr, flush=True)
            else:
                print(f"{time.strftime('%H:%M:%S')} {self.text()}", file=sys.stderr, flush=True)

    def __enter__(self) -> "ProgressLine":
        if self._thread:
            self._thread.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self._end.set()
        if self._thread:
            self._thread.join()
            if self.in_terminal:
                print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    """Such as `2.5 s`, `40 s`, `7 min`, `3 h 05 min`, `2 d 3 h`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"
