"""Held-out pairs that are trained on are refused, whatever parts of a data set the two manifests list."""

from pathlib import Path
from typing import Any

import pytest

from data_prep.split import main as split
from pipeline.config import parse_recipe
from pipeline.data.held_out import check_held_out
from pipeline.data.manifest import load_manifest
from tests.support.tiny_shards import tiny_manifest
from tests.support.tiny_towers import tiny_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("held out")
    tiny_manifest(folder / "data", 40)
    tiny_manifest(folder / "other", 20, seed=1)
    assert split([str(folder / "data" / "train.json"), "--share", "0.3"]) == 0
    return folder


@pytest.mark.parametrize(
    ("trained", "held", "more", "refused"),
    [
        ("data/train.json", "data/train.json", {}, True),
        ("data/train.json", "data/train.validation.json", {}, True),
        ("data/train.train.json", "data/train.json", {}, True),
        ("data/train.train.json", "data/train.train.json", {}, True),
        ("data/train.train.json", "data/train.validation.json", {}, False),
        ("data/train.json", "other/train.json", {}, False),
        ("data/train.json", "data/train.json", {"on_training_data": True}, False),
    ],
)
def test_shared_samples_are_refused(trained: str, held: str, more: dict[str, Any], refused: bool, folder: Path) -> None:
    content = tiny_recipe(folder / "towers", folder / trained, folder / "run", 1, None)
    recipe = parse_recipe(content | {"validation": {"manifest": str(folder / held)} | more})
    source = load_manifest(folder / trained)
    if not refused:
        check_held_out(recipe, source)
        return
    with pytest.raises(ValueError, match=r"has samples that data.manifest .* has too; divide the data"):
        check_held_out(recipe, source)


def test_a_source_that_is_not_trained_on_may_be_measured(folder: Path) -> None:
    content = tiny_recipe(folder / "towers", folder / "data/train.json", folder / "run", 1, None)
    content = content | {"data": {"manifest": str(folder / "data/train.json"), "source_weights": {"tiny": 0}}}
    recipe = parse_recipe(content | {"validation": {"manifest": str(folder / "data/train.json")}})
    check_held_out(recipe, load_manifest(folder / "data/train.json"))
