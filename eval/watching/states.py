"""How far an evaluation is: from its note, the files in its folder, its checkpoint and the queue."""

from pathlib import Path

from eval.sets.official_files import field_of, read_json
from eval.watching.notes import Note, asked_of, read_note
from eval.watching.wanted import Evaluation
from pipeline.files import LARGEST_JSON, sha256_of

WEIGHTS = "trainable.safetensors"


def state_of(evaluation: Evaluation, queued: set[str]) -> str:
    """One of these, where the checkpoint is still there (see `_state_without_checkpoint` for the others):

    - `missing`: to be submitted; `waiting`: its jobs are queued or run; `scored`
    - `failed`: its jobs ended without predictions; `not scored`: its jobs ended without scores
    - `outdated`: the weights have been replaced since
    - `other settings`: it was made with another task, other data or other flags than the list has now
    - `scored with other settings`: its predictions are complete, and only the flags of eval.score differ
    """
    note = read_note(evaluation)
    if note and not evaluation.has_checkpoint:
        return _state_without_checkpoint(evaluation, note, queued)
    is_of_other_file = note is not None and note.stamp not in (None, stamp_of(evaluation))
    if is_of_other_file and not _has_same_weights(evaluation):
        return "outdated"
    is_scored = _has_scores(evaluation.folder / "metrics.json")
    is_predicted = (evaluation.folder / "COMPLETE").is_file()
    jobs = note.jobs if note else []
    if not is_scored and not jobs:
        return "missing" if not is_predicted or _has_same_weights(evaluation) else "outdated"
    if (asked := asked_of(evaluation, note)) != evaluation.asked:
        only_scores = asked | {"score": evaluation.asked["score"]} == evaluation.asked
        return "scored with other settings" if is_predicted and only_scores else "other settings"
    if is_scored:
        return "scored"
    ended = "not scored" if is_predicted else "failed"
    return "waiting" if queued & set(jobs) else ended


def _state_without_checkpoint(evaluation: Evaluation, note: Note, queued: set[str]) -> str:
    """`scored`, `scored with earlier settings`, `waiting`, `predicted` (its predictions are complete), or `lost`.

    Scores with other settings than the list has now are no fault here: without the checkpoint, others cannot be made.
    """
    if _has_scores(evaluation.folder / "metrics.json"):
        return "scored" if asked_of(evaluation, note) == evaluation.asked else "scored with earlier settings"
    if queued & set(note.jobs):
        return "waiting"
    return "predicted" if (evaluation.folder / "COMPLETE").is_file() else "lost"


def jobs_at_work(evaluation: Evaluation, queued: set[str]) -> list[str]:
    """Those of its noted jobs that wait or run."""
    note = read_note(evaluation)
    return [job for job in note.jobs if job in queued] if note else []


def stamp_of(evaluation: Evaluation) -> list[int]:
    """Size and time of the checkpoint's weights file: while they are the same, its content is not read."""
    status = (evaluation.checkpoint / WEIGHTS).stat()
    return [status.st_size, status.st_mtime_ns]


def _has_same_weights(evaluation: Evaluation) -> bool:
    """Whether a file with another time (a copy, for example) still holds the weights that were evaluated."""
    task = evaluation.folder / "task.json"
    evaluated = field_of(task, read_json(task, LARGEST_JSON), "weights_sha256", (str,)) if task.is_file() else None
    return bool(evaluated == sha256_of(evaluation.checkpoint / WEIGHTS))


def _has_scores(path: Path) -> bool:
    """Whether eval.score's file is there and holds an object. After a disk fault it may be empty or cut off."""
    try:
        return path.is_file() and isinstance(read_json(path, LARGEST_JSON), dict)
    except ValueError:
        return False
