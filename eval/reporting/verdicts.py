"""Whether a number agrees with the paper's: "matches", "within noise", "differs", or "not comparable" and why not.

Numbers are comparable when towers, fine-tuning, data set and decoding are the paper's, and the data set is whole.
Differences to the shipped recipe, which has the paper's values, are listed beside the number; they do not make it
incomparable. A score on questions of the training is "meaningless".
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

from eval.reporting.evaluations import Evaluation
from eval.reporting.paper import PaperRow
from pipeline.config.checks import rounded_language

MATCHES, WITHIN_NOISE, DIFFERS, NOT_COMPARABLE = "matches", "within noise", "differs", "not comparable"
MEANINGLESS = "meaningless"
RECIPES = Path(__file__).parents[2] / "pipeline" / "recipes"
# Fields that do not change what is learnt: paths, speed, how often something is written.
NOT_A_DEVIATION = (
    *("run.output", "run.zero", "run.layout", "run.log_every_steps", "run.checkpoint_every_steps"),
    *("run.keep_checkpoints", "run.keep_every_steps", "run.resume_despite", "run.hang_deadline_s", "seed"),
    *(
        "init_weights",
        "init_text_weights",
        "init_from_other_towers",
        "data.manifest",
        "data.num_workers",
        "data.shuffle_shards",
    ),
    *("batch.micro_size", "batch.accumulation", "language.activation_checkpointing", "qformer.bert"),
    *("validation", "faults.stop_after", "faults.save_failure"),
)


def verdict(
    row: dict[str, Any], printed: float, reasons: list[str], decimals: int = 1, is_meaningless: bool = False
) -> str:
    """Compare a row of metrics.json with the paper's number, which is printed with this many decimals."""
    if is_meaningless:
        return MEANINGLESS
    if reasons:
        return NOT_COMPARABLE
    if abs(row["value"] - printed) <= 0.1**decimals / 2:
        return MATCHES
    if row["low"] is not None and row["low"] <= printed <= row["high"]:
        return WITHIN_NOISE
    return DIFFERS


def why_not_comparable(main: Evaluation, paper: PaperRow) -> list[str]:
    """The reasons why the paper's number measures something else; empty when it is the same."""
    task, reasons = main.task, []
    if not paper.comparable:
        towers = [task.get(part) for part in ("vision", "language")]
        named = " + ".join(str(tower).rsplit("/", 1)[-1] for tower in towers if tower) or "unnamed ones"
        reasons.append(f"these weights have other towers: {named}")
    if not main.is_published:
        reasons.append(f"the data is not the whole of {main.format_of}")
    if main.is_trained_here:
        reasons += _other_training(main, paper)
    if task["image_source"] != "own":
        reasons.append("the model did not see the right pictures")
    if precision := rounded_language(task.get("recipe")):
        reasons.append(f"the language model was in {precision}")
    if not main.rows(paper.protocol):
        reasons.append(f"there is no score by {paper.protocol}")
    if "answers_sha256" in task:
        return [*reasons, f"answers are ranked from {Path(task['answers']).name}; the paper generates them"]
    for name, wanted in paper.evaluation.items():
        if name not in task:
            reasons.append(f"{name} is not known, the paper has {wanted!r}")
        elif task[name] != wanted:
            reasons.append(f"{name} {task[name]!r}, the paper has {wanted!r}")
    return reasons


def _other_training(main: Evaluation, paper: PaperRow) -> list[str]:
    """Whether weights that were trained here were fine-tuned on something else than the paper's."""
    ours = f"fine-tuned on {main.tuned_on}" if main.tuned_on else "pre-trained"
    if not paper.is_fine_tuned:
        return [f"these weights are {ours}; the paper's number is zero-shot"] if main.tuned_on else []
    if main.tuned_on != paper.tuned_on:
        return [f"these weights are {ours}; the paper's are fine-tuned on {paper.tuned_on}, with the image encoder"]
    recipe = main.task.get("recipe") or {}
    reasons = [] if recipe["vision"].get("trained") else ["the image encoder was frozen; the paper's was trained"]
    has_itg = (recipe.get("objectives") or {}).get("itg_weight") != 0
    if paper.tuned_on == "retrieval" and has_itg != paper.itg:
        reasons.append("these weights were fine-tuned without ITG; the paper's with it")
    return reasons


def deviations(main: Evaluation, paper: PaperRow | None = None) -> list[str] | None:
    """Each field of the weights' recipe that differs from the shipped recipe with the same towers and task.

    None when the training is not known (the recipe of converted weights names only towers and sizes), or when no
    shipped recipe has these towers and this task. ITG is not missed where the paper's row has none.
    """
    recipe = main.task.get("recipe")
    if not recipe or not main.is_trained_here:
        return None
    shipped = next((each for each in _shipped() if _is_for_same(recipe, each)), None)
    if shipped is None:
        return None
    found, wanted = _flat(recipe), _flat(shipped)
    if paper is not None and not paper.itg:
        wanted["objectives.itg_weight"] = 0.0
    tagged = str(wanted["vision.name"])
    if str(found["vision.name"]).removeprefix("hf-hub:timm/") in (tagged, tagged.partition(".")[0]):  # timm's default
        found["vision.name"] = tagged
    begun = [
        f"{name} {found.get(name)!r}, shipped {wanted[name]!r}"
        for name in ("init_weights", "init_text_weights")
        if (found.get(name) is None) != (wanted[name] is None)
    ]
    return begun + [f"{name} {found.get(name)!r}, shipped {wanted.get(name)!r}" for name in _differing(found, wanted)]


def differing_fields(recipe: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The fields in which two recipes differ, but for first weights and what does not change what is learnt."""
    return _differing(_flat(recipe), _flat(other))


def _differing(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    return [
        name
        for name in sorted({*found, *wanted})
        if not name.startswith(NOT_A_DEVIATION) and found.get(name) != wanted.get(name)
    ]


_TOWERS = ("vision", "language")


def _is_for_same(recipe: dict[str, Any], shipped: dict[str, Any]) -> bool:
    kinds = [(each.get("data") or {}).get("sample", "image") for each in (recipe, shipped)]
    return kinds[0] == kinds[1] and all(_same(recipe, shipped, part) for part in ("stage", *_TOWERS))


def _same(recipe: dict[str, Any], other: dict[str, Any], part: str) -> bool:
    one, two = recipe.get(part), other.get(part)
    return _plain(one) == _plain(two) if isinstance(one, dict) and isinstance(two, dict) else one == two


def _plain(tower: dict[str, Any]) -> str:
    """One name for each tower: `hf-hub:timm/NAME.TAG` and `NAME` are the same timm model."""
    name = str(tower["name"]).removeprefix("hf-hub:timm/")
    return name if "/" in name or ":" in name else name.partition(".")[0]


@lru_cache
def _shipped() -> list[dict[str, Any]]:
    from pipeline.config import load_recipe

    paths = [path for kind in ("stage", "finetune") for path in sorted(RECIPES.glob(f"{kind}*.yaml"))]
    return [load_recipe(path).model_dump(mode="json") for path in paths]


def _flat(content: dict[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in content.items():
        flat |= _flat(value, f"{above}{name}.") if isinstance(value, dict) else {f"{above}{name}": value}
    return flat
