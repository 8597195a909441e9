"""What `make gpu` does on a GPU alone also runs here: the code that compiles, with a backend that needs no compiler."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from pipeline.models.compiling import longest_list
from pipeline.objectives import generation
from pipeline.training.stage2_task import Stage2Task
from pipeline.training.task import vision_of
from tests.gpu.real_sizes import compile_when_used
from tests.gpu.real_towers import real_recipe, real_task


@pytest.mark.parametrize("name", ["stage1_vitg", "stage2_vitg_flant5xxl"])
def test_every_block_that_a_gpu_compiles_is_compiled(tmp_path: Path, name: str) -> None:
    recipe = real_recipe(name, tmp_path, tiny=True)
    task = real_task(recipe, "cpu")
    steps: Any = SimpleNamespace(engine=SimpleNamespace(device=torch.device("cpu")), task=task, recipe=recipe)
    compile_when_used(steps)
    assert all(block._compiled_call_impl is not None for block in longest_list(vision_of(task)))
    assert all("read" in vars(layer) for layer in task.bridge.qformer.layers)
    assert isinstance(task, Stage2Task) or task.itg_loss_sums is not generation.itg_loss_sums
    if task.towers.language:
        layers = [each for each in task.towers.language.model.modules() if isinstance(each, GradientCheckpointingLayer)]
        assert len(layers) == 4 and all(layer._compiled_call_impl is not None for layer in layers)
