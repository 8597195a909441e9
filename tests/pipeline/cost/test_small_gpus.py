"""The README's commands for cards of 24 GB, as written: by the plan they fit one, and 4 and 8 share batches."""

import re
import shlex
from pathlib import Path

import pytest

from pipeline.config import for_ranks, load_recipe
from pipeline.cost.estimate import Assumptions, Planner
from pipeline.cost.gpus import NO_NVLINK, gpu_named
from pipeline.cost.shipped import with_shipped
from pipeline.training.engine import resolve_ds_config

ROOT = Path(__file__).parents[3]
SECTION = (ROOT / "pipeline" / "README.md").read_text(encoding="utf-8").partition("### GPUs of 24 GB\n")[2]
COMMANDS = [
    shlex.split(line)
    for line in re.split(r"```\n?", SECTION)[1].replace("\\\n", " ").splitlines()
    if line.startswith("deepspeed ")
]


def test_there_are_commands_for_both_stages() -> None:
    assert [command[2] for command in COMMANDS] == ["1"] * 3
    recipes = [Path(command[command.index("--recipe") + 1]).stem for command in COMMANDS]
    assert recipes == ["stage1_vitl", "stage1_vitg", "stage2_vitg_opt2.7b"]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: Path(command[6]).stem)
def test_they_fit_one_card(command: list[str]) -> None:
    edits = command[command.index("--set") + 1 :]
    recipe = load_recipe(ROOT / command[command.index("--recipe") + 1], edits)
    for number in (1, 4, 8):
        size = recipe.batch.global_size * (number if recipe.stage == 1 else 1)
        batch = recipe.batch.model_copy(update={"global_size": size})
        decided = for_ranks(recipe.model_copy(update={"batch": batch}), number)
    assert decided.batch.global_size in (8 * 112, 8 * 96, 1920)
    gpu, one = gpu_named("rtx4090"), with_shipped(for_ranks(recipe, 1))
    planner = Planner(one, resolve_ds_config(one, 1), gpu, Assumptions(1, 8, 0.4, 12, NO_NVLINK[1]))
    assert gpu.memory_bytes / 2 < planner.total_bytes(recipe.batch.micro_size) <= gpu.memory_bytes
