"""The two jobs of an evaluation, submitted once: first a note of the intent, then sbatch, then the jobs' numbers.

A note without numbers means that its writer was killed. The next watcher then looks for jobs of these names before it
submits: in the queue, and among the output files of jobs that have begun since. A sbatch that outlives its watcher
keeps the watchers' lock until it has answered, because its job cannot be seen before.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from eval.catalogue import TASKS
from eval.watching.notes import NOTE, Note, asked_of, read_note, write_note
from eval.watching.slurm_commands import UnansweredError, answer, queued_by_name, run_command
from eval.watching.states import stamp_of
from eval.watching.wanted import Evaluation


def submit(evaluation: Evaluation, scripts: Path, lock: int) -> list[str]:
    """Submit those of the two jobs that are missing; returns their numbers, none when an earlier one has failed.

    `lock` is the descriptor of the lock that this process holds. Raises ValueError in one line when sbatch refuses one.
    """
    folder, wanted = evaluation.folder, evaluation.wanted
    stamp = stamp_of(evaluation)
    folder.mkdir(parents=True, exist_ok=True)
    names = [evaluation.job_name, f"{evaluation.job_name}-score"]
    earlier = read_note(evaluation)
    outputs = earlier.outputs if earlier else _outputs(folder)  # of jobs before this intent
    queued = queued_by_name(names) if earlier else {}
    begun = _begun(folder, names, outputs) if earlier else {}
    asked = asked_of(evaluation, earlier) if queued or begun else evaluation.asked
    note = Note(checkpoint=str(evaluation.checkpoint), stamp=stamp, asked=asked, jobs=[], outputs=outputs)
    write_note(folder, note, [])
    is_complete = (folder / "COMPLETE").is_file()
    if not is_complete and names[0] in begun.keys() - queued.keys():
        write_note(folder, note, [begun[names[0]]])
        return []
    jobs: list[str] = []
    try:
        if not is_complete:
            what = [str(evaluation.checkpoint), wanted.task, wanted.data, str(folder), *wanted.run]
            script = scripts / "eval.sbatch"
            options = [*os.environ.get("BLIP2_GPU_NODE", "").split(), *wanted.sbatch]
            jobs.append(queued.get(names[0]) or _sbatch(names[0], folder, options, script, what, lock))
        after = [f"--dependency=afterok:{jobs[0]}", "--kill-on-invalid-dep=yes"] if jobs else []
        what = [TASKS[wanted.task].scored_as, str(folder), *wanted.score]
        what += ["--", *evaluation.report] if evaluation.report else []
        options, script = [*after, *wanted.score_sbatch], scripts / "score.sbatch"
        known = queued.get(names[1]) or begun.get(names[1])
        jobs.append(known or _sbatch(names[1], folder, options, script, what, lock))
    except UnansweredError:
        raise  # the note stays: SLURM may have taken the job, and the next look searches for it
    except ValueError:
        for job in jobs:
            run_command(["scancel", job])
        (folder / NOTE).unlink()
        raise
    write_note(folder, note, jobs)
    return jobs


def _outputs(folder: Path) -> list[str]:
    """Names of the jobs' output files there; a job's output is called NAME-NUMBER.out."""
    return sorted(path.name for path in folder.glob("*.out"))


def _begun(folder: Path, names: Sequence[str], before: Sequence[str]) -> dict[str, str]:
    """By name, the numbers of jobs whose output files are not in `before`."""
    new = [output.removesuffix(".out") for output in _outputs(folder) if output not in before]
    numbers = {name: [each.removeprefix(f"{name}-") for each in new if each.startswith(f"{name}-")] for name in names}
    return {name: found[-1] for name, each in numbers.items() if (found := [one for one in each if one.isdecimal()])}


def _sbatch(name: str, folder: Path, options: Sequence[str], script: Path, arguments: Sequence[str], lock: int) -> str:
    fixed = ["--parsable", f"--job-name={name}", f"--output={folder}/%x-%j.out"]
    command = ["sbatch", *fixed, *options, str(script), *arguments]
    return answer(command, [lock]).strip().partition(";")[0]
