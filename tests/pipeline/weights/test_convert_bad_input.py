"""Conversion of hostile, damaged and unfitting files: one line names the file or the tensor, nothing is written."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.pipeline.weights.test_convert import convert, natives  # noqa: F401  (a fixture)

# ruff: noqa: F811


class Runs:
    """What a hostile pickle does when it is loaded with its code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.touch, (self.path,))


@pytest.mark.filterwarnings("error")
def test_a_pickle_with_code_is_refused_and_does_not_run(
    natives: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    touched = tmp_path / "touched"
    for name, write in (
        ("torch", torch.save),
        ("plain", lambda content, path: path.write_bytes(pickle.dumps(content))),
    ):
        path = tmp_path / f"{name}.pth"
        write({"model": {"query_tokens": Runs(touched)}}, path)  # type: ignore[operator]
        recipe = natives["stage1"] / "recipe.yaml"
        assert convert(path, tmp_path / name, "lavis", "native", "--recipe", recipe) == 1
        [error] = capsys.readouterr().err.strip().splitlines()
        assert str(path) in error and "nothing was loaded" in error
        assert not touched.exists() and not (tmp_path / name).exists()


def spoil(state: dict[str, Tensor], fault: str) -> str:
    """Break a LAVIS state dict in place; returns what the message must name."""
    name = "Qformer.bert.encoder.layer.0.attention.self.key.weight"
    if fault == "missing":
        del state[name]
        return "qformer.layers.0.self_attention.key.weight"
    if fault == "extra":
        state["Qformer.bert.pooler.dense.weight"] = torch.zeros(2)
        return "Qformer.bert.pooler.dense.weight"
    if fault == "shape":
        state[name] = state[name][:-1]
        return "qformer.layers.0.self_attention.key.weight"
    if fault == "our own name":
        state["qformer.query_tokens"] = state["query_tokens"] + 9
        return "'qformer.query_tokens' has no place"
    state["Qformer.cls.predictions.decoder.weight"] = state["Qformer.cls.predictions.decoder.weight"] + 1
    return "Qformer.cls.predictions.decoder.weight"


@pytest.mark.parametrize("fault", ["missing", "extra", "our own name", "shape", "untied"])
def test_a_file_that_does_not_fit_is_refused_by_the_tensors_name(
    fault: str, natives: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(natives["stage1"], tmp_path / "w.pth", "native", "lavis") == 0
    state = torch.load(tmp_path / "w.pth", weights_only=True)["model"]
    named = spoil(state, fault)
    torch.save({"model": state}, tmp_path / "w.pth")
    capsys.readouterr()
    recipe = natives["stage1"] / "recipe.yaml"
    assert convert(tmp_path / "w.pth", tmp_path / "back", "lavis", "native", "--recipe", recipe) == 1
    [error] = capsys.readouterr().err.strip().splitlines()
    assert named in error and not (tmp_path / "back").exists()


def test_a_truncated_safetensors_folder_is_refused(
    natives: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(natives["opt"], tmp_path / "hf", "native", "huggingface") == 0
    [file] = (tmp_path / "hf").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    capsys.readouterr()
    recipe = natives["opt"] / "recipe.yaml"
    assert convert(tmp_path / "hf", tmp_path / "back", "huggingface", "native", "--recipe", recipe) == 1
    [error] = capsys.readouterr().err.strip().splitlines()
    assert str(file) in error


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (7, torch.zeros(2)),
        ("temp", torch.zeros(3)),
        ("temp", 0.07),
        ("ln_vision.weight", torch.zeros(32, dtype=torch.int32)),
        ("ln_vision.weight", torch.zeros(32, dtype=torch.complex64)),
        ("ln_vision.weight", torch.zeros(32).to_sparse()),
    ],
    ids=["no name", "shape of temp", "a number", "integers", "complex", "sparse"],
)
def test_what_is_no_plain_tensor_is_named(
    name: Any, value: Any, natives: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(natives["stage1"], tmp_path / "w.pth", "native", "lavis") == 0
    state = torch.load(tmp_path / "w.pth", weights_only=True)["model"]
    torch.save({"model": state | {name: value}}, tmp_path / "w.pth")
    capsys.readouterr()
    recipe = natives["stage1"] / "recipe.yaml"
    assert convert(tmp_path / "w.pth", tmp_path / "back", "lavis", "native", "--recipe", recipe) == 1
    [error] = capsys.readouterr().err.strip().splitlines()
    assert ("temperature" if name == "temp" else str(name)) in error or "'temp'" in error


def test_a_tensor_in_two_files_of_a_folder_is_refused(
    natives: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(natives["opt"], tmp_path / "hf", "native", "huggingface") == 0
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    save_file({"query_tokens": tensors["query_tokens"] + 1}, tmp_path / "hf" / "stale.safetensors")
    capsys.readouterr()
    recipe = natives["opt"] / "recipe.yaml"
    assert convert(tmp_path / "hf", tmp_path / "back", "huggingface", "native", "--recipe", recipe) == 1
    [error] = capsys.readouterr().err.strip().splitlines()
    assert "query_tokens" in error and not (tmp_path / "back").exists()


def test_a_bridge_to_another_language_model_is_refused(
    natives: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(natives["opt"], tmp_path / "hf", "native", "huggingface") == 0  # as wide as the T5
    capsys.readouterr()
    recipe = natives["t5"] / "recipe.yaml"
    assert convert(tmp_path / "hf", tmp_path / "back", "huggingface", "native", "--recipe", recipe) == 1
    [error] = capsys.readouterr().err.strip().splitlines()
    assert "'opt'" in error and "'t5'" in error


def test_notes_never_overwrite_a_file(natives: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "w.json").write_text("precious")
    assert convert(natives["opt"], tmp_path / "w.pth", "native", "lavis") == 0
    assert (tmp_path / "w.json").read_text() == "precious" and (tmp_path / "w.pth.conversion.json").exists()
    (tmp_path / "w.pth").unlink()
    with pytest.raises(SystemExit):
        convert(natives["opt"], tmp_path / "w.pth", "native", "lavis")


def test_notes_go_along_with_the_weights(natives: dict[str, Path], tmp_path: Path) -> None:
    assert convert(natives["stage1"], tmp_path / "hf", "native", "huggingface") == 0
    recipe = natives["stage1"] / "recipe.yaml"
    assert convert(tmp_path / "hf", tmp_path / "back", "huggingface", "native", "--recipe", recipe) == 0
    assert convert(tmp_path / "back", tmp_path / "w.pth", "native", "lavis") == 0
    assert "as in a fresh bridge: temperature" in (tmp_path / "w.pth.conversion.json").read_text()


def edit(folder: Path, section: str, **fields: Any) -> None:
    """Change a section of a folder's config.json."""
    content = json.loads((folder / "config.json").read_text())
    content[section] |= fields
    (folder / "config.json").write_text(json.dumps(content))


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def without(part: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: [tensors.pop(name) for name in list(tensors) if part in name]


FOLDER_FAULTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "activation": ("t5", lambda f: edit(f, "text_config", dense_act_fn="gelu"), "language.config.dense_act_fn=gelu"),
    "Q-Former heads": ("t5", lambda f: edit(f, "qformer_config", num_attention_heads=8), "num_attention_heads is 8"),
    "Q-Former epsilon": ("t5", lambda f: edit(f, "qformer_config", layer_norm_eps=1e-3), "layer_norm_eps is 0.001"),
    "eyes' heads": ("stage1", lambda f: edit(f, "vision_config", num_attention_heads=8), "image encoder"),
    "no JSON": ("t5", lambda f: (f / "config.json").write_text("[" * 200_000), "config.json"),
    "our own name": ("stage1", lambda f: change_tensors(f, lambda t: t.update(temperature=torch.ones(1))), "no place"),
    "integers": (
        "opt", lambda f: change_tensors(f, lambda t: t.update(query_tokens=t["query_tokens"].long())), "torch.int64"
    ),
    "a block missing": ("opt", lambda f: change_tensors(f, without("vision_model.encoder.layers.1.")), "is missing"),
    "a layer missing": ("opt", lambda f: change_tensors(f, without("decoder.layers.1.")), "is missing"),
    "a shard missing": (
        "opt",
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-2.safetensors"}}'),
        "model-2.safetensors",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FOLDER_FAULTS)
def test_a_folder_that_is_not_the_recipes_model_is_refused_in_one_line(
    fault: str, natives: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, spoil_folder, named = FOLDER_FAULTS[fault]
    assert convert(natives[kind], tmp_path / "hf", "native", "huggingface") == 0
    recipe = natives[kind] / "recipe.yaml"
    spoil_folder(tmp_path / "hf")
    capsys.readouterr()
    assert convert(tmp_path / "hf", tmp_path / "back", "huggingface", "native", "--recipe", recipe) == 1
    [error] = capsys.readouterr().err.strip().splitlines()
    assert named in error and not (tmp_path / "back").exists()


def test_a_new_row_for_the_image_token_is_said(natives: dict[str, Path], tmp_path: Path) -> None:
    """A row more in the softmax moves the scores of beams; language models with a spare row need none."""
    assert convert(natives["opt"], tmp_path / "hf", "native", "huggingface") == 0
    assert "new row of the vocabulary" in (tmp_path / "hf" / "conversion.json").read_text()


def test_wrong_usage_is_one_line(
    natives: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = ("--recipe", natives["opt"] / "recipe.yaml")
    for arguments in (
        (natives["opt"], Path(), "native", "lavis"),
        (natives["opt"], tmp_path / "x", "native", "lavis", "--set", "seed=3"),
        (tmp_path / "hf", tmp_path / "x", "huggingface", "native", *recipe, "--image-encoder", tmp_path / "x" / "eyes"),
    ):
        with pytest.raises(SystemExit) as ended:
            convert(*arguments)  # type: ignore[arg-type]
        assert ended.value.code == 2 and len(capsys.readouterr().err.strip().splitlines()) == 1


def test_odd_but_whole_lavis_files_are_taken_and_prefixed_ones_refused(
    natives: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Optimizer states beside the model; tensors in half precision, transposed in memory, or parts of one storage."""
    recipe = natives["stage1"] / "recipe.yaml"
    assert convert(natives["stage1"], tmp_path / "w.pth", "native", "lavis") == 0
    state = {name: t.half() for name, t in torch.load(tmp_path / "w.pth", weights_only=True)["model"].items()}
    assert convert_state({"model": state}, tmp_path / "half", recipe) == 0
    odd = {name: t.t().contiguous().t() if t.ndim == 2 else t for name, t in state.items()}
    odd["ln_vision.weight"] = torch.stack([odd["ln_vision.weight"]] * 2)[1]
    beside = {"optimizer": {"state": {0: {"step": 3}}, "param_groups": []}, "scaler": {}, "epoch": 3, "config": {}}
    assert convert_state({"model": odd} | beside, tmp_path / "odd", recipe) == 0
    [plain, taken] = [load_file(next((tmp_path / name).rglob("*.safetensors"))) for name in ("half", "odd")]
    assert plain.keys() == taken.keys() and all(torch.equal(plain[name], taken[name]) for name in plain)
    capsys.readouterr()
    prefixed = {f"module.{name}": t for name, t in state.items()}
    assert convert_state({"model": prefixed}, tmp_path / "prefixed", recipe) == 1
    [error] = capsys.readouterr().err.strip().splitlines()
    assert "'module." in error and "has no place" in error


def convert_state(content: dict[str, Any], output: Path, recipe: Path) -> int:
    torch.save(content, output.with_suffix(".pth"))
    return convert(output.with_suffix(".pth"), output, "lavis", "native", "--recipe", recipe)


def test_an_image_encoder_whose_tensors_share_one_storage_is_written(tmp_path: Path) -> None:
    import timm

    from pipeline.config import Vision
    from pipeline.weights.towers import write_timm_folder

    settings = Vision(name="vit_tiny_patch16_224", image_size_px=32)
    shapes = {
        name: t.shape for name, t in timm.create_model(settings.name, num_classes=0, img_size=32).state_dict().items()
    }
    storage = torch.arange(sum(shape.numel() for shape in shapes.values()), dtype=torch.float32)
    parts = storage.split([shape.numel() for shape in shapes.values()])
    tensors = {name: part.view(shape) for part, (name, shape) in zip(parts, shapes.items(), strict=True)}
    write_timm_folder(tensors, settings, tmp_path / "encoder")
    written = load_file(tmp_path / "encoder" / "model.safetensors")
    assert torch.equal(written["blocks.0.norm1.weight"], tensors["blocks.0.norm1.weight"])
