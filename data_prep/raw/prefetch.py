"""Prepares the next item in a thread while the present one is worked on."""

from collections.abc import Callable, Iterable, Iterator
from queue import Queue
from threading import Thread
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(items: Iterable[Item], prepare: Callable[[Item], Result]) -> Iterator[Result]:
    """`prepare` of each item, in order. While one is worked on, the next is ready and the one after it is prepared.

    An error of reading or preparing is raised here, after the results before it. The thread is a daemon, so that a
    process that is told to stop does not wait for it.
    """
    ready: Queue[tuple[Result] | BaseException | None] = Queue(maxsize=1)

    def work() -> None:
        try:
            for item in items:
                ready.put((prepare(item),))
            ready.put(None)
        except BaseException as error:
            ready.put(error)

    Thread(target=work, daemon=True).start()
    while (found := ready.get()) is not None:
        if isinstance(found, BaseException):
            raise found
        yield found[0]
