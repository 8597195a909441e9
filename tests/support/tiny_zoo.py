"""Tiny random models of many families, as folders and names that a recipe can give; nothing here is special-cased."""

from pathlib import Path
from typing import Any

import torch
import transformers

from tests.support.tiny_towers import IMAGE_SIZE_PX, save_timm, word_tokenizer

PATCH_PX = 8
VISION_SIZE = {
    "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "image_size": IMAGE_SIZE_PX, "patch_size": PATCH_PX,
}  # fmt: skip
CAUSAL_SIZE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
}  # fmt: skip
IMAGE_PROCESSOR = {"do_resize": True, "size": {"height": IMAGE_SIZE_PX, "width": IMAGE_SIZE_PX}}


def save_timm_family(folder: Path, architecture: str) -> str:
    """Any timm ViT at three blocks of width 24. Returns its name, `local-dir:FOLDER`."""
    size = {"img_size": IMAGE_SIZE_PX, "patch_size": PATCH_PX, "embed_dim": 24, "depth": 3, "num_heads": 4}
    return save_timm(folder, 0, architecture, size)


def save_transformers_vision(folder: Path, config_class: str, model_class: str, **more: Any) -> str:
    """A transformers vision model with its image processor. Returns its name, `transformers:FOLDER`."""
    torch.manual_seed(0)
    size = {field: value for field, value in {**VISION_SIZE, **more}.items() if value is not None}
    config = getattr(transformers, config_class)(**size)
    if config_class == "CLIPVisionConfig":  # the usual folder holds both halves
        text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = transformers.CLIPConfig(text_config={**text, "vocab_size": 9}, vision_config=config.to_dict())
    model = getattr(transformers, model_class)(config)
    _enlarge(model)
    model.save_pretrained(folder)
    transformers.CLIPImageProcessor(**IMAGE_PROCESSOR).save_pretrained(folder)
    return f"transformers:{folder}"


def save_language_family(folder: Path, config_class: str, model_class: str, **more: Any) -> str:
    """A transformers language model of width 32 with a word tokenizer. Returns the folder."""
    torch.manual_seed(0)
    tokenizer = word_tokenizer(["<pad>", "</s>", "<unk>"], "$A </s>" if "T5" in config_class else "</s> $A")
    ids = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    size = more or CAUSAL_SIZE
    config = getattr(transformers, config_class)(**size, **ids, vocab_size=len(tokenizer))
    model = getattr(transformers, model_class)(config)
    _enlarge(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _enlarge(model: Any) -> None:
    """Large weights: fresh ones say the same of every picture."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
