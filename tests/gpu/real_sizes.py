"""Part 6: steps at real size, with DeepSpeed, in variants: time, FLOP/s, share of the peak, memory; and a profile.

FLOPs are counted in a plain step: products and attention, padding of the language model included. The bounds are a
fifth below what a model of the GPU predicts for these kernels.
"""

import gc
import time
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from pipeline.cost.gpus import GIB
from pipeline.training.task import StepPlace
from tests.gpu.ceilings import PEAK
from tests.gpu.checks import Checks, wait_for
from tests.gpu.profiling import profiled
from tests.gpu.real_towers import LONGEST, real_batch, real_recipe, real_task
from tests.gpu.stepping import Steps

DISTINCT_BATCHES = 4  # of other lengths each
A100_GIB = 37.5  # what an A100 with 40 GB lets a process allocate beside CUDA and NCCL


@dataclass(frozen=True)
class Bounds:
    """Of a recipe: share of the peak in a plain step and in a compiled one, and seconds of a compiled step."""

    plain_share: float
    compiled_share: float
    compiled_step_s: float
    peak_gib: float
    warmup: int
    steps: int


BOUNDS = {
    "stage1_vitg": Bounds(0.28, 0.37, 0.19, 24.0, 6, 15),
    "stage2_vitg_flant5xxl": Bounds(0.33, 0.37, 0.62, 34.0, 4, 6),
    "stage2_vitg_opt2.7b": Bounds(0.33, 0.37, 0.42, 30.0, 4, 6),
}


class Operations(TorchDispatchMode):
    """Counts floating point operations of products and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        out = function(*arguments, **(options or {}))
        count = flop_registry.get(function._overloadpacket)
        if count:
            self.total += count(*arguments, **(options or {}), out_val=out)
        return out


def prepare(_checks: Checks) -> None:
    """What takes seconds and no GPU."""
    import deepspeed  # noqa: F401
    from transformers import OPTForCausalLM, T5ForConditionalGeneration  # noqa: F401


def stage1(checks: Checks) -> None:
    steps = measure(checks, "stage1_vitg")
    with checks.guarded("profile"):
        profiled(checks, steps, [real_batch(steps.recipe, "coco", seed) for seed in range(DISTINCT_BATCHES)])
    with checks.guarded("fp32"):
        fp32_loss(checks, steps)


def flant5xxl(checks: Checks) -> None:
    measure(checks, "stage2_vitg_flant5xxl")


def opt(checks: Checks) -> None:
    measure(checks, "stage2_vitg_opt2.7b")


def measure(checks: Checks, name: str) -> Steps:
    """Plain and compiled, captions of the longest and of COCO's lengths; then within the memory of an A100."""
    recipe, bounds = real_recipe(name, checks.output, checks.tiny), BOUNDS[name]
    started = time.perf_counter()
    steps = Steps(real_task(recipe, checks.device), recipe, LONGEST)
    checks.figure(f"{name}: seconds to build", time.perf_counter() - started, most=60)
    batches = {
        kind: [real_batch(recipe, kind, seed) for seed in range(DISTINCT_BATCHES)] for kind in ("longest", "coco")
    }
    operations = {kind: operations_of(steps, each) for kind, each in batches.items()}
    for kind, each in batches.items():
        with checks.guarded(f"{name}, plain, {kind}"):
            timed(checks, f"{name}, plain, captions {kind}", steps, each, operations[kind], bounds, bounds.plain_share)
    with checks.guarded(f"{name}, compiled"):
        compile_all(checks, name, steps, batches["coco"])
        for kind, each in batches.items():
            title = f"{name}, compiled, captions {kind}"
            seconds = timed(checks, title, steps, each, operations[kind], bounds, bounds.compiled_share)
            checks.figure(f"{title}: seconds a step", seconds, most=bounds.compiled_step_s)
    with checks.guarded(f"{name} in {A100_GIB} GiB"):
        in_less_memory(checks, name, steps, batches["longest"] + batches["coco"])
    return steps


def operations_of(steps: Steps, batches: list[Any]) -> float:
    """FLOPs of a plain step."""
    steps.feed_again_and_again(batches)
    steps.step()  # the first one also encodes the next batch
    with Operations() as counted:
        steps.step()
    return counted.total


def timed(
    checks: Checks, title: str, steps: Steps, batches: list[Any], operations: float, bounds: Bounds, share: float
) -> float:
    """Mean seconds of a step, its share of the peak, its memory; the loss must be a number and no step skipped."""
    warmup, count = (1, 1) if checks.tiny else (bounds.warmup, bounds.steps)
    steps.feed_again_and_again(batches)
    for _ in range(warmup):
        steps.step()
    wait_for(checks.device)
    if checks.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    skipped, graphs, started = steps.progress.skipped, compiled_graphs(), time.perf_counter()
    for _ in range(count):
        values = steps.step()
    wait_for(checks.device)
    seconds = (time.perf_counter() - started) / count
    samples = steps.recipe.batch.global_size
    checks.figure(f"{title}: TFLOP/s", operations / seconds / 1e12, least=share * PEAK / 1e12)
    checks.figure(f"{title}: share of the peak (MFU)", operations / seconds / PEAK, least=share)
    checks.figure(f"{title}: samples/s", samples / seconds, least=samples * share * PEAK / max(operations, 1.0))
    peak = torch.cuda.max_memory_allocated() if checks.device == "cuda" else 0
    checks.figure(f"{title}: peak GiB", peak / GIB, most=bounds.peak_gib)
    checks.at_most(f"{title}: skipped steps", steps.progress.skipped - skipped, 0)
    checks.at_most(f"{title}: graphs compiled in these steps", compiled_graphs() - graphs, 0 if not checks.tiny else 99)
    loss = float(values["loss"]) if values else float("nan")
    checks.at_most(f"{title}: loss", loss if loss == loss else float("inf"), 100.0)
    return seconds


def compiled_graphs() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def compile_all(checks: Checks, name: str, steps: Steps, batches: list[Any]) -> None:
    """Compile, and some steps on all lengths, in which graphs are made."""
    started = time.perf_counter()
    compile_when_used(steps)
    steps.feed_again_and_again(batches)
    for _ in range(1 if checks.tiny else 5):
        steps.step()
    wait_for(checks.device)
    checks.figure(f"{name}: seconds to compile, with five steps", time.perf_counter() - started, most=140)
    checks.at_least(f"{name}: compiled graphs", compiled_graphs(), 3)


def compile_when_used(steps: Steps) -> None:
    """As run.compile does: each graph is made in the first step that needs it. On a CPU no kernels, graphs alone."""
    from pipeline.training.parts import compile_parts

    device, run = steps.engine.device.type, steps.recipe.run.model_copy(update={"compile": "on"})
    backend = partial(torch.compile, backend="eager") if device == "cpu" else torch.compile
    with mock.patch.object(torch, "compile", backend):
        compile_parts(steps.task, steps.recipe.model_copy(update={"run": run}), device, zero_stage=1)


def in_less_memory(checks: Checks, name: str, steps: Steps, batches: list[Any]) -> None:
    """Steps on all lengths by turns, while this process may allocate no more than on an A100 with 40 GB."""
    if checks.device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory / GIB
        torch.cuda.set_per_process_memory_fraction(min(1.0, A100_GIB / total))
    try:
        steps.feed_again_and_again(batches)
        done = [steps.step() is not None for _ in range(1 if checks.tiny else 8)]
        wait_for(checks.device)
    finally:  # the checks after this one have all memory again
        if checks.device == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0)
    checks.is_true(f"{name}: steps in {A100_GIB} GiB", all(done), f"{sum(done)} of {len(done)}")


def fp32_loss(checks: Checks, steps: Steps) -> None:
    """The loss at real size is the same, up to rounding, when the Q-Former computes in fp32."""
    losses, task = {}, steps.task.eval()
    batch = real_batch(steps.recipe, "coco", 0).to(checks.device)
    place = StepPlace(0, 1 / task.num_scored_tokens(batch), LONGEST, 0)
    for precision in ("bf16", "fp32"):
        task.precision = precision
        with torch.no_grad():
            losses[precision] = {name: float(value) for name, value in task(batch, place).items()}
    for name in ("itc_loss", "itg_loss"):  # ITM's negatives may be other ones
        gap = abs(losses["bf16"][name] - losses["fp32"][name]) / losses["fp32"][name]
        checks.at_most(f"stage1_vitg: {name} in bf16 beside fp32, relative difference", gap, 5e-3)
