"""Conversion of hostile, damaged and unfitting files: one line names the file or the tensor, nothing is written."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.pipeline.test_convert import convert, natives  # noqa: F401  (a fixture)

# ruff: noqa: F811


class Runs:
    """What a hostile pickle does when it is loaded with its code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.touch, (self.path,))


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
    state["Qformer.cls.predictions.decoder.weight"] = state["Qformer.cls.predictions.decoder.weight"] + 1
    return "Qformer.cls.predictions.decoder.weight"


@pytest.mark.parametrize("fault", ["missing", "extra", "shape", "untied"])
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
