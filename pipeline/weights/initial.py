"""Fills a fresh bridge from a recipe's `init_weights`, and says when they do not fit the run."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import Recipe, is_same_place
from pipeline.weights.native import load_into, read_weights, towers_of, trained_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

Identities = Callable[[], Mapping[str, str] | None]
LORA = "lora."  # before the names of its matrices in a bridge
TEXT_PATH = ("qformer.text_embeddings.", ".text_ffn.")  # in the names of the Q-Former's text path


def initialise(bridge: "nn.Module", recipe: Recipe, found: Identities = dict) -> None:
    """Fill a fresh bridge from the recipe's `init_weights`, if it has any: those of its own stage, or stage 1 for 2.

    Raises ValueError when they do not fit, or were trained with other towers. `found` gives the fingerprints of the
    towers that are loaded, where one has another place than it had then; None where another rank compares them.
    """
    if recipe.init_weights is None:
        return
    trained, tensors = read_weights(recipe.init_weights)
    if trained.vision.trained and not recipe.vision.trained:
        raise ValueError(
            f"init_weights {recipe.init_weights}: hold an image encoder that was trained, and the recipe freezes it; "
            "set vision.trained=true, or start from other weights"
        )
    if (trained.stage, recipe.stage) == (2, 1):
        raise ValueError(f"init_weights {recipe.init_weights}: are of stage 2, and stage is 1; give stage-1 weights")
    now_px, before_px = recipe.vision.image_size_px, trained.vision.image_size_px
    if trained.vision.trained and before_px != now_px:
        raise ValueError(
            f"init_weights {recipe.init_weights}: hold an image encoder that was trained at {before_px} px, and "
            f"vision.image_size_px is {now_px}; set {before_px}, or start from weights with a frozen encoder"
        )
    if not recipe.init_from_other_towers:
        _check_same_towers(trained, recipe, "init_weights", recipe.init_weights, found)
    reads = recipe.qformer.question != "none"
    if trained.qformer.question != "none" and not reads:
        raise ValueError(
            f"init_weights {recipe.init_weights}: are of a Q-Former that reads questions, and qformer.question is "
            "'none'; start from a stage-2 run, or set qformer.question and data.sample=question"
        )
    _check_lora(trained, recipe)
    if (trained.stage, recipe.stage) == (1, 2):
        tensors = _for_stage2(bridge, tensors)
    if trained.stage == 2 and reads:
        tensors |= _text_path(bridge, tensors, recipe, found)
    if not trained.vision.trained:  # the encoder, if it is to be trained, starts from its own weights
        tensors |= _fresh(bridge, "vision.")
    if not (trained.language and trained.language.lora.rank):  # as LoRA does: B is zero, so nothing changes at first
        tensors |= _fresh(bridge, LORA)
    load_into(bridge, tensors, recipe.init_weights)


def _check_same_towers(trained: Recipe, recipe: Recipe, told: str, source: Path, found: Identities) -> None:
    """A bridge fits one image encoder, tokenizer and language model. Precision, image size and place may change."""
    pairs = {"vision.name": (trained.vision.name, recipe.vision.name)}
    if recipe.stage == 1 or recipe.qformer.question != "none":  # else the Q-Former reads no text
        pairs["qformer.bert"] = (trained.qformer.bert, recipe.qformer.bert)
    if trained.language and recipe.language:
        pairs["language.name"] = (trained.language.name, recipe.language.name)
        pairs["language.config"] = (str(trained.language.config), str(recipe.language.config))
    other = {field: pair for field, pair in pairs.items() if not is_same_place(field, *pair)}
    if not other or (now := found()) is None:
        return
    before = towers_of(source)
    for field, pair in other.items():
        if not _is_same_tower(field.partition(".")[0], before, now):
            raise ValueError(
                f"{told} {source}: were trained with {field} {pair[0]}, the recipe has {pair[1]}; correct the recipe, "
                "or allow it with --set init_from_other_towers=true"
            )


def _is_same_tower(name: str, before: Mapping[str, str], now: Mapping[str, str]) -> bool:
    """By its configuration, and by its weights where they are frozen."""
    settings = f"{name}.settings"
    return settings in before and all(before.get(each) == now.get(each) for each in (name, settings))


def _check_lora(trained: Recipe, recipe: Recipe) -> None:
    """LoRA's matrices fit one rank, alpha and choice of layers. Weights without any may get fresh ones."""
    if not (trained.language and recipe.language and trained.language.lora.rank):
        return
    for field in ("rank", "alpha", "targets"):
        before, now = (getattr(each.lora, field) for each in (trained.language, recipe.language))
        if before != now:
            shown, new = (f"[{','.join(each)}]" if isinstance(each, tuple) else each for each in (before, now))
            raise ValueError(
                f"init_weights {recipe.init_weights}: hold LoRA's matrices with language.lora.{field} "
                f"{shown or 'null'}, and the recipe has {new}; set language.lora.{field}={shown or 'null'}"
            )


def _fresh(bridge: "nn.Module", beginning: str) -> dict[str, "Tensor"]:
    """A fresh bridge's own tensors whose names begin so."""
    return {name: own for name, own in trained_tensors(bridge).items() if name.startswith(beginning)}


def _for_stage2(bridge: "nn.Module", stage1: dict[str, "Tensor"]) -> dict[str, "Tensor"]:
    """`ln_vision` and the query path of stage 1's tensors; the projection to the language model stays fresh."""
    own = trained_tensors(bridge)
    shared = {name: stage1[name] for name in own if name in stage1}
    return shared | _fresh(bridge, "language_projection.")


def _text_path(
    bridge: "nn.Module", stage2: dict[str, "Tensor"], recipe: Recipe, found: Identities
) -> dict[str, "Tensor"]:
    """What of the Q-Former's text path stage 2's tensors lack, from stage 1's. Never BERT's: that path was trained."""
    text_path = [name for name in trained_tensors(bridge) if any(part in name for part in TEXT_PATH)]
    lacking = [name for name in text_path if name not in stage2]
    source = recipe.init_text_weights
    if not lacking:
        if source:
            raise ValueError(
                f"init_text_weights {source}: init_weights {recipe.init_weights} have a text path; remove "
                "init_text_weights"
            )
        return {}
    if source is None:
        raise ValueError(
            f"init_weights {recipe.init_weights}: have no text path, as stage 2 drops it, and qformer.question is "
            f"{recipe.qformer.question!r}; set init_text_weights to the stage-1 run"
        )
    trained, tensors = read_weights(source)
    if trained.stage != 1:
        raise ValueError(f"init_text_weights {source}: are of stage {trained.stage}; give a stage-1 run")
    if not recipe.init_from_other_towers:
        _check_same_towers(trained, recipe, "init_text_weights", source, found)
    return {name: tensors[name] for name in lacking if name in tensors}
