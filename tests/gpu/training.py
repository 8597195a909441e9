"""Part 5: pipeline.train as users start it, with DeepSpeed and NCCL, on tiny towers: policies, resume, faults, errors.

Each run is a process of its own; several run at a time.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.gpu.checks import Checks, relative_error

ROOT = Path(__file__).parents[2]
STEPS, SAVE_EVERY, BAD_STEP = 8, 2, 3
GLOBAL, MICRO = 16, 8
EXIT_S = 30.0  # a rank that raises has ended
RUN_S = 100.0
RESUMED_LOSS_ERROR, RESUMED_WEIGHT_ERROR = 1e-3, 1e-3
INITIAL_SCALE = 2.0**16
PRECISIONS = {"t5": "bf16", "opt": "fp16"}


@dataclass(frozen=True)
class Place:
    """Where the towers and the data are, and what the device is."""

    folder: Path
    device: str
    slots: int

    def recipe(self, name: str, stage: int, language: str | None, zero: str, **run: Any) -> Path:
        import yaml

        from tests.support.tiny_runs import write_recipe

        sections: dict[str, Any] = {
            "vision": {"precision": "fp16"},
            "qformer": {"precision": "bf16", "dropout": 0.1},
            "batch": {"global_size": GLOBAL, "micro_size": GLOBAL if stage == 1 else MICRO},
            "run": {
                "steps": STEPS, "checkpoint_every_steps": SAVE_EVERY, "keep_checkpoints": STEPS,
                "zero": f"ds_configs/{zero}.json",
                "compile": "auto" if language == "t5" else "off",  # one run shows it with DeepSpeed
                **run,
            },
        }  # fmt: skip
        data = self.folder / "data" / "train.json"
        [_, path] = write_recipe(self.folder, self.folder / "towers", data, name, stage, language, **sections)
        if language:  # its section is made of its name
            content = yaml.safe_load(Path(path).read_text())
            content["language"]["precision"] = PRECISIONS[language]
            Path(path).write_text(yaml.safe_dump(content))
        return Path(path)


@dataclass(frozen=True)
class Ended:
    """How a process of pipeline.train ended."""

    code: int
    output: str
    errors: str
    ended_at: float

    def said(self, name: str) -> str | None:
        """The value of a line `NAME=VALUE` of its output."""
        found = [line.partition("=")[2] for line in self.output.splitlines() if line.startswith(f"{name}=")]
        return found[-1] if found else None


def run_process(place: Place, recipe: Path, fault: str = "none") -> Ended:
    command = [sys.executable, "-m", "tests.gpu.train_process", place.device, fault, str(recipe)]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=RUN_S)
    if done.returncode:
        print(recipe.stem, done.stdout[-2000:], done.stderr[-3000:], file=sys.stderr)
    return Ended(done.returncode, done.stdout, done.stderr, time.time())


def lines_of(run_folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]


def run(checks: Checks) -> None:
    folder = checks.output / "tiny_runs"
    shutil.rmtree(folder, ignore_errors=True)
    place = Place(folder, checks.device, len(os.sched_getaffinity(0)))
    towers_and_data(folder)
    whole: list[tuple[str, Callable[[Checks, Place], None]]] = [
        ("stage 1 under ZeRO-1, and resumed", stage1_and_resume),
        ("stage 2 with t5 under ZeRO-2", lambda c, p: policy(c, p, "t5", "zero2", 2, "replicated")),
        ("stage 2 with opt under ZeRO-3, sharded", lambda c, p: policy(c, p, "opt", "zero3", 3, "sharded")),
        ("a batch that makes NaN", nan_batch),
        ("an overflow in fp16", overflow),
        ("a rank that raises", raising),
    ]

    def one(named: tuple[str, Callable[[Checks, Place], None]]) -> None:
        with checks.guarded(named[0]):
            named[1](checks, place)

    with ThreadPoolExecutor(max(1, min(6, place.slots // 2))) as pool:
        list(pool.map(one, whole))


def towers_and_data(folder: Path) -> None:
    """Towers and data that all runs share."""
    from tests.support.tiny_shards import tiny_manifest
    from tests.support.tiny_towers import save_tiny_bert, save_tiny_opt, save_tiny_t5, save_tiny_vision

    save_tiny_vision(folder / "towers" / "vision")
    save_tiny_bert(folder / "towers" / "bert")
    save_tiny_t5(folder / "towers" / "t5")
    save_tiny_opt(folder / "towers" / "opt")
    tiny_manifest(folder / "data", 64)


def ran(checks: Checks, place: Place, name: str, done: Ended, run_folder: Path, stage: int) -> None:
    """It ended well, on this device, with its backend and this ZeRO stage, and every loss is a number."""
    checks.report(f"{name}: exit code", done.code, "== 0", done.code == 0)
    backend = "nccl" if place.device == "cuda" else "gloo"
    checks.report(f"{name}: backend", done.said("backend"), f"== {backend}", done.said("backend") == backend)
    config = json.loads((run_folder / "ds_config.json").read_text())
    found = config["zero_optimization"]["stage"]
    checks.report(f"{name}: ZeRO stage", found, f"== {stage}", found == stage)
    losses = [line["loss"] for line in lines_of(run_folder)]
    finite = sum(abs(loss) < 1e4 for loss in losses)
    checks.report(f"{name}: steps with a loss that is a number", finite, f"== {STEPS}", finite == STEPS)


def policy(checks: Checks, place: Place, language: str, zero: str, stage: int, layout: str) -> None:
    name = f"stage 2 with {language} under {zero}, {layout}"
    recipe = place.recipe(f"{language}_{zero}", 2, language, zero, layout=layout)
    ran(checks, place, name, run_process(place, recipe), recipe.with_suffix(""), stage)


def stage1_and_resume(checks: Checks, place: Place) -> None:
    """A run, and the same run without its last checkpoint, run again."""
    from safetensors.torch import load_file

    from pipeline.training import checkpoint
    from pipeline.weights import native

    recipe = place.recipe("stage1", 1, None, "zero1")
    folder = recipe.with_suffix("")
    ran(checks, place, "stage 1 under zero1", run_process(place, recipe), folder, 1)
    last = checkpoint.folder_of(folder, STEPS)
    wanted = load_file(last / native.FILE_NAME)
    losses = [line["loss"] for line in lines_of(folder)]
    shutil.rmtree(last)
    done = run_process(place, recipe)
    checks.report("resume: exit code", done.code, "== 0", done.code == 0)
    checks.is_true("resume: from the last checkpoint that is left", f"step_{STEPS - SAVE_EVERY:08d}" in done.errors)
    found, names = load_file(last / native.FILE_NAME), list(wanted)
    again = [line["loss"] for line in lines_of(folder)]
    gap = max(abs(one - other) / abs(other) for one, other in zip(again, losses, strict=True))
    checks.at_most("resume: largest difference of a loss, relative", gap, RESUMED_LOSS_ERROR)
    error = relative_error([found[name] for name in names], [wanted[name] for name in names])
    checks.at_most("resume: error of the last weights", error, RESUMED_WEIGHT_ERROR)


def nan_batch(checks: Checks, place: Place) -> None:
    recipe = place.recipe("nan", 1, None, "zero1")
    done = run_process(place, recipe, "nan")
    checks.report("NaN in one step: exit code", done.code, "== 0", done.code == 0)
    skipped = [int(line["skipped_steps"]) for line in lines_of(recipe.with_suffix(""))]
    wanted = [int(step >= BAD_STEP) for step in range(STEPS)]
    checks.report("NaN in one step: skipped steps so far", str(skipped), f"== {wanted}", skipped == wanted)
    unchanged = done.said("unchanged")
    checks.report("NaN in one step: steps that left the weights alone", unchanged, f"== [{BAD_STEP}]",
                  unchanged == f"[{BAD_STEP}]")  # fmt: skip


def overflow(checks: Checks, place: Place) -> None:
    """A loss so large that OPT's fp16 gradients are infinite."""
    recipe = place.recipe("overflow", 2, "opt", "zero2")
    done = run_process(place, recipe, "overflow")
    checks.report("overflow in one step: exit code", done.code, "== 0", done.code == 0)
    last = recipe.with_suffix("") / "checkpoints" / f"step_{STEPS:08d}" / "state.json"
    state = json.loads(last.read_text())
    scale, wanted = state["loss_scale"][0], INITIAL_SCALE / 2
    checks.report("overflow in one step: loss scale", scale, f"== {wanted:g}", scale == wanted)
    checks.report("overflow in one step: skipped steps", state["skipped"], "== 1", state["skipped"] == 1)


def raising(checks: Checks, place: Place) -> None:
    recipe = place.recipe("raising", 1, None, "zero1")
    done = run_process(place, recipe, "raise")
    checks.report("a rank that raises: exit code", done.code, "!= 0", done.code not in (0, None))
    raised = done.said("raised")
    checks.is_true("a rank that raises: it came so far", raised is not None)
    checks.at_most("a rank that raises: seconds to its end", done.ended_at - float(raised or 0), EXIT_S)
