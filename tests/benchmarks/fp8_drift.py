"""What fp8 changes: image tokens beside fp32's, and the losses of stage 1 over 500 steps beside those of an fp32 tower.

    python -m tests.benchmarks.fp8_drift [--folder DIR] [--steps 500] [--batch-size 16] [--towers-scale 0.2]

Tokens, with bf16 beside: ViT-g's architecture with random weights that keep every block's output as large as its
input, plain and with channels that are 30 times as large; and the miniature's trained ViT, on drawn pictures.
Losses: the miniature's recipe with its own towers (a part of their training), on drawn scenes, in one process. Each
step trains a bridge of each kind on the same batch. Beside fp8 stands an fp32 run of another seed: so large are
differences that mean nothing.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor

from data_prep.miniature.captions import describe
from data_prep.miniature.scenes import draw_scene
from data_prep.miniature.towers.drawings import square_picture
from data_prep.miniature.towers.making import Order, make
from pipeline.config import Recipe, load_recipe
from pipeline.data.batch import Batch
from pipeline.models.encoders import CLIP_MEAN, CLIP_STD, Encoder, TimmEncoder
from pipeline.models.precision import choose_attention_kernel
from pipeline.models.vision import VisionTower, build_vision
from pipeline.tokens import Tokens, pad_tokens
from pipeline.training.stage1_task import Stage1Task
from pipeline.training.task import StepPlace, vision_of

RECIPE = "pipeline/recipes/miniature_stage1.yaml"
ARCHITECTURE = "eva_giant_patch14_clip_224"
SIZES = {"embed_dim": 352, "depth": 40, "num_heads": 4, "img_size": 56}  # a quarter of ViT-g's width; 39 blocks run
OUTLIERS, FACTOR = 4, 30.0
LOSSES = ("loss", "itc_loss", "itm_loss", "itg_loss")
HELD_OUT = 240


def random_vit_g(outliers: bool) -> Any:
    torch.manual_seed(0)
    model: Any = timm.create_model(ARCHITECTURE, num_classes=0, **SIZES)
    with torch.no_grad():
        for name, parameter in model.blocks.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
            elif "norm" in name and name.endswith("weight") and outliers:
                parameter[:OUTLIERS] = FACTOR
    return model


def compare(name: str, found: Tensor, exact: Tensor) -> None:
    found, exact = found.float(), exact.float()
    cosines = torch.cosine_similarity(found, exact, dim=-1).flatten()
    error = float((found - exact).norm() / exact.norm())
    print(
        f"    {name}: cosine of a token {cosines.mean():.5f} (lowest {cosines.min():.5f}), error {error:.4f}",
        flush=True,
    )


def tokens_of_random_towers() -> None:
    pixels = torch.from_numpy(drawn_pictures(2, np.random.default_rng(0), SIZES["img_size"])[0])
    for outliers in (False, True):
        print(f"random ViT-g at a quarter of its width{', with outliers' if outliers else ''}")
        exact, *others = (
            VisionTower(Encoder(TimmEncoder(random_vit_g(outliers)), CLIP_MEAN, CLIP_STD), precision)(pixels)
            for precision in ("fp32", "bf16", "fp8")
        )
        for precision, found in zip(("bf16", "fp8"), others, strict=True):
            compare(precision, found, exact)


def drawn_pictures(number: int, rng: np.random.Generator, size_px: int) -> tuple[Any, list[str]]:
    """uint8 pixels [number, 3, S, S] and a true caption of each."""
    scenes = [draw_scene(rng, held_out="never") for _ in range(number)]
    return np.stack([square_picture(scene, size_px, rng) for scene in scenes]), [describe(each, rng) for each in scenes]


def drawn_batch(number: int, rng: np.random.Generator, recipe: Recipe, tokenizer: Any) -> Batch:
    pixels, captions = drawn_pictures(number, rng, recipe.vision.image_size_px)
    ids = tokenizer(captions, truncation=True, max_length=recipe.data.max_text_tokens).input_ids
    nothing: Tokens = pad_tokens([[] for _ in ids], tokenizer.pad_token_id)
    return Batch(torch.from_numpy(pixels), torch.arange(number), nothing, pad_tokens(ids, tokenizer.pad_token_id), 0)


class Run:
    """A bridge of the miniature with its optimizer, over one kind of tower."""

    def __init__(self, recipe: Recipe, precision: str, seed: int) -> None:
        from pipeline.models.build import build_stage1, build_tokenizer
        from pipeline.training.optimizer import build_optimizer

        torch.manual_seed(seed)
        vision = build_vision(recipe.vision.model_copy(update={"precision": precision}))
        assert isinstance(vision, VisionTower)
        bridge, decode = build_stage1(recipe, vision.width), build_tokenizer(recipe.qformer).bos_token_id
        self.task = Stage1Task(bridge, vision, recipe.objectives, decode, recipe.qformer.precision)
        self.optimizer, self.settings, self.steps = build_optimizer(bridge, recipe.optimizer), recipe.optimizer, 0

    def losses(self, batch: Batch, negatives_seed: int) -> dict[str, Tensor]:
        place = StepPlace(0, 1 / self.task.num_scored_tokens(batch), batch.target.ids.shape[1], negatives_seed)
        found: dict[str, Tensor] = self.task(batch, place)
        return found

    def step(self, batch: Batch, steps: int) -> list[float]:
        from pipeline.training.optimizer import learning_rate

        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.steps, steps, self.settings)
        found = self.losses(batch, self.steps)
        self.optimizer.zero_grad()
        found["loss"].backward()
        torch.nn.utils.clip_grad_norm_(self.task.bridge.parameters(), self.settings.max_gradient_norm)
        self.optimizer.step()
        self.steps += 1
        return [float(found[name].detach()) for name in LOSSES]


def losses_of_runs(recipe: Recipe, steps: int, batch_size: int) -> None:
    from pipeline.models.build import build_tokenizer

    tokenizer, rng = build_tokenizer(recipe.qformer), np.random.default_rng(recipe.seed)
    held_out = drawn_batch(HELD_OUT, rng, recipe, tokenizer)
    runs = {
        "fp32": Run(recipe, "fp32", recipe.seed),
        "fp8": Run(recipe, "fp8", recipe.seed),
        "fp32, another seed": Run(recipe, "fp32", recipe.seed + 1),
    }
    print("the miniature's ViT, on drawn pictures")
    exact = vision_of(runs["fp32"].task)(held_out.pixels_B3SS)
    for precision in ("bf16", "fp8"):
        tower = build_vision(recipe.vision.model_copy(update={"precision": precision}))
        compare(precision, tower(held_out.pixels_B3SS), exact)
    series: dict[str, list[list[float]]] = {name: [] for name in runs}
    began = time.monotonic()
    for step in range(steps):
        batch = drawn_batch(batch_size, rng, recipe, tokenizer)
        for name, run in runs.items():
            series[name].append(run.step(batch, steps))
        if step in (4, 49) or step % 100 == 99:
            shown = ", ".join(f"{name} {np.mean([row[0] for row in rows[-50:]]):.4f}" for name, rows in series.items())
            print(f"    step {step + 1}, {time.monotonic() - began:.0f} s: loss of the last 50: {shown}", flush=True)
    print(f"losses of {steps} steps: mean of the last fifth (mean distance of a step from fp32's, over all steps)")
    values = {name: np.array(rows) for name, rows in series.items()}
    for name, found in values.items():
        last = found[-max(1, steps // 5) :].mean(axis=0)
        apart = np.abs(found - values["fp32"]).mean(axis=0)
        print(
            f"    {name}: "
            + ", ".join(f"{loss} {a:.4f} ({b:.4f})" for loss, a, b in zip(LOSSES, last, apart, strict=True))
        )
    print(f"{HELD_OUT} pairs that no step had")
    for name, run in runs.items():
        with torch.no_grad():
            found_losses = run.losses(held_out, 0)
        print(
            f"    {name}: " + ", ".join(f"{loss} {float(found_losses[loss]):.4f}" for loss in (*LOSSES, "itc_accuracy"))
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="keeps the miniature's towers for the next time")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--towers-scale", type=float, default=0.2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    choose_attention_kernel("cpu")
    with tempfile.TemporaryDirectory() as made:
        folder = options.folder or Path(made)
        for name in ("clip", "vision", "bert"):
            make(name, Order(folder, folder / "towers", seed=1, steps_scale=options.towers_scale))
        os.environ["MINIATURE"] = str(folder)
        losses_of_runs(load_recipe(Path(RECIPE), []), options.steps, options.batch_size)
        tokens_of_random_towers()


if __name__ == "__main__":
    main()
