"""How every command begins and ends: settings first, one line for a fault, exit code 0, 1, 2 or 75."""

import argparse
import codecs
import errno
import io
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

STOPPED = 75
"""Exit code of a command that a signal stopped (sysexits.h: EX_TEMPFAIL). Run the same command again: it continues."""


STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
LONGEST_WAIT_S = 1_000_000
DEAF_S = 20.0
"""Seconds that a signal may wait for the main thread: SLURM kills after 30. A collective, for one, hears none."""


class Parser(argparse.ArgumentParser):
    """An argument parser that answers wrong usage in one line, with exit code 2."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors=ANY_TEXT)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's. Where they are this process's own arguments, it is in UTF-8 mode afterwards."""
        if args is None:
            _restart_in_utf8()
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def _restart_in_utf8() -> None:
    """Become the same command in Python's UTF-8 mode, where the locale has another encoding: libraries take paths in
    UTF-8 alone. Not where PYTHONUTF8 is set, so at most once, nor with an argument in another encoding."""
    if sys.getfilesystemencoding() == "utf-8" or "PYTHONUTF8" in os.environ:
        return
    try:
        for each in sys.orig_argv:
            os.fsencode(each).decode()
    except UnicodeDecodeError:
        return
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {"PYTHONUTF8": "1"})


def _any_text(error: UnicodeError) -> tuple[bytes, int]:
    """Of a text that the terminal's encoding lacks: bytes of a path as they are, other characters as `\\u1234`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return b"".join(
        bytes([ord(each) - 0xDC00]) if "\udc80" <= each <= "\udcff" else each.encode("ascii", "backslashreplace")
        for each in lacking
    ), error.end


ANY_TEXT = "blip2-any-text"
codecs.register_error(ANY_TEXT, _any_text)


class StoppedBySignalError(BaseException):
    """Raised in the main thread by SIGINT, SIGTERM or SIGUSR1.

    It is not an Exception: large libraries swallow those while they are imported, and the signal would be lost.
    """


def positive(text: str) -> int:
    """The type of a flag that takes a whole number above 0. Raises ArgumentTypeError."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def seconds(text: str) -> float:
    """The type of a flag that takes a time to wait. Raises ArgumentTypeError."""
    try:
        if 0 <= (found := float(text)) <= LONGEST_WAIT_S:
            return found
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 to {LONGEST_WAIT_S}")


def print_settings(options: argparse.Namespace) -> None:
    """Print the resolved settings, as one line of JSON."""
    print(json.dumps(vars(options), default=str), flush=True)


def check_outputs(outputs: Iterable[tuple[str, Path | None]], inputs: Iterable[tuple[str, Path | None]]) -> None:
    """Refuse an output that would replace an input or another output; both are given as (flag, path).

    Symlinks are resolved first. Raises ValueError that names both flags.
    """
    taken = {os.path.realpath(path): (flag, "an input") for flag, path in inputs if path}
    for flag, path in outputs:
        if path is None:
            continue
        place = os.path.realpath(path)
        if place in taken:
            other, kind = taken[place]
            raise ValueError(f"{flag} {path}: is {kind} ({other}) too; name another file")
        taken[place] = (flag, "an output")


def printable(text: str) -> str:
    """The text with control characters as `\\x1b`: what tables and servers say must not steer a terminal."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


class _PrintableLog(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        told = f"warning: {record.message}" if record.levelno >= logging.WARNING else record.message
        return f"{record.asctime} {told}"

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(printable(line) for line in super().format(record).split("\n"))


def start_log(level: int) -> None:
    """Log to stderr, with the time of day, and without control characters."""
    handler = logging.StreamHandler()
    handler.setFormatter(_PrintableLog("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=level, handlers=[handler])


def one_line(error: BaseException) -> str:
    """The error's message in one line; for an error in a data loader's worker, the worker's own message."""
    message = str(error).strip()
    if message.startswith("Caught "):  # torch wraps a traceback, whose last line is `module.Class: message`
        message = message.splitlines()[-1].partition(": ")[2]
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    hint = ": the disk is full; free space, run again" if full else ""
    is_foreign = not message.isascii() or isinstance(error, UnicodeEncodeError)
    if is_foreign and sys.getfilesystemencoding() != "utf-8":  # several libraries take paths in UTF-8 alone
        hint += f"; file names are in {sys.getfilesystemencoding()} here: if a path is right, set PYTHONUTF8=1"
    return (printable(" ".join(message.split())) or type(error).__name__) + hint


NO_MEMORY = ("can't allocate memory", "out of memory", "bad_alloc")
"""How torch says on the host, and how CUDA and C++ say, that memory ran out."""
AGAIN = "; run the same command again to continue"


def no_memory(error: Exception) -> str | None:
    """The line of an error by which the memory of the host or of a GPU ran out; None for any other error."""
    text = one_line(error)
    of_torch = isinstance(error, RuntimeError) and any(words in text for words in NO_MEMORY)
    if not of_torch and not isinstance(error, MemoryError):
        return None
    return f"memory ran out ({text:.200}); use smaller batches or fewer workers, or give the job more memory"


def finish(work: Callable[[], int | None], after_stop: str = AGAIN) -> int:
    """Run `work` and return the exit code: its own (0 for None), 1 after an error, 75 after a signal; what to do then
    is `after_stop`.

    A ValueError, an OSError or the end of memory becomes one line on stderr. Other exceptions are faults of this
    program and pass through.
    """

    heard = threading.Event()

    def stop(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001  (the signature of a handler)
        heard.set()
        raise StoppedBySignalError(signal.Signals(number).name)

    previous = {each: signal.signal(each, stop) for each in STOPS}
    try:
        with ended_if_deaf(heard, DEAF_S, after_stop):
            return work() or 0
    except StoppedBySignalError as stopped:
        print(f"stopped by {stopped}{after_stop}", file=sys.stderr)
        return STOPPED
    except (ValueError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    except Exception as error:
        if not (line := no_memory(error)):
            raise
        print(f"error: {line}", file=sys.stderr)
        return 1
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def ended_if_deaf(heard: threading.Event, deaf_s: float, after_stop: str = AGAIN) -> Iterator[None]:
    """End this process when a signal came and the main thread did not hear it for `deaf_s`: it may be in a call of a
    library that does not return. What it has written so far is as whole as after kill -9."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def watch() -> None:
        while number := os.read(reader, 1)[0]:
            if number in STOPS and not heard.wait(deaf_s):
                name = signal.Signals(number).name
                os.write(2, f"stopped by {name}, which was not heard for {deaf_s:g} s{after_stop}\n".encode())
                os._exit(STOPPED)

    thread = threading.Thread(target=watch, name="signals", daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)  # written to at once, by the handler in C
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.write(writer, b"\0")
        thread.join()
        os.close(reader)
        os.close(writer)


os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # a child's signals are not its parent's
