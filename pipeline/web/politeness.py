"""Limits the connections to each host, and obeys the robots.txt of each host (RFC 9309)."""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit, urlunsplit

from protego import Protego

MOST_ROBOTS_BYTES = 2 << 20
"""Bytes of the robots.txt files that a process remembers. Their rules take about 60 times as much memory."""
LEAST_ROBOTS_BYTES = 1 << 10
"""What a file counts at least, an empty one too."""


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


@dataclass
class _Host:
    """A robots.txt. Its lock is held while it is read."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    rules: Protego | None = None
    num_bytes: int = 0


class Robots:
    """Which URLs this downloader may fetch by the robots.txt of their host; a process remembers the files that it used
    last."""

    def __init__(self, agent: str, read: Callable[[str], bytes]) -> None:
        self.agent, self.read = agent, read
        self._lock = threading.Lock()
        self._of_host: dict[str, _Host] = {}

    def check(self, url: str) -> None:
        """Raises URLError("guard:robots_disallowed"), URLError("guard:robots_unreachable"), or the error of reading the
        file."""
        parts = urlsplit(url)
        place = urlunsplit((parts.scheme, parts.netloc, "/robots.txt", "", ""))
        with self._lock:
            host = self._of_host.pop(place, None) or _Host()
            self._of_host[place] = host  # the last, as it was used last
        with host.lock:
            if host.rules is None:
                content = self._content(place)
                host.rules = Protego.parse(content.decode("utf-8", "replace"))
                self._remember(host, len(content))
        if not host.rules.can_fetch(url, self.agent):
            raise URLError("guard:robots_disallowed")

    def _content(self, place: str) -> bytes:
        try:
            return self.read(place)
        except HTTPError as error:
            if error.code >= 500:
                raise URLError("guard:robots_unreachable") from error
            return b""  # there is no robots.txt: everything is allowed

    def _remember(self, host: "_Host", num_bytes: int) -> None:
        """Count a file that was read, and forget those that were used longest ago."""
        with self._lock:
            host.num_bytes = max(num_bytes, LEAST_ROBOTS_BYTES)
            total = sum(each.num_bytes for each in self._of_host.values())
            for place, other in list(self._of_host.items()):
                if total <= MOST_ROBOTS_BYTES:
                    return
                if other is not host:
                    total -= other.num_bytes
                    del self._of_host[place]


@contextmanager
def given_back_on_error(give_back: Callable[[], None]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        give_back()
        raise
