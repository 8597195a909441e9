"""What an evaluation's weights were trained on, through all stages, and what that shares with published sets."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from eval.reporting.evaluations import Evaluation

MOST_STAGES = 8  # of training, each from the weights of earlier ones
WEIGHTS = "trainable.safetensors"
MOST_HEADER_BYTES = 100_000_000  # the limit of safetensors
KNOWN_FILE = Path(__file__).with_name("shared_pictures.yaml")
VAL_QUESTIONS = "vqav2_val2014"
QUESTIONS_OF = {"VQAv2 val": VAL_QUESTIONS, "VQAv2 train": "vqav2_train2014"}  # published set -> its question set


@dataclass(frozen=True)
class Training:
    """The data of all stages of training.

    `sources`: source -> the evaluation sets whose pictures it has none of, by the names of `--not-in`. `questions`:
    question set -> how many of its questions were trained on. Not `all_known` are: the training of converted weights,
    data from URLs, and a manifest or weights that are missing.
    """

    sources: dict[str, frozenset[str]]
    questions: dict[str, int]
    all_known: bool


def known_overlaps(evaluations: "Sequence[Evaluation]") -> list[tuple[str, str]]:
    """(training source, what it shares) for each source that weights evaluated on this set were trained on.

    Only published sets and parts of them count: of other pictures nothing is known. A source whose pictures of the set
    were dropped shares none.
    """
    known = _known()
    found = set[tuple[str, str]]()
    for each in evaluations:
        if not each.is_of_published:
            continue
        cleaners = known["cleaned_by"].get(each.format_of, [])
        for source, cleaned in each.training.sources.items():
            same_set = known["same_set"].get(source, {}).get(each.format_of)
            pictures = known["pictures"].get(source, {}).get(each.format_of)
            found |= {(source, same_set)} if same_set else set()
            found |= {(source, pictures)} if pictures and not cleaned & set(cleaners) else set()
    return sorted(found)


def of_unknown_training(evaluations: "Sequence[Evaluation]") -> "list[Evaluation]":
    """Evaluations on a published set whose training data is not fully known."""
    return [each for each in evaluations if each.is_of_published and not each.training.all_known]


def trained_questions(evaluation: "Evaluation") -> str:
    """The question set of this evaluation, if the weights were trained on it: its scores then mean nothing.

    A set of the user's in that format counts as well: its files say that they are of this set.
    """
    name = QUESTIONS_OF.get(evaluation.format_of, "")
    return name if name in evaluation.training.questions else ""


def training_of(recipe: dict[str, Any] | None, is_trained_here: bool) -> Training:
    """The data of this recipe and of those that its first weights came from."""
    sources: dict[str, frozenset[str]] = {}
    questions, all_known, waiting = Counter[str](), is_trained_here, [recipe]
    for _ in range(MOST_STAGES):
        if not waiting:
            break
        if not (recipe := waiting.pop(0)):
            all_known = False
            continue
        data = recipe.get("data") or {}
        try:
            of_stage = _of_manifest(data)
        except (ValueError, OSError):  # it is missing, or another file is there now
            all_known = False
        else:
            for source, cleaned in of_stage.sources.items():
                sources[source] = sources.get(source, cleaned) & cleaned
            questions.update(of_stage.questions)
        begun = {str(recipe[name]) for name in ("init_weights", "init_text_weights") if recipe.get(name)}
        waiting += [_recipe_of(Path(weights)) for weights in sorted(begun)]
    return Training(sources, dict(sorted(questions.items())), all_known)


def _of_manifest(data: dict[str, Any]) -> Training:
    """Of one stage. Raises ValueError when its manifest is not readable."""
    from pipeline.data.manifest import cleaned_of, load_manifest, question_sets

    weights = data.get("source_weights") or {}
    shards = [each for each in load_manifest(Path(data.get("manifest") or "")).shards if weights.get(each.source) != 0]
    sources = {source: frozenset(sets) for source, sets in cleaned_of(shards).items()}
    for source in sources:
        asked = question_sets([each for each in shards if each.source == source])
        if asked and VAL_QUESTIONS not in asked and source == "vqav2":
            sources[source] |= {VAL_QUESTIONS}  # questions of train2014 alone: none of val2014's pictures
    return Training(sources, question_sets(shards) if data.get("sample") == "question" else {}, True)


@lru_cache
def _known() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(KNOWN_FILE.read_text(encoding="utf-8"))
    return content


def _recipe_of(weights: Path) -> dict[str, Any] | None:
    """The recipe in the metadata of native weights, read without torch. None for missing or converted weights."""
    newest = sorted(weights.glob("checkpoints/step_*/COMPLETE"))[-1:]
    file = newest[0].parent / WEIGHTS if newest else weights / WEIGHTS if weights.is_dir() else weights
    try:
        if not file.is_file():
            return None
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(min(size, MOST_HEADER_BYTES)))
        if "converted_from" in header["__metadata__"]:  # its recipe names the towers, not the training
            return None
        found = json.loads(header["__metadata__"]["recipe"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
