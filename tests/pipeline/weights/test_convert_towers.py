"""Towers inside converted files: compared with the recipe's, listed, and the image encoder taken along when asked."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.models.vision import build_vision
from pipeline.weights.native import read_weights
from tests.pipeline.weights.test_convert import convert, natives, pixels  # noqa: F401  (a fixture)
from tests.support.tiny_towers import IMAGE_SIZE_PX, save_tiny_vision

# ruff: noqa: F811
STEP = 0.25  # added to a tower's tensors: a fine-tuned one


def eva_tensors(native: Path) -> dict[str, Tensor]:
    """The recipe's own image encoder under timm's names, as a LAVIS file of EVA's ViT-g holds it: no last block."""
    folder = Path(read_weights(native)[0].vision.name.removeprefix("local-dir:"))
    tensors = load_file(folder / "model.safetensors")
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(("blocks.2.", "norm.", "fc_norm."))}


def lavis_file(native: Path, path: Path, towers: dict[str, Tensor]) -> Path:
    assert convert(native, path, "native", "lavis") == 0
    state = torch.load(path, weights_only=True)["model"]
    torch.save({"model": state | towers}, path)
    return path


def fine_tuned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"visual_encoder.{name}": tensor + STEP for name, tensor in tensors.items()}


def test_every_tensor_left_to_the_recipes_towers_is_listed_by_name(
    natives: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = lavis_file(natives["t5"], tmp_path / "w.pth", fine_tuned(eva_tensors(natives["t5"])))
    recipe = natives["t5"] / "recipe.yaml"
    capsys.readouterr()
    assert convert(file, tmp_path / "back", "lavis", "native", "--recipe", recipe) == 0
    [line] = [each for each in capsys.readouterr().err.splitlines() if "recipe's image encoder" in each]
    assert f"{len(eva_tensors(natives['t5'])) - 1} more" in line
    assert convert(tmp_path / "back", tmp_path / "again.pth", "native", "lavis") == 0
    notes = json.loads((tmp_path / "again.pth.conversion.json").read_text())["notes"]
    listed = {note.rpartition(" ")[2] for note in notes if note.startswith("left to")}
    assert listed == {f"visual_encoder.{name}" for name in eva_tensors(natives["t5"])}


def test_a_fine_tuned_image_encoder_comes_along_from_lavis(natives: dict[str, Path], tmp_path: Path) -> None:
    file = lavis_file(natives["opt"], tmp_path / "w.pth", fine_tuned(eva_tensors(natives["opt"])))
    recipe, eyes = natives["opt"] / "recipe.yaml", tmp_path / "eyes"
    assert convert(file, tmp_path / "back", "lavis", "native", "--recipe", recipe, "--image-encoder", eyes) == 0
    settings = read_weights(tmp_path / "back")[0].vision
    assert settings.name == f"local-dir:{eyes}"
    found = build_vision(settings).encoder.model.state_dict()
    for name, tensor in eva_tensors(natives["opt"]).items():
        assert torch.equal(found[name], tensor + STEP), name


def test_a_fine_tuned_image_encoder_comes_along_from_transformers(natives: dict[str, Path], tmp_path: Path) -> None:
    assert convert(natives["opt"], tmp_path / "hf", "native", "huggingface") == 0
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    for name in tensors:
        if name.startswith("vision_model.") and "post_layernorm" not in name and "qkv.bias" not in name:
            tensors[name] = tensors[name] * 1.5
    save_file(tensors, tmp_path / "hf" / "model.safetensors", metadata={"format": "pt"})
    recipe, eyes = natives["opt"] / "recipe.yaml", tmp_path / "eyes"
    more = ("--recipe", recipe, "--image-encoder", eyes)
    assert convert(tmp_path / "hf", tmp_path / "back", "huggingface", "native", *more) == 0
    changed = build_vision(read_weights(tmp_path / "back")[0].vision)
    from transformers import Blip2ForConditionalGeneration

    theirs: Any = Blip2ForConditionalGeneration.from_pretrained(tmp_path / "hf").vision_model.eval()
    seen: list[Tensor] = []
    theirs.encoder.layers[-1].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    images = pixels(2)
    normalised = (images.float() - changed.get_buffer("mean")) / changed.get_buffer("std")
    with torch.no_grad():
        theirs(pixel_values=normalised)
    expected = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    torch.testing.assert_close(changed(images), expected, rtol=1e-5, atol=1e-5)


def openai_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A CLIP ViT as OpenAI and LAVIS name it, written out independently of the reader."""
    found = {
        "conv1.weight": tensors["patch_embed.proj.weight"],
        "class_embedding": tensors["cls_token"][0, 0],
        "positional_embedding": tensors["pos_embed"][0],
    }
    for kind in ("weight", "bias"):
        found[f"ln_pre.{kind}"] = tensors[f"norm_pre.{kind}"]
        for block in range(2):
            theirs, own = f"transformer.resblocks.{block}.", f"blocks.{block}."
            found[f"{theirs}attn.in_proj_{kind}"] = tensors[f"{own}attn.qkv.{kind}"]
            found[f"{theirs}attn.out_proj.{kind}"] = tensors[f"{own}attn.proj.{kind}"]
            found[f"{theirs}ln_1.{kind}"] = tensors[f"{own}norm1.{kind}"]
            found[f"{theirs}ln_2.{kind}"] = tensors[f"{own}norm2.{kind}"]
            found[f"{theirs}mlp.c_fc.{kind}"] = tensors[f"{own}mlp.fc1.{kind}"]
            found[f"{theirs}mlp.c_proj.{kind}"] = tensors[f"{own}mlp.fc2.{kind}"]
    return found


def test_lavis_clip_encoders_come_along_under_openais_names(natives: dict[str, Path], tmp_path: Path) -> None:
    name = save_tiny_vision(tmp_path / "clip")
    before = load_file(tmp_path / "clip" / "model.safetensors")
    file = lavis_file(natives["opt"], tmp_path / "w.pth", fine_tuned(openai_names(before)))
    eyes, edit = tmp_path / "eyes", f"vision.name={name}"
    more = ("--recipe", natives["opt"] / "recipe.yaml", "--set", edit, "--image-encoder", eyes)
    assert convert(file, tmp_path / "back", "lavis", "native", *more) == 0
    found = timm.create_model(f"local-dir:{eyes}", pretrained=True, num_classes=0).state_dict()
    kept = {each: tensor for each, tensor in before.items() if not each.startswith(("blocks.2.", "norm."))}
    assert kept and all(torch.equal(found[each], tensor + STEP) for each, tensor in kept.items())


@pytest.mark.parametrize(
    ("tensor", "named"),
    [
        ({"visual_encoder.blocks.7.norm1.weight": torch.zeros(32)}, "'blocks.7.norm1.weight'"),
        ({"visual_encoder.blocks.0.norm1.weight": torch.zeros(48)}, "(48,)"),
        ({"visual_encoder.pos_embed": torch.zeros(1, 50, 32)}, "vision.image_size_px"),
        ({"opt_model.model.decoder.layers.9.fc1.bias": torch.zeros(64)}, "layers.9"),
        ({"opt_model.model.decoder.layers.0.fc1.bias": torch.zeros(65)}, "(65,)"),
        ({"visual_encoder.cls_token": torch.zeros(1, 1, 32)}, "'pos_embed' is missing"),
    ],
    ids=[
        "an unknown name",
        "another width",
        "another image size",
        "a deeper language model",
        "another inner width",
        "a part of a tower",
    ],
)
def test_another_tower_than_the_recipes_is_refused_by_the_tensors_name(
    tensor: dict[str, Tensor], named: str, natives: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = lavis_file(natives["opt"], tmp_path / "w.pth", tensor)
    capsys.readouterr()
    assert convert(file, tmp_path / "back", "lavis", "native", "--recipe", natives["opt"] / "recipe.yaml") == 1
    [error] = capsys.readouterr().err.strip().splitlines()
    assert named in error and not (tmp_path / "back").exists()


def test_a_folder_with_another_image_encoder_is_refused(
    natives: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(natives["opt"], tmp_path / "hf", "native", "huggingface") == 0
    recipe = natives["opt"] / "recipe.yaml"
    for edit, named in (
        (f"vision.name={save_tiny_vision(tmp_path / 'clip')}", "image encoder"),
        (f"vision.image_size_px={IMAGE_SIZE_PX * 2}", "image_size is 32"),
    ):
        capsys.readouterr()
        more = ("--recipe", recipe, "--set", edit)
        assert convert(tmp_path / "hf", tmp_path / "back", "huggingface", "native", *more) == 1
        [error] = capsys.readouterr().err.strip().splitlines()
        assert named in error and not (tmp_path / "back").exists()


def test_a_folders_grown_vocabulary_and_widened_halves_are_taken(natives: dict[str, Path], tmp_path: Path) -> None:
    """`<image>` adds a row to the language model of a folder; public folders hold fp16."""
    assert convert(natives["opt"], tmp_path / "hf", "native", "huggingface") == 0
    path = tmp_path / "hf" / "model.safetensors"
    tensors = {name: tensor.half() for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    recipe = natives["opt"] / "recipe.yaml"
    assert convert(tmp_path / "hf", tmp_path / "back", "huggingface", "native", "--recipe", recipe) == 0
    assert convert(tmp_path / "back", tmp_path / "w.pth", "native", "lavis") == 0
    notes = (tmp_path / "w.pth.conversion.json").read_text()
    assert "stored as torch.float16, kept in fp32 here: qformer.query_tokens" in notes


def test_a_hub_id_that_cannot_be_had_is_one_line(
    natives: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = natives["opt"] / "recipe.yaml"
    assert convert(Path("nobody/nothing-2"), tmp_path / "x", "huggingface", "native", "--recipe", recipe) == 1
    [error] = capsys.readouterr().err.strip().splitlines()
    assert "nobody/nothing-2" in error and "HF_HOME" in error
