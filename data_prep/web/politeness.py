"""Limits the connections to each host, and obeys the robots.txt of each host (RFC 9309)."""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit, urlunsplit

from protego import Protego

MOST_HOSTS = 10_000
"""The number of robots.txt files that a process keeps in memory."""


class HostSlots:
    """Limits the connections of this process to one host at a time; 0 means no limit."""

    def __init__(self, per_host: int) -> None:
        self.per_host = per_host
        self._lock = threading.Lock()
        self._slots: defaultdict[str, threading.BoundedSemaphore] = defaultdict(
            lambda: threading.BoundedSemaphore(max(1, per_host))
        )

    def take(self, url: str) -> Callable[[], None]:
        """Wait for a free connection; returns a function that gives it back."""
        if not self.per_host:
            return lambda: None
        with self._lock:
            slot = self._slots[urlsplit(url).hostname or ""]
        slot.acquire()
        return slot.release


class Robots:
    """Which URLs this downloader may fetch by the robots.txt of their host; a process reads each file once."""

    def __init__(self, agent: str, read: Callable[[str], bytes]) -> None:
        self.agent, self.read = agent, read
        self._lock = threading.Lock()
        self._of_host: dict[str, tuple[threading.Lock, list[Protego]]] = {}

    def check(self, url: str) -> None:
        """Raises URLError("guard:robots_disallowed"), URLError("guard:robots_unreachable"), or the error of reading the
        file."""
        parts = urlsplit(url)
        place = urlunsplit((parts.scheme, parts.netloc, "/robots.txt", "", ""))
        with self._lock:
            if len(self._of_host) >= MOST_HOSTS:
                self._of_host.clear()
            lock, known = self._of_host.setdefault(place, (threading.Lock(), []))
        with lock:
            if not known:
                known.append(self._rules(place))
        if not known[0].can_fetch(url, self.agent):
            raise URLError("guard:robots_disallowed")

    def _rules(self, place: str) -> Protego:
        try:
            return Protego.parse(self.read(place).decode("utf-8", "replace"))
        except HTTPError as error:
            if error.code >= 500:
                raise URLError("guard:robots_unreachable") from error
            return Protego.parse("")  # there is no robots.txt: everything is allowed


@contextmanager
def given_back_on_error(give_back: Callable[[], None]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        give_back()
        raise
