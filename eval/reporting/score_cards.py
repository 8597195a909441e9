"""The cards under "Scores": one for each evaluation, with its table, what is missing, what its weights have seen, and a
note on the paper.
"""

from dataclasses import dataclass
from pathlib import Path

from eval.catalogue import Kind
from eval.reporting.evaluations import Compared, Evaluation
from eval.reporting.paper import PaperRow, paper_row
from eval.reporting.scores import (
    BASELINE_NAMES,
    METRIC_NAMES,
    Table,
    difference_table,
    generated_table,
    retrieval_table,
)
from eval.reporting.selection import read_selection
from eval.reporting.training_sources import known_overlaps, trained_questions
from eval.reporting.verdicts import deviations, why_not_comparable
from pipeline.config.checks import rounded_language


@dataclass(frozen=True)
class PaperNote:
    """The paper's row, and whether it can be compared.

    `reasons` make the numbers not comparable. `deviations` of the recipe do not; None means that they are not known.
    `data` and `first_weights` are the names in the recipe.
    """

    row: PaperRow
    reasons: list[str]
    deviations: list[str] | None
    data: str
    first_weights: str | None


@dataclass(frozen=True)
class ScoreCard:
    """One evaluation. Without a `table` it has no scores; `metrics_path` is where eval.score should write them.

    `meaningless` is the question set that the weights were trained on, if it is the one that is scored. `seen` is what
    fine-tuned weights were trained on, and what of it this set shares.
    """

    title: str
    about: str
    table: Table | None
    metrics_path: str
    not_computed: list[str]
    differences: Table | None
    paper: PaperNote | None
    meaningless: str = ""
    seen: tuple[str, ...] = ()


def score_card(compared: Compared) -> ScoreCard:
    """The card of an evaluation."""
    main, paper = compared.main, paper_row(compared.main)
    reasons = why_not_comparable(main, paper) if paper else []
    metrics, table = main.metrics or {}, None
    if main.metrics is not None:
        is_retrieval = main.predicts == Kind.RETRIEVAL
        table = retrieval_table(main, paper, reasons) if is_retrieval else generated_table(compared, paper, reasons)
    return ScoreCard(
        main.title,
        _about(main),
        table,
        str(main.folder / "metrics.json"),
        [METRIC_NAMES.get(name, name) for name in metrics.get("not_computed", {})],
        difference_table(metrics["against"]) if metrics.get("against") else None,
        _paper_note(main, paper, reasons) if paper else None,
        trained_questions(main),
        tuple(_seen(main)) if main.tuned_on else (),
    )


def _seen(main: Evaluation) -> list[str]:
    """What fine-tuned weights were trained on, in all stages, and what the set shares with it."""
    training = main.training
    lines = [f"pictures of {', '.join(training.sources)}"] if training.sources else []
    asked = ", ".join(f"{name} ({count:,})" for name, count in training.questions.items())
    lines += [f"questions of {asked}"] if asked else []
    lines += [f"{source}: {why}" for source, why in known_overlaps([main])]
    return lines + ([] if training.all_known else ["the rest is not known: a manifest or weights are missing"])


def _about(evaluation: Evaluation) -> str:
    task, parts = evaluation.task, [evaluation.folder.name]
    if task["image_source"] != "own":
        parts.append(BASELINE_NAMES[task["image_source"]].lower())
    if task.get("language"):
        rounded = f" in {precision}" if (precision := rounded_language(task.get("recipe"))) else ""
        parts.append(f"language model {task['language'].rsplit('/', 1)[-1]}{rounded}")
    if evaluation.metrics:
        counted = "questions" if evaluation.predicts == Kind.QUESTIONS else "images"
        texts = f", {evaluation.metrics['texts']} texts" if "texts" in evaluation.metrics else ""
        parts.append(f"{evaluation.metrics['n']} {counted}{texts}")
    if task.get("prompt") is not None:
        parts.append(f'prompt "{task["prompt"]}"')
        if "answers_sha256" in task:
            parts.append(f"ranked from {Path(task['answers']).name}, {task['answer_candidates']} candidates")
        else:
            parts.append(f"{task['num_beams']} beams, {task['min_new_tokens']}-{task['max_new_tokens']} tokens")
    parts.append(f"weights {task['weights_sha256'][:12]}")
    chosen = read_selection(Path(task["weights"])) if evaluation.is_trained_here and task.get("weights") else None
    if chosen and chosen.weights_sha256 == task["weights_sha256"]:
        parts.append(f"chosen by {chosen.metric} on {chosen.data_set}, {chosen.step}")
    return " · ".join(parts)


def _paper_note(main: Evaluation, paper: PaperRow, reasons: list[str]) -> PaperNote:
    recipe = main.task.get("recipe") or {}
    data = recipe.get("data", {})
    names = data.get("manifest") or data.get("urls")
    found = None if reasons else deviations(main, paper)
    return PaperNote(paper, reasons, found, str(names), recipe.get("init_weights"))
