"""A folder of weights never runs code of its own, and never asks whether it may."""

import ast
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.captioning.weights_folder import load_pretrained
from pipeline.config import Language, QFormer, Vision
from pipeline.models.build import build_tokenizer, qformer_shape
from pipeline.models.encoders import load_encoder, vision_width
from pipeline.models.language import build_language
from tests.support.tiny_captioning_models import save_tiny_blip

ROOT = Path(__file__).parents[3]
LOADING = ("from_pretrained", "from_config")


class AnswersYes(io.StringIO):
    def readline(self, size: int = -1, /) -> str:
        return "y\n"


def with_code(source: Path, folder: Path, proof: Path, automatic: dict[str, Any], model_type: str | None) -> Path:
    """A copy of a folder whose configuration names a class of its own, in a file that leaves a proof when run."""
    shutil.copytree(source, folder)
    (folder / "evil.py").write_text(f"open({str(proof)!r}, 'w')\nclass Evil: pass\n")
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json"):
        path = folder / name
        content = json.loads(path.read_text()) if path.exists() else {}
        content["auto_map"] = automatic
        if model_type and name == "config.json":
            content["model_type"] = model_type
        path.write_text(json.dumps(content))
    return folder


CLASSES = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoImageProcessor", "AutoProcessor")
EVIL: dict[str, Any] = {name: "evil.Evil" for name in CLASSES} | {"AutoTokenizer": ["evil.Evil", None]}  # noqa: C420
LOADERS: dict[str, tuple[str, Callable[[str], object]]] = {
    "language": ("opt", lambda name: build_language(Language(name=name, precision="fp32"), "cpu")),
    "tokenizer": ("bert", lambda name: build_tokenizer(QFormer(bert=name))),
    "qformer": ("bert", lambda name: qformer_shape(QFormer(bert=name), 32)),
    "vision": ("opt", lambda name: load_encoder(Vision(name=f"transformers:{name}", precision="fp32"), "cpu")),
    "width": ("opt", lambda name: vision_width(Vision(name=f"transformers:{name}", precision="fp32"))),
}


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("part", LOADERS)
def test_a_tower_runs_no_code_of_its_folder(
    part: str, known: bool, towers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, load = LOADERS[part]
    proof = tmp_path / "proof"
    folder = with_code(towers / source, tmp_path / "evil", proof, EVIL, None if known else "evilmodel")
    monkeypatch.setattr(sys, "stdin", AnswersYes())
    try:
        load(str(folder))
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert known or part == "tokenizer"  # which may be of a kind that transformers has
    assert not proof.exists()


def test_a_captioner_runs_no_code_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proof = tmp_path / "proof"
    folder = with_code(save_tiny_blip(tmp_path / "blip", num_layers=1), tmp_path / "evil", proof, EVIL, None)
    monkeypatch.setattr(sys, "stdin", AnswersYes())
    try:
        load_pretrained(folder, "--captioner", "BlipForConditionalGeneration", "BlipProcessor", "cpu")
    except ValueError as error:
        assert "--captioner" in str(error)
    assert not proof.exists()


def test_every_loading_call_forbids_code() -> None:
    calls = [
        (path, call)
        for hall in ("pipeline", "data_prep", "eval")
        for path in (ROOT / hall).rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in LOADING
    ]
    assert len(calls) > 10
    assert not [
        f"{path}:{call.lineno}"
        for path, call in calls
        if ("trust_remote_code", "False") not in {(word.arg, ast.unparse(word.value)) for word in call.keywords}
    ]
