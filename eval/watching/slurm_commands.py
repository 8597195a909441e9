"""SLURM's commands, each with a deadline: what they print, or a fault in one line."""

import subprocess
from collections.abc import Sequence

ANSWER_S = 60  # in which a command must answer


class UnansweredError(ValueError):
    """A SLURM command has not answered in time; it may have done its work all the same."""


def answer(command: list[str], descriptors: Sequence[int] = ()) -> str:
    """What a SLURM command prints. Raises ValueError in one line when it fails."""
    done = run_command(command, descriptors)
    if done.returncode != 0:
        raise ValueError(f"{command[0]}: {' '.join(done.stderr.split())} ({' '.join(command[1:])})")
    return done.stdout


def run_command(command: list[str], descriptors: Sequence[int] = ()) -> "subprocess.CompletedProcess[str]":
    """Run a SLURM command, which keeps `descriptors` open. Raises UnansweredError after ANSWER_S."""
    try:
        return subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=ANSWER_S, pass_fds=descriptors
        )
    except subprocess.TimeoutExpired as error:
        raise UnansweredError(f"{command[0]}: no answer in {ANSWER_S} s ({' '.join(command[1:])})") from error
    except OSError as error:
        raise ValueError(
            f"{command[0]}: {error}; run eval.watch on a machine that can submit jobs, or with --run-here"
        ) from error


def queued_jobs() -> set[str]:
    """The numbers of this user's jobs that wait or run."""
    return set(answer(["squeue", "--noheader", "--me", "--format=%i"]).split())


def queued_by_name(names: Sequence[str]) -> dict[str, str]:
    """The numbers of this user's jobs of these names that wait or run, by name."""
    lines = answer(["squeue", "--noheader", "--me", f"--name={','.join(names)}", "--format=%i %j"]).splitlines()
    return {name: job for job, name in (line.split(maxsplit=1) for line in lines)}
