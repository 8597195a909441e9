"""Nothing inside a step makes the host read what a device computes: on a GPU it would wait for all work before."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.config import Language, Objectives
from pipeline.models.language import build_language
from pipeline.training.stage1_task import Stage1Task
from pipeline.training.stage2_task import Stage2Task
from pipeline.training.task import StepPlace
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
