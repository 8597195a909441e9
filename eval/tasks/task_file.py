"""task.json: the settings of an evaluation, which eval.run writes before its first prediction."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

FORMAT = "blip2-eval/1"  # changes when the same settings would give other predictions
Id = int | str
Picture = tuple[Id, str] | tuple[Id, str, int, int]  # id, path; size in bytes and time in ns if pictures are shown


class TaskFile(BaseModel):
    """Fields in the order in which they are written. Files of other versions may have others, or lack some."""

    model_config = ConfigDict(extra="allow", strict=True)
    format: str | None = None
    task: str | None = None
    weights_sha256: str | None = None
    annotations_sha256: str | None = None
    split: str | None = None
    limit: int | Literal["all"] | None = None
    image_source: Literal["own", "none", "shuffled"] | None = None
    seed: int | None = None
    weights: str | None = None
    weights_format: str | None = None
    converted_from: str | None = None
    step: int | None = None
    data: str | None = None
    annotations: str | None = None
    data_set: str | None = None
    is_published_set: bool | None = None
    is_of_published_set: bool | None = None
    batch_size: int | None = None
    # Of captions and answers.
    num_beams: int | None = None
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    length_penalty: float | None = None
    prompt: str | None = None
    # Of answers from a closed list.
    answers: str | None = None
    answers_sha256: str | None = None
    answer_candidates: int | None = None
    # Of retrieval.
    k_test: int | None = None
    # Known when the weights are loaded.
    vision: str | None = None
    language: str | None = None
    image_size_px: int | None = None
    recipe: dict[str, Any] | None = None
    towers: dict[str, str] | None = None
    images: list[Picture]
