"""Compiled blocks compute the same, in whole graphs, and are compiled once for texts of all lengths.

Graphs and guards are those of any backend; here a backend without a compiler runs them, for speed.
"""

import dataclasses
import logging
import random
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from pipeline.config import Language, Objectives, Vision
from pipeline.config.sections import Run
from pipeline.models import compiling
from pipeline.models.language import build_language
from pipeline.models.stage1 import Stage1Bridge
from pipeline.models.vision import build_vision
from pipeline.training.stage1_task import Stage1Task
from pipeline.training.task import StepPlace
from tests.pipeline.training.test_stage2_losses import batch_of
from tests.support.random_bridges import DECODE, PROJECTION_WIDTH, SHAPE, random_batch

BATCHES = 200


@pytest.fixture(autouse=True)
def _graphs_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    yield
    torch.compiler.reset()


def graphs() -> int:
    assert not counters["graph_break"], counters["graph_break"]
    return int(counters["stats"]["unique_graphs"])


def stage1_task() -> Stage1Task:
    torch.manual_seed(0)
    bridge = Stage1Bridge(dataclasses.replace(SHAPE, num_layers=3), PROJECTION_WIDTH)
    return Stage1Task(bridge, nn.Identity(), Objectives(), DECODE, "bf16")  # type: ignore[arg-type]


def test_the_qformer_is_compiled_once_for_200_batches_of_varied_lengths() -> None:
    compiled, plain, draw = stage1_task(), stage1_task(), random.Random(0)
    compiling.compile_qformer(compiled.bridge.qformer)
    compiled.itg_loss_sums = torch.compile(compiled.itg_loss_sums, dynamic=True)
    found = []
    for number in range(BATCHES):
        batch = random_batch([draw.randint(2, 32) for _ in range(4)], seed=number)
        batch = dataclasses.replace(batch, pixels_B3SS=batch.pixels_B3SS.float())
        place = StepPlace(0, 0.01, batch.target.ids.shape[1], number)
        loss = compiled(batch, place)["loss"]
        if number < 5 or number % 10 == 0:  # its graphs are made with those of the way there
            loss.backward()
        found.append(graphs())
        if number < 5:
            wanted = plain(batch, place)["loss"]
            wanted.backward()
            torch.testing.assert_close(loss, wanted)
            for name, parameter in plain.bridge.named_parameters():
                torch.testing.assert_close(compiled.bridge.get_parameter(name).grad, parameter.grad, msg=name)
    # Queries with and without image; texts, and at the end; pairs with, without, and at the end; ITG's loss.
    assert set(found) == {8}


def test_dropout_and_validation_of_a_trained_encoder_stay_far_below_the_limit_of_graphs(tmp_path: Path) -> None:
    """All passes are one method of a layer. Past the limit of its graphs it would run without; 12 layers have 18."""
    torch.manual_seed(0)
    bridge = Stage1Bridge(dataclasses.replace(SHAPE, num_layers=2, dropout=0.1), PROJECTION_WIDTH)
    task: Any = Stage1Task(bridge, nn.Identity(), Objectives(), DECODE, "bf16")  # type: ignore[arg-type]
    run = Run(output=tmp_path, steps=1, compile="on")
    assert compiling.compile_blocks(run, "cpu", nn.Identity(), bridge.qformer, None)
    batch = random_batch([3, 9, 6, 12])
    batch = dataclasses.replace(batch, pixels_B3SS=batch.pixels_B3SS.float().requires_grad_())
    place = StepPlace(0, 0.01, 12, 0)
    task.train()(batch, place)["loss"].backward()
    trained = graphs()
    with torch.no_grad():
        task.eval()(batch, place)
    assert trained < graphs() < torch._dynamo.config.recompile_limit / 2


def test_a_vision_tower_is_one_graph(towers: Path) -> None:
    tower = build_vision(Vision(name=f"local-dir:{towers / 'vision'}", precision="bf16", image_size_px=32))
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    wanted = tower(pixels)
    assert compiling.compile_vision(tower) > 1
    torch.testing.assert_close(tower(pixels), wanted)
    assert graphs() == 1


@pytest.mark.parametrize("name", ["t5", "opt"])
def test_a_language_model_is_compiled_once_for_texts_of_all_lengths(towers: Path, name: str) -> None:
    language = build_language(Language(name=str(towers / name), precision="fp32"), "cpu")
    language.model.double()
    prompts = torch.randn(3, 4, language.width, dtype=torch.float64, requires_grad=True)

    def loss(lengths: list[int]) -> Tensor:
        batch, _, _ = batch_of(language, lengths)
        return language.loss_sum(prompts, batch.context, batch.target)

    # No first length equals that of prompts and context, 9: sizes that are equal at first are taken as one.
    lengths = [[3, 5, 8], [2, 2, 7], [10, 1, 1], [4, 30, 2]]
    wanted = [loss(each).detach() for each in lengths]
    assert compiling.compile_language(language.model) > 1
    found = []
    for each, expected in zip(lengths, wanted, strict=True):
        summed = loss(each)
        summed.backward()
        torch.testing.assert_close(summed.detach(), expected)
        found.append(graphs())
    assert len(set(found)) == 1


def test_without_a_compiler_blocks_stay_as_they_are_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    run, task = Run(output=tmp_path, steps=1, compile="on"), stage1_task()
    with caplog.at_level(logging.INFO):
        compiling.compile_blocks(run, "cpu", nn.Identity(), task.bridge.qformer, None)
    assert "run.compile: this machine lacks a C++ compiler (g++)" in caplog.text
    layer: Any = task.bridge.qformer.layers[0]
    assert layer.read.__func__ is type(layer).read


def test_auto_compiles_nothing_without_a_gpu(tmp_path: Path) -> None:
    task = stage1_task()
    compiling.compile_blocks(Run(output=tmp_path, steps=1), "cpu", nn.Identity(), task.bridge.qformer, None)
    layer: Any = task.bridge.qformer.layers[0]
    assert layer.read.__func__ is type(layer).read
