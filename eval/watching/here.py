"""The two jobs of an evaluation as child processes of the watcher, one after the other: `eval.watch --run-here`.

They are the commands of the job scripts, write the same files, and keep the watchers' lock open. A note without jobs
means that they were cut short; the next look begins them again, and eval.run goes on where it was. When they have
ended, with or without scores, the note has the job `here`.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from eval.catalogue import TASKS
from eval.watching.notes import Note, write_note
from eval.watching.states import stamp_of
from eval.watching.wanted import Evaluation
from pipeline.command_line import STOPPED

HERE = "here"
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
KILLED = (
    b"killed by signal 9, most likely because memory ran out; set a smaller --batch-size in the list's `run`, or give "
    b"this machine more memory\n"
)
GRACE_S = 120  # in which a child saves what it has done


def evaluate(evaluation: Evaluation, gpus: int, lock: int) -> str:
    """Predict if predictions are missing, score, and draw the run's curves and report. Returns the state that this
    reached: `scored`, `failed`, `not scored`, or `stopped`, when a signal stopped a child.

    A signal to this process stops the child first, and is raised again.
    """
    folder, wanted = evaluation.folder, evaluation.wanted
    stamp = stamp_of(evaluation)
    folder.mkdir(parents=True, exist_ok=True)
    note = Note(checkpoint=str(evaluation.checkpoint), stamp=stamp, asked=evaluation.asked, jobs=[])
    write_note(folder, note, [])
    output = folder / f"{evaluation.job_name}-{HERE}.out"
    if not (folder / "COMPLETE").is_file():
        code = _run(prediction_command(evaluation, gpus), output, lock)
        if code == STOPPED:
            return "stopped"
        if code != 0:
            write_note(folder, note, [HERE])
            return "failed"
    task = TASKS[wanted.task].scored_as
    predictions = folder / ("scores.npz" if task == "retrieval" else "predictions.json")
    files = ["--predictions", predictions, "--output", folder / "metrics.json", "--per-sample"]
    score = ["eval.score", task, *map(str, [*files, folder / "per_sample.jsonl"]), *wanted.score]
    code = _run([sys.executable, "-m", *score], output, lock)
    if code == STOPPED:
        return "stopped"
    write_note(folder, note, [HERE])
    if code != 0:
        return "not scored"
    _show(folder.parents[1], evaluation.report, output, lock)
    return "scored"


def prediction_command(evaluation: Evaluation, gpus: int) -> list[str]:
    """eval.run in this interpreter, on several GPUs by the deepspeed launcher."""
    wanted = evaluation.wanted
    what = ["--weights", str(evaluation.checkpoint), "--task", wanted.task, "--data", wanted.data]
    what += ["--output", str(evaluation.folder), *wanted.run]
    if gpus == 1:
        return [sys.executable, "-m", "eval.run", *what]
    launcher = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", str(gpus), "--master_port"]
    return [*launcher, str(_free_port()), "--module", "eval.run", *what]


def _show(run: Path, report: Sequence[str], output: Path, lock: int) -> None:
    """The curves and the report over all evaluations of a run so far. What they cannot read, the report says."""
    _run([sys.executable, "-m", "eval.curves", str(run)], output, lock)
    page = ["--output", str(run / "report.html"), "--title", run.name, *report]
    _run([sys.executable, "-m", "eval.report", str(run), *page], output, lock)


def _run(command: Sequence[str], output: Path, lock: int) -> int:
    """The exit code of a child whose output goes to the end of a file. It gets signals from here alone."""
    with output.open("ab") as file:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # a stop waits until the child is known
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[lock],
                preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, before),  # noqa: PLW1509 - no threads here
            )
        except BaseException:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            raise
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            code = child.wait()
            if code == -signal.SIGKILL:  # it could not say anything itself
                file.write(KILLED)
            return code
        except BaseException:
            child.terminate()
            with suppress(subprocess.TimeoutExpired):
                child.wait(GRACE_S)
            raise
        finally:
            _kill_group(child)


def _kill_group(child: "subprocess.Popen[bytes]") -> None:
    """Nothing that the child started outlives it, as ranks of a launcher would."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    child.wait()


def _free_port() -> int:
    """A port for the ranks to meet; a training on this machine may have the launcher's usual one."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port
