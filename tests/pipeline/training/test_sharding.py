"""`run.layout: sharded`: rank 0 alone reads the language model, into host memory, and no rank is sent a whole one."""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from pipeline.config import Recipe, load_recipe
from pipeline.distributed import process_group
from pipeline.training.parts import build_parts
from tests.support.gloo_ranks import run_on_ranks
from tests.support.tiny_runs import ROOT, train_here, write_recipe
from tests.support.tiny_shards import tiny_manifest

ZERO3 = ROOT / "ds_configs" / "zero3.json"


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory, towers: Path) -> list[str]:
    """A sharded run of two ranks."""
    folder = tmp_path_factory.mktemp("sharding")
    manifest = tiny_manifest(folder / "data", 12)
    sections: dict[str, Any] = {
        "batch": {"global_size": 4, "micro_size": 2},
        "run": {"zero": str(ZERO3), "steps": 2, "layout": "sharded"},
    }
    return write_recipe(folder, towers, manifest, "run", 2, "t5", **sections)


class AskedError(Exception):
    """Carries the device that was asked for."""


@pytest.mark.parametrize(
    ("layout", "rank", "wanted"), [("replicated", 1, "cuda:1"), ("sharded", 0, "cpu"), ("sharded", 1, "meta")]
)
def test_where_a_rank_builds_the_language_model(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, layout: str, rank: int, wanted: str
) -> None:
    from pipeline.models import language, trial, vision

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(rank))
    recipe: Recipe = load_recipe(Path(arguments[1]), [f"run.layout={layout}"])
    with (
        mock.patch.object(vision, "build_vision"),
        mock.patch.object(trial, "try_vision"),
        mock.patch.object(language, "build_language", side_effect=lambda settings, device: raise_asked(device)),
        pytest.raises(AskedError, match=f"^{wanted}$"),
    ):
        build_parts(recipe, f"cuda:{rank}")


def raise_asked(device: str) -> None:
    raise AskedError(device)


def look_at_the_language_model(arguments: list[str]) -> dict[str, Any]:
    """Where it is when the parts are built, and what is left of it when DeepSpeed gets the task."""
    import deepspeed

    from pipeline.training import parts

    initialize, found = deepspeed.initialize, {}

    def built(*others: Any) -> Any:
        task, collate = build_parts(*others)
        model = task.language_model
        found["devices"] = sorted({each.device.type for each in model.parameters()})
        found["numbers"] = sum(each.numel() for each in model.parameters())
        return task, collate

    def initialised(model: nn.Module, **others: Any) -> Any:
        tensors = list(model.language_model.parameters())
        found["whole"] = sum(each.numel() for each in tensors)
        found["part"] = sum(each.ds_tensor.numel() for each in tensors)
        found["tensors"] = len(tensors)
        return initialize(model=model, **others)

    with mock.patch.object(parts, "build_parts", built), mock.patch.object(deepspeed, "initialize", initialised):
        code, _, errors = train_here(arguments)
    assert code == 0, errors
    return found


def test_it_goes_to_the_ranks_in_parts_before_deepspeed_moves_a_module(arguments: list[str]) -> None:
    first, second = run_on_ranks(2, look_at_the_language_model, arguments)
    assert first["devices"] == ["cpu"] and second["devices"] == ["meta"]
    for found in (first, second):
        assert found["whole"] == 0
        # DeepSpeed fills the last part of a tensor up, so that all parts are equally long.
        assert first["numbers"] / 2 <= found["part"] < first["numbers"] / 2 + found["tensors"]


class TwoHeads(nn.Module):
    """Weights that may be tied, and a buffer that no checkpoint holds."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 3)
        self.head, self.scale = nn.Linear(3, 5, bias=False), nn.Linear(3, 3)
        if tied:
            self.head.weight = self.words.weight
        self.register_buffer("frequencies", torch.rand(4), persistent=False)
        self.requires_grad_(False)


def partition_and_gather(tied_on_first: bool, ds_config: dict[str, Any]) -> tuple[dict[str, Tensor], bool, str]:
    import deepspeed

    from pipeline.training.sharding import partition

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # as build_engine: its compilation takes minutes
    if process_group.rank() == 0:
        model = TwoHeads(tied_on_first)
        model.scale.to(torch.bfloat16)
    else:
        with torch.device("meta"):
            model = TwoHeads(not tied_on_first)
    partition(model, ds_config)
    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        content = {name: each.detach().clone() for name, each in model.named_parameters(remove_duplicate=False)}
    content["frequencies"] = model.get_buffer("frequencies").clone()
    return content, model.head.weight is model.words.weight, str(model.scale.weight.dtype)


@pytest.mark.parametrize("tied", [True, False])
def test_every_rank_follows_the_first_in_content_types_and_ties(arguments: list[str], tied: bool) -> None:
    """A model's configuration may say that a head is tied, and its weights hold one of its own."""
    from pipeline.training.engine import resolve_ds_config

    ds_config = resolve_ds_config(load_recipe(Path(arguments[1]), []), 2)
    (first, ties, kind), (second, ties_2, kind_2) = run_on_ranks(2, partition_and_gather, tied, ds_config)
    assert ties == ties_2 == tied and kind == kind_2 == "torch.bfloat16"
    assert first.keys() == second.keys() and len(first) == 5
    assert all(torch.equal(first[name], second[name]) and first[name].any() for name in first)
