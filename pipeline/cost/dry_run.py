"""One micro batch of a recipe's task, forward and backward, without weights: its arithmetic and its memory by part."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config import Recipe
from pipeline.cost.gpu_kernels import GpuKernels
from pipeline.cost.recorder import REST, Recorder
from pipeline.cost.unweighted import caption_batch, unweighted_task
from pipeline.distributed.rehearsal import as_one_of
from pipeline.models.stage1 import Stage1Bridge
from pipeline.training.stage1_task import Stage1Task
from pipeline.training.stage2_task import Stage2Task
from pipeline.training.task import StepPlace

VISION, LANGUAGE, LOGITS = "vision tower", "language model", "logits"
BRIDGE_BACKWARD, LANGUAGE_BACKWARD = "bridge, backward", "language model, backward"
STAGE_1_PASSES = {
    "project_image": "Q-Former: image keys and values",
    "encode_queries": "Q-Former: queries (ITC)",
    "encode_text": "Q-Former: text (ITC)",
    "encode_pairs": "Q-Former: pairs (ITM)",
    "decode_text": "Q-Former: text after queries (ITG)",
}
QUERY_PATH = "Q-Former and projection"


@dataclass(frozen=True)
class DryRun:
    """What one micro batch of one rank takes.

    `flops` by part, backward passes apart. Bytes: `kept` for the way back by part, at the end of the way forward;
    `peak` the most that lives at any time beside weights and their gradients, `vision_peak` while the vision tower runs.
    """

    flops: dict[str, float]
    kept: dict[str, int]
    peak: int
    vision_peak: int


class UnweightedRecipe:
    """A recipe's task without weights, for runs of any micro batch."""

    def __init__(self, recipe: Recipe) -> None:
        from torch._subclasses.fake_tensor import FakeTensorMode

        self.recipe, self.mode = recipe, FakeTensorMode()
        self.task = unweighted_task(recipe, self.mode)

    def run(self, micro_size: int, lengths: tuple[int, int], num_ranks: int = 1) -> DryRun:
        """One pass of `micro_size` captions with (context, target) tokens, on one of `num_ranks` ranks."""
        with self.mode:
            return dry_run(self.task, caption_batch(self.recipe, micro_size, lengths), num_ranks)


def dry_run(task: Stage1Task | Stage2Task, batch: Any, num_ranks: int) -> DryRun:
    """The same of a task whose tensors may be real."""
    recorder = Recorder()
    watched = {id(module): module for module in _modules(task)}
    recorder.frozen(*watched.values())
    place = StepPlace(0, 1.0, batch.target.ids.shape[1], 0, num_ranks)
    with (
        as_one_of(num_ranks),
        _parts_watched(task, recorder),
        GpuKernels(lambda: recorder.within(LOGITS)),
        recorder,
        _gradients_dropped(task.bridge),
    ):
        losses = task(batch, place)
        loss = losses["loss"]
        del losses
        kept = {part: size for part, size in recorder.live.items() if size}
        recorder.part = LANGUAGE_BACKWARD if isinstance(task, Stage2Task) else BRIDGE_BACKWARD
        torch.autograd.backward(loss)  # Tensor.backward would turn the GPU kernels off for what is recomputed
    recorder.part = REST
    return DryRun(dict(recorder.flops), kept, max(recorder.peaks.values()), recorder.peaks[VISION])


def _modules(task: Stage1Task | Stage2Task) -> list[nn.Module]:
    language = task.towers.language
    return [task.bridge, task.towers.vision, *([language.model] if language else [])]


@contextmanager
def _gradients_dropped(bridge: nn.Module) -> Iterator[None]:
    """Gradients of weights are counted elsewhere: an engine has ways of its own to hold them."""

    def drop(parameter: Tensor) -> None:
        parameter.grad = None

    hooks = [parameter.register_post_accumulate_grad_hook(drop) for parameter in bridge.parameters()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _parts_watched(task: Stage1Task | Stage2Task, recorder: Recorder) -> Iterator[None]:
    """Within, what each part of the task does is recorded under its name."""
    bridge, language = task.bridge, task.towers.language
    places: list[tuple[Any, str, str]] = [(task.towers.vision, "forward", VISION)]
    if isinstance(bridge, Stage1Bridge):
        head = bridge.qformer.language_head
        places += [(bridge.qformer, method, part) for method, part in STAGE_1_PASSES.items()]
        places += [(head, "forward", LOGITS)]
    else:
        places += [(bridge, "forward", QUERY_PATH), (language, "loss_sum", LANGUAGE)]
        places += [(language.model.get_output_embeddings(), "forward", LOGITS)]
    for owner, method, part in places:
        recorder.watch(owner, method, part)
    hook = bridge.register_forward_hook(_backward_begins(recorder)) if language else None
    try:
        yield
    finally:
        for owner, method, _ in places:
            delattr(owner, method)
        if hook:
            hook.remove()


def _backward_begins(recorder: Recorder) -> Any:
    """A hook of the stage-2 bridge: when the gradient reaches its soft prompts, the language model's way back is over."""

    def on_gradient(_gradient: Tensor) -> None:
        recorder.part = BRIDGE_BACKWARD

    def on_forward(_bridge: nn.Module, _inputs: Any, prompts: Tensor) -> None:
        if prompts.requires_grad:
            prompts.register_hook(on_gradient)

    return on_forward


def sample_flops(recipe: Recipe, lengths: tuple[int, int]) -> dict[str, float]:
    """FLOPs of one sample by part, forward and backward; each layer once, though checkpointing may repeat it."""
    if recipe.language is not None:
        plain = recipe.language.model_copy(update={"activation_checkpointing": False})
        recipe = recipe.model_copy(update={"language": plain})
    pairs = 2  # the least that has negatives
    found = UnweightedRecipe(recipe).run(pairs, lengths)
    return {part: flops / pairs for part, flops in found.flops.items()}


