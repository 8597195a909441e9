"""One micro batch of a recipe's task, forward and backward, without weights: its arithmetic and its memory by part."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from pipeline.config import Recipe
from pipeline.cost.gpu_kernels import gpu_kernels
from pipeline.cost.operations import Operation
from pipeline.cost.recorder import Recorder
from pipeline.cost.unweighted import (
    caption_batch,
    faked,
    mean_lengths,
    typical_batch,
    typical_lengths,
    unweighted_task,
)
from pipeline.data.batch import Batch
from pipeline.distributed.rehearsal import Sent, as_one_of
from pipeline.models.loading import first_line
from pipeline.models.stage1 import Stage1Bridge
from pipeline.training.stage1_task import Stage1Task
from pipeline.training.stage2_task import Stage2Task
from pipeline.training.task import StepPlace, vision_of

VISION, LANGUAGE, LOGITS = "vision tower", "language model", "logits"
BRIDGE_BACKWARD, LANGUAGE_BACKWARD = "bridge, backward", "language model, backward"
STAGE_1_PASSES = {
    "plain_image": "Q-Former: image keys and values",
    "project_plain": "Q-Former: image keys and values",
    "encode_queries": "Q-Former: queries (ITC)",
    "encode_texts": "Q-Former: texts (ITC, ITG)",
    "encode_pairs": "Q-Former: pairs (ITM)",
}
QUERY_PATH = "Q-Former and projection"


@dataclass(frozen=True)
class DryRun:
    """What one micro batch of one rank takes.

    `flops` by part, backward passes apart; of them, activation checkpointing computes
    `repeated` for the second time. Bytes: `kept` for the backward pass by part, at the end of the forward pass;
    `peak`, the most that lives at any time beside weights and their gradients; `vision_peak`, that of the vision tower.
    `moments`: at each new storage, whether the vision tower runs, and all live bytes.
    `operations`: what launches kernels, in its order, where it was asked for.
    `sent`: what the task's own collectives send.
    """

    flops: dict[str, float]
    repeated: dict[str, float]
    kept: dict[str, int]
    peak: int
    vision_peak: int
    moments: list[tuple[bool, int]]
    operations: list[Operation]
    sent: Sent


def once(run: DryRun) -> dict[str, float]:
    """FLOPs by part, where each layer counts once, though activation checkpointing may repeat it."""
    return {part: flops - run.repeated.get(part, 0.0) for part, flops in run.flops.items()}


class UnweightedRecipe:
    """A recipe's task without weights, for runs of any micro batch."""

    def __init__(self, recipe: Recipe) -> None:
        from torch._subclasses.fake_tensor import FakeTensorMode

        self.recipe, self.mode = recipe, FakeTensorMode()
        self.task = unweighted_task(recipe, self.mode)

    def run(
        self, micro_size: int, lengths: tuple[int, int], num_ranks: int = 1, lists_operations: bool = False
    ) -> DryRun:
        """One pass of `micro_size` captions with (context, target) tokens each, on one of `num_ranks` ranks."""
        batch = caption_batch(self.recipe, micro_size, lengths)
        return self._run(batch, num_ranks, lengths[1], lists_operations)

    def typical_run(self, micro_size: int, caption_tokens: int, num_ranks: int = 1) -> DryRun:
        """One pass of captions of many lengths, `caption_tokens` on average; those of all ranks are of one law."""
        of_all_ranks = typical_lengths(micro_size * num_ranks, caption_tokens)[-1]
        batch = typical_batch(self.recipe, micro_size, caption_tokens)
        return self._run(batch, num_ranks, mean_lengths(self.recipe, of_all_ranks)[1], lists_operations=True)

    def _run(self, batch: Batch, num_ranks: int, longest_target: int, lists_operations: bool) -> DryRun:
        try:
            with self.mode:
                fake = faked(batch, self.mode)
                return dry_run(self.task, fake, num_ranks, longest_target, lists_operations)
        except Exception as error:  # each architecture has kinds of its own, as where a step depends on values
            towers = [self.recipe.vision.name, *([self.recipe.language.name] if self.recipe.language else [])]
            raise ValueError(f"{' with '.join(towers)}: cannot run without weights ({first_line(error)})") from error


def dry_run(
    task: Stage1Task | Stage2Task, batch: Batch, num_ranks: int, longest_target: int, lists_operations: bool = True
) -> DryRun:
    """The same of a task whose tensors may be real."""
    recorder = Recorder(lists_operations)
    watched = {id(module): module for module in _modules(task)}
    recorder.frozen(*watched.values())
    place = StepPlace(0, 1.0, longest_target, 0, num_ranks)
    with (
        _no_garbage_collected(),
        as_one_of(num_ranks, batch.target.num_real()) as sent,
        _parts_watched(task, recorder),
        gpu_kernels(lambda: recorder.within(LOGITS)),
        recorder,
        _gradients_dropped(task.bridge),
    ):
        losses = task(batch, place)
        loss = losses["loss"]
        del losses
        kept = {part: size for part, size in recorder.live.items() if size}
        with recorder.backward_pass(LANGUAGE_BACKWARD if isinstance(task, Stage2Task) else BRIDGE_BACKWARD):
            loss.backward()
    moments = [(part == VISION, size) for part, size in recorder.moments]
    peaks = _peaks(moments)
    return DryRun(dict(recorder.flops), dict(recorder.repeated), kept, *peaks, moments, recorder.operations, sent)


def _peaks(moments: list[tuple[bool, int]]) -> tuple[int, int]:
    """The most bytes of all moments, and of those of the vision tower."""
    return max(size for _, size in moments), max((size for is_vision, size in moments if is_vision), default=0)


def on_lines(size: int, runs: dict[int, DryRun]) -> DryRun | None:
    """The peaks of a run of `size` samples from two runs of other sizes, as each moment's bytes lie on a straight line.

    None where they do not, or the runs have other moments. What is kept by part is not known.
    """
    (few, small), (many, large) = sorted(runs.items())
    if len(small.moments) != len(large.moments):
        return None
    moments = []
    for (in_vision, low), (also, high) in zip(small.moments, large.moments, strict=True):
        slope, rest = divmod(high - low, many - few)
        if rest or in_vision != also:
            return None
        moments.append((in_vision, low + slope * (size - few)))
    peak, vision_peak = _peaks(moments)
    return replace(large, kept={}, peak=peak, vision_peak=vision_peak)


def _modules(task: Stage1Task | Stage2Task) -> list[nn.Module]:
    language = task.towers.language
    return [task.bridge, vision_of(task), *([language.model] if language else [])]


@contextmanager
def _no_garbage_collected() -> Iterator[None]:
    """Thousands of small objects would have it look at all of torch again and again: a fifth of a run."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def _gradients_dropped(bridge: nn.Module) -> Iterator[None]:
    """Gradients of weights are counted elsewhere: DeepSpeed holds them in its own way."""

    def drop(parameter: Tensor) -> None:
        parameter.grad = None

    parameters: list[Any] = list(bridge.parameters())  # torch's types lack this hook
    hooks = [parameter.register_post_accumulate_grad_hook(drop) for parameter in parameters]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _parts_watched(task: Stage1Task | Stage2Task, recorder: Recorder) -> Iterator[None]:
    """Within, what each part of the task does is recorded under its name."""
    bridge, language = task.bridge, task.towers.language
    places: list[tuple[Any, str, str]] = [(vision_of(task), "forward", VISION)]
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
    """A hook of the stage-2 bridge: a gradient at its soft prompts ends the language model's backward pass."""

    def on_gradient(_gradient: Tensor) -> None:
        recorder.part = BRIDGE_BACKWARD

    def on_forward(_bridge: nn.Module, _inputs: Any, prompts: Any) -> None:
        if prompts.requires_grad:
            prompts.register_hook(on_gradient)

    return on_forward
