"""A bridge from a file of LAVIS or a folder of transformers, compared with the recipe; notes list what was left out.

A note is `WHAT: NAME`, one for each tensor.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.config import Recipe
from pipeline.models.build import Bridge, build_bridge, load_bert
from pipeline.models.language import language_config
from pipeline.models.stage1 import Stage1Bridge
from pipeline.weights import huggingface, lavis, native, towers
from pipeline.weights.huggingface_config import check_config
from pipeline.weights.huggingface_vision import vision_from_huggingface
from pipeline.weights.names import huggingface_name

if TYPE_CHECKING:
    from torch import Tensor

ENCODER = "vision.encoder.model."  # before a timm encoder's own names, in a bridge that trains it


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
    bridge = build_bridge(recipe)
    own = native.trained_tensors(bridge)
    names = [name for name in own if not name.startswith(ENCODER)]
    vision = towers.vision_on_meta(recipe.vision)
    if read_as == "huggingface":
        check_config(source, recipe, bridge.qformer.shape, vision)
    read = _read_lavis if read_as == "lavis" else _read_huggingface
    found = read(source, names, recipe, vision, image_encoder is not None)
    notes = list(found.notes)
    if found.vision and vision is None:
        raise ValueError(f"vision.name {recipe.vision.name!r}: {source} holds a timm ViT; name that ViT in the recipe")
    if found.vision:
        wanted = towers.Wanted(towers.shapes_of(vision.state_dict()))
        towers.compare(towers.shapes_of(found.vision), wanted, f"{source}, image encoder")
    if found.language and recipe.language:
        wanted = towers.wanted_language(recipe.language)
        towers.compare(towers.shapes_of(found.language), wanted, f"{source}, language model")
    tensors = dict(found.bridge)
    if recipe.vision.trained:
        encoder = {f"{ENCODER}{name}": tensor for name, tensor in found.vision.items()}
        tensors |= {name: tensor for name, tensor in encoder.items() if name in own}
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


def _read_lavis(source: Path, own: list[str], recipe: Recipe, _vision: object, take_vision: bool) -> Foreign:
    state = lavis.read_file(source)
    tensors, others, skipped = lavis.from_lavis(state, own, language_kind(recipe), source)
    eyes = {n.removeprefix(lavis.VISION): t for n, t in others.items() if n.startswith(lavis.VISION)}
    words = {n.partition(".")[2]: t for n, t in others.items() if not n.startswith(lavis.VISION)}
    left = [name for name in others if not (take_vision and name.startswith(lavis.VISION))]
    return Foreign(tensors, towers.vision_from_lavis(eyes), words, _notes(left, skipped))


def _read_huggingface(source: Path, own: list[str], recipe: Recipe, vision: object, take_vision: bool) -> Foreign:
    tensors, places, skipped = huggingface.read_folder(source, own)
    eyes = huggingface.read_tower(places, huggingface.VISION, with_values=take_vision)
    if vision is not None:
        eyes = vision_from_huggingface(eyes, vision, recipe.vision.name)
    words = huggingface.read_tower(places, huggingface.LANGUAGE, with_values=False)
    left = [name for name in places if not (take_vision and name.startswith(huggingface.VISION))]
    return Foreign(tensors, eyes, words, _notes(left, skipped))


def _notes(left: list[str], skipped: list[str]) -> list[str]:
    return [
        *(f"left to the recipe's towers: {name}" for name in left),
        *(f"a second name or a buffer, made again: {name}" for name in skipped),
    ]


def language_kind(recipe: Recipe) -> str | None:
    """`causal` or `seq2seq`, of the recipe's language model; None for stage 1."""
    if recipe.language is None:
        return None
    return "seq2seq" if language_config(recipe.language).is_encoder_decoder else "causal"
