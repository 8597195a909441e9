"""transformers' BLIP-2 folders: `Blip2ForConditionalGeneration` (stage 2) and `Blip2ForImageTextRetrieval` (stage 1).

Such a folder holds the towers as well. Written, it is whole, with processor; read, the bridge alone is taken, and the
towers come from where the recipe says. ln_vision has eps 1e-5 here and the tower's, 1e-6, there.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Recipe
from pipeline.weights.names import huggingface_name, inverse

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.models.inference import LanguageModel, RetrievalModel

FROZEN = ("vision_model.", "language_model.")
BUFFERS = ("embeddings.position_ids",)
IMAGE_TOKEN = "<image>"
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


def read_folder(folder: Path, own_names: list[str]) -> tuple[dict[str, "Tensor"], list[str]]:
    """The bridge of a folder under our names, and the names of the towers' tensors, which are left where they are.

    Raises ValueError in one line when the folder holds no readable safetensors files.
    """
    from safetensors import SafetensorError, safe_open

    ours = inverse((name, huggingface_name(name)) for name in own_names)
    tensors: dict[str, Tensor] = {}
    left_out: list[str] = []
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"weights {folder}: no *.safetensors there; name a folder of save_pretrained()")
    for path in files:
        try:
            with safe_open(path, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118  (not a mapping)
                    if name not in ours and name.startswith(FROZEN):
                        left_out.append(name)
                    elif ours.get(name, name) in tensors:
                        raise ValueError(f"weights {path}: {name!r} is in another file of the folder, too; remove one")
                    elif name not in BUFFERS:
                        tensors[ours.get(name, name)] = opened.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"weights {path}: not a readable safetensors file ({error})") from error
    return tensors, left_out


def check_language(folder: Path, model_type: str | None) -> None:
    """Raises ValueError when the folder's language model is of another family than the recipe's (None: stage 1)."""
    import json

    path = folder / "config.json"
    try:
        found = json.loads(path.read_text())["text_config"]["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"weights {path}: not the configuration of a BLIP-2 of transformers ({error})") from error
    if model_type is not None and found != model_type:
        raise ValueError(f"weights {folder}: its language model is a {found!r}, the recipe's a {model_type!r}")


def vision_state(model: Any, name: str) -> dict[str, "Tensor"]:
    """A timm ViT's tensors under the names of Blip2VisionModel. Raises ValueError naming one without a place there."""
    import torch

    state = {key: tensor for key, tensor in model.state_dict().items() if not key.endswith(("q_bias", "v_bias"))}
    for index, block in enumerate(model.blocks):
        if getattr(block.attn, "q_bias", None) is not None:  # EVA: no bias on the keys
            query, value = block.attn.q_bias, block.attn.v_bias
            state[f"blocks.{index}.attn.qkv.bias"] = torch.cat([query, torch.zeros_like(value), value])
    found = {}
    for key, tensor in state.items():
        theirs = _vision_name(key)
        if theirs is None:
            raise ValueError(
                f"vision.name {name!r}: {key!r} has no place in transformers' BLIP-2, whose image encoder is a plain "
                "ViT as EVA's; convert to lavis instead, which holds the bridge alone"
            )
        found[theirs] = tensor
    return found


def _vision_name(key: str) -> str | None:
    if key in VISION_PARTS:
        return VISION_PARTS[key]
    module, _, kind = key.rpartition(".")
    if module in VISION_PARTS:
        return f"{VISION_PARTS[module]}.{kind}"
    first, _, rest = module.partition(".")
    index, _, part = rest.partition(".")
    return f"encoder.layers.{index}.{BLOCK_PARTS[part]}.{kind}" if first == "blocks" and part in BLOCK_PARTS else None


def _vision_config(model: Any, recipe: Recipe) -> Any:
    import torch
    from timm.layers import QuickGELU
    from transformers import Blip2VisionConfig

    block = model.blocks[0]
    activations = {torch.nn.GELU: "gelu", QuickGELU: "quick_gelu"}
    if type(block.mlp.act) not in activations or getattr(block.mlp.act, "approximate", "none") != "none":
        raise ValueError(f"vision.name {recipe.vision.name!r}: its activation {block.mlp.act} is not one of BLIP-2's")
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


def _qformer_config(shape: Any, with_text: bool) -> Any:
    from transformers import Blip2QFormerConfig

    return Blip2QFormerConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        intermediate_size=shape.ffn_width,
        hidden_dropout_prob=shape.dropout,
        attention_probs_dropout_prob=shape.dropout,
        max_position_embeddings=shape.max_positions,
        layer_norm_eps=shape.layer_norm_eps,
        cross_attention_frequency=shape.cross_attention_every,
        encoder_hidden_size=shape.image_width,
        use_qformer_text_input=with_text,
    )


def write_folder(model: "RetrievalModel | LanguageModel", folder: Path) -> list[str]:
    """Save the whole model as transformers does. Returns the names of our tensors that the format cannot hold."""
    import torch
    from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2ForImageTextRetrieval

    from pipeline.models.vision import TimmEncoder

    recipe, shape, encoder = model.recipe, model.bridge.qformer.shape, model.vision.encoder
    bridge = model.bridge.state_dict()
    names = {name: huggingface_name(name) for name in bridge}
    state = {theirs: bridge[name] for name, theirs in names.items() if theirs is not None}
    if not isinstance(encoder, TimmEncoder):
        raise ValueError(f"vision.name {recipe.vision.name!r}: only a timm ViT has a place in transformers' BLIP-2")
    for name, tensor in vision_state(encoder.model, recipe.vision.name).items():
        state[f"vision_model.{name}"] = tensor
    settings: dict[str, Any] = {
        "vision_config": _vision_config(encoder.model, recipe),
        "qformer_config": _qformer_config(shape, with_text=model.stage == 1),
        "num_query_tokens": shape.num_query_tokens,
        "image_text_hidden_size": recipe.qformer.projection_width,
    }
    if model.stage == 2:
        language = model.language.model
        tokenizer = _with_image_token(model.language.tokenizer, language)
        text_config = language.config
        if model.language.kind == "causal":
            text_config.eos_token_id = model.language.end_token_id  # type: ignore[attr-defined]
            tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"  # the latter is what is saved
        config = Blip2Config(
            **settings, text_config=text_config, image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        )
        with torch.device("meta"):
            whole: Any = Blip2ForConditionalGeneration(config)
        if type(whole.language_model) is not type(language):
            raise ValueError(
                f"language {recipe.language.name if recipe.language else ''!r}: transformers' BLIP-2 would make a "
                f"{type(whole.language_model).__name__} of this {type(language).__name__}; convert to lavis instead"
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
            f"these towers have no place in transformers' BLIP-2 ({reason}); convert to lavis instead"
        ) from error
    whole.save_pretrained(folder)
    _processor(tokenizer, recipe, model.vision, shape.num_query_tokens if model.stage == 2 else None).save_pretrained(
        folder
    )
    return [name for name, theirs in names.items() if theirs is None]


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
