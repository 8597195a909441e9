"""Nothing inside a step makes the host read what a device computes: on a GPU it would wait for all work before."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.config import Language, Objectives
from pipeline.models.language import build_language
from pipeline.training.ahead import Ahead
from pipeline.training.checkpoint import State
from pipeline.training.progress import Progress
from pipeline.training.stage1_task import Stage1Task
from pipeline.training.stage2_task import Stage2Task
from pipeline.training.step import train_step
from pipeline.training.task import StepPlace
from tests.gpu.small_recipes import small_recipe
from tests.pipeline.training.test_stage2_losses import batch_of
from tests.support.random_bridges import DECODE, random_batch, random_stage1, random_stage2

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "_unique2", "equal", "is_nonzero")


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Names of the operations whose result, or whose result's size, the host must wait for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        name = function._overloadpacket.__name__
        by_mask = name in ("index", "index_put", "_index_put_impl_") and any(
            isinstance(each, Tensor) and each.dtype == torch.bool for each in tree_leaves(arguments[1])
        )
        if name in WAITS or by_mask:
            self.seen.append(name)
        return function(*arguments, **(options or {}))


@contextmanager
def watched() -> Iterator[list[str]]:
    with Watch() as watch:
        yield watch.seen


def test_the_watch_sees_what_makes_the_host_wait() -> None:
    values = torch.arange(4)
    with watched() as seen:
        bool(values.all())
        values[values > 1]
        values.nonzero()
        int(values.sum())
    assert seen == ["_local_scalar_dense", "index", "nonzero", "_local_scalar_dense"]


def test_stage_1_waits_for_nothing() -> None:
    batch = random_batch([3, 9, 6])
    task = Stage1Task(random_stage1(), nn.Identity(), Objectives(), DECODE, "fp32")  # type: ignore[arg-type]
    with watched() as seen:
        task(batch, StepPlace(0, 0.1, 12, 0))["loss"].backward()
    assert seen == []


@pytest.mark.parametrize("name", ["t5", "opt"])
@pytest.mark.parametrize(
    ("lengths", "prompted"),
    [([1, 5, 9], None), ([4], None), ([1, 5, 9], [4, 4, 4]), ([1, 5, 9], [3, 7, 2])],
    ids=["padded", "not padded", "one prompt", "prompts"],
)
def test_stage_2_waits_for_nothing(towers: Path, name: str, lengths: list[int], prompted: list[int] | None) -> None:
    language = build_language(Language(name=str(towers / name), precision="fp32"), "cpu")
    language.model.double()
    batch, _, _ = batch_of(language, lengths, prompted)
    task = Stage2Task(random_stage2(language.width), nn.Identity(), language, "fp32")  # type: ignore[arg-type]
    with watched() as seen:
        task(batch, StepPlace(0, 0.1, max(lengths), 0))["loss"].backward()
    assert seen == []


class Engine:
    """In the place of DeepSpeed's, whose own waits are known: its update does nothing."""

    def __init__(self, task: nn.Module) -> None:
        self.module, self.device = task, torch.device("cpu")
        self.optimizer = SimpleNamespace(param_groups=[{"lr": 0.0, "factor": 1.0}], overflow=False)

    def __call__(self, *inputs: Any) -> Any:
        return self.module(*inputs)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        pass


def step_of(task: Any, planted: bool) -> list[str]:
    """What the host waits for in a step of two micro batches, with the next step's first one on its way."""
    recipe = small_recipe(Path("run"), 1, None, micro_size=3, passes=2)
    batches = [random_batch([3, 9, 6], seed=seed) for seed in range(4)]
    vision = Waiting() if planted else nn.Identity()
    ahead, progress = (
        Ahead(batches, 2, torch.device("cpu"), vision),
        Progress(recipe, State(0, 0, recipe.seed, 1, "", {}, {}, {}), task.loss_scale),
    )
    steps = ahead.steps()
    step = next(steps)
    with watched() as seen:
        assert train_step(Engine(task), step, [StepPlace(0, 0.1, 12, 0)] * 2, recipe, progress, ahead) is not None
    assert next(steps)[0] is batches[2] and ahead._begun is not None and ahead._begun[0] is batches[2]
    return seen


class Waiting(nn.Module):
    """An encoder that asks the device for a number."""

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        return pixels_B3SS * int(pixels_B3SS.shape[0] > 0 and pixels_B3SS.isfinite().all())


def test_a_whole_step_with_the_next_batch_waits_for_nothing() -> None:
    """That of `training/step.py` and `training/ahead.py`, as far as a CPU shows it: streams and copies are a GPU's."""
    task = Stage1Task(random_stage1(), nn.Identity(), Objectives(), DECODE, "fp32")  # type: ignore[arg-type]
    assert step_of(task, planted=False) == []
    assert step_of(task, planted=True) == ["_local_scalar_dense"] * 3
