"""Part 9: production's loader on shards of pictures with 256 px: how much stage 1's real steps wait for it."""

import os
import shutil
import time

from pipeline.config import Recipe
from pipeline.data.batch import Collate, collate_for_qformer
from pipeline.data.loader import build_loader, open_source
from pipeline.distributed.stopwatch import STOPWATCH
from pipeline.models.build import build_tokenizer
from tests.gpu.checks import Checks, wait_for
from tests.gpu.pictures import photo_manifest
from tests.gpu.real_sizes import compile_when_used
from tests.gpu.real_towers import real_recipe, real_task
from tests.gpu.stepping import Steps

PICTURES, WIDTH_PX, HEIGHT_PX = 2520, 341, 256
WARMUP, STEPS = 8, 20
WORKERS_OF_RECIPE = 8


def prepare(checks: Checks) -> None:
    """The shards."""
    import deepspeed  # noqa: F401  (it takes seconds)

    shutil.rmtree(checks.output / "photos", ignore_errors=True)
    pictures, cores = 64 if checks.tiny else PICTURES, len(os.sched_getaffinity(0))
    photo_manifest(checks.output / "photos", pictures, WIDTH_PX, HEIGHT_PX, 1 if checks.tiny else max(1, cores // 2))


def run(checks: Checks) -> None:
    cores, manifest = len(os.sched_getaffinity(0)), checks.output / "photos" / "train.json"
    warmup, steps_wanted = (1, 2) if checks.tiny else (WARMUP, STEPS)
    bert = tokenizer_folder(checks)
    workers = 1 if checks.tiny else min(WORKERS_OF_RECIPE, max(1, cores - 2))
    total = warmup + steps_wanted + 2  # with those that are loaded ahead
    recipe = real_recipe(
        "stage1_vitg", checks.output, checks.tiny, f"data.manifest={manifest}", f"data.num_workers={workers}",
        f"run.steps={total}",
    )  # fmt: skip
    collate = collate_for_qformer(build_tokenizer(recipe.qformer.model_copy(update={"bert": bert})), 32)
    steps = Steps(real_task(recipe, checks.device), recipe)
    compile_when_used(steps)
    steps.feed(build_loader(recipe, open_source(recipe, 1), collate, 0, 1, 0))
    for _ in range(warmup):
        steps.step()
    wait_for(checks.device)
    STOPWATCH.take()
    started = time.perf_counter()
    for _ in range(steps_wanted):
        steps.step()
    wait_for(checks.device)
    seconds = time.perf_counter() - started
    samples = steps_wanted * recipe.batch.micro_size
    checks.figure("share of the time that steps wait for data", STOPWATCH.take().get("data", 0.0) / seconds, most=0.01)
    checks.figure("samples/s from JPEGs to weights", samples / seconds, least=550)
    checks.at_most("skipped steps", steps.progress.skipped, 0)
    with checks.guarded("the loader alone"):
        alone(checks, recipe, collate, samples)


def alone(checks: Checks, recipe: Recipe, collate: Collate, samples: int) -> None:
    """Samples a second of the loader when nobody else works."""
    loader = iter(build_loader(recipe, open_source(recipe, 1), collate, 0, 1, 0))
    next(loader)
    started, taken = time.perf_counter(), 0
    for batch in loader:
        taken += len(batch.image_ids_B)
        if taken >= samples:
            break
    checks.figure("samples/s of the loader alone", taken / (time.perf_counter() - started), least=1500)


def tokenizer_folder(checks: Checks) -> str:
    from tests.support.tiny_towers import save_tiny_bert

    folder = checks.output / "tokenizer"
    return str(folder) if folder.exists() else save_tiny_bert(folder)
