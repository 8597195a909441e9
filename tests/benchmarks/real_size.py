"""Step time and peak memory of a shipped recipe at its real size, with random weights, on one GPU.

    python -m tests.benchmarks.real_size --recipe pipeline/recipes/stage2_vitg_flant5xxl.yaml [--micro-size 19]

One process, forward, backward and AdamW on the bridge; captions of 12 tokens. Prints one JSON line. `--memory-gib 40`
limits what the process may allocate, to show what fits a smaller GPU.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from pipeline.config import Recipe, load_recipe
from pipeline.data.batch import Batch
from pipeline.models.build import build_bridge
from pipeline.models.language import CausalTower, LanguageTower, Seq2SeqTower, checkpoint_layers
from pipeline.models.precision import DTYPES
from pipeline.models.stage1 import Stage1Bridge
from pipeline.models.stage2 import Stage2Bridge
from pipeline.models.vision import CLIP_MEAN, CLIP_STD, TimmEncoder, VisionTower
from pipeline.tokens import Tokens
from pipeline.training.stage1_task import Stage1Task
from pipeline.training.stage2_task import Stage2Task
from pipeline.training.task import StepPlace
from tests.support.paper_sizes import save_configs
from tests.support.tiny_towers import word_tokenizer

CAPTION_TOKENS = 12
DECODE_TOKEN_ID = 30522


def random_vision(recipe: Recipe, device: str) -> VisionTower:
    import timm

    with torch.device(device):
        model = timm.create_model(recipe.vision.name, num_classes=0, img_size=recipe.vision.image_size_px)
    return VisionTower(TimmEncoder(model), CLIP_MEAN, CLIP_STD, recipe.vision.precision).to(device)


def random_language(recipe: Recipe, device: str) -> LanguageTower:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    assert recipe.language is not None
    config = AutoConfig.from_pretrained(recipe.language.name)
    auto_class: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device(device):
        model = auto_class.from_config(config, dtype=DTYPES[recipe.language.precision])
    model.requires_grad_(False).eval()
    if recipe.language.activation_checkpointing:
        checkpoint_layers(model)
    tokenizer = word_tokenizer(["<pad>", "</s>", "<unk>"], "$A </s>")
    return Seq2SeqTower(model, tokenizer) if config.is_encoder_decoder else CausalTower(model, tokenizer, "red")


def random_batch(micro_size: int, size_px: int, context_tokens: int, device: str) -> Batch:
    def tokens(length: int) -> Tokens:
        ids = torch.randint(1000, 20000, (micro_size, length), device=device)
        return Tokens(ids, torch.ones_like(ids, dtype=torch.bool))

    pixels = torch.randint(0, 256, (micro_size, 3, size_px, size_px), dtype=torch.uint8, device=device)
    return Batch(
        pixels,
        torch.arange(micro_size, device=device),
        tokens(context_tokens),
        tokens(CAPTION_TOKENS - context_tokens),
        0,
    )


def build_task(recipe: Recipe, device: str) -> tuple[Stage1Task | Stage2Task, int]:
    """The stage's task with random towers, and how many tokens of a caption are context."""
    vision, bridge = random_vision(recipe, device), build_bridge(recipe).to(device)
    if isinstance(bridge, Stage1Bridge):
        return Stage1Task(bridge, vision, recipe.objectives, DECODE_TOKEN_ID, recipe.qformer.precision).to(device), 0
    assert isinstance(bridge, Stage2Bridge)
    language = random_language(recipe, device)
    task = Stage2Task(bridge, vision, language, recipe.qformer.precision).to(device)
    return task, CAPTION_TOKENS // 4 if language.kind == "seq2seq" else 0


def measure(recipe: Recipe, micro_size: int, steps: int, warmup_steps: int, device: str) -> dict[str, Any]:
    """Mean step time after the warmup, and the most memory allocated."""
    task, context_tokens = build_task(recipe, device)
    batch = random_batch(micro_size, recipe.vision.image_size_px, context_tokens, device)
    place = StepPlace(0, 1 / int(batch.target.is_token.sum()), batch.target.ids.shape[1], 0)
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-5, fused=True)
    torch.cuda.reset_peak_memory_stats()
    started = 0.0
    for step in range(warmup_steps + steps):
        if step == warmup_steps:
            torch.cuda.synchronize()
            started = time.perf_counter()
        loss = task(batch, place)["loss"]
        (loss * task.loss_scale.value).backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - started) / steps
    return {
        "stage": recipe.stage,
        "vision": recipe.vision.name,
        "language": recipe.language.name.rpartition("/")[2] if recipe.language else None,
        "micro_size": micro_size,
        "step_s": round(seconds, 4),
        "samples_per_s": round(micro_size / seconds, 1),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1),
        "loss": round(float(loss.detach()), 3),
        "gpu": torch.cuda.get_device_name(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--micro-size", type=int, help="samples a step; default: the recipe's")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--warmup-steps", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="edits of the recipe")
    parser.add_argument("--memory-gib", type=float, help="allocate no more than this")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("needs a CUDA GPU; this machine has none")
    if options.memory_gib:
        total = torch.cuda.get_device_properties(0).total_memory / 2**30
        torch.cuda.set_per_process_memory_fraction(min(1.0, options.memory_gib / total))
    with tempfile.TemporaryDirectory() as folder:
        save_configs(Path(folder))
        edits = [f"qformer.bert={folder}/bert"]
        language = options.recipe.stem.rpartition("_")[2]
        if options.recipe.stem.startswith("stage2"):
            edits.append(f"language.name={folder}/{language}")
        recipe = load_recipe(options.recipe, edits + options.set)
        micro_size = options.micro_size or recipe.batch.micro_size
        print(json.dumps(measure(recipe, micro_size, options.steps, options.warmup_steps, "cuda")))


if __name__ == "__main__":
    main()
