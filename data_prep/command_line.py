"""How the commands of this room end: 0 done, 1 failed, 2 wrong usage, 75 stopped on a signal; one line says why."""

import argparse
import errno
import json
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

STOPPED = 75
"""Exit code of a command that a signal stopped between two shards or within one: run it again and it goes on."""


class Parser(argparse.ArgumentParser):
    """An argument parser that answers wrong usage in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers", metavar="N", type=positive, default=1, help="processes, each of which reads one shard at a time; 1"
    )


def positive(text: str) -> int:
    """A whole number above 0. Raises ArgumentTypeError."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


class StoppedBySignalError(BaseException):
    """Raised in the main thread when SIGINT, SIGTERM or SIGUSR1 arrives. No Exception: libraries swallow those while
    they are imported, and the signal would be lost."""


def print_settings(options: argparse.Namespace) -> None:
    """The resolved settings, as one line of JSON."""
    print(json.dumps(vars(options), default=str), flush=True)


def finish(work: Callable[[], int]) -> int:
    """Run `work` and turn what it raises into an exit code and one line on stderr."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001  (the signature of a handler)
        raise StoppedBySignalError(signal.Signals(number).name)

    previous = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        return work()
    except StoppedBySignalError as stopped:
        print(f"stopped by {stopped}; run the same command again to go on", file=sys.stderr)
        return STOPPED
    except (ValueError, OSError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = ": the disk is full; free space, run again" if full else ""
        print(f"error: {' '.join(str(error).split())}{hint}", file=sys.stderr)
        return 1
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
