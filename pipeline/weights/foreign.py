"""A bridge from a file of LAVIS or a folder of transformers, compared with the recipe; notes list what was left out.

A note is `WHAT: NAME`, one for each tensor. The file's image encoder is taken where the recipe trains one.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.config import Recipe
from pipeline.models.build import Bridge, build_bridge, load_bert
from pipeline.models.language import language_config
from pipeline.models.stage1 import Stage1Bridge
from pipeline.weights import huggingface, lavis, native, towers
from pipeline.weights.huggingface_config import check_config
from pipeline.weights.huggingface_vision import vision_from_huggingface
from pipeline.weights.names import ENCODER, huggingface_name

if TYPE_CHECKING:
    from torch import Tensor

LEFT_ENCODER = "left to the recipe's image encoder"


@dataclass(frozen=True)
class Foreign:
    """What a file holds: the bridge under our names, the towers (values on demand), and notes."""

    bridge: dict[str, "Tensor"]
    vision: dict[str, "Tensor"]
    language: dict[str, "Tensor"]
    notes: list[str]


def read_foreign(
    source: Path, read_as: Literal["lavis", "huggingface"], recipe: Recipe, image_encoder: Path | None
) -> tuple[Bridge, Recipe, list[str]]:
    """The bridge with its weights, the recipe, and notes. Raises ValueError in one line when anything does not fit.

    With `image_encoder`, the file's own is written to that folder, and the recipe that is returned names it.
    """
    refuse_questions(recipe)
    refuse_lora(recipe)
    if recipe.vision.trained and image_encoder is not None:
        raise ValueError(
            f"--image-encoder {image_encoder}: the recipe trains the image encoder, and the weights hold it; remove "
            "--image-encoder"
        )
    bridge = build_bridge(recipe)
    own = native.trained_tensors(bridge)
    names = [name for name in own if not name.startswith(ENCODER)]
    vision = towers.vision_on_meta(recipe.vision)
    if read_as == "huggingface":
        check_config(source, recipe, bridge.qformer.shape, vision)
    read = _read_lavis if read_as == "lavis" else _read_huggingface
    found = read(source, names, recipe, vision, recipe.vision.trained or image_encoder is not None)
    notes = list(found.notes)
    _check_towers(found, vision, recipe, source)
    tensors = found.bridge | _trained_encoder(found, recipe, source)
    if read_as == "huggingface":
        notes += [] if found.vision else ["no image encoder in the folder: the recipe's is taken"]
        if isinstance(bridge, Stage1Bridge):
            load_bert(bridge.qformer, recipe.qformer)  # for what the folder does not hold
        own, fresh = native.trained_tensors(bridge), [name for name in names if huggingface_name(name) is None]
        tensors |= {name: own[name] for name in fresh}
        notes += [f"not in transformers' format, as in a fresh bridge: {name}" for name in fresh]
    native.load_into(bridge, tensors, source)
    others = [(name, tensor.dtype) for name, tensor in tensors.items() if tensor.dtype != own[name].dtype]
    notes += [f"stored as {dtype}, kept in fp32 here: {name}" for name, dtype in others]
    if image_encoder is not None:
        if not found.vision:
            raise ValueError(
                f"--image-encoder {image_encoder}: {source} holds no image encoder; remove --image-encoder"
            )
        name = towers.write_timm_folder(found.vision, recipe.vision, image_encoder.absolute())
        recipe = recipe.model_copy(update={"vision": recipe.vision.model_copy(update={"name": name})})
    return bridge, recipe, notes


def refuse_lora(recipe: Recipe) -> None:
    """Raises ValueError for a recipe with LoRA: others' files hold none."""
    if recipe.language and recipe.language.lora.rank:
        raise ValueError(
            f"language.lora.rank {recipe.language.lora.rank}: weights of LAVIS and transformers hold no LoRA; set 0 "
            "here, and the rank in the recipe that trains from the result"
        )


def refuse_questions(recipe: Recipe) -> None:
    """Raises ValueError for a recipe whose Q-Former reads questions: others' stage 2 has no text path, and where a file
    held one, LAVIS would leave it out without a word."""
    if recipe.qformer.question != "none":
        raise ValueError(
            f"qformer.question {recipe.qformer.question!r}: in stage 2, LAVIS and transformers have no Q-Former that "
            "reads questions; only native weights hold one (to train one from theirs, convert their stages 1 and 2)"
        )


def _check_towers(found: Foreign, vision: Any, recipe: Recipe, source: Path) -> None:
    """Raises ValueError when a tower in the file is not the recipe's by names and shapes."""
    if found.vision and vision is None:
        raise ValueError(f"vision.name {recipe.vision.name!r}: {source} holds a timm ViT; name that ViT in the recipe")
    if found.vision:
        where = f"{source}, image encoder"
        towers.check_image_size(found.vision, vision, recipe.vision, where)
        wanted = towers.Wanted(towers.shapes_of(vision.state_dict()))
        towers.compare(towers.shapes_of(found.vision), wanted, where)
    if found.language and recipe.language:
        wanted = towers.wanted_language(recipe.language)
        towers.compare(towers.shapes_of(found.language), wanted, f"{source}, language model")


def _trained_encoder(found: Foreign, recipe: Recipe, source: Path) -> dict[str, "Tensor"]:
    """The file's image encoder as a part of the bridge, where the recipe trains it."""
    if not recipe.vision.trained:
        return {}
    if not found.vision:
        raise ValueError(
            f"vision.trained: {source} holds no image encoder, and the recipe trains one; set vision.trained=false, or "
            "give fine-tuned weights"
        )
    return {f"{ENCODER}{name}": tensor for name, tensor in found.vision.items()}


def _read_lavis(source: Path, own: list[str], recipe: Recipe, _vision: object, take_vision: bool) -> Foreign:
    state = lavis.read_file(source)
    tensors, others, skipped = lavis.from_lavis(state, own, language_kind(recipe), source)
    eyes = {n.removeprefix(lavis.VISION): t for n, t in others.items() if n.startswith(lavis.VISION)}
    words = {n.partition(".")[2]: t for n, t in others.items() if not n.startswith(lavis.VISION)}
    notes = _notes(list(others), lavis.VISION, take_vision, skipped)
    return Foreign(tensors, towers.vision_from_lavis(eyes), words, notes)


def _read_huggingface(source: Path, own: list[str], recipe: Recipe, vision: object, take_vision: bool) -> Foreign:
    tensors, places, skipped = huggingface.read_folder(source, own)
    eyes = huggingface.read_tower(places, huggingface.VISION, with_values=take_vision)
    notes = _notes(list(places), huggingface.VISION, take_vision, skipped)
    if vision is not None:
        eyes, biased = vision_from_huggingface(eyes, vision, recipe.vision.name)
        notes += [f"a bias of attention's keys, which the softmax cancels, left out: {name}" for name in biased]
    words = huggingface.read_tower(places, huggingface.LANGUAGE, with_values=False)
    return Foreign(tensors, eyes, words, notes)


def _notes(in_towers: list[str], vision: str, take_vision: bool, skipped: list[str]) -> list[str]:
    eyes = [name for name in in_towers if name.startswith(vision)]
    return [
        *(f"{LEFT_ENCODER}: {name}" for name in eyes if not take_vision),
        *(f"left to the recipe's language model: {name}" for name in in_towers if not name.startswith(vision)),
        *(f"a second name or a buffer, made again: {name}" for name in skipped),
    ]


def language_kind(recipe: Recipe) -> str | None:
    """`causal` or `seq2seq`, of the recipe's language model; None for stage 1."""
    if recipe.language is None:
        return None
    return "seq2seq" if language_config(recipe.language).is_encoder_decoder else "causal"
