"""Read and check task.json, metrics.json and per_sample.jsonl. An error is one line that names the field."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from eval.catalogue import TASKS, Kind, known_task
from eval.sets.official_files import SampleId, field_of, read_json
from eval.tasks.predictions import read_log
from pipeline.files import LARGEST_JSON, sha256_of

MOST_DIGITS = 18  # of a step, which event files hold in 64 bits
Score = Annotated[float, Field(allow_inf_nan=False)]


def _id_and_path(picture: list[Any]) -> list[Any]:
    if not isinstance(picture[0], int | str) or not isinstance(picture[1], str):
        raise ValueError("expected an id and a path first")
    return picture


Picture = Annotated[list[Any], Field(min_length=2), AfterValidator(_id_and_path)]


class _Part(BaseModel):
    """Strict JSON types. Fields that the report does not use are allowed."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Tower(_Part):
    name: str


class _Data(_Part):
    manifest: str | None = None


class _Recipe(_Part):
    vision: _Tower
    language: _Tower | None = None
    data: _Data = _Data()
    init_weights: str | None = None


class _Task(_Part):
    task: Annotated[str, AfterValidator(known_task)]
    images: list[Picture]
    image_source: Literal["own", "none", "shuffled"]
    data: str
    annotations: str
    annotations_sha256: str
    weights_sha256: str
    split: str
    limit: int | Literal["all"]
    data_set: str | None = None
    vision: str | None = None
    language: str | None = None
    recipe: _Recipe | None = None
    prompt: str | None = None


class _PromptedTask(_Task):
    num_beams: int
    min_new_tokens: int
    max_new_tokens: int


class _RankedAnswersTask(_Task):
    answers: str
    answers_sha256: str
    answer_candidates: int


class _Row(_Part):
    name: str
    protocol: str
    subset: str
    value: Score
    low: Score | None
    high: Score | None


class _Against(_Part):
    predictions: str
    metrics: list[_Row]


class _Metrics(_Part):
    task: str
    n: int
    metrics: list[_Row]
    predictions_sha256: str | None = None
    texts: int | None = None
    not_computed: dict[str, str] = {}
    against: _Against | None = None


class _Answered(_Part):
    question_id: SampleId
    image_id: SampleId
    question: str | None
    answer: str
    answers: list[str]


class _Captioned(_Part):
    image_id: SampleId
    caption: str
    references: list[str]
    cider: Score
    domain: str = ""


class _Ranked(_Part):
    image: int | None = None
    text: int | None = None


class _Ranking(_Part):
    rank: int
    first: list[int]


class _Predicted(_Part):
    id: SampleId
    text: str


def read_task(path: Path) -> dict[str, Any]:
    """Read task.json of eval.run. Raises ValueError in one line for any other file."""
    content = read_json(path, LARGEST_JSON)
    told = content if isinstance(content, dict) else {}
    prompted = _RankedAnswersTask if told.get("answers_sha256") is not None else _PromptedTask
    return _checked(path, content, prompted if told.get("prompt") is not None else _Task, "eval.run")


def read_metrics(path: Path, task: str | None = None) -> dict[str, Any]:
    """Read metrics.json of eval.score. With `task`, the scores must be of that task of eval.run."""
    content = _checked(path, read_json(path, LARGEST_JSON), _Metrics, "eval.score")
    if task is not None and content["task"] != (scorer := TASKS[task].scored_as):
        raise ValueError(
            f"{path}: task {content['task']!r}, but task.json beside it has {task!r}; run eval.score {scorer}"
        )
    return content


def check_scores_are_of(scored: Path, metrics: dict[str, Any], predictions: Path) -> None:
    """Raise ValueError when the predictions have changed since they were scored."""
    expected = metrics.get("predictions_sha256")
    if expected is not None and predictions.is_file() and sha256_of(predictions) != expected:
        raise ValueError(f"{scored}: these are not the scores of {predictions.name} beside it; run eval.score again")


def score_files(folder: Path) -> list[Path]:
    """Every FOLDER/step_N/NAME/metrics.json."""
    return sorted(folder.glob("step_*/*/metrics.json"))


def scores_at_step(path: Path) -> tuple[int, list[dict[str, Any]]]:
    """N and the rows of step_N/NAME/metrics.json. Raises ValueError when N is not a number, or for another file."""
    number = path.parent.parent.name.removeprefix("step_")
    if not number.isdecimal() or len(number) > MOST_DIGITS:
        raise ValueError(f"{path}: step {number!r} is not a whole number; rename the folder to step_N")
    return int(number), read_metrics(path)["metrics"]


def scores_over_steps(folder: Path) -> Iterator[tuple[int, Path, dict[str, Any]]]:
    """Step, file and row of every score in FOLDER/step_N/NAME. Raises ValueError at the first bad file."""
    for path in score_files(folder):
        step, rows = scores_at_step(path)
        for row in rows:
            yield step, path, row


def read_samples(path: Path, task: dict[str, Any], score: str) -> list[dict[str, Any]]:
    """Read per_sample.jsonl of eval.score. It must fit the task and its pictures; an answer must have `score`."""
    declared = TASKS[task["task"]]
    kind, writer = _KINDS[declared.kind], f"eval.score {declared.scored_as}"
    samples = _lines(path, kind, writer)
    for number, sample in enumerate(samples, start=1):
        if kind is _Answered:
            field_of(path, sample, score, (int, float))
        rankings = [name for name in sample if name.startswith("ret/")]
        if kind is _Ranked:
            if not rankings or ("image" in sample) == ("text" in sample):
                raise ValueError(
                    f"{path}: line {number}: has no ranking of an image or a text; write the file with {writer}"
                )
            for name in rankings:
                _checked(path, sample[name], _Ranking, writer, f"line {number}: {name}")
    if kind is not _Ranked:
        _check_pictures(path, samples, "image_id", task, writer)
    return samples


def read_predictions(path: Path, task: dict[str, Any]) -> list[dict[str, Any]]:
    """Read predictions.jsonl of eval.run. Each id must be a picture of task.json."""
    entries = _lines(path, _Predicted, "eval.run")
    _check_pictures(path, entries, "id", task, "eval.run")
    return entries


_KINDS: dict[Kind, type[_Part]] = {Kind.RETRIEVAL: _Ranked, Kind.CAPTIONS: _Captioned, Kind.QUESTIONS: _Answered}


def _check_pictures(path: Path, entries: list[dict[str, Any]], name: str, task: dict[str, Any], writer: str) -> None:
    known = {picture[0] for picture in task["images"]}
    unknown = next((entry[name] for entry in entries if entry[name] not in known), None)
    if unknown is not None:
        raise ValueError(f"{path}: {name} {unknown!r} is not a picture of task.json beside it; run {writer} again")


def _lines(path: Path, model: type[_Part], writer: str) -> list[dict[str, Any]]:
    entries = enumerate(read_log(path), start=1)
    return [_checked(path, entry, model, writer, f"line {number}") for number, entry in entries]


def _checked(path: Path, content: Any, model: type[_Part], writer: str, place: str = "") -> dict[str, Any]:
    """The content unchanged. Raises ValueError in one line that names the first wrong field."""
    try:
        model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ": ".join(filter(None, [place, ".".join(str(part) for part in first["loc"])]))
        found = "" if first["type"] == "missing" else f" (found {first['input']!r:.60})"
        said = f"{where}: {first['msg']}" if where else first["msg"]
        raise ValueError(f"{path}: {said}{found}; write the file with {writer}") from error
    checked: dict[str, Any] = content
    return checked
