"""fp8 layers: the numbers that they compute, how far those are from fp32's, what they hold, and who is refused."""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pipeline.config import Vision, parse_recipe
from pipeline.cost.dry_run import VISION, UnweightedRecipe
from pipeline.cost.estimate import Assumptions, Planner
from pipeline.cost.gpus import gpu_named
from pipeline.models import fp8
from pipeline.models.fingerprint import fingerprint
from pipeline.models.vision import VisionTower, build_vision
from pipeline.training.engine import resolve_ds_config
from tests.support.tiny_towers import IMAGE_SIZE_PX, save_tiny_eva, save_tiny_vision, tiny_recipe

ROUNDING = 2**-4  # of one e4m3 number, relative, at the most


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)
    layer.weight.copy_(normal(outputs, inputs, seed=1) / inputs**0.5)
    return layer


def error_of_rows(found: Tensor, exact: Tensor) -> Tensor:
    return (found.double() - exact.double()).norm(dim=-1) / exact.double().norm(dim=-1)


def test_a_product_is_that_of_the_numbers_that_fp8_and_scales_stand_for() -> None:
    layer, inputs = fp8.Fp8Linear(linear(48, 32)), normal(5, 48)
    rows_RI, scale_R1 = fp8.quantise(inputs)
    weight_OI = layer.weight.double() * layer.get_buffer("scale_1O").double().view(-1, 1)
    expected = [
        [float(sum(row * weight)) + float(bias) for weight, bias in zip(weight_OI, layer.bias, strict=True)]
        for row in rows_RI.double() * scale_R1.double()
    ]
    found = layer(inputs)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.double(), torch.tensor(expected).double(), rtol=1e-3, atol=1e-3)


def test_each_number_is_rounded_to_the_nearest_of_its_row_whose_largest_is_fp8s_largest() -> None:
    values_RI = normal(6, 64) * torch.logspace(-6, 6, 6)[:, None]
    rows_RI, scale_R1 = fp8.quantise(values_RI)
    assert rows_RI.dtype == fp8.FP8 and scale_R1.shape == (6, 1)
    assert torch.equal(rows_RI.float().abs().amax(dim=1), torch.full((6,), 448.0))
    kept_RI = rows_RI.float() * scale_R1
    near_zero_R1 = values_RI.abs().amax(dim=1, keepdim=True) * 2**-15  # below it e4m3 has steps of one size
    assert bool(((kept_RI - values_RI).abs() <= values_RI.abs() * ROUNDING * 1.001 + near_zero_R1).all())


@pytest.mark.parametrize("bias", [True, False])
def test_outliers_of_one_token_or_of_one_output_do_not_cost_the_others_their_digits(bias: bool) -> None:
    layer = linear(256, 64, bias)
    layer.weight[7] *= 100
    tokens = normal(2, 9, 256)
    tokens[0, 3] *= 100
    tokens[0, 4] /= 10_000
    tokens[1, 4, 5] = 30
    exact, found = layer(tokens), fp8.Fp8Linear(layer)(tokens)
    assert found.shape == exact.shape
    others = [output for output in range(64) if output != 7]
    errors = error_of_rows(found[..., others], exact[..., others])
    assert float(errors.max()) < ROUNDING and 0.01 < float(errors.mean()) < 0.04
    assert float(error_of_rows(found[..., 7].flatten()[None], exact[..., 7].flatten()[None])) < ROUNDING


def test_a_row_of_zeros_gives_the_bias_and_a_row_with_nan_or_inf_gives_no_number() -> None:
    layer = fp8.Fp8Linear(linear(32, 16))
    rows = normal(4, 32)
    rows[0] = 0
    rows[1, 3], rows[2, 4] = float("nan"), float("inf")
    found = layer(rows)
    assert torch.equal(found[0], layer.bias)
    assert not bool(found[1:3].isfinite().any()) and bool(found[3].isfinite().all())


def test_it_can_be_compiled_as_one_graph_within_autocast() -> None:
    layer, rows = fp8.Fp8Linear(linear(32, 16)), normal(3, 5, 32)
    compiled: Any = torch.compile(layer, backend="eager", fullgraph=True)
    with torch.autocast("cpu", torch.float16):
        assert torch.equal(compiled(rows), layer(rows))


@pytest.fixture(params=["clip", "eva"])
def name(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    save = save_tiny_vision if request.param == "clip" else save_tiny_eva
    return save(tmp_path / "vision")


def tower_of(name: str, precision: str) -> VisionTower:
    return build_vision(Vision(name=name, precision=precision, image_size_px=IMAGE_SIZE_PX))  # type: ignore[arg-type]


def test_tokens_are_near_those_of_fp32(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels_B3SS = torch.randint(0, 256, (4, 3, IMAGE_SIZE_PX, IMAGE_SIZE_PX), dtype=torch.uint8, generator=generator)
    exact, half, found = (tower_of(name, precision)(pixels_B3SS) for precision in ("fp32", "fp16", "fp8"))
    cosines = torch.cosine_similarity(found.float(), exact, dim=-1)
    assert float(cosines.min()) > 0.995
    assert 4 * float(error_of_rows(half, exact).mean()) < float(error_of_rows(found, exact).mean()) < 0.06


def test_the_blocks_matrices_take_a_byte_a_weight_and_the_rest_is_as_in_an_fp16_tower(name: str) -> None:
    tower, half = tower_of(name, "fp8"), tower_of(name, "fp16")
    matrices = {each: p for each, p in tower.named_parameters() if p.dtype == fp8.FP8}
    assert len(matrices) == 4 * 2  # qkv, proj, fc1, fc2 of two blocks; the third is not run
    assert all(matrices[each].element_size() == 1 and half.get_parameter(each).ndim == 2 for each in matrices)
    for each, parameter in tower.named_parameters():
        if each not in matrices and not each.endswith("qkv.bias"):
            assert parameter.dtype == half.get_parameter(each).dtype, each
    streams: list[torch.dtype] = []
    tower.encoder.model.blocks[-1].register_forward_hook(lambda _module, _inputs, output: streams.append(output.dtype))
    tokens = tower(torch.zeros(1, 3, IMAGE_SIZE_PX, IMAGE_SIZE_PX, dtype=torch.uint8))
    assert streams == [torch.float32] and tokens.dtype == torch.float16
    assert not any(parameter.requires_grad for parameter in tower.parameters())


def test_its_fingerprint_is_of_the_fp8_weights_and_their_scales(name: str) -> None:
    tower, again = tower_of(name, "fp8"), tower_of(name, "fp8")
    assert fingerprint(tower) == fingerprint(again) != fingerprint(tower_of(name, "fp16"))
    layer = next(each for each in again.modules() if isinstance(each, fp8.Fp8Linear))
    layer.get_buffer("scale_1O")[0, 0] *= 2
    assert fingerprint(tower) != fingerprint(again)


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6)])
def test_a_gpu_without_fp8_products_is_refused_before_weights_are_read(capability: tuple[int, int]) -> None:
    settings = Vision(name="local-dir:/does/not/exist", precision="fp8")
    with (
        mock.patch("torch.cuda.get_device_capability", return_value=capability),
        mock.patch("torch.cuda.get_device_name", return_value="NVIDIA A100-SXM4-40GB"),
        pytest.raises(ValueError, match=r"^vision.precision 'fp8': NVIDIA A100-SXM4-40GB .*8\.9; use fp16$") as raised,
    ):
        build_vision(settings, "cuda:0")
    assert f"compute capability {capability[0]}.{capability[1]}" in str(raised.value)


@pytest.mark.parametrize("capability", [(8, 9), (9, 0), (10, 0)])
def test_a_gpu_with_fp8_products_is_taken(capability: tuple[int, int]) -> None:
    with mock.patch("torch.cuda.get_device_capability", return_value=capability) as asked:
        fp8.check_gpu("cuda:0")
        fp8.check_gpu("cpu")
    assert asked.call_count == 1


def test_an_encoder_that_has_no_layer_for_it_is_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 16; use fp16"):
        fp8.to_fp8(nn.Sequential(nn.Linear(24, 32), nn.Linear(32, 24)))


@pytest.fixture
def recipes(towers: Path) -> dict[str, Any]:
    content: dict[str, Any] = tiny_recipe(towers, towers / "none.json", towers / "run", 1)
    return {
        precision: parse_recipe(content | {"vision": content["vision"] | {"precision": precision}})
        for precision in ("fp16", "fp8")
    }


def test_a_plan_counts_the_same_products_and_a_byte_a_weight(recipes: dict[str, Any]) -> None:
    half, whole = (UnweightedRecipe(recipes[precision]) for precision in ("fp16", "fp8"))
    assert half.run(2, (0, 5)).flops[VISION] == whole.run(2, (0, 5)).flops[VISION] > 0
    assert half.run(2, (0, 5)).kept == whole.run(2, (0, 5)).kept
    weights = sum(p.numel() for p in whole.task.towers.vision.parameters() if p.dtype == fp8.FP8)
    sizes = [
        sum(each.untyped_storage().nbytes() for each in (*vision.parameters(), *vision.buffers()))
        for vision in (half.task.towers.vision, whole.task.towers.vision)
    ]
    scales = 4 * sum(each.weight.shape[0] for each in fp8_layers(whole.task.towers.vision))
    assert weights > 0 and sizes[0] - sizes[1] == weights - scales


def fp8_layers(module: nn.Module) -> list[fp8.Fp8Linear]:
    return [each for each in module.modules() if isinstance(each, fp8.Fp8Linear)]


def test_a_plan_takes_fp8s_peak_and_refuses_a_gpu_that_has_none(recipes: dict[str, Any]) -> None:
    assumed = Assumptions(2, 8, 0.4, 12, 50e9)
    half, whole = (
        Planner(recipes[precision], resolve_ds_config(recipes[precision], 2), gpu_named("h100-80gb"), assumed)
        for precision in ("fp16", "fp8")
    )
    assert whole.peak(VISION) == pytest.approx(2 * half.peak(VISION), rel=0.01)
    assert whole.peak("logits") == half.peak("logits")
    with pytest.raises(ValueError, match=r"^vision.precision 'fp8': a100-40gb has no fp8 products; use fp16"):
        Planner(recipes["fp8"], resolve_ds_config(recipes["fp8"], 2), gpu_named("a100-40gb"), assumed)


def test_vit_gs_layers_have_the_sizes_and_layouts_that_a_gpu_takes() -> None:
    """As torch itself checks them before it starts a kernel."""
    with FakeTensorMode():
        for inputs, outputs in ((1408, 4224), (1408, 1408), (1408, 6144), (6144, 1408)):
            layer = fp8.Fp8Linear(nn.Linear(inputs, outputs, device="cuda"))
            found = layer(torch.empty(3, 257, inputs, device="cuda"))
            assert found.shape == (3, 257, outputs) and found.dtype == torch.float16
        with pytest.raises(RuntimeError, match="divisible by 16"):
            fp8.Fp8Linear(nn.Linear(64, 40, device="cuda"))(torch.empty(3, 64, device="cuda"))


@pytest.mark.gpu
def test_a_gpus_products_are_those_of_a_cpu() -> None:
    fp8.check_gpu("cuda")
    layer, tokens = fp8.Fp8Linear(linear(1408, 6144)), normal(3, 257, 1408)
    expected = layer(tokens)
    assert float(error_of_rows(layer.cuda()(tokens.cuda()).cpu(), expected).max()) < 2e-3
