"""The card of converted weights, README.md as the hub has it: towers and licences, data, recipe, scores."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.config import Recipe, dump_recipe
from pipeline.config.checks import rounded_language
from pipeline.files import read_validated
from pipeline.pages.markdown import escaped, fenced, table
from pipeline.weights.tower_sources import MOVED, Tower, towers_of

NAME = "README.md"
UNSHOWN = ("ret/chance", "/any-tie-order")  # protocols that score nothing of the model
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
TASKS = {1: "zero-shot-image-classification", 2: "image-text-to-text"}
HUGGINGFACE = {
    1: """from transformers import AutoProcessor, Blip2ForImageTextRetrieval

model = Blip2ForImageTextRetrieval.from_pretrained(".")
processor = AutoProcessor.from_pretrained(".")""",
    2: """from PIL import Image
from transformers import Blip2ForConditionalGeneration, Blip2Processor

processor, model = (kind.from_pretrained(".") for kind in (Blip2Processor, Blip2ForConditionalGeneration))
inputs = processor(Image.open("holiday.jpg"), "a photo of", return_tensors="pt")
print(processor.decode(model.generate(**inputs, num_beams=5, max_new_tokens=30)[0], skip_special_tokens=True))""",
}
NATIVE = {
    1: "python -m pipeline.match --weights . --image holiday.jpg --text 'a beach' 'a street'",
    2: "python -m pipeline.generate --weights . --image holiday.jpg",
}
LIMITS = """The model repeats what its data and towers hold: errors, gaps and prejudices of captions from the web among
them. Its texts can be wrong about a picture. Check it on your own data before use.
"""
Number = Annotated[float, Field(allow_inf_nan=False)]


class _File(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _Row(_File):
    name: str
    protocol: str
    subset: str
    value: Number
    low: Number | None = None
    high: Number | None = None


class _Metrics(_File):
    task: str
    n: int
    metrics: list[_Row]


class _Task(_File):
    weights_sha256: str
    data_set: str
    split: str
    data: str = ""
    is_of_published_set: bool = False
    image_source: Literal["own", "none", "shuffled"]
    limit: int | Literal["all"]
    recipe: dict[str, Any] | None = None

    @property
    def data_name(self) -> str:
        """The set's name. Data that only have its format, such as drawn ones, do not get it."""
        folder = Path(self.data).name
        is_its_own = self.is_of_published_set or self.data_set == folder
        name = self.data_set if is_its_own else f"{folder} (in the format of {self.data_set}, not that set)"
        precision = rounded_language(self.recipe)
        rounded = f", language model in {precision}" if precision else ""
        return (name if self.limit == "all" else f"{name}, the first {self.limit}") + rounded


@dataclass(frozen=True)
class Origin:
    """What the weights are: their step (0: unknown), what they were converted from (empty: trained here), and notes."""

    step: int
    converted_from: str
    notes: Sequence[str]


def read_scores(files: Sequence[Path], weights_sha256: str) -> list[list[str]]:
    """The rows of the table of scores. Raises ValueError for a file that eval.score and eval.run did not write, and
    for scores of other weights."""
    rows = []
    for path in files:
        metrics = read_validated(path, _Metrics, "a metrics.json of eval.score")
        task = read_validated(path.with_name("task.json"), _Task, "a task.json of eval.run")
        if task.weights_sha256 != weights_sha256:
            raise ValueError(f"--scores {path}: of other weights (task.json beside it has {task.weights_sha256:.12}, "
                             f"SRC is {weights_sha256:.12}); leave it out")  # fmt: skip
        shown = {"own": "", "none": ", without picture", "shuffled": ", another picture"}[task.image_source]
        for row in metrics.metrics:
            if row.subset == "overall" and not any(each in row.protocol for each in UNSHOWN):
                interval = "" if row.low is None or row.high is None else f"{row.low:.1f} to {row.high:.1f}"
                cells = (task.data_name + shown, row.name, f"{row.value:.1f}", interval, f"{metrics.n:,}", row.protocol)
                rows.append([escaped(cell) for cell in cells])
    return rows


def model_card(title: str, form: str, recipe: Recipe, origin: Origin, scores: Sequence[Sequence[str]]) -> str:
    """The whole page. `form` is native or huggingface; `scores` are of `read_scores`."""
    towers = towers_of(recipe)
    parts = [
        _front_matter(form, recipe, towers),
        f"# {escaped(title)}\n\n{_about(form, recipe, origin)}",
        f"## Use\n\n{_use(form, recipe)}",
        f"## Towers and licences\n\n{_towers(recipe, towers)}",
        f"## Training data\n\n{_data(recipe, origin)}",
        f"## Scores\n\n{_scores(scores)}",
        f"## Limits\n\n{LIMITS}",
        f"## Recipe\n\n{fenced(dump_recipe(recipe), 'yaml')}",
    ]
    if origin.notes:
        parts.append("## Conversion\n\n" + "".join(f"- {escaped(note)}\n" for note in origin.notes))
    return "\n".join(parts)


def _front_matter(form: str, recipe: Recipe, towers: Sequence[Tower]) -> str:
    from huggingface_hub import ModelCardData

    names = [MOVED.get(tower.repository, tower.repository) for tower in towers if tower.repository]
    data = ModelCardData(
        language="en",
        license="other",
        license_name="licences-of-the-towers",
        library_name="transformers" if form == "huggingface" else None,
        pipeline_tag=TASKS[recipe.stage],
        base_model=[name for name in names if REPOSITORY.fullmatch(name)] or None,
        tags=["blip-2", "vision", "image-captioning", "visual-question-answering"][: 4 if recipe.stage == 2 else 2],
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _about(form: str, recipe: Recipe, origin: Origin) -> str:
    what = {
        1: "BLIP-2's Q-Former after stage 1: features and scores of images and texts.",
        2: "BLIP-2 after stage 2: text about a picture, by a Q-Former and a frozen language model.",
    }[recipe.stage]
    tuned = {"image": "", "caption": " Fine-tuned on captions.", "question": " Fine-tuned on questions."}
    whole = "the whole model, towers included" if form == "huggingface" else "what was trained, without frozen towers"
    step = f", of step {origin.step:,}" if origin.step else ""
    came = f" Converted from {escaped(origin.converted_from)}." if origin.converted_from else ""
    return f"{what}{tuned[recipe.data.sample]} This folder has {whole}{step}.{came}\n"


def _use(form: str, recipe: Recipe) -> str:
    if form == "huggingface":
        return fenced(HUGGINGFACE[recipe.stage], "python")
    return f"With the program that trained it, and the towers below:\n\n{fenced(NATIVE[recipe.stage], 'bash')}"


def _towers(recipe: Recipe, towers: Sequence[Tower]) -> str:
    trained = {"image encoder": "trained" if recipe.vision.trained else "frozen", "language model": "frozen"}
    rows = [
        (tower.part, escaped(tower.name), trained.get(tower.part, "trained on"), escaped(tower.licence))
        for tower in towers
    ]
    return table(("part", "name", "state", "licence"), rows) + (
        "\nThis program did not read the towers' pages; read the licences there. The licence of "
        "what was trained here is its owner's to choose: write it into `license` above.\n"
    )


def _data(recipe: Recipe, origin: Origin) -> str:
    from pipeline.data.manifest import load_manifest

    if origin.converted_from:
        return "Not known: the weights were converted, and such files do not tell it.\n"
    if recipe.data.manifest is None:
        return "Streamed from URLs, see the recipe.\n"
    try:
        shards = load_manifest(recipe.data.manifest).shards
    except (ValueError, OSError):
        return f"{escaped(recipe.data.manifest.name)} could not be read when this card was written.\n"
    weights = recipe.data.source_weights or {}
    counts: dict[str, Counter[str]] = {}
    for shard in shards:
        numbers = {name: getattr(shard, name) for name in ("samples", "captions", "questions")}
        counts.setdefault(shard.source, Counter()).update(numbers)
    rows = [
        (escaped(source), *(f"{each[name]:,}" for name in ("samples", "captions", "questions")),
         f"{weights.get(source, 1.0):g}")
        for source, each in sorted(counts.items())
    ]  # fmt: skip
    return table(("source", "pictures", "captions", "questions", "times an epoch"), rows) + (
        "\nOf the last stage of training. Pictures from the web belong to their owners.\n"
    )


def _scores(rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return "None were given.\n"
    header = ("data", "metric", "score", "95% interval", "samples", "rule")
    return table(header, rows) + "\nIntervals are bootstraps over images.\n"
