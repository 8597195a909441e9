"""The project's own weights: one safetensors file of what is trained, with recipe and origin in its metadata."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Recipe, is_same_place, moved, parse_recipe
from pipeline.files import parse_json, sync_file

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pipeline.models.build import Bridge
    from pipeline.models.inference import LanguageModel, RetrievalModel
    from pipeline.models.stage2 import Stage2Bridge
    from pipeline.models.vision import VisionTower

Identities = Callable[[], Mapping[str, str] | None]
FORMAT = "blip2-native/1"
FILE_NAME = "trainable.safetensors"
LORA = "lora."  # before the names of its matrices in a bridge
TEXT_PATH = ("qformer.text_embeddings.", ".text_ffn.")  # in the names of the Q-Former's text path


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
    one line when it is missing or damaged."""
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
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"weights {file}: has no readable recipe in its metadata ({error})") from error
    return moved(parse_recipe(content), places), tensors


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
    before = _towers_of(source)
    for field, pair in other.items():
        if not _is_same_tower(field.partition(".")[0], before, now):
            raise ValueError(
                f"{told} {source}: were trained with {field} {pair[0]}, the recipe has {pair[1]}; correct the recipe, "
                "or allow it with --set init_from_other_towers=true"
            )


def _towers_of(path: Path) -> dict[str, str]:
    """The fingerprints that a training keeps with its weights; none in converted weights and those of earlier versions.
    Raises ValueError when they are not readable."""
    try:
        return dict(parse_json(read_metadata(path).get("towers", "{}").encode()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"weights {path}: have no readable towers in their metadata ({error})") from error


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


def load_model(path: Path, device: str, places: Sequence[str] = ()) -> "RetrievalModel | LanguageModel":
    """The whole model of a checkpoint, for evaluation: towers from where its recipe or `places` say, bridge from the
    file. Raises ValueError when a new place holds other weights than the checkpoint was trained with."""
    from pipeline.models.build import build_bridge

    recipe, tensors = read_weights(path, places)
    bridge = build_bridge(recipe, device)
    load_into(bridge, tensors, path)
    model = inference_model(recipe, bridge, device)
    before, now = (_towers_of(path), model.fingerprints()) if places else ({}, {})
    for name in ("vision", "language"):
        if before.get(name) and name in now and before[name] != now[name]:
            raise ValueError(
                f"--set {name}.name: holds other weights than {path} was trained with; name a copy of those"
            )
    return model


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
