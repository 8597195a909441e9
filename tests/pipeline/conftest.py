"""Tiny towers and weights, made once for all tests of the pipeline."""

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `vision`, `bert`, `t5` and `opt`; tests read it and leave it as it is."""
    from tests.support.tiny_towers import save_tiny_bert, save_tiny_opt, save_tiny_t5, save_tiny_vision

    folder = tmp_path_factory.mktemp("towers")
    save_tiny_vision(folder / "vision")
    save_tiny_bert(folder / "bert")
    save_tiny_t5(folder / "t5")
    save_tiny_opt(folder / "opt")
    return folder


@pytest.fixture(scope="session")
def weights(towers: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Weights folders `stage1`, `t5`, `opt` and `tuned`, a T5 whose Q-Former reads questions; large random numbers."""
    from pipeline.config import parse_recipe
    from pipeline.models.build import build_bridge
    from pipeline.weights.native import save_weights
    from tests.support.random_bridges import randomise
    from tests.support.tiny_towers import tiny_recipe

    root, folders = tmp_path_factory.mktemp("weights"), {}
    for name, language in (("stage1", None), ("t5", "t5"), ("opt", "opt"), ("tuned", "t5")):
        content: dict[str, Any] = tiny_recipe(towers, root / "m.json", root / name, 2 if language else 1, language)
        if name == "tuned":
            content["qformer"] |= {"question": "question"}
            content["language"] |= {"prompt": "question {} short answer"}
            content["data"] |= {"sample": "question"}
        recipe = parse_recipe(content)
        folders[name] = root / name
        folders[name].mkdir()
        save_weights(randomise(build_bridge(recipe), seed=3).float(), recipe, 7, folders[name])
    return folders
