"""The vision tower is timm's own blocks but the last, without final norm: frozen, deterministic, in its precision."""

from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

from pipeline.config import Vision
from pipeline.models.vision import build_vision
from tests.support.tiny_towers import IMAGE_SIZE_PX


def settings(towers: Path, precision: str = "fp32", size_px: int = IMAGE_SIZE_PX) -> Vision:
    return Vision(name=f"local-dir:{towers / 'vision'}", precision=precision, image_size_px=size_px)  # type: ignore[arg-type]


@pytest.fixture
def pixels_B3SS() -> Tensor:
    size = (2, 3, IMAGE_SIZE_PX, IMAGE_SIZE_PX)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def by_hand(towers: Path, pixels_B3SS: Tensor) -> Tensor:
    """timm's model, part by part, up to the second-to-last block."""
    model = timm.create_model(f"local-dir:{towers / 'vision'}", pretrained=True).eval()
    normalised = (pixels_B3SS / 255 - 0.5) / 0.25
    rows = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(normalised))))
    for block in model.blocks[:-1]:
        rows = block(rows)
    return rows


def test_it_equals_timms_blocks_but_the_last(towers: Path, pixels_B3SS: Tensor) -> None:
    tower = build_vision(settings(towers))
    with torch.no_grad():
        expected = by_hand(towers, pixels_B3SS)
    found = tower(pixels_B3SS)
    assert found.shape == (2, 17, tower.width)  # CLS first, then 4 x 4 patches
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_it_is_frozen_and_has_no_training_mode(towers: Path, pixels_B3SS: Tensor) -> None:
    tower = build_vision(settings(towers))
    tower.train()
    assert not any(module.training for module in tower.modules())
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    assert not tower(pixels_B3SS).requires_grad


def test_half_precision_holds_matrices_alone_and_keeps_an_fp32_stream(towers: Path, pixels_B3SS: Tensor) -> None:
    tower = build_vision(settings(towers, "bf16"))
    halves = {name for name, parameter in tower.named_parameters() if parameter.dtype == torch.bfloat16}
    whole = {name for name, parameter in tower.named_parameters() if parameter.dtype == torch.float32}
    assert all(".attn." in name or ".mlp." in name or "patch_embed" in name for name in halves) and halves
    assert {name.split(".")[-1] for name in whole} >= {"cls_token", "pos_embed"} and any(
        "norm" in name for name in whole
    )
    streams: list[torch.dtype] = []
    tower.encoder.model.blocks[-1].register_forward_hook(lambda _module, _inputs, output: streams.append(output.dtype))
    found, exact = tower(pixels_B3SS), build_vision(settings(towers))(pixels_B3SS)
    assert streams == [torch.float32] and found.dtype == torch.float32
    assert 0 < float((found - exact).norm() / exact.norm()) < 0.02


def test_an_outer_autocast_does_not_reach_an_fp32_tower(towers: Path, pixels_B3SS: Tensor) -> None:
    tower = build_vision(settings(towers))
    with torch.autocast("cpu", torch.bfloat16):
        found = tower(pixels_B3SS)
    assert torch.equal(found, tower(pixels_B3SS))


def test_positions_are_interpolated_for_other_sizes(towers: Path) -> None:
    tower = build_vision(settings(towers, size_px=48))
    assert tower(torch.zeros(1, 3, 48, 48, dtype=torch.uint8)).shape == (1, 37, tower.width)
