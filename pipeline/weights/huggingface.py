"""transformers' BLIP-2 folders: `Blip2ForConditionalGeneration` (stage 2) and `Blip2ForImageTextRetrieval` (stage 1).

Such a folder holds the towers as well. A folder that is written is whole, with its processor. Of a folder that is read
only the bridge is taken; the towers are loaded from the recipe's names. The epsilon of ln_vision is 1e-5 here and 1e-6
there.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Recipe
from pipeline.files import sync_file
from pipeline.weight_sets import check_weight_sets
from pipeline.weights.huggingface_config import MERGED_RANK, qformer_config
from pipeline.weights.huggingface_vision import vision_config, vision_state
from pipeline.weights.names import huggingface_name, inverse

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.models.inference import LanguageModel, RetrievalModel

VISION, LANGUAGE = "vision_model.", "language_model."
FROZEN = (VISION, LANGUAGE)
BUFFERS = ("embeddings.position_ids",)
IMAGE_TOKEN = "<image>"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def local_folder(source: Path) -> Path:
    """The folder itself, or the local copy of a hub's repository. Raises ValueError when there is neither."""
    if source.exists() or not HUB_ID.fullmatch(str(source)):
        return source
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source), allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # the hub's library raises many kinds of errors
        raise ValueError(
            f"SRC {source}: no such folder, and the hub does not give it ({str(error).splitlines()[0]}); without "
            "network, download it on another machine (`hf download NAME`) and copy its HF_HOME here"
        ) from error


def read_folder(folder: Path, own_names: list[str]) -> tuple[dict[str, "Tensor"], dict[str, Path], list[str]]:
    """A folder's bridge under our names, the file of each tower tensor by name, and skipped buffers.

    Raises ValueError in one line when the folder holds no readable safetensors files.
    """
    ours = inverse((name, huggingface_name(name)) for name in own_names)
    tensors: dict[str, Tensor] = {}
    towers: dict[str, Path] = {}
    skipped: list[str] = []
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"weights {folder}: has no *.safetensors; give a folder that save_pretrained() wrote")
    _check_files(folder, files)
    check_weight_sets(folder)
    for path in files:
        with _opened(path) as opened:
            for name in opened.keys():  # noqa: SIM118  (not a mapping)
                if name in BUFFERS:
                    skipped.append(name)
                elif ours.get(name) in tensors or name in towers:
                    raise ValueError(f"weights {path}: {name!r} is in a second file of the folder, too; remove one")
                elif name in ours:
                    tensors[ours[name]] = opened.get_tensor(name)
                elif name.startswith(FROZEN):
                    towers[name] = path
                else:
                    raise ValueError(f"weights {path}: {name!r} has no place in this model; check --recipe")
    return tensors, towers, skipped


def _check_files(folder: Path, files: list[Path]) -> None:
    """Raises ValueError when the folder's index names a file that is not there."""
    import json

    names = {path.name for path in files}
    for index in folder.glob("*.safetensors.index.json"):
        try:
            wanted = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise ValueError(f"weights {index}: is not readable ({type(error).__name__}); download it again") from error
        if wanted - names:
            raise ValueError(
                f"weights {folder}: {min(wanted - names)} is missing, and {index.name} names it; download it again"
            )


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        raise ValueError(f"weights {path}: is not a readable safetensors file ({error}); copy it again") from error


def read_tower(towers: dict[str, Path], prefix: str, with_values: bool) -> dict[str, "Tensor"]:
    """A tower's tensors without their prefix; without values, on the meta device."""
    import torch

    found = {}
    for path in sorted(set(towers.values())):
        with _opened(path) as opened:
            for name in (each for each, place in towers.items() if place == path and each.startswith(prefix)):
                found[name.removeprefix(prefix)] = (
                    opened.get_tensor(name)
                    if with_values
                    else torch.empty(opened.get_slice(name).get_shape(), device="meta")
                )
    return found


def write_folder(model: "RetrievalModel | LanguageModel", folder: Path) -> list[str]:
    """Save the whole model as transformers does. Returns notes, one for each of our tensors that has no place there.

    A recipe's LoRA must be merged into the language model before; config.json says that it is.
    """
    import torch
    from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2ForImageTextRetrieval

    from pipeline.models.encoders import TimmEncoder

    recipe, shape, encoder = model.recipe, model.bridge.qformer.shape, model.vision.encoder
    bridge = model.bridge.state_dict()
    names = {name: huggingface_name(name) for name in bridge}
    state = {theirs: bridge[name] for name, theirs in names.items() if theirs is not None}
    if not isinstance(encoder, TimmEncoder):
        raise ValueError(
            f"vision.name {recipe.vision.name!r}: transformers' BLIP-2 takes timm ViTs alone; convert to lavis instead"
        )
    for name, tensor in vision_state(encoder.model, recipe.vision.name).items():
        state[f"vision_model.{name}"] = tensor
    settings: dict[str, Any] = {
        "vision_config": vision_config(encoder.model, recipe),
        "qformer_config": qformer_config(shape, with_text=model.stage == 1),
        "num_query_tokens": shape.num_query_tokens,
        "image_text_hidden_size": recipe.qformer.projection_width,
    }
    precisions = {recipe.vision.precision, *([recipe.language.precision] if recipe.language else [])} - {"fp32"}
    notes = [f"towers are stored as the recipe holds them, in {' and '.join(sorted(precisions))}"] if precisions else []
    if model.stage == 2:
        language = model.language.model
        rows = language.get_input_embeddings().num_embeddings
        tokenizer = _with_image_token(model.language.tokenizer, language)
        if language.get_input_embeddings().num_embeddings > rows:
            notes.append(
                "`<image>` is a new row of the vocabulary, which transformers' softmax counts in: scores of beams "
                "differ in their last digits, and now and then a text does"
            )
        text_config = language.config
        if model.language.kind == "causal":
            text_config.eos_token_id = model.language.end_token_id  # type: ignore[attr-defined]
            tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"  # the latter is what is saved
        if recipe.language and recipe.language.lora.rank:
            settings[MERGED_RANK] = recipe.language.lora.rank
        config = Blip2Config(
            **settings, text_config=text_config, image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        )
        with torch.device("meta"):
            whole: Any = Blip2ForConditionalGeneration(config)
        if type(whole.language_model) is not type(language):
            raise ValueError(
                f"language.name {recipe.language.name if recipe.language else ''!r}: is a {type(language).__name__}, "
                f"and transformers' BLIP-2 builds a {type(whole.language_model).__name__}; convert to lavis instead"
            )
        whole.language_model = language
        state |= {f"language_model.{name}": tensor for name, tensor in language.state_dict().items()}
    else:
        tokenizer = model.tokenizer
        with torch.device("meta"):
            whole = Blip2ForImageTextRetrieval(Blip2Config(**settings))
    try:
        whole.load_state_dict(state, assign=True, strict=True)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(
            f"vision.name, language.name: do not fit transformers' BLIP-2 ({reason}); convert to lavis instead"
        ) from error
    whole.save_pretrained(folder)
    _processor(tokenizer, recipe, model.vision, shape.num_query_tokens if model.stage == 2 else None).save_pretrained(
        folder
    )
    for file in filter(Path.is_file, folder.iterdir()):
        sync_file(file)
    return [*notes, *(f"not in transformers' format, left out: {name}" for name, theirs in names.items() if not theirs)]


def _with_image_token(tokenizer: Any, language: Any) -> Any:
    """The tokenizer with `<image>` as a new id; the embeddings grow only where they have no row to spare for it.

    A new row is the mean of the others, whose logit is never the largest.
    """
    import torch

    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    rows = language.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        if language.get_output_embeddings().weight is not language.get_input_embeddings().weight:
            language.config.tie_word_embeddings = False  # resizing ties them anew where the configuration says so
        language.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        with torch.no_grad():
            for layer in (language.get_input_embeddings(), language.get_output_embeddings()):
                layer.weight[rows:] = layer.weight[:rows].mean(dim=0)
    return tokenizer


def _processor(tokenizer: Any, recipe: Recipe, vision: Any, num_query_tokens: int | None) -> Any:
    from transformers import Blip2Processor, BlipImageProcessor

    side = recipe.vision.image_size_px
    mean, std = ((values.flatten() / 255).tolist() for values in (vision.mean, vision.std))
    images = BlipImageProcessor(size={"height": side, "width": side}, image_mean=mean, image_std=std)
    return Blip2Processor(images, tokenizer, num_query_tokens=num_query_tokens)
