"""The shipped recipes at their real sizes with random weights made on the device; `tiny`: the same of small towers."""

from pathlib import Path
from typing import Any

import torch

from pipeline.config import Recipe, load_recipe
from pipeline.data.batch import Batch
from pipeline.models.build import build_bridge
from pipeline.models.encoders import CLIP_MEAN, CLIP_STD, Encoder, TimmEncoder
from pipeline.models.language import CausalTower, LanguageTower, Seq2SeqTower, language_config
from pipeline.models.one_kernel import fuse_operations
from pipeline.models.precision import DTYPES
from pipeline.models.stage1 import Stage1Bridge
from pipeline.models.stage2 import Stage2Bridge
from pipeline.models.vision import VisionTower
from pipeline.tokens import pad_tokens
from pipeline.training.stage1_task import Stage1Task
from pipeline.training.stage2_task import Stage2Task
from tests.support.paper_sizes import save_configs
from tests.support.tiny_towers import word_tokenizer

RECIPES = Path(__file__).parents[2] / "pipeline" / "recipes"
LONGEST = 32  # tokens of a caption, at most
COCO_MEAN, COCO_DEVIATION, COCO_LEAST = 13.0, 2.7, 8  # BERT tokens of a COCO caption, [CLS] and [SEP] among them
FIRST_WORD, LAST_WORD = 1000, 20000


def real_recipe(name: str, folder: Path, tiny: bool, *edits: str) -> Recipe:
    """A shipped recipe with the accumulation that 16 ranks need, for one rank."""
    configs = folder / ("tiny_configs" if tiny else "configs")
    (_save_tiny_configs if tiny else save_configs)(configs)
    given = [f"qformer.bert={configs}/bert"]
    if name.startswith("stage2"):
        given.append(f"language.name={configs}/{name.rpartition('_')[2]}")
    recipe = load_recipe(RECIPES / f"{name}.yaml", given)
    passes, micro = recipe.batch.num_passes(16), 2 if tiny else recipe.batch.micro_size
    given += [f"batch.accumulation={passes}", f"batch.micro_size={micro}", f"batch.global_size={micro * passes}"]
    if tiny:
        given += ["vision.name=vit_tiny_patch16_224", "vision.image_size_px=32"]
    return load_recipe(RECIPES / f"{name}.yaml", [*given, *edits])


def _save_tiny_configs(root: Path) -> None:
    from transformers import BertConfig, OPTConfig, T5Config

    BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=1, intermediate_size=128).save_pretrained(
        root / "bert"
    )
    OPTConfig(
        vocab_size=LAST_WORD, hidden_size=64, word_embed_proj_dim=64, ffn_dim=128, num_hidden_layers=2,
        num_attention_heads=1,
    ).save_pretrained(root / "opt2.7b")  # fmt: skip
    T5Config(
        vocab_size=LAST_WORD, d_model=64, d_kv=64, d_ff=128, num_layers=2, num_heads=1,
        feed_forward_proj="gated-gelu", decoder_start_token_id=0,
    ).save_pretrained(root / "flant5xxl")  # fmt: skip


def real_vision(recipe: Recipe, device: str) -> VisionTower:
    import timm

    with torch.device(device):
        model = timm.create_model(recipe.vision.name, num_classes=0, img_size=recipe.vision.image_size_px)
    return VisionTower(Encoder(TimmEncoder(model), CLIP_MEAN, CLIP_STD), recipe.vision.precision).to(device)


def real_language(recipe: Recipe, device: str) -> LanguageTower:
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    assert recipe.language is not None
    config = language_config(recipe.language)
    auto_class: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device(device):
        model = auto_class.from_config(config, dtype=DTYPES[recipe.language.precision])
    model.requires_grad_(False).eval()
    fuse_operations(model)
    tokenizer = word_tokenizer(["<pad>", "</s>", "<unk>"], "$A </s>")
    return Seq2SeqTower(model, tokenizer) if config.is_encoder_decoder else CausalTower(model, tokenizer, "red")


def real_task(recipe: Recipe, device: str) -> Stage1Task | Stage2Task:
    """The stage's task with random towers and a fresh bridge."""
    torch.manual_seed(recipe.seed)
    vision, bridge = real_vision(recipe, device), build_bridge(recipe).to(device)
    if isinstance(bridge, Stage1Bridge):
        decode = bridge.qformer.shape.vocabulary - 1
        return Stage1Task(bridge, vision, recipe.objectives, decode, recipe.qformer.precision).to(device)
    assert isinstance(bridge, Stage2Bridge)
    return Stage2Task(bridge, vision, real_language(recipe, device), recipe.qformer.precision)


def lengths_of(kind: str, count: int, generator: torch.Generator) -> list[int]:
    """Tokens of so many captions: `longest`, or `coco`, as the captions of COCO are."""
    if kind == "longest":
        return [LONGEST] * count
    drawn = torch.normal(COCO_MEAN, COCO_DEVIATION, (count,), generator=generator)
    return [int(each) for each in drawn.round().clamp(COCO_LEAST, LONGEST)]


def real_batch(recipe: Recipe, kind: str, seed: int) -> Batch:
    """Random pictures and captions of such lengths. A T5 reads the first of a caption's tokens as context."""
    generator = torch.Generator().manual_seed(seed)
    count, size_px = recipe.batch.micro_size, recipe.vision.image_size_px
    lengths = lengths_of(kind, count, generator)
    words = [torch.randint(FIRST_WORD, LAST_WORD, (each,), generator=generator).tolist() for each in lengths]
    contexts: list[list[int]] = [[] for _ in words]
    if recipe.language and "t5" in recipe.language.name:
        # Worst: the longest context and the longest target. Else the mean split of production, and an end token each.
        splits = [length // 2 + 1 if kind == "longest" else round((1 + length // 2) / 2) + 1 for length in lengths]
        contexts = [each[:split] for each, split in zip(words, splits, strict=True)]
        words = [each if kind == "longest" else each[split - 2 :] for each, split in zip(words, splits, strict=True)]
    pixels = torch.randint(0, 256, (count, 3, size_px, size_px), generator=generator, dtype=torch.uint8)
    return Batch(pixels, torch.arange(count) + 10000 * seed, pad_tokens(contexts, 0), pad_tokens(words, 0), 0)
