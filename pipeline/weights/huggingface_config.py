"""config.json of transformers' BLIP-2 folders is compared with the recipe.

Under another activation, number of heads or epsilon, the same tensors compute something else. No tensor shows it: the
public FlanT5 folders say `dense_act_fn: gelu`, stock FlanT5 says `gelu_new`.
"""

import json
from pathlib import Path
from typing import Any

from pipeline.config import Recipe
from pipeline.files import read_whole
from pipeline.models.language import language_config
from pipeline.models.qformer_layer import QFormerShape
from pipeline.weights.huggingface_vision import vision_config

QFORMER_FIELDS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps",
    "cross_attention_frequency", "encoder_hidden_size",
)  # fmt: skip
VISION_FIELDS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size", "hidden_act",
    "layer_norm_eps", "qkv_bias",
)  # fmt: skip
WITHOUT_EFFECT = ("dropout", "layerdrop", "init", "vocab_size", "use_cache", "tie_word_embeddings", "_token_id")
"""Parts of names of a language model's fields that a frozen tower in evaluation mode does not compute with."""
MERGED_RANK = "merged_lora_rank"
"""The field of a whole folder's config.json that says that LoRA is merged into its language model."""
MERGED_NOTE = "LoRA is merged into the language model"
NOTES = "conversion.json"
"""What a conversion leaves in its folder; folders of earlier versions have no such field."""
ADAPTER = "adapter"
"""The folder within it for LoRA alone, as peft has it."""


def qformer_config(shape: QFormerShape, with_text: bool) -> Any:
    """The Q-Former's sizes as transformers names them."""
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


def check_config(folder: Path, recipe: Recipe, shape: QFormerShape, vision: Any) -> None:
    """Raises ValueError naming the first field in which the folder's model is not the recipe's, with both values.

    Also refused is a language model with LoRA merged into it: the recipe's, which is taken for it, is without.
    `vision` is the recipe's image encoder, on the meta device will do; None where it is not timm's.
    """
    from transformers import Blip2Config

    path = folder / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        family = content["text_config"]["model_type"] if recipe.language else None
        found = Blip2Config.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # hostile JSON, strict configurations: many kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"weights {path}: is not the config.json of a transformers BLIP-2 ({reason})") from error
    noted = (folder / NOTES).is_file() and MERGED_NOTE.encode() in read_whole(folder / NOTES)
    if getattr(found, MERGED_RANK, 0) or noted or (folder / ADAPTER).is_dir():
        raise ValueError(
            f"weights {folder}: LoRA is merged into their language model, and the recipe's is without; give the native "
            "weights that they were converted from"
        )
    _compare(found.qformer_config, qformer_config(shape, recipe.stage == 1), QFORMER_FIELDS, f"{path}, Q-Former")
    if vision is not None:
        wanted = vision_config(vision, recipe)
        size = "; set vision.image_size_px={value}"
        _compare(found.vision_config, wanted, ("image_size",), f"{path}, image encoder", size)
        _compare(found.vision_config, wanted, VISION_FIELDS, f"{path}, image encoder")
    if recipe.language is None:
        return
    wanted = language_config(recipe.language)
    if family != wanted.model_type:
        raise ValueError(
            f"weights {folder}: the language model is of type {family!r}, the recipe's of type {wanted.model_type!r}; "
            "give the recipe of these weights"
        )
    fields = [name for name in _own_fields(wanted) if not any(part in name for part in WITHOUT_EFFECT)]
    hint = "; if the recipe's model is right, --set language.config.{field}={value}"
    _compare(found.text_config, wanted, fields, f"{path}, language model", hint)


def _own_fields(config: Any) -> list[str]:
    """The fields that a configuration has beside those that every configuration has."""
    from transformers import PretrainedConfig

    return [name for name in config.to_dict() if name not in PretrainedConfig().to_dict() and not name.startswith("_")]


def _compare(found: Any, wanted: Any, fields: Any, where: str, hint: str = "") -> None:
    for field in fields:
        theirs, ours = getattr(found, field, None), getattr(wanted, field, None)
        if theirs != ours:
            more = hint.format(field=field, value=theirs)
            raise ValueError(f"weights {where}: {field} is {theirs!r}, the recipe's is {ours!r}{more}")
