"""Exports a CLIPModel's vision half as the paper's kind of encoder: timm's EVA, in a `local-dir:` folder.

Blip2VisionModel of transformers has the same kind, so the miniature can be exported. EVA has no norm before its blocks.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.miniature.towers.clip import MEAN, STD, normalise
from data_prep.miniature.towers.drawings import draw_groups
from data_prep.miniature.towers.folding import fold_first_norm

ARCHITECTURE = "eva_giant_patch14_clip_224"
"""The paper's ViT-g: a class token, exact GELU, no bias of the keys. The arguments make it small."""
SCALE_GROUPS = 16
"""The number of groups of drawn scenes that show the mean scale of the norm."""


def save_timm_folder(clip: Any, seed: int, folder: Path) -> None:
    """Write config.json and model.safetensors, for `timm.create_model("local-dir:FOLDER", pretrained=True)`."""
    from safetensors.torch import save_file

    config = clip.config.vision_config
    side = config.image_size
    model_args = {
        "img_size": side, "patch_size": config.patch_size, "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers, "num_heads": config.num_attention_heads,
        "mlp_ratio": config.intermediate_size / config.hidden_size,
    }  # fmt: skip
    description = {
        "architecture": ARCHITECTURE,
        "num_classes": 0,
        "num_features": config.hidden_size,
        "pretrained_cfg": {
            "num_classes": 0, "input_size": [3, side, side], "fixed_input_size": True, "mean": list(MEAN),
            "std": list(STD), "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "squash",
            "first_conv": "patch_embed.proj", "classifier": "head",
        },
        "model_args": model_args,
    }  # fmt: skip
    drawings = draw_groups(SCALE_GROUPS, side, np.random.default_rng((seed, 0xE7A)))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        eva_weights(clip.vision_model, normalise(drawings.pixels)), folder / "model.safetensors", {"format": "pt"}
    )
    (folder / "config.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def eva_weights(clip_vision: Any, pixels_B3SS: Any) -> dict[str, Any]:
    """A CLIP vision tower's weights under the names of timm's EVA; the pictures show the mean scale of its first norm.

    The bias of the keys adds the same to all logits of a query, so the softmax cancels it: it is left out.
    """
    import torch

    vision, folded = clip_vision.state_dict(), fold_first_norm(clip_vision, pixels_B3SS)
    weights = {
        "cls_token": folded.class_token_C[None, None],
        "pos_embed": folded.positions_PC[None],
        "patch_embed.proj.weight": folded.kernel_C3pp,
        "patch_embed.proj.bias": torch.zeros(len(folded.class_token_C)),
    }
    names = {"post_layernorm": "norm"}
    blocks = {"layer_norm1": "norm1", "layer_norm2": "norm2", "self_attn.out_proj": "attn.proj"}
    blocks |= {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    for layer in range(clip_vision.config.num_hidden_layers):
        theirs = f"encoder.layers.{layer}"
        names |= {f"{theirs}.{part}": f"blocks.{layer}.{ours}" for part, ours in blocks.items()}
        stacked = [vision[f"{theirs}.self_attn.{part}_proj.weight"] for part in "qkv"]
        weights[f"blocks.{layer}.attn.qkv.weight"] = torch.cat(stacked)
        for part in "qv":
            weights[f"blocks.{layer}.attn.{part}_bias"] = vision[f"{theirs}.self_attn.{part}_proj.bias"]
    for theirs, ours in names.items():
        for kind in ("weight", "bias"):
            weights[f"{ours}.{kind}"] = vision[f"{theirs}.{kind}"]
    return {name: tensor.detach().clone().contiguous() for name, tensor in weights.items()}
