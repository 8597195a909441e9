"""Tiny language models that say other things to other prompts."""

from pathlib import Path

import pytest
import torch

from pipeline.config import Language
from pipeline.models.language import LanguageTower, build_language


@pytest.fixture(scope="module", params=["t5", "opt"])
def language(request: pytest.FixtureRequest, towers: Path) -> LanguageTower:
    """With large random weights: those of the tiny towers say the same to everything."""
    tower = build_language(Language(name=str(towers / request.param), precision="fp32"), "cpu")
    torch.manual_seed(3)
    for parameter in tower.model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    return tower
