"""A language model with 8 or 4 bits a weight: near the whole one, smaller, with LoRA and fp8, and never trained."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from peft.tuners.lora import LoraLayer
from PIL import Image
from torch import nn

import pipeline
from pipeline import convert, generate
from pipeline.config import Language, Recipe, for_ranks, parse_recipe
from pipeline.models.build import build_bridge
from pipeline.models.fingerprint import fingerprint
from pipeline.models.language import Decoding, LanguageTower, build_language
from pipeline.models.quantised import QUANTISED
from pipeline.weights.native import add_trained_lora, inference_model, save_weights
from tests.support.random_bridges import randomise
from tests.support.tiny_towers import save_tiny_opt, save_tiny_t5, tiny_recipe

ERROR = {"int8": 0.02, "int4": 0.12}  # relative, of a layer: 0.01 and 0.09 for weights of a normal law
KINDS = ("t5", "opt")


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All sizes are multiples of 64, as those of real models."""
    folder = tmp_path_factory.mktemp("wide")
    save_tiny_t5(folder / "t5", width=64)
    save_tiny_opt(folder / "opt", width=64)
    return folder


@pytest.fixture(scope="module")
def weights(towers: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    for kind, folder in folders.items():
        recipe = recipe_of(towers, kind, "fp32")
        save_weights(randomise(build_bridge(recipe), seed=3).float(), recipe, 7, folder)
    return folders


def built(towers: Path, kind: str, precision: Any, **more: Any) -> LanguageTower:
    return build_language(Language(name=str(towers / kind), precision=precision, **more), "cpu")


def linear_layers(model: nn.Module) -> dict[str, Any]:
    return {name: each for name, each in model.named_modules() if isinstance(each, nn.Linear)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", QUANTISED)
def test_linear_layers_are_smaller_and_compute_nearly_the_same(towers: Path, kind: str, precision: str) -> None:
    whole, small = built(towers, kind, "fp32"), built(towers, kind, precision)
    layers, others = linear_layers(whole.model), linear_layers(small.model)
    kept = {name for name, each in others.items() if each.weight.dtype == torch.bfloat16}
    assert {name.rpartition(".")[2] for name in kept} == ({"lm_head", "wo"} if kind == "t5" else {"lm_head"})
    for name in layers.keys() - kept:
        assert others[name].weight.nbytes * {"int8": 4, "int4": 8}[precision] == layers[name].weight.nbytes
        values = torch.randn((3, layers[name].in_features), generator=torch.Generator().manual_seed(3)).bfloat16()
        with torch.no_grad():
            expected = layers[name](values.float())
            error = (others[name](values).float() - expected).norm() / expected.norm()
        assert 1e-3 < error < ERROR[precision], name
    assert small.embed_tokens.weight.dtype == torch.bfloat16  # type: ignore[attr-defined]
    assert fingerprint(small.model) != fingerprint(built(towers, kind, "bf16").model)
    assert fingerprint(small.model) == fingerprint(built(towers, kind, precision).model)


@pytest.mark.parametrize("precision", QUANTISED)
def test_a_model_whose_files_are_fp16_keeps_fp16(towers: Path, tmp_path: Path, precision: str) -> None:
    half = built(towers, "opt", "fp16")
    half.model.save_pretrained(tmp_path / "opt")
    half.tokenizer.save_pretrained(tmp_path / "opt")
    assert built(tmp_path, "opt", precision).embed_tokens.weight.dtype == torch.float16  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", QUANTISED)
def test_trained_weights_write_text_in_it(
    weights: dict[str, Path], kind: str, precision: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    edit = f"language.precision={precision}"
    model = pipeline.load(weights[kind], edits=[edit])
    assert model.recipe.language is not None and model.recipe.language.precision == precision
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    caption = model.caption(tmp_path / "red.png", max_new_tokens=4)
    assert isinstance(model.answer(tmp_path / "red.png", "what colour?", max_new_tokens=4), str)
    asked = ["--weights", weights[kind], "--image", tmp_path / "red.png", "--max-new-tokens", 4, "--set", edit]
    assert generate.main([str(each) for each in asked]) == 0
    printed = capfd.readouterr()
    assert json.loads(printed.out)["text"] == caption
    assert "cast" not in printed.err  # a line for each product


def recipe_of(towers: Path, kind: str, precision: str, vision: str = "fp32", **lora: Any) -> Recipe:
    content: dict[str, Any] = tiny_recipe(towers, towers / "none.json", towers / "run", 2, kind)
    content["language"] |= {"precision": precision, "lora": {"rank": 3, "alpha": 12.0, "dropout": 0.0} if lora else {}}
    content["vision"]["precision"] = vision
    return parse_recipe(content)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", QUANTISED)
def test_trained_lora_stands_beside_it(towers: Path, kind: str, precision: str) -> None:
    recipe = recipe_of(towers, kind, precision, lora=True)
    assert recipe.language is not None
    tower = build_language(recipe.language, "cpu")
    add_trained_lora(tower.model, recipe, randomise(build_bridge(recipe), seed=3))  # type: ignore[arg-type]
    layers = [each for each in tower.model.modules() if isinstance(each, LoraLayer)]
    assert len(layers) == {"opt": 4, "t5": 12}[kind]
    values = torch.randn((2, 5, tower.width), generator=torch.Generator().manual_seed(3)).bfloat16()
    for layer in layers:
        a, b = (getattr(layer, name)["default"].weight for name in ("lora_A", "lora_B"))
        with torch.no_grad():
            added = (layer(values) - layer.get_base_layer()(values)).float()
            expected = 12 / 3 * values.float() @ a.t() @ b.t()
        assert (added - expected).norm() / expected.norm() < 0.02


@pytest.mark.parametrize("precision", QUANTISED)
def test_an_fp8_encoder_goes_with_it(towers: Path, precision: str) -> None:
    recipe = recipe_of(towers, "opt", precision, vision="fp8")
    model: Any = inference_model(recipe, randomise(build_bridge(recipe), seed=3).float(), "cpu")
    pixels = torch.zeros((1, 3, 32, 32), dtype=torch.uint8)
    assert isinstance(model.generate(pixels, ["a photo of"], Decoding(num_beams=2, max_new_tokens=3))[0], str)


@pytest.mark.parametrize("precision", QUANTISED)
def test_training_is_refused_in_one_line(towers: Path, precision: str) -> None:
    with pytest.raises(ValueError, match=f"^language.precision '{precision}': is for inference alone; train with bf16"):
        for_ranks(recipe_of(towers, "opt", precision), 2)


def test_int4_refuses_sizes_that_it_computes_wrongly(tmp_path: Path) -> None:
    save_tiny_opt(tmp_path / "opt", width=96)
    built(tmp_path, "opt", "int8")
    with pytest.raises(ValueError, match=r"^language.precision 'int4': .*k_proj of .* has 96 inputs and 96 outputs"):
        built(tmp_path, "opt", "int4")


def test_a_missing_package_is_named(towers: Path) -> None:
    with (
        mock.patch("importlib.util.find_spec", return_value=None),
        pytest.raises(ValueError, match=r"^language.precision 'int8': needs the package bitsandbytes; pip install"),
    ):
        built(towers, "opt", "int8")


def test_it_is_not_stored_for_transformers(weights: dict[str, Path], tmp_path: Path) -> None:
    asked = ["--from", "native", "--to", "huggingface", "--set", "language.precision=int8"]
    assert convert.main([str(weights["opt"]), str(tmp_path / "out"), *asked]) == 1
    assert not (tmp_path / "out").exists()
