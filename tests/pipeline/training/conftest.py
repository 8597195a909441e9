"""Short runs of a file's tests: a folder with shards, and recipes over the tiny towers."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny_runs import ROOT, Write, write_recipe
from tests.support.tiny_shards import tiny_manifest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    tiny_manifest(folder / "data", 40, samples_per_shard=16)
    return folder


@pytest.fixture(scope="module")
def write(folder: Path, towers: Path) -> Write:
    def write(name: str, stage: int = 2, language: str | None = "opt", **sections: Any) -> list[str]:
        run = {"zero": str(ROOT / "ds_configs" / "zero1.json"), "steps": 8, "checkpoint_every_steps": 2}
        sections["run"] = run | sections.get("run", {})
        return write_recipe(folder, towers, folder / "data" / "train.json", name, stage, language, **sections)

    return write
