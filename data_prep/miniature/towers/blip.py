"""Trains the captioner: a BlipForConditionalGeneration on the small clean "COCO" split.

Its vision tower is that of the ranker without the last block, and only its last norm is trained. So a few thousand
human captions are enough (BLIP's own vision tower also started from a trained ViT).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.miniature.towers.clip import MEAN, STD, normalise
from data_prep.miniature.towers.fitting import fit
from data_prep.miniature.towers.folding import fold_first_norm
from data_prep.miniature.towers.position_waves import start_from_waves
from data_prep.miniature.towers.settings import BlipSettings
from data_prep.miniature.towers.vocabulary import MAX_TOKENS

PROMPT = "a picture of "
BATCH = 250
"""The number of pictures that go through the frozen blocks at once."""


@dataclass(frozen=True)
class CaptionedPictures:
    """Pictures uint8 [N, 3, S, S] and the captions of each."""

    pixels: NDArray[np.uint8]
    captions: list[list[str]]


def read_karpathy(annotations: Path, images: Path, size_px: int, split: str = "train") -> CaptionedPictures:
    """The pictures and captions of one split of a Karpathy JSON, squeezed to squares."""
    from PIL import Image

    from pipeline.pictures.decoding import decode_rgb, read_picture

    entries = [e for e in json.loads(annotations.read_text(encoding="utf-8"))["images"] if e["split"] == split]
    if not entries:
        raise ValueError(f"{annotations}: split {split!r} has no images; draw the world again")
    pixels = np.empty((len(entries), 3, size_px, size_px), np.uint8)
    for i, entry in enumerate(entries):
        image = decode_rgb(read_picture(images / entry.get("filepath", "") / entry["filename"]))
        square = image.resize((size_px, size_px), Image.Resampling.BICUBIC)
        pixels[i] = np.asarray(square).transpose(2, 0, 1)
    return CaptionedPictures(pixels, [[sentence["raw"] for sentence in entry["sentences"]] for entry in entries])


def build_blip(settings: BlipSettings, vision: Any, tokenizer: Any) -> Any:
    """A captioner with new weights; its vision tower has the shape of the ranker's without the last block."""
    from transformers import BlipConfig, BlipForConditionalGeneration

    text_config = {
        "vocab_size": len(tokenizer), "hidden_size": settings.text_width, "encoder_hidden_size": vision.hidden_size,
        "intermediate_size": settings.text_width * 4, "num_hidden_layers": settings.text_layers,
        "num_attention_heads": settings.text_heads, "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": tokenizer.convert_tokens_to_ids("[DEC]"), "eos_token_id": tokenizer.sep_token_id,
        "sep_token_id": tokenizer.sep_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision_config = {
        "hidden_size": vision.hidden_size, "intermediate_size": vision.intermediate_size,
        "num_hidden_layers": vision.num_hidden_layers - 1, "num_attention_heads": vision.num_attention_heads,
        "image_size": vision.image_size, "patch_size": vision.patch_size, "hidden_act": vision.hidden_act,
        "layer_norm_eps": vision.layer_norm_eps,
    }  # fmt: skip
    config = BlipConfig(text_config=text_config, vision_config=vision_config, projection_dim=settings.text_width)
    config._attn_implementation = "eager"
    model = BlipForConditionalGeneration(config)
    positions = model.text_decoder.bert.embeddings.position_embeddings.weight
    start_from_waves(positions, model.config.text_config.initializer_range)
    return model


def blip_processor(size_px: int, tokenizer: Any) -> Any:
    """BLIP's processor at the tower's size."""
    from transformers import BlipImageProcessor, BlipProcessor

    size = {"height": size_px, "width": size_px}
    return BlipProcessor(BlipImageProcessor(size=size, image_mean=MEAN, image_std=STD), tokenizer)


def train_blip(settings: BlipSettings, clip: Any, pictures: CaptionedPictures, tokenizer: Any, seed: int) -> Any:
    """A captioner trained on the pictures, in eval mode. `tokenizer` is BERT's with `[DEC]` added."""
    import torch

    torch.manual_seed(seed)
    rng = np.random.default_rng((seed, 0xB11B))
    model = build_blip(settings, clip.config.vision_config, tokenizer)
    normalised = normalise(pictures.pixels)
    start_from_clip(model.vision_model, clip.vision_model, normalised[:64])
    tokens_M, last_norm = _blocks_output(model.vision_model, normalised), model.vision_model.post_layernorm
    num_prompt = len(tokenizer(PROMPT).input_ids) - 1

    def loss_of_step(_: int) -> Any:
        rows = rng.integers(len(pictures.captions), size=settings.batch_size)
        mirrored = rng.random(len(rows)) < 0.5
        texts = [pictures.captions[row][rng.integers(len(pictures.captions[row]))] for row in rows]
        texts = [PROMPT + (mirror_caption(text) if flip else text) for text, flip in zip(texts, mirrored, strict=True)]
        encoded = tokenizer(texts, padding=True, return_tensors="pt")
        ids = encoded.input_ids
        ids[:, 0] = model.config.text_config.bos_token_id
        labels = ids.masked_fill(encoded.attention_mask == 0, -100)
        labels[:, :num_prompt] = -100
        seen = last_norm(tokens_M[torch.from_numpy(mirrored.astype(np.int64)), torch.from_numpy(rows)])
        logits = model.text_decoder(
            input_ids=ids, attention_mask=encoded.attention_mask, encoder_hidden_states=seen
        ).logits
        return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())

    trained = [*last_norm.parameters(), *model.text_decoder.parameters()]
    fit("blip", [(trained, 1.0)], loss_of_step, steps=settings.steps, learning_rate=settings.learning_rate)
    return model.eval()


def _blocks_output(vision: Any, pixels_N3SS: Any) -> Any:
    """The output tokens of the blocks for the pictures, unchanged and mirrored: [2, N, P, I]."""
    import torch

    def tokens(pixels_B3SS: Any) -> Any:
        return vision.encoder(inputs_embeds=vision.embeddings(pixels_B3SS)).last_hidden_state

    with torch.no_grad():
        both = (pixels_N3SS, pixels_N3SS.flip(-1))
        return torch.stack([torch.cat([tokens(part) for part in each.split(BATCH)]) for each in both])


def start_from_clip(blip_vision: Any, clip_vision: Any, pixels_B3SS: Any) -> None:
    """Copy the ranker's embeddings, with its first norm folded in, and its blocks."""
    import torch

    folded, target = fold_first_norm(clip_vision, pixels_B3SS), blip_vision.embeddings
    with torch.no_grad():
        target.patch_embedding.weight.copy_(folded.kernel_C3pp)
        target.patch_embedding.bias.zero_()
        target.position_embedding.copy_(folded.positions_PC[None])
        target.class_embedding.copy_(folded.class_token_C[None, None])
    for ours, theirs in zip(blip_vision.encoder.layers, clip_vision.encoder.layers, strict=False):
        ours.load_state_dict(_blip_block(theirs.state_dict()))


def mirror_caption(caption: str) -> str:
    """The caption of the mirrored picture: left and right are exchanged."""
    swapped = {"left": "right", "right": "left"}
    return " ".join(swapped.get(word, word) for word in caption.split())


def _blip_block(clip_block: dict[str, Any]) -> dict[str, Any]:
    import torch

    block = {name: tensor for name, tensor in clip_block.items() if not name.startswith("self_attn")}
    for kind in ("weight", "bias"):
        block[f"self_attn.qkv.{kind}"] = torch.cat([clip_block[f"self_attn.{part}_proj.{kind}"] for part in "qkv"])
        block[f"self_attn.projection.{kind}"] = clip_block[f"self_attn.out_proj.{kind}"]
    return block
