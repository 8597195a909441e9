"""The project's own weights: one safetensors file of what is trained, with recipe and origin in its metadata."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Recipe, in_environment, moved, parse_recipe, references_in
from pipeline.files import parse_json, sync_file

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pipeline.models.build import Bridge
    from pipeline.models.inference import LanguageModel, RetrievalModel
    from pipeline.models.stage2 import Stage2Bridge
    from pipeline.models.vision import VisionTower

FORMAT = "blip2-native/1"
FILE_NAME = "trainable.safetensors"


def weights_file(path: Path) -> Path:
    """The weights file of a run folder (its newest whole checkpoint), of a checkpoint folder, or the path itself."""
    if path.name.startswith("step_") and path.is_dir() and not (path / "COMPLETE").is_file():
        raise ValueError(f"weights {path}: is an unfinished checkpoint (it has no COMPLETE); give another one")
    newest = sorted(path.glob("checkpoints/step_*/COMPLETE"))[-1:]
    file = newest[0].parent / FILE_NAME if newest else path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        raise ValueError(
            f"weights {path}: has no {FILE_NAME}; give a run folder, or one of its checkpoints/step_*; an id of the "
            "hub needs a recipe beside it"
        )
    return file


def save_weights(bridge: "nn.Module", recipe: Recipe, step: int, folder: Path, **provenance: str) -> Path:
    """Write the trained weights with their recipe and origin; the file is on disk when this returns."""
    return save_tensors(trained_tensors(bridge), recipe, step, folder, **provenance)


def towers_of(path: Path) -> dict[str, str]:
    """The fingerprints that a training keeps with its weights; none in converted weights and those of earlier versions.
    Raises ValueError when they are not readable."""
    try:
        return dict(parse_json(read_metadata(path).get("towers", "{}").encode()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"weights {path}: have no readable towers in their metadata ({error})") from error


def trained_tensors(bridge: "nn.Module") -> dict[str, "Tensor"]:
    """Name -> parameter of all that is trained. What a trained image encoder does not read has no place in a file."""
    return {name: parameter.detach() for name, parameter in bridge.named_parameters() if parameter.requires_grad}


def save_tensors(tensors: dict[str, "Tensor"], recipe: Recipe, step: int, folder: Path, **provenance: str) -> Path:
    """The same of a bridge's state dict, wherever it was gathered."""
    from safetensors.torch import save_file

    path = folder / FILE_NAME
    written = json.dumps(recipe.as_written().model_dump(mode="json"))
    metadata = {"format": FORMAT, "step": str(step), "recipe": written, **provenance}
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path, metadata=metadata)
    sync_file(path)
    return path


def read_metadata(path: Path) -> dict[str, str]:
    """A weights file's metadata. Raises ValueError in one line when the file is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    file = weights_file(path)
    try:
        with safe_open(file, framework="pt") as opened:
            return dict(opened.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise ValueError(f"weights {file}: is not a readable safetensors file ({error}); copy it again") from error


def read_provenance(path: Path) -> tuple[int, str]:
    """A weights file's training step (0: unknown), and the notes of an earlier conversion."""
    metadata = read_metadata(path)
    step = metadata.get("step", "0")
    return int(step) if step.isdecimal() else 0, metadata.get("notes", "")


def read_weights(path: Path, places: Sequence[str] = ()) -> tuple[Recipe, dict[str, "Tensor"]]:
    """The recipe, with new places where `--set` gives some, and the tensors of a weights file. Raises ValueError in
    one line when it is missing or damaged. The environment is not read."""
    from safetensors import SafetensorError, safe_open

    file = weights_file(path)
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (not a mapping)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"weights {file}: is not a readable safetensors file ({error}); copy it again") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"weights {file}: is of format {metadata.get('format')!r}, expected {FORMAT!r}")
    try:
        content = json.loads(metadata["recipe"])
        references = references_in(dict(json.loads(metadata.get("references", "{}"))))
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"weights {file}: has no readable recipe in its metadata ({error})") from error
    return moved(parse_recipe(content).referring(references), places), tensors


def load_into(bridge: "nn.Module", tensors: dict[str, "Tensor"], source: Path) -> None:
    """Copy tensors into the bridge by name. Raises ValueError, and copies nothing, when one does not fit."""
    own = trained_tensors(bridge)
    extra = [name for name in tensors if name not in own]
    missing = [name for name in own if name not in tensors]
    if extra:
        raise ValueError(f"weights {source}: {extra[0]!r} has no place in this model ({len(extra)} such tensors)")
    if missing:
        raise ValueError(f"weights {source}: {missing[0]!r} is missing ({len(missing)} such tensors)")
    for name, tensor in own.items():
        if tensors[name].shape != tensor.shape:
            found, wanted = tuple(tensors[name].shape), tuple(tensor.shape)
            raise ValueError(f"weights {source}: {name!r} has shape {found}, this model needs {wanted}")
        if not tensors[name].is_floating_point():
            raise ValueError(f"weights {source}: {name!r} holds {tensors[name].dtype}, not real floating-point numbers")
    for name, tensor in own.items():
        tensor.copy_(tensors[name])


def load_model(path: Path, device: str, places: Sequence[str] = ()) -> "RetrievalModel | LanguageModel":
    """The whole model of a checkpoint, for evaluation: bridge from the file, towers from where `places`, the variables
    that they were given by, or else its recipe say. Raises ValueError when a new place holds others than it was
    trained with; those of a language model in another precision cannot be compared."""
    from pipeline.models.build import build_bridge

    recipe, tensors = read_weights(path)
    now = in_environment(moved(recipe, places))
    bridge = build_bridge(now, device)
    load_into(bridge, tensors, path)
    model = inference_model(now, bridge, device)
    if now != recipe:
        precisions = {each.language and each.language.precision for each in (recipe, now)}
        _check_towers(model, path, {"vision", "qformer.settings"} | ({"language"} if len(precisions) == 1 else set()))
    return model


def _check_towers(model: "RetrievalModel | LanguageModel", path: Path, compared: set[str]) -> None:
    from pipeline.models.fingerprint import fingerprint_of_qformer

    reader = model.tokenizer if model.stage == 1 else model.reader
    found = model.fingerprints() | {"qformer.settings": fingerprint_of_qformer(model.bridge, reader)}
    before = towers_of(path)
    fields = {"vision": "vision.name", "language": "language.name", "qformer.settings": "qformer.bert"}
    for name, field in fields.items():
        if name in compared and before.get(name) and name in found and before[name] != found[name]:
            raise ValueError(
                f"{field}: --set or its variable leads to another than {path} was trained with; name a copy of that"
            )


def evaluation_vision(recipe: Recipe, bridge: "Bridge", device: str) -> "VisionTower":
    """The image encoder, frozen: the one in the bridge if it was trained, which is taken out, else the recipe's."""
    from pipeline.models.vision import TrainedVision, VisionTower, build_vision

    vision: nn.Module = bridge.vision or build_vision(recipe.vision, device)
    bridge.vision = None
    if isinstance(vision, TrainedVision):
        vision = vision.frozen(recipe.vision.precision).to(device)
    assert isinstance(vision, VisionTower)
    return vision


def add_trained_lora(model: Any, recipe: Recipe, bridge: "Stage2Bridge") -> None:
    """Put the bridge's LoRA matrices, if it has any, into a language model that was loaded without them."""
    from pipeline.models.lora import add_lora

    trained = bridge.lora
    if trained is not None:
        bridge.lora = add_lora(model, recipe, str(model.device))
        assert bridge.lora is not None
        bridge.lora.load_state_dict(trained.state_dict())


def inference_model(recipe: Recipe, bridge: "Bridge", device: str) -> "RetrievalModel | LanguageModel":
    """A loaded bridge with the recipe's towers, each tried once. Raises ValueError for towers that cannot serve."""
    from pipeline.models.build import build_tokenizer
    from pipeline.models.inference import LanguageModel, RetrievalModel
    from pipeline.models.language import build_language
    from pipeline.models.precision import add_in_fp32
    from pipeline.models.stage1 import Stage1Bridge
    from pipeline.models.stage2 import Stage2Bridge
    from pipeline.models.trial import try_language, try_vision

    add_in_fp32()
    vision = evaluation_vision(recipe, bridge, device)
    try_vision(vision, recipe.vision)
    if recipe.language is None:
        assert isinstance(bridge, Stage1Bridge)
        return RetrievalModel(recipe, vision, bridge.to(device), build_tokenizer(recipe.qformer))
    assert isinstance(bridge, Stage2Bridge)
    language = build_language(recipe.language, device)
    add_trained_lora(language.model, recipe, bridge)
    try_language(language, recipe.language)
    reader = build_tokenizer(recipe.qformer) if recipe.qformer.question != "none" else None
    return LanguageModel(recipe, vision, bridge.to(device), language, reader)
