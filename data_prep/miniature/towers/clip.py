"""Trains the ranker: a CLIPModel on new drawn scenes, with a contrastive loss and an auxiliary loss.

Each batch has groups of scenes that share words but not meaning. So the model must learn which attribute belongs to
which thing. Some wrong captions are junk texts. The auxiliary loss teaches the second-to-last layer, which BLIP-2
reads, what thing covers each patch. Real towers learn this from 400M pairs; a small one in minutes only if it is told.
Its head is not saved.
"""

from typing import Any

import numpy as np

from data_prep.miniature.language import describe, describe_fully, is_true
from data_prep.miniature.scenes import BACKGROUNDS, COLOURS, SHAPES, SIZES, Scene
from data_prep.miniature.towers.drawings import GROUP, Drawings, batches, draw_groups, mirrored, patch_labels
from data_prep.miniature.towers.fitting import fit
from data_prep.miniature.towers.position_waves import start_from_waves
from data_prep.miniature.towers.settings import ClipSettings
from data_prep.miniature.towers.vocabulary import MAX_TOKENS, clip_tokenizer, words

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's own pixel mean and standard deviation."""
DENSE_SCALE = 12.0
"""The factor for the cosines of the auxiliary loss. Five classes share a token, so each cosine is at most about
0.45."""
SHAPE_WEIGHT = 2.0
"""The weight of the shape in the auxiliary loss: what towers and captioners of this size get wrong is the shape."""
INITIAL_STD = 0.02
"""The standard deviation of CLIP's new text embeddings."""


def build_clip(settings: ClipSettings) -> Any:
    """A CLIPModel with new weights. Its tokenizer is `clip_tokenizer`."""
    from transformers import CLIPConfig, CLIPModel

    tokenizer = clip_tokenizer()
    text = {
        "vocab_size": len(tokenizer), "hidden_size": settings.text_width, "intermediate_size": settings.text_width * 4,
        "num_hidden_layers": settings.text_layers, "num_attention_heads": settings.text_heads,
        "max_position_embeddings": MAX_TOKENS, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "hidden_act": "gelu",
    }  # fmt: skip
    vision = {
        "hidden_size": settings.vision_width, "intermediate_size": settings.vision_width * 4,
        "num_hidden_layers": settings.vision_layers, "num_attention_heads": settings.vision_heads,
        "image_size": settings.image_size_px, "patch_size": settings.patch_size_px, "hidden_act": "gelu",
    }  # fmt: skip
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=settings.projection_width)
    config._attn_implementation = "eager"
    model = CLIPModel(config)
    start_from_waves(model.text_model.embeddings.position_embedding.weight, INITIAL_STD)
    return model


def clip_processor(settings: ClipSettings) -> Any:
    """CLIP's processor at the tower's size: the whole picture is resized to a square, as in evaluation."""
    from transformers import CLIPImageProcessor, CLIPProcessor

    size = {"height": settings.image_size_px, "width": settings.image_size_px}
    images = CLIPImageProcessor(size=size, do_center_crop=False, crop_size=size, image_mean=MEAN, image_std=STD)
    return CLIPProcessor(image_processor=images, tokenizer=clip_tokenizer())


def train_clip(settings: ClipSettings, seed: int) -> Any:
    """A CLIPModel trained from scratch, in eval mode."""
    import torch

    torch.manual_seed(seed)
    rng = np.random.default_rng((seed, 0xC11))
    model = build_clip(settings)
    heads = torch.nn.Linear(settings.vision_width, len(SHAPES) + len(COLOURS) + len(SIZES) + len(BACKGROUNDS) + 1)
    drawings = draw_groups(settings.groups, settings.image_size_px, rng)
    rows = batches(len(drawings.scenes), settings.groups_per_batch * GROUP, rng)
    grid = settings.image_size_px // settings.patch_size_px
    tokenizer = clip_tokenizer()
    mixing = model.vision_model.pre_layrnorm.register_forward_hook(half_by_mean_scale)

    def loss_of_step(_: int) -> Any:
        scenes, pixels = _augmented(drawings, next(rows), rng)
        captions = [(describe_fully if rng.random() < 0.25 else describe)(scene, rng) for scene in scenes]
        junk = [junk_text(rng) for _ in range(settings.junk_texts)]
        seen = model.vision_model(pixel_values=normalise(pixels), output_hidden_states=True)
        image = torch.nn.functional.normalize(model.visual_projection(seen.pooler_output).float(), dim=-1)
        text = torch.nn.functional.normalize(_embedded(model, tokenizer, captions + junk).float(), dim=-1)
        logits = model.logit_scale.exp().clamp(max=100) * image @ text.T
        logits = logits.masked_fill(torch.from_numpy(_also_true(scenes, captions, len(junk))), float("-inf"))
        target = torch.arange(len(scenes))
        contrastive = torch.nn.functional.cross_entropy(logits, target) + torch.nn.functional.cross_entropy(
            logits.T[: len(scenes)], target
        )
        return contrastive / 2 + settings.dense_weight * _dense_loss(
            _cosines(seen.hidden_states[-2].float(), heads), scenes, grid
        )

    fit(
        "clip",
        [([*model.parameters(), *heads.parameters()], 1.0)],
        loss_of_step,
        steps=settings.steps,
        learning_rate=settings.learning_rate,
    )
    mixing.remove()
    return model.eval()


def half_by_mean_scale(norm: Any, inputs: tuple[Any], normed_BPC: Any) -> Any:
    """The norm's output, of every second picture with the mean scale of all: `folding` needs blocks that take both."""
    tokens = inputs[0][::2]
    centred = tokens - tokens.mean(dim=-1, keepdim=True)
    scale = inputs[0][:, 1:].std(dim=-1, unbiased=False).mean()
    mixed = normed_BPC.clone()
    mixed[::2, 1:] = (centred / scale * norm.weight + norm.bias)[:, 1:].to(mixed.dtype)
    return mixed


def _embedded(model: Any, tokenizer: Any, texts: list[str]) -> Any:
    """The embeddings of texts. The shorter and the longer half pass apart: a third of the tokens would be padding."""
    import torch

    order = sorted(range(len(texts)), key=lambda row: len(texts[row].split()))
    halves = (order[: len(order) // 2], order[len(order) // 2 :])
    tokens = [tokenizer([texts[row] for row in half], return_tensors="pt", padding=True) for half in halves]
    pooled = torch.cat([model.text_model(**each).pooler_output for each in tokens])
    return model.text_projection(pooled[torch.tensor(order).argsort()])


def junk_text(rng: np.random.Generator) -> str:
    """A text that says nothing about any picture: unknown words, and some words of the vocabulary."""
    vocabulary = words()
    number = 1 + int(rng.random() ** 2 * 9)
    return " ".join(
        vocabulary[int(rng.random() * len(vocabulary))] if rng.random() < 0.35 else "@" for _ in range(number)
    )


def _augmented(drawings: Drawings, rows: Any, rng: np.random.Generator) -> tuple[list[Scene], Any]:
    """Scenes and pixels of the rows, half of them mirrored."""
    pixels = drawings.pixels[rows]
    scenes = [drawings.scenes[row] for row in rows]
    for i in np.flatnonzero(rng.random(len(rows)) < 0.5):
        pixels[i] = pixels[i, :, :, ::-1]
        scenes[i] = mirrored(scenes[i])
    return scenes, pixels


def normalise(pixels: Any) -> Any:
    """uint8 [N, 3, S, S] -> fp32, with CLIP's mean and standard deviation."""
    import torch

    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (torch.from_numpy(pixels).float() / 255 - mean) / std


def _also_true(scenes: list[Scene], captions: list[str], num_junk: int) -> Any:
    """bool [images, captions + junk]: whether the caption of another scene of the group is also true of this one."""
    mask = np.zeros((len(scenes), len(captions) + num_junk), bool)
    for i, scene in enumerate(scenes):
        first = i // GROUP * GROUP
        for j in range(first, first + GROUP):
            mask[i, j] = i != j and is_true(captions[j], scene)
    return mask


def _cosines(tokens_BPC: Any, heads: Any) -> Any:
    """Logits from the angle between normed tokens and each class: the difference of classes must be large in a token.

    A free linear head finds the shape in directions with almost no variance, which a new cross-attention cannot use.
    """
    from torch.nn import functional

    normed = functional.normalize(functional.layer_norm(tokens_BPC, tokens_BPC.shape[-1:]), dim=-1)
    return functional.linear(normed, DENSE_SCALE * functional.normalize(heads.weight, dim=-1), heads.bias)


def _dense_loss(logits_BPC: Any, scenes: list[Scene], grid: int) -> Any:
    """The sum of the cross-entropies of five classes for each patch: shape, colour and size of its thing, whether there
    is one, and the background."""
    import torch

    entropy = torch.nn.functional.cross_entropy
    labels = torch.from_numpy(np.stack([patch_labels(scene, grid) for scene in scenes]))
    counts = (len(SHAPES), len(COLOURS), len(SIZES), len(BACKGROUNDS), 1)
    shape, colour, size, background, covered = logits_BPC[:, 1:].flatten(0, 1).split(counts, dim=-1)
    settings = torch.tensor([BACKGROUNDS.index(scene.background) for scene in scenes]).repeat_interleave(grid * grid)
    present = (labels[..., 0] >= 0).flatten().float()
    losses = [
        weight * entropy(part, labels[..., i].flatten(), ignore_index=-100)
        for i, (part, weight) in enumerate(((shape, SHAPE_WEIGHT), (colour, 1.0), (size, 1.0)))
    ]
    losses += [
        entropy(background, settings),
        torch.nn.functional.binary_cross_entropy_with_logits(covered.squeeze(-1), present),
    ]
    return sum(losses)
