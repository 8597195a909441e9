"""The image encoder in transformers' BLIP-2 folders: timm's names and Blip2VisionModel's."""

from typing import TYPE_CHECKING, Any

from pipeline.config import Recipe

if TYPE_CHECKING:
    from torch import Tensor

VISION_PARTS = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj": "embeddings.patch_embedding",
}
BLOCK_PARTS = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
"""timm's names -> transformers', within one block."""
EVA_BIASES = ("attn.q_bias", "attn.v_bias")
FUSED_BIAS = "self_attn.qkv.bias"  # there: of queries, keys (zero for EVA) and values


def vision_names(model: Any, name: str) -> dict[str, str]:
    """timm's names of a ViT's tensors -> Blip2VisionModel's, without EVA's biases of queries and values.

    Raises ValueError naming a tensor without a place there.
    """
    names = {}
    for key in model.state_dict():
        theirs = _vision_name(key)
        if theirs is not None:
            names[key] = theirs
        elif not key.endswith(EVA_BIASES):
            raise ValueError(
                f"vision.name {name!r}: {key!r} has no place in transformers' BLIP-2, which takes plain ViTs such as "
                "EVA's; convert to lavis instead, which holds the bridge alone"
            )
    return names


def vision_state(model: Any, name: str) -> dict[str, "Tensor"]:
    """A timm ViT's tensors under the names of Blip2VisionModel. Raises ValueError naming one without a place there."""
    import torch

    own = model.state_dict()
    found = {theirs: own[key] for key, theirs in vision_names(model, name).items()}
    for index, block in enumerate(model.blocks):
        if getattr(block.attn, "q_bias", None) is not None:  # EVA: no bias on the keys
            query, value = block.attn.q_bias, block.attn.v_bias
            found[f"encoder.layers.{index}.{FUSED_BIAS}"] = torch.cat([query, torch.zeros_like(value), value])
    return found


def vision_from_huggingface(
    tensors: dict[str, "Tensor"], model: Any, name: str
) -> tuple[dict[str, "Tensor"], list[str]]:
    """`vision_model.*` without that prefix, under the names of the timm ViT; a name that has no place stays as it is.

    EVA has no bias of keys, and training in transformers makes one: it adds the same to all logits of a query, so that
    the softmax cancels it. It is left out; also returns the names of tensors with such a bias.
    """
    ours, own = {theirs: key for key, theirs in vision_names(model, name).items()}, model.state_dict()
    found, biased = {}, []
    for key, tensor in tensors.items():
        block = key.removesuffix(FUSED_BIAS).replace("encoder.layers.", "blocks.")
        splits = f"{block}attn.q_bias" in own and tensor.shape == (3 * model.num_features,)
        if key in ours or not splits:
            found[ours.get(key, f"vision_model.{key}")] = tensor
            continue
        query, keys, value = tensor.chunk(3)
        if not keys.is_meta and bool(keys.any()):
            biased.append(f"vision_model.{key}")
        found |= {f"{block}attn.q_bias": query.clone(), f"{block}attn.v_bias": value.clone()}
    return found, biased


def is_plain_vit(key: str) -> bool:
    """Whether a tensor of timm's is one that every plain ViT has, or one of EVA's biases."""
    return _vision_name(key) is not None or key.endswith(EVA_BIASES)


def _vision_name(key: str) -> str | None:
    if key in VISION_PARTS:
        return VISION_PARTS[key]
    module, _, kind = key.rpartition(".")
    if module in VISION_PARTS:
        return f"{VISION_PARTS[module]}.{kind}"
    first, _, rest = module.partition(".")
    index, _, part = rest.partition(".")
    return f"encoder.layers.{index}.{BLOCK_PARTS[part]}.{kind}" if first == "blocks" and part in BLOCK_PARTS else None


def vision_config(model: Any, recipe: Recipe) -> Any:
    """A timm ViT's sizes. Raises ValueError when its activation is none of BLIP-2's."""
    import torch
    from timm.layers import QuickGELU
    from transformers import Blip2VisionConfig

    block = model.blocks[0]
    activations = {torch.nn.GELU: "gelu", QuickGELU: "quick_gelu"}
    if type(block.mlp.act) not in activations or getattr(block.mlp.act, "approximate", "none") != "none":
        raise ValueError(
            f"vision.name {recipe.vision.name!r}: transformers' BLIP-2 does not have its activation {block.mlp.act}; "
            "convert to lavis instead"
        )
    fused = block.attn.qkv.bias is not None or getattr(block.attn, "q_bias", None) is not None
    return Blip2VisionConfig(
        hidden_size=model.num_features,
        intermediate_size=block.mlp.fc1.out_features,
        num_hidden_layers=len(model.blocks),
        num_attention_heads=block.attn.num_heads,
        image_size=recipe.vision.image_size_px,
        patch_size=model.patch_embed.proj.kernel_size[0],
        hidden_act=activations[type(block.mlp.act)],
        layer_norm_eps=block.norm1.eps,
        qkv_bias=fused,
    )
