"""A Java program run once over files: forced locale, private temp folder, a deadline, and no process left behind."""

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

ENGLISH = ("-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8")
LAST_WORDS = 200  # characters of stderr in an error


def run_java(name: str, options: Sequence[str], folder: Path, stdin: Path | None, deadline_s: float) -> Path:
    """Run `java OPTIONS` with `folder` as its working and temp folder; returns the file that holds its stdout.

    Raises ValueError in one line when there is no java, it fails, is killed, or has not ended at the deadline.
    """
    java = shutil.which("java")
    if java is None:
        raise ValueError(
            f"{name}: java is not installed (Debian: openjdk-17-jre-headless); install it or leave {name} out"
        )
    output, errors = folder / "stdout", folder / "stderr"
    command = [java, *ENGLISH, f"-Djava.io.tmpdir={folder}", *options]
    environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8", "HOME": str(folder)}
    with (
        output.open("wb") as out,
        errors.open("wb") as err,
        stdin.open("rb") if stdin else Path(os.devnull).open("rb") as source,
    ):
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=source, stdout=out, stderr=err, start_new_session=True
        )
        try:
            code = process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise ValueError(f"{name}: java has not ended after {deadline_s:g} s and was killed") from None
        finally:
            _kill_group(process)
    if code != 0:
        said = " ".join(errors.read_text(errors="replace").split())[-LAST_WORDS:]
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"left with {code}"
        raise ValueError(f"{name}: java {how}{f' ({said})' if said else ''}")
    return output


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # it has ended, and nothing of its group is left
    process.wait()
