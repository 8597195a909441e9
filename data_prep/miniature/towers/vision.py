"""Exports a CLIPModel's vision half as a timm VisionTransformer in a `local-dir:` folder."""

import json
from pathlib import Path
from typing import Any

ARCHITECTURE = "vit_base_patch16_clip_224"
"""timm's CLIP ViT with exact GELU: a norm before the blocks, a class token, no bias in the patch embedding."""


def save_timm_folder(clip: Any, mean: tuple[float, ...], std: tuple[float, ...], folder: Path) -> None:
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
            "num_classes": 0, "input_size": [3, side, side], "fixed_input_size": True, "mean": list(mean),
            "std": list(std), "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "squash",
            "first_conv": "patch_embed.proj", "classifier": "head",
        },
        "model_args": model_args,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    save_file(timm_weights(clip.vision_model.state_dict()), folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def timm_weights(vision: dict[str, Any]) -> dict[str, Any]:
    """CLIPVisionModel's weights under timm's names: query, key and value are stacked into one matrix."""
    import torch

    weights = {
        "cls_token": vision["embeddings.class_embedding"].view(1, 1, -1),
        "pos_embed": vision["embeddings.position_embedding.weight"].unsqueeze(0),
        "patch_embed.proj.weight": vision["embeddings.patch_embedding.weight"],
    }
    names = {"pre_layrnorm": "norm_pre", "post_layernorm": "norm"}
    blocks = {"layer_norm1": "norm1", "layer_norm2": "norm2", "self_attn.out_proj": "attn.proj"}
    blocks |= {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    layer = 0
    while f"encoder.layers.{layer}.layer_norm1.weight" in vision:
        names |= {f"encoder.layers.{layer}.{ours}": f"blocks.{layer}.{theirs}" for ours, theirs in blocks.items()}
        for kind in ("weight", "bias"):
            stacked = [vision[f"encoder.layers.{layer}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            weights[f"blocks.{layer}.attn.qkv.{kind}"] = torch.cat(stacked)
        layer += 1
    for ours, theirs in names.items():
        for kind in ("weight", "bias"):
            weights[f"{theirs}.{kind}"] = vision[f"{ours}.{kind}"]
    return {name: tensor.detach().clone().contiguous() for name, tensor in weights.items()}
