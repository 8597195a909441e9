"""Training in its plainest form: one process, torch's AdamW over all samples of a step at once, no engine.

The paper's section 4.1: AdamW without decay on 1-D parameters, linear warmup, cosine, gradients clipped by global norm.
"""

import hashlib
import math
import re
from typing import Any

import torch

from pipeline.config import Recipe
from pipeline.data.manifest import load_manifest
from pipeline.data.order import SampleOrder
from pipeline.data.stream import SampleStream
from pipeline.training.parts import build_parts
from pipeline.training.task import StepPlace
from pipeline.weights import native


def rate(step: int, recipe: Recipe) -> float:
    settings = recipe.optimizer
    epoch = step // recipe.run.steps_per_epoch if settings.schedule == "staircase" else 0
    if step < settings.warmup_steps and not epoch:
        return settings.peak_learning_rate * (step + 1) / settings.warmup_steps
    if settings.schedule == "staircase":
        share = (1 + math.cos(math.pi * epoch / recipe.run.epochs)) / 2
        return settings.minimum_learning_rate + share * (settings.peak_learning_rate - settings.minimum_learning_rate)
    progress = (step - settings.warmup_steps) / (recipe.run.steps - settings.warmup_steps)
    span = settings.peak_learning_rate - settings.minimum_learning_rate
    return settings.minimum_learning_rate + span * (1 + math.cos(math.pi * progress)) / 2


def layer_scale(name: str, decay: float, bridge: torch.nn.Module) -> float:
    """BEiT's rule for an encoder of n blocks: decay^(n + 1 - i), i = 0 before the blocks, j + 1 in block j; else 1."""
    if not name.startswith("vision."):
        return 1.0
    blocks = {
        int(found[1])
        for found in (re.search(r"blocks\.(\d+)\.", each) for each in dict(bridge.named_parameters()))
        if found
    }
    own = re.search(r"blocks\.(\d+)\.", name)
    layer = int(own[1]) + 1 if own else 0
    return float(decay ** (len(blocks) + 1 - layer))


def train_plainly(recipe: Recipe) -> tuple[list[float], list[list[int]], dict[str, torch.Tensor]]:
    """Losses and image ids of each step, and the weights at the end."""
    torch.manual_seed(recipe.seed)
    task, collate = build_parts(recipe, "cpu")
    manifest = load_manifest(recipe.data.manifest)
    order = SampleOrder(manifest, recipe.seed, recipe.data.shuffle_shards, recipe.data.sample)
    stream = SampleStream(manifest, order, recipe.data, recipe.vision.image_size_px)
    trained = list(task.bridge.parameters())
    groups = [
        {
            "params": [parameter],
            "weight_decay": recipe.optimizer.weight_decay if parameter.ndim > 1 else 0.0,
            "scale": layer_scale(name, recipe.optimizer.layer_decay, task.bridge),
        }
        for name, parameter in task.bridge.named_parameters()
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=recipe.optimizer.betas)
    losses, ids = [], []
    size, per_epoch = recipe.batch.global_size, order.samples // recipe.batch.global_size
    for step in range(recipe.run.steps):
        epoch, begin = step // per_epoch, step % per_epoch * size
        batch: Any = collate([stream[epoch, position] for position in range(begin, begin + size)])
        seed = hashlib.sha256(f"{recipe.seed}/{step}/0/negatives".encode()).digest()[:7]
        tokens = task.num_scored_tokens(batch)
        place = StepPlace(0, 1 / tokens, batch.target.ids.shape[1], int.from_bytes(seed, "little"))
        for group in optimizer.param_groups:
            group["lr"] = rate(step, recipe) * group["scale"]
        optimizer.zero_grad()
        loss = task(batch, place)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, recipe.optimizer.max_gradient_norm)
        optimizer.step()
        losses.append(float(loss.detach()))
        ids.append(batch.image_ids_B.tolist())
    return losses, ids, native.trained_tensors(task.bridge)
