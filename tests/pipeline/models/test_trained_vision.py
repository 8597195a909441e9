"""A trained image encoder: the tokens of the frozen one, gradients of all that is read, recomputation by block."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.config import Vision
from pipeline.models.compiling import longest_list
from pipeline.models.vision import TrainedVision, VisionTower, build_vision
from tests.support.tiny_towers import IMAGE_SIZE_PX, save_tiny_eva, save_tiny_vision
from tests.support.tiny_zoo import save_transformers_vision

KINDS = {
    "timm's CLIP": save_tiny_vision,
    "timm's EVA": save_tiny_eva,
    "transformers' CLIP": partial(save_transformers_vision, config_class="CLIPVisionConfig", model_class="CLIPModel"),
    "transformers' DINOv2": partial(
        save_transformers_vision, config_class="Dinov2Config", model_class="Dinov2Model", intermediate_size=None
    ),
}


@pytest.fixture(scope="module", params=KINDS)
def name(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    made: str = KINDS[request.param](tmp_path_factory.mktemp("encoders") / "vision")
    return made


def settings(name: str, **fields: object) -> Vision:
    content = {"name": name, "precision": "fp32", "image_size_px": IMAGE_SIZE_PX, "trained": True} | fields
    return Vision.model_validate(content)


def trained(name: str, **fields: object) -> TrainedVision:
    vision = build_vision(settings(name, **fields))
    assert isinstance(vision, TrainedVision)
    return vision


def pixels(count: int = 2, side_px: int = IMAGE_SIZE_PX) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, 3, side_px, side_px), dtype=torch.uint8, generator=generator)


def gradients(vision: TrainedVision) -> dict[str, Tensor]:
    vision.zero_grad()
    tokens = vision(pixels())
    weights = torch.linspace(-1, 1, tokens.numel()).view_as(tokens)
    (tokens * weights).sum().backward()
    return {name: p.grad.clone() for name, p in vision.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("side_px", [IMAGE_SIZE_PX, 48])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_its_tokens_are_those_of_the_frozen_encoder(name: str, precision: str, side_px: int) -> None:
    fields = {"precision": precision, "image_size_px": side_px}
    vision, frozen = trained(name, **fields).eval(), build_vision(settings(name, trained=False, **fields))
    assert isinstance(frozen, VisionTower)
    with torch.no_grad():
        assert torch.equal(vision(pixels(side_px=side_px)), frozen(pixels(side_px=side_px)))
        again = vision.frozen(precision)
        assert torch.equal(again(pixels(side_px=side_px)), frozen(pixels(side_px=side_px)))


def test_all_that_is_read_is_trained_in_fp32_and_nothing_else(name: str) -> None:
    vision = trained(name, precision="bf16")
    found = gradients(vision)
    assert set(found) == {each for each, p in vision.named_parameters() if p.requires_grad}
    assert all(p.dtype == torch.float32 for p in vision.parameters())
    unread = [each for each, p in vision.named_parameters() if not p.requires_grad]
    assert all("post_layernorm" in each or "layernorm" in each or "mask_token" in each for each in unread), unread
    assert bool(unread) == ("transformers:" in name)


def test_recomputing_blocks_gives_the_same_gradients_and_keeps_less(name: str) -> None:
    wanted, found = gradients(trained(name)), gradients(trained(name, activation_checkpointing=True))
    assert wanted.keys() == found.keys() and all(torch.equal(found[each], wanted[each]) for each in wanted)
    assert kept_elements(trained(name, activation_checkpointing=True)) < 0.5 * kept_elements(trained(name))


def kept_elements(vision: TrainedVision) -> int:
    """Elements that the forward pass keeps for the backward pass, weights left out."""
    sizes: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in vision.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.numel()
        kept.append(tensor)
        return tensor

    kept: list[Tensor] = []  # or memory would be given out again
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        vision(pixels())
    return sum(sizes.values())


def test_layers_are_counted_from_below(name: str) -> None:
    vision = trained(name)
    layers = list(vision.layers())
    blocks = [block for block in longest_list(vision.encoder) if list(block.parameters())]
    assert [layer for layer, _ in layers] == ["patch", *(f"block {number}" for number in range(len(blocks)))]
    for (_, parameters), block in zip(layers[1:], blocks, strict=True):
        assert {id(p) for p in parameters} == {id(p) for p in block.parameters()}
    assert sum(len(parameters) for _, parameters in layers) == len(gradients(vision))


@pytest.mark.parametrize("field", ["dropout", "drop_path"])
def test_dropout_is_that_of_the_recipe_and_recomputed_alike(tmp_path: Path, field: str) -> None:
    name = save_tiny_vision(tmp_path / "vision", depth=4)
    plain, again = (trained(name, activation_checkpointing=on, **{field: 0.5}) for on in (False, True))
    torch.manual_seed(0)
    wanted = gradients(plain)
    torch.manual_seed(0)
    found = gradients(again)
    assert all(torch.equal(found[each], wanted[each]) for each in wanted)
    with torch.no_grad():
        assert not torch.equal(plain(pixels(8)), plain(pixels(8)))
        assert torch.equal(plain.eval()(pixels(8)), plain(pixels(8)))
        assert torch.equal(plain(pixels(8)), trained(name).eval()(pixels(8)))


def test_dropout_that_a_model_does_not_have_is_refused(tmp_path: Path) -> None:
    name = KINDS["transformers' CLIP"](tmp_path / "clip")
    with pytest.raises(ValueError, match=r"vision.drop_path 0.1: a clip_vision_model has none; set 0"):
        trained(name, drop_path=0.1)


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"precision": "fp16"}, "a trained image encoder computes in bf16 or fp32; set bf16"),
        ({"trained": False, "dropout": 0.1}, "dropout 0.1: is for a trained image encoder; set trained=true"),
        ({"trained": False, "activation_checkpointing": True}, "activation_checkpointing True: is for a trained"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(fields: dict[str, object], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        settings("vit", **fields)


def test_a_compiled_block_is_recomputed_too(tmp_path: Path) -> None:
    from pipeline.models.compiling import compile_vision

    name = save_tiny_vision(tmp_path / "vision")
    vision, counted = trained(name, activation_checkpointing=True), nn.Module.compile
    wanted = gradients(trained(name))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(nn.Module, "compile", lambda self, **options: counted(self, backend="aot_eager", **options))
        assert compile_vision(vision) >= 2
    found = gradients(vision)
    for each, tensor in wanted.items():
        torch.testing.assert_close(found[each], tensor, rtol=1e-4, atol=1e-5)
