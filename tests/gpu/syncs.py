"""Part 3: where the host waits for the GPU within a step. Each such place is listed; one that is not known fails.

Known are two: the sizes of the exchange, while the GPU has ITG's work, and DeepSpeed's update at the end of a step.
"""

import traceback
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from tests.gpu import small_tasks
from tests.gpu.checks import Checks
from tests.gpu.small_recipes import small_recipe
from tests.gpu.stepping import Steps

ROOT = str(Path(__file__).parents[2])
MESSAGE = "called a synchronizing"  # torch's, in its debug mode
KNOWN = (("pipeline/distributed/collectives.py", "values"), ("deepspeed/runtime/engine.py", "step"))
WAITS = ((torch.cuda, "synchronize"), (torch.cuda.Event, "synchronize"), (torch.cuda.Stream, "synchronize"))
"""Waits that the debug mode does not see."""


@contextmanager
def watched_waits() -> Iterator[list[traceback.StackSummary]]:
    """The stacks of what waits for the device within."""
    found: list[traceback.StackSummary] = []

    def on_warning(message: Any, *_others: Any, **_more: Any) -> None:
        if MESSAGE in str(message):
            found.append(traceback.StackSummary.from_list(traceback.extract_stack()[:-1]))

    def noting(original: Any) -> Any:
        def waiting(*arguments: Any, **options: Any) -> Any:
            found.append(traceback.StackSummary.from_list(traceback.extract_stack()[:-1]))
            return original(*arguments, **options)

        return waiting

    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("always")
        stack.enter_context(mock.patch.object(warnings, "showwarning", on_warning))
        for owner, name in WAITS:
            stack.enter_context(mock.patch.object(owner, name, noting(getattr(owner, name))))
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            if torch.cuda.is_available():
                torch.cuda.set_sync_debug_mode("default")


def is_known(stack: traceback.StackSummary) -> bool:
    return any(frame.filename.endswith(file) and frame.name == name for frame in stack for file, name in KNOWN)


def place_of(stack: traceback.StackSummary) -> str:
    """The innermost line of this project, and the innermost line at all."""
    own = [frame for frame in stack if frame.filename.startswith(f"{ROOT}/pipeline/")]
    shown = [f"{frame.filename.removeprefix(f'{ROOT}/')}:{frame.lineno}" for frame in (*own[-1:], stack[-1])]
    return " at ".join(dict.fromkeys(shown))


def run(checks: Checks) -> None:
    for name, stage, language in (("stage 1", 1, None), ("stage 2 with t5", 2, "t5"), ("stage 2 with opt", 2, "opt")):
        with checks.guarded(name):
            waits_of(checks, name, stage, language)


def waits_of(checks: Checks, name: str, stage: int, language: str | None) -> None:
    """One step under watch, after two that warm up; then one with a planted wait, which must be found."""
    passes = 2 if stage == 2 else 1
    recipe = small_recipe(checks.output, stage, language, micro_size=small_tasks.BATCH, passes=passes)
    if language is None:
        task: Any = small_tasks.stage1("fp16", "bf16")
    else:
        task = small_tasks.stage2(language, "fp16" if language == "opt" else "bf16", "fp16", "bf16")
        task.towers.language.model.to(checks.device)
    task.to(checks.device).towers.vision.to(checks.device)
    steps = Steps(task, recipe, longest=small_tasks.LONGEST)
    steps.feed_again_and_again([small_tasks.small_batch(stage, seed) for seed in range(passes)])
    for _ in range(2):
        steps.step()
    with watched_waits() as found:
        steps.step()
    unknown = sorted({place_of(stack) for stack in found if not is_known(stack)})
    checks.report(f"{name}: unknown waits in a step", "; ".join(unknown) or "none", "none", not unknown)
    with planted(task, checks.device), watched_waits() as found:
        steps.step()
    planted_here = [stack for stack in found if any(frame.name == "waiting_encoder" for frame in stack)]
    checks.at_least(f"{name}: a planted wait is found", len(planted_here), 1)
    checks.is_true(f"{name}: and is not a known one", not any(map(is_known, planted_here)))


@contextmanager
def planted(task: Any, device: str) -> Iterator[None]:
    """Within, the image encoder reads a number of the device; on a CPU, it warns as torch would."""
    forward = task.towers.vision.forward

    def waiting_encoder(pixels_B3SS: torch.Tensor) -> torch.Tensor:
        int(pixels_B3SS.sum())
        if device == "cpu":
            warnings.warn(f"{MESSAGE} CUDA operation", stacklevel=1)
        tokens: torch.Tensor = forward(pixels_B3SS)
        return tokens

    with mock.patch.object(task.towers.vision, "forward", waiting_encoder):
        yield
