"""A Java program run once over files, with a fixed locale, a private temporary folder and a deadline.

When this process is killed, even by SIGKILL, the kernel kills its Java too (Linux). Its folder is removed when the next
private folder is made.
"""

import ctypes
import fcntl
import os
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.files import lock_file, open_lock

ENGLISH = ("-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8")
LAST_WORDS = 200  # characters of stderr in an error message
LOCK = ".in_use"
SIGNAL_AT_PARENTS_DEATH = 1  # PR_SET_PDEATHSIG of prctl(2)


@contextmanager
def private_folder(name: str) -> Iterator[Path]:
    """A temporary folder, `name`-*, locked while in use; those of users that were killed are removed first."""
    for lock in Path(tempfile.gettempdir()).glob(f"{name}-*/{LOCK}"):
        _remove_unused(lock)
    with tempfile.TemporaryDirectory(prefix=f"{name}-") as made:
        unseen = Path(made) / f"{LOCK}.new"
        with open_lock(unseen) as held:
            lock_file(held, unseen, wait=True)
            unseen.rename(unseen.with_name(LOCK))  # locked before another can find it
            yield Path(made)


def _remove_unused(lock: Path) -> None:
    """Remove an own folder that nobody uses. What others made in the shared temporary folder is left alone: opening
    their pipe would wait for ever, and a link of theirs leads anywhere."""
    try:
        if lock.parent.is_symlink() or lock.parent.stat().st_uid != os.getuid():
            return
        file = os.open(lock, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            if stat.S_ISREG(os.fstat(file).st_mode):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent)
        finally:
            os.close(file)
    except OSError:
        return  # in use, or gone meanwhile


def find_java(name: str) -> str:
    """Where java is. Raises ValueError in one line when it is not installed."""
    java = shutil.which("java")
    if java is None:
        raise ValueError(
            f"{name}: java is not installed; install it (Debian: openjdk-17-jre-headless), or leave out "
            f"--{name.lower()}"
        )
    return java


def run_java(name: str, options: Sequence[str], folder: Path, stdin: Path | None, deadline_s: float) -> Path:
    """Run `java OPTIONS` with `folder` as its working and temp folder; returns the file that holds its stdout.

    Raises ValueError in one line when there is no java, it fails, is killed, or has not ended at the deadline.
    """
    java, end_with_parent = find_java(name), _ends_with_parent()
    output, errors = folder / "stdout", folder / "stderr"
    command = [java, *ENGLISH, f"-Djava.io.tmpdir={folder}", *options]
    environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8", "HOME": str(folder)}
    with (
        output.open("wb") as out,
        errors.open("wb") as err,
        stdin.open("rb") if stdin else Path(os.devnull).open("rb") as source,
    ):
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=source,
            stdout=out,
            stderr=err,
            start_new_session=True,
            preexec_fn=end_with_parent,  # noqa: PLW1509  (no thread of this process holds a lock that it would need)
        )
        try:
            code = process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise ValueError(
                f"{name}: java has not ended after {deadline_s:g} s and was killed; run it again on a free machine"
            ) from None
        finally:
            _kill_group(process)
    if code != 0:
        said = " ".join(errors.read_text(errors="replace", encoding="utf-8").split())[-LAST_WORDS:]
        more = f"{f' ({said})' if said else ''}; run it again, or leave out --{name.lower()}"
        if code < 0:
            why = ", probably because memory ran out" if code == -signal.SIGKILL else ""
            raise ValueError(f"{name}: java was killed by {signal.Signals(-code).name}{why}{more}")
        raise ValueError(f"{name}: java exited with code {code}{more}")
    return output


def _ends_with_parent() -> Callable[[], None] | None:
    """A function for the child that lets the kernel kill it when its parent dies; None on systems without prctl."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is None:
        return None
    parent = os.getpid()

    def set_signal() -> None:
        prctl(SIGNAL_AT_PARENTS_DEATH, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # the parent died before prctl was called
            os.kill(os.getpid(), signal.SIGKILL)

    return set_signal


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # it has ended, and nothing of its group is left
    process.wait()
