"""Tiny towers, made once for all tests of the pipeline."""

from pathlib import Path

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
