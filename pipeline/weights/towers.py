"""Towers that files of others hold beside the bridge: compared with the recipe's; the image encoder can be written out.

A bridge works only with the towers that it was trained with. Files that were fine-tuned on COCO hold an image encoder
of their own: it becomes a part of a bridge that trains it, or is written to a folder that timm loads.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Language, Vision
from pipeline.files import naming_full_disk, replace_file, sync_file
from pipeline.weights.huggingface_vision import is_plain_vit
from pipeline.weights.lavis import VISION

if TYPE_CHECKING:
    from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
OPENAI_PARTS = {
    "conv1": "patch_embed.proj",
    "positional_embedding": "pos_embed",
    "class_embedding": "cls_token",
    "transformer.resblocks.": "blocks.",
    "ln_pre": "norm_pre",
    "ln_": "norm",
    "attn.in_proj_": "attn.qkv.",
    "attn.out_proj": "attn.proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
"""OpenAI's names of a CLIP ViT, which LAVIS keeps -> timm's; replaced in this order, both ways."""
DIMENSIONS = {"cls_token": 1, "pos_embed": 2}  # in OpenAI's files; 3 in timm


def vision_on_meta(settings: Vision) -> Any:
    """The recipe's image encoder without its last block and without weights; None where it is not timm's."""
    from pipeline.models.encoders import TRANSFORMERS, encoder_on_meta

    return None if settings.name.startswith(TRANSFORMERS) else encoder_on_meta(settings).model


def vision_from_lavis(tensors: dict[str, "Tensor"]) -> dict[str, "Tensor"]:
    """LAVIS's `visual_encoder.*` without that prefix, under timm's names."""
    if "conv1.weight" not in tensors:
        return tensors  # EVA's, whose names are timm's
    found = {}
    for name, tensor in tensors.items():
        ours = _replaced(name, OPENAI_PARTS.items())
        if _openai_name(ours) != name:
            ours = f"{VISION}{name}"  # a name of no tensor, which has no place
        found[ours] = tensor.reshape((1,) * (3 - tensor.ndim) + tensor.shape) if ours in DIMENSIONS else tensor
    return found


def vision_to_lavis(tensors: dict[str, "Tensor"], name: str) -> dict[str, "Tensor"]:
    """An image encoder of timm, without its last block, under LAVIS's names. LAVIS builds EVA's ViT-g and CLIP's ViTs,
    the last block left out too. Raises ValueError for others."""
    is_eva = any(each.endswith("attn.q_bias") for each in tensors)
    is_clip = "norm_pre.weight" in tensors
    plain = all(is_plain_vit(each) or each.startswith("norm_pre.") for each in tensors)
    if not plain or is_eva == is_clip:
        raise ValueError(
            f"vision.name {name!r}: LAVIS has no image encoder of its kind, only EVA's ViT-g and CLIP's ViT-L; keep "
            "these weights native"
        )
    if is_clip:
        tensors = {
            _openai_name(each): tensor.reshape(tensor.shape[-DIMENSIONS.get(each, tensor.ndim) :])
            for each, tensor in tensors.items()
        }
    return {f"{VISION}{each}": tensor for each, tensor in tensors.items()}


def _openai_name(name: str) -> str:
    return _replaced(name, [(part, theirs) for theirs, part in OPENAI_PARTS.items()])


def _replaced(name: str, parts: Iterable[tuple[str, str]]) -> str:
    for old, new in parts:
        name = name.replace(old, new)
    return name


def check_image_size(tensors: dict[str, "Tensor"], model: Any, settings: Vision, where: str) -> None:
    """Raises ValueError naming both sizes when an encoder's positions are for pictures of another size than the
    recipe's. `model` is the recipe's encoder, on the meta device will do."""
    positions, wanted = tensors.get("pos_embed"), getattr(model, "pos_embed", None)
    if positions is None or wanted is None or positions.ndim != wanted.ndim:
        return
    patches = positions.shape[1] - (wanted.shape[1] - math.prod(model.patch_embed.grid_size))
    grid = math.isqrt(max(0, patches))
    side = grid * model.patch_embed.patch_size[0]
    if grid**2 == patches and grid != model.patch_embed.grid_size[0]:
        raise ValueError(
            f"weights {where}: is for {side} px, and vision.image_size_px is {settings.image_size_px}; set "
            f"vision.image_size_px={side}"
        )


@dataclass(frozen=True)
class Wanted:
    """The tensors of a recipe's tower: `shapes` by name, `second` names of a tensor that has another, and patterns of
    names to ignore. `rows` of a vocabulary may be more in a file (`<image>`)."""

    shapes: Shapes
    second: frozenset[str] = frozenset()
    ignored: tuple[str, ...] = ()
    rows: int | None = None


def wanted_language(settings: Language) -> Wanted:
    """What the recipe's language model consists of."""
    from pipeline.models.language import language_on_meta

    model = language_on_meta(settings)
    ignored = tuple(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())
    state = model.state_dict(keep_vars=True)
    owners: dict[int, str] = {}
    for name, tensor in state.items():
        owners.setdefault(id(tensor), name)
    second = frozenset(name for name, tensor in state.items() if owners[id(tensor)] != name)
    return Wanted(shapes_of(state), second | _tied(model), ignored, model.get_input_embeddings().num_embeddings)


def _tied(model: Any) -> frozenset[str]:
    """Names that a file may leave out because transformers ties them to another."""
    import re

    patterns = getattr(model, "_tied_weights_keys", None) or ()
    return frozenset(name for name in model.state_dict() if any(re.search(pattern, name) for pattern in patterns))


def shapes_of(tensors: dict[str, "Tensor"]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def compare(found: Shapes, wanted: Wanted, where: str) -> None:
    """Raises ValueError naming the first tensor that only one of the two has, or that has another shape."""
    import re

    for name, shape in found.items():
        if any(re.search(pattern, name) for pattern in wanted.ignored):
            continue
        if name not in wanted.shapes:
            raise ValueError(f"weights {where}: {name!r} is not in the recipe's tower; name the tower of these weights")
        expected = wanted.shapes[name]
        rows = wanted.rows is not None and expected[:1] == (wanted.rows,)
        grown = rows and shape[:1] >= expected[:1] and shape[1:] == expected[1:]
        if shape != expected and not grown:
            raise ValueError(
                f"weights {where}: {name!r} has shape {shape}, the recipe's {expected}; name the same tower"
            )
    missing = [name for name in wanted.shapes if name not in found and name not in wanted.second]
    if missing:
        raise ValueError(f"weights {where}: {missing[0]!r} is missing ({len(missing)} such tensors)")


def write_timm_folder(tensors: dict[str, "Tensor"], settings: Vision, folder: Path) -> str:
    """An image encoder as a folder that timm loads by `local-dir:FOLDER`, the name that is returned.

    Raises ValueError when a tensor is missing. The last block, which no BLIP-2 runs, is zero.
    """
    import timm
    import torch
    from safetensors.torch import save_file

    with torch.device("meta"):
        model: Any = timm.create_model(settings.name, num_classes=0)
    last = f"blocks.{len(model.blocks) - 1}."
    whole = {}
    for name, tensor in model.state_dict().items():
        unused = name.startswith((last, "norm.", "fc_norm.", "head."))
        if name not in tensors and not unused:
            raise ValueError(f"--image-encoder {folder}: {name!r} is missing in SRC; remove --image-encoder")
        whole[name] = tensors.get(name, torch.zeros(tensor.shape)).clone(memory_format=torch.contiguous_format)
    side = settings.image_size_px
    pixels = {key: model.pretrained_cfg[key] for key in ("mean", "std") if key in model.pretrained_cfg}
    config = {
        "architecture": model.pretrained_cfg["architecture"],
        "num_classes": 0,
        "num_features": model.num_features,
        "model_args": {**_model_arguments(settings.name), "img_size": side},
        "pretrained_cfg": {"input_size": [3, side, side], **pixels},
    }
    folder.mkdir(parents=True)
    replace_file(folder / "config.json", json.dumps(config, indent=1) + "\n")
    with naming_full_disk(folder / "model.safetensors"):
        save_file(whole, folder / "model.safetensors")
        sync_file(folder / "model.safetensors")
    return f"local-dir:{folder}"


def _model_arguments(name: str) -> dict[str, Any]:
    """What a folder or a hub's repository says of its model's sizes; a name of timm's own says all itself."""
    from timm.models import load_model_config_from_hf
    from timm.models._hub import load_model_config_from_path

    source, _, place = name.partition(":")
    if source == "local-dir":
        return load_model_config_from_path(place)[2] or {}
    return (load_model_config_from_hf(place)[2] or {}) if source == "hf-hub" else {}
