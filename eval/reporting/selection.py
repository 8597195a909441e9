"""Which checkpoint of a run is the best by its validation scores: what they are compared by, and selection.json."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from eval.reporting.evaluations import OWN_QUESTION_SCORE, Evaluation
from eval.reporting.files import check_scores_are_of, read_metrics, read_task
from eval.reporting.training_sources import trained_questions
from eval.tasks.task_folder import official_name
from pipeline.files import read_validated

SELECTED, SELECTION = "selected", "selection.json"
VALIDATION = "val"
CAPTIONS, RERANK, ANSWERS = "captions/", "ret/k", "vqa/official-2021"
# Name -> the beginning of the protocol, and the rows whose sum it is.
METRICS: dict[str, tuple[str, tuple[str, ...]]] = {
    "cider": (CAPTIONS, ("cider",)),
    "cider+bleu4": (CAPTIONS, ("cider", "bleu_4")),
    "mean_recall": (RERANK, ("mean_recall",)),
    "tr_mean": (RERANK, ("tr_mean",)),
    "own_answers": (OWN_QUESTION_SCORE, ("accuracy",)),
    "vqa": (ANSWERS, ("accuracy",)),
}
Ties = Literal["earlier", "later"]
# Of task.json: what must be the same, if scores of two checkpoints are to be compared.
COMPARED = (
    *("task", "data_set", "annotations_sha256", "split", "limit", "image_source", "image_size_px", "prompt"),
    *("num_beams", "max_new_tokens", "min_new_tokens", "length_penalty", "k_test"),
    *("answers_sha256", "answer_candidates"),
)


@dataclass(frozen=True)
class Scored:
    """One evaluation of one checkpoint: OUTPUT/RUN/step_N/NAME. `rows` are those of the metric."""

    step: str
    name: str
    folder: Path
    task: dict[str, Any]
    rows: list[dict[str, Any]]

    @property
    def value(self) -> float:
        return round(sum(float(row["value"]) for row in self.rows), 4)

    @property
    def protocol(self) -> str:
        return str(self.rows[0]["protocol"])


class Selection(BaseModel):
    """selection.json beside the weights that were selected."""

    model_config = ConfigDict(strict=True)
    step: str
    metric: str
    ties: Ties
    evaluation: str
    data_set: str
    protocol: str
    weights_sha256: str
    values: dict[str, float]
    """Step -> value of every checkpoint that was compared."""


def read_selection(weights: Path) -> Selection | None:
    """How weights were selected: from the file beside them. None for other weights. Raises ValueError when spoilt."""
    path = weights.parent / SELECTION
    return read_validated(path, Selection, "a selection of eval.select") if path.is_file() else None


def best_of(scored: Sequence[Scored], ties: Ties) -> Scored:
    """The highest value; of equal ones the earlier or the later step. `scored` are in the order of their steps."""
    best = max(each.value for each in scored)
    equal = [each for each in scored if each.value == best]
    return equal[0] if ties == "earlier" else equal[-1]


def validation_scores(scores: Path, metric: str, evaluation: str | None) -> list[Scored]:
    """The scores of one evaluation on the validation split, in the order of the steps.

    `scores` is OUTPUT/RUN of eval.watch. Raises ValueError in one line when there are none, when they are of another
    split or of questions of the training, when several evaluations have the metric, or when two checkpoints were
    evaluated with other settings.
    """
    found = list(_with_metric(scores, metric, evaluation))
    on_validation = [each for each in found if each.task["split"] == VALIDATION]
    if not on_validation:
        other = found[0]
        raise ValueError(
            f"{other.folder}: scores of split {other.task['split']!r}, and a checkpoint is chosen on {VALIDATION!r} "
            "alone; evaluate the checkpoints with `run: [--split, val]` in the watch list"
        )
    names = sorted({each.name for each in on_validation})
    if len(names) > 1:
        raise ValueError(f"--metric {metric}: {', '.join(names)} all have it; choose one with --evaluation {names[0]}")
    _check_same_settings(on_validation)
    if asked := trained_questions(Evaluation(on_validation[-1].folder, on_validation[-1].task, None)):
        raise ValueError(
            f"{on_validation[-1].folder}: scores on questions of the training ({asked}), which choose nothing; take "
            "the last checkpoint, or train without them"
        )
    return on_validation


def _with_metric(scores: Path, metric: str, evaluation: str | None) -> Iterator[Scored]:
    """Raises ValueError when nothing is scored, or nothing has the metric."""
    files = sorted(scores.glob(f"step_*/{evaluation or '*'}/metrics.json"))
    if not files:
        what = f"step_*/{evaluation or '*'}/metrics.json"
        raise ValueError(f"{scores}: no {what} in it; score the checkpoints with eval.watch, or name its folder with "
                         "--scores")  # fmt: skip
    protocol, names = METRICS[metric]
    is_there, seen = False, set[str]()
    for file in files:
        task = read_task(file.parent / "task.json")
        metrics = read_metrics(file, task["task"])
        rows = [row for row in metrics["metrics"] if row["subset"] == "overall" and _is_of(row, protocol, names)]
        seen |= {row["name"] for row in metrics["metrics"] if row["subset"] == "overall"}
        if task["image_source"] == "own" and len(rows) == len(names):
            is_there = True
            check_scores_are_of(file, metrics, file.parent / official_name(task["task"]))
            yield Scored(file.parent.parent.name, file.parent.name, file.parent, task, rows)
    if not is_there:
        raise ValueError(f"--metric {metric}: {scores} has no such score, only {', '.join(sorted(seen))}; choose "
                         "another metric, or score the checkpoints again")  # fmt: skip


def _is_of(row: dict[str, Any], protocol: str, names: Sequence[str]) -> bool:
    return row["name"] in names and row["protocol"].startswith(protocol) and "/any-tie-order" not in row["protocol"]


def _check_same_settings(scored: Sequence[Scored]) -> None:
    first = scored[0]
    for each in scored[1:]:
        settings = [(name, first.task.get(name), each.task.get(name)) for name in COMPARED]
        settings.append(("protocol", first.protocol, each.protocol))
        for name, one, other in settings:
            if one != other:
                raise ValueError(
                    f"{each.folder}: {name} {other!r:.40}, but {one!r:.40} in {first.folder}; evaluate all checkpoints "
                    "with the same settings"
                )
