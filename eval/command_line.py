"""How this room's commands begin and end: settings first; 0 done, 1 failed, 2 wrong usage, 75 stopped on a signal."""

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import NoReturn

STOPPED = 75  # run the same command again and it goes on


class Parser(argparse.ArgumentParser):
    """An argument parser that answers wrong usage in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


class StoppedBySignalError(BaseException):
    """Raised in the main thread when SIGINT, SIGTERM or SIGUSR1 arrives. No Exception: libraries swallow those while
    they are imported, and the signal would be lost."""


def print_settings(options: argparse.Namespace) -> None:
    """The resolved settings, as one line of JSON."""
    print(json.dumps(vars(options), default=str), flush=True)


def check_outputs(outputs: Iterable[tuple[str, Path | None]], inputs: Iterable[tuple[str, Path | None]]) -> None:
    """Of (option, path): raise ValueError, naming both options, when an output would replace an input or another
    output, by whatever name or link."""
    taken = {os.path.realpath(path): (option, "an input") for option, path in inputs if path}
    for option, path in outputs:
        if path is None:
            continue
        place = os.path.realpath(path)
        if place in taken:
            other, kind = taken[place]
            raise ValueError(f"{option} {path}: is {kind} ({other}) too; name another file")
        taken[place] = (option, "an output")


def finish(work: Callable[[], None]) -> int:
    """Run `work` and turn what it raises into an exit code and one line on stderr."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001  (the signature of a handler)
        raise StoppedBySignalError(signal.Signals(number).name)

    previous = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        work()
        return 0
    except StoppedBySignalError as stopped:
        print(f"stopped by {stopped}; run the same command again to go on", file=sys.stderr)
        return STOPPED
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
