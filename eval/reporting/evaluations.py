"""Folders of eval.run with their scores, and which folder is a baseline of another."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from eval.catalogue import TASKS, Kind
from eval.reporting.files import check_scores_are_of, read_metrics, read_predictions, read_samples, read_task
from eval.reporting.training_sources import Training, training_of
from eval.sets.official_files import SampleId
from eval.tasks.task_folder import official_name

PER_SAMPLE = "per_sample.jsonl"
QUESTION_SCORES = {name: task.answer_rule for name, task in TASKS.items() if task.kind == Kind.QUESTIONS}
OWN_QUESTION_SCORE = "own/normalised"
SAME_SETTINGS = (
    *("task", "weights_sha256", "annotations_sha256", "split", "limit", "prompt"),
    *("num_beams", "max_new_tokens", "min_new_tokens", "length_penalty", "k_test"),
    *("answers_sha256", "answer_candidates"),
)


@dataclass(frozen=True)
class Evaluation:
    """One folder: task.json, metrics.json (None when not scored), and the scores of its samples, if there are any.

    `predictions` are the captions of an evaluation without scores.
    """

    folder: Path
    task: dict[str, Any]
    metrics: dict[str, Any] | None
    samples: list[dict[str, Any]] = field(default_factory=list)
    predictions: list[dict[str, Any]] = field(default_factory=list)

    @property
    def kind(self) -> str:
        return str(self.task["task"])

    @property
    def predicts(self) -> Kind:
        return TASKS[self.kind].kind

    @property
    def format_of(self) -> str:
        """The name of the published set, or of the set whose format the data has."""
        return str(self.task.get("data_set") or Path(self.task["annotations"]).name)

    @property
    def is_published(self) -> bool:
        """Whether the data is the whole of that published set."""
        return bool(self.task.get("is_published_set"))

    @property
    def is_of_published(self) -> bool:
        """Whether the data is that published set or a part of it (`--limit`)."""
        return bool(self.task.get("is_of_published_set", self.is_published))

    @property
    def is_trained_here(self) -> bool:
        """Whether the weights were trained by this recipe. The recipe of converted weights only names their towers."""
        return self.task.get("weights_format", "native") == "native" and not self.task.get("converted_from")

    @property
    def tuned_on(self) -> str:
        """What weights that were trained here were fine-tuned on: captions, questions or retrieval; else empty."""
        recipe = (self.task.get("recipe") or {}) if self.is_trained_here else {}
        sample = (recipe.get("data") or {}).get("sample", "image")
        return "" if sample == "image" else "retrieval" if recipe.get("stage") == 1 else f"{sample}s"

    @cached_property
    def training(self) -> Training:
        """The data that the weights were trained on, in all stages."""
        return training_of(self.task.get("recipe"), self.is_trained_here)

    @property
    def is_own(self) -> bool:
        """Whether the data is a file of the user's own, not a folder in the format of a published set."""
        return self.format_of == Path(self.task["data"]).name

    @property
    def answer_score(self) -> str:
        """The rule by which answers count as right: the set's, or that of own questions without ten answers each."""
        return _answer_score(self.kind, self.metrics)

    @property
    def title(self) -> str:
        name = self.format_of
        if self.is_own:
            return f"{self.predicts}: {name}" + (
                "" if self.task["limit"] == "all" else f" (the first {self.task['limit']})"
            )
        if not self.is_published:
            part = "" if self.task["limit"] == "all" else f"{self.task['limit']} samples "
            name = f"{Path(self.task['data']).name} ({part}in the format of {name})"
        return f"{self.predicts}: {name}"

    @property
    def images(self) -> dict[SampleId, Path]:
        return {image_id: Path(path) for image_id, path, *_ in self.task["images"]}

    def rows(self, protocol: str | None = None) -> list[dict[str, Any]]:
        """The rows of metrics.json, of one protocol or of all."""
        rows = self.metrics["metrics"] if self.metrics else []
        return [row for row in rows if protocol in (None, row["protocol"])]

    def value(self, name: str, protocol: str, subset: str) -> float | None:
        for row in self.rows(protocol):
            if (row["name"], row["subset"]) == (name, subset):
                return float(row["value"])
        return None


@dataclass(frozen=True)
class Compared:
    """An evaluation and its baselines: the same task and weights, without a picture or with another picture."""

    main: Evaluation
    baselines: dict[str, Evaluation]


def read_evaluation(folder: Path) -> Evaluation:
    """Read one folder. Raises ValueError in one line when its files do not belong together."""
    task = read_task(folder / "task.json")
    scored, per_sample, said = folder / "metrics.json", folder / PER_SAMPLE, folder / "predictions.jsonl"
    metrics = read_metrics(scored, task["task"]) if scored.is_file() else None
    if metrics:
        check_scores_are_of(scored, metrics, folder / official_name(task["task"]))
    score = _answer_score(task["task"], metrics)
    samples = read_samples(per_sample, task, score) if per_sample.is_file() else []
    unscored = metrics is None and TASKS[task["task"]].kind == Kind.CAPTIONS and said.is_file()
    return Evaluation(folder, task, metrics, samples, read_predictions(said, task) if unscored else [])


def _answer_score(task: str, metrics: dict[str, Any] | None) -> str:
    score = QUESTION_SCORES.get(task, "")
    protocols = {row["protocol"] for row in metrics["metrics"]} if metrics else {score}
    return OWN_QUESTION_SCORE if OWN_QUESTION_SCORE in protocols else score


def with_baselines(evaluations: Sequence[Evaluation]) -> list[Compared]:
    """Evaluations with the right pictures, each with its baselines. A baseline of no other evaluation stands alone."""

    def key(evaluation: Evaluation) -> str:
        return json.dumps([evaluation.task.get(name) for name in SAME_SETTINGS])

    ablations: dict[str, dict[str, Evaluation]] = {}
    for each in evaluations:
        if each.task["image_source"] != "own":
            ablations.setdefault(key(each), {})[each.task["image_source"]] = each
    own = [each for each in evaluations if each.task["image_source"] == "own"]
    compared = [Compared(each, ablations.get(key(each), {})) for each in own]
    alone = [each for name, group in ablations.items() if name not in map(key, own) for each in group.values()]
    return compared + [Compared(each, {}) for each in alone]
