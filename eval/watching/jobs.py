"""The two jobs of an evaluation, submitted once: a note of the intent first, then sbatch, then their numbers.

Whoever finds a note without numbers (its writer was killed) looks for jobs of these names before it submits: in the
queue, and, of jobs that have begun since, their output files. A sbatch that outlives its watcher holds the watchers'
lock until it has answered, so that nobody looks before its job can be seen.
"""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.sets.official_files import field_of, read_json
from eval.watching.wanted import Evaluation
from pipeline.files import replace_file, sha256_of

NOTE = "submitted.json"
WEIGHTS = "trainable.safetensors"
SCORE_TASKS = {"captioning": "captions"}
ANSWER_S = 60  # of SLURM's commands


class UnansweredError(ValueError):
    """A SLURM command has not answered in time; what it was asked for may have happened."""


def state_of(evaluation: Evaluation, queued: set[str]) -> str:
    """`scored`, `waiting` (its jobs are queued or run), `failed` (they ended without predictions), `not scored` (they
    ended without scores of its predictions), or `missing`; `outdated` when what is there is of weights that have been
    replaced since, `asked otherwise` when it is of other data or flags than the list has now, `scored otherwise` when
    its predictions are whole and only those of its scores differ."""
    note = _note(evaluation)
    if note and not evaluation.has_checkpoint:
        return _state_without_checkpoint(evaluation, note, queued)
    if note.get("stamp", stamp_of(evaluation)) != stamp_of(evaluation) and not _has_same_weights(evaluation):
        return "outdated"
    is_scored = _has_scores(evaluation.folder / "metrics.json")
    is_predicted = (evaluation.folder / "COMPLETE").is_file()
    if not is_scored and not note.get("jobs"):
        return "missing" if not is_predicted or _has_same_weights(evaluation) else "outdated"
    if (asked := note.get("asked", evaluation.asked)) != evaluation.asked:
        only_scores = isinstance(asked, dict) and asked | {"score": evaluation.asked["score"]} == evaluation.asked
        return "scored otherwise" if is_predicted and only_scores else "asked otherwise"
    if is_scored:
        return "scored"
    ended = "not scored" if is_predicted else "failed"
    return "waiting" if queued & set(note["jobs"]) else ended


def _state_without_checkpoint(evaluation: Evaluation, note: dict[str, Any], queued: set[str]) -> str:
    """`scored`, `scored as asked before`, `waiting`, `predicted` (its predictions are whole), or `lost`."""
    if _has_scores(evaluation.folder / "metrics.json"):
        return "scored" if note.get("asked", evaluation.asked) == evaluation.asked else "scored as asked before"
    if queued & set(note["jobs"]):
        return "waiting"
    return "predicted" if (evaluation.folder / "COMPLETE").is_file() else "lost"


def jobs_at_work(evaluation: Evaluation, queued: set[str]) -> list[str]:
    """Those of its noted jobs that wait or run."""
    return [job for job in _note(evaluation).get("jobs", []) if job in queued]


def stamp_of(evaluation: Evaluation) -> list[int]:
    """Size and time of the checkpoint's weights file: while they are the same, its content is not read."""
    status = (evaluation.checkpoint / WEIGHTS).stat()
    return [status.st_size, status.st_mtime_ns]


def _has_same_weights(evaluation: Evaluation) -> bool:
    """Whether a file that looks changed (copied, say) still holds the weights that were evaluated."""
    task = evaluation.folder / "task.json"
    evaluated = field_of(task, read_json(task), "weights_sha256", (str,)) if task.is_file() else None
    return bool(evaluated == sha256_of(evaluation.checkpoint / WEIGHTS))


def _has_scores(path: Path) -> bool:
    """Whether eval.score's file is there and an object: an empty or torn one comes of a disk that failed."""
    try:
        return path.is_file() and isinstance(read_json(path), dict)
    except ValueError:
        return False


def submit(evaluation: Evaluation, scripts: Path, lock: int) -> list[str]:
    """Submit what is missing of the two jobs; returns their numbers, none when one submitted before has failed.

    `lock` is the descriptor of the lock that this process holds. Raises ValueError in one line when it may not submit.
    """
    folder, wanted = evaluation.folder, evaluation.wanted
    stamp = stamp_of(evaluation)
    folder.mkdir(parents=True, exist_ok=True)
    names = [evaluation.job_name, f"{evaluation.job_name}-score"]
    earlier = _note(evaluation)
    outputs = earlier.get("outputs", [] if earlier else _outputs(folder))  # of jobs before this intent
    queued = _queued_by_name(names) if earlier else {}
    begun = _begun(folder, names, outputs) if earlier else {}
    asked = earlier.get("asked", evaluation.asked) if queued or begun else evaluation.asked
    note = {"checkpoint": str(evaluation.checkpoint), "stamp": stamp, "asked": asked, "jobs": [], "outputs": outputs}
    replace_file(folder / NOTE, json.dumps(note) + "\n")
    is_complete = (folder / "COMPLETE").is_file()
    if not is_complete and names[0] in begun.keys() - queued.keys():
        replace_file(folder / NOTE, json.dumps(note | {"jobs": [begun[names[0]]]}) + "\n")
        return []
    jobs: list[str] = []
    try:
        if not is_complete:
            what = [str(evaluation.checkpoint), wanted.task, wanted.data, str(folder), *wanted.run]
            script = scripts / "eval.sbatch"
            jobs.append(queued.get(names[0]) or _sbatch(names[0], folder, wanted.sbatch, script, what, lock))
        after = [f"--dependency=afterok:{jobs[0]}", "--kill-on-invalid-dep=yes"] if jobs else []
        what = [SCORE_TASKS.get(wanted.task, wanted.task), str(folder), *wanted.score]
        what += ["--", *evaluation.report] if evaluation.report else []
        options, script = [*after, *wanted.score_sbatch], scripts / "score.sbatch"
        known = queued.get(names[1]) or begun.get(names[1])
        jobs.append(known or _sbatch(names[1], folder, options, script, what, lock))
    except UnansweredError:
        raise  # the note stays: the job may have been taken, and is looked for the next time
    except ValueError:
        _cancel(jobs)
        (folder / NOTE).unlink()
        raise
    replace_file(folder / NOTE, json.dumps(note | {"jobs": jobs}) + "\n")
    return jobs


def _cancel(jobs: Sequence[str]) -> None:
    for job in jobs:
        try:
            subprocess.run(["scancel", job], check=False, timeout=ANSWER_S)
        except subprocess.TimeoutExpired as error:
            raise UnansweredError(f"scancel: no answer in {ANSWER_S} s (job {job})") from error


def queued_jobs() -> set[str]:
    """The numbers of this user's jobs that wait or run."""
    return set(_answer(["squeue", "--noheader", "--me", "--format=%i"]).split())


def _queued_by_name(names: Sequence[str]) -> dict[str, str]:
    lines = _answer(["squeue", "--noheader", "--me", f"--name={','.join(names)}", "--format=%i %j"]).splitlines()
    return {name: job for job, name in (line.split(maxsplit=1) for line in lines)}


def _outputs(folder: Path) -> list[str]:
    """Names of what jobs have written there; a job's output is called NAME-NUMBER.out."""
    return sorted(path.name for path in folder.glob("*.out"))


def _begun(folder: Path, names: Sequence[str], before: Sequence[str]) -> dict[str, str]:
    """The numbers of jobs of these names whose output is not among those of `before`."""
    new = [output.removesuffix(".out") for output in _outputs(folder) if output not in before]
    numbers = {name: [each.removeprefix(f"{name}-") for each in new if each.startswith(f"{name}-")] for name in names}
    return {name: found[-1] for name, each in numbers.items() if (found := [one for one in each if one.isdecimal()])}


def _note(evaluation: Evaluation) -> dict[str, Any]:
    path = evaluation.folder / NOTE
    if not path.is_file():
        return {}
    try:
        content: dict[str, Any] = read_json(path)
        lists = {"jobs": field_of(path, content, "jobs", (list,)), "outputs": content.get("outputs", [])}
        for name, each in lists.items():
            if not isinstance(each, list) or not all(isinstance(part, str) for part in each):
                raise ValueError(f"{path}: {name} {each!r}, expected a list of strings")
    except ValueError as error:
        raise ValueError(f"{error}; remove the file once its jobs have ended") from error
    return content


def _sbatch(name: str, folder: Path, options: Sequence[str], script: Path, arguments: Sequence[str], lock: int) -> str:
    fixed = ["--parsable", f"--job-name={name}", f"--output={folder}/%x-%j.out"]
    command = ["sbatch", *fixed, *options, str(script), *arguments]
    return _answer(command, script.name == "score.sbatch", [lock]).strip().partition(";")[0]


def _answer(command: list[str], without_gpus: bool = False, descriptors: Sequence[int] = ()) -> str:
    """What a SLURM command, which keeps `descriptors` open, prints. sbatch's variables outweigh a script: without those
    that ask for GPUs, if so."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not (without_gpus and name.startswith("SBATCH_") and "GPU" in name)
    }
    try:
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            timeout=ANSWER_S,
            env=environment,
            pass_fds=descriptors,
        )
    except subprocess.TimeoutExpired as error:
        raise UnansweredError(f"{command[0]}: no answer in {ANSWER_S} s ({' '.join(command[1:])})") from error
    except OSError as error:
        raise ValueError(f"{command[0]}: {error}; run it where jobs are submitted") from error
    if done.returncode != 0:
        raise ValueError(f"{command[0]}: {' '.join(done.stderr.split())} ({' '.join(command[1:])})")
    return done.stdout
