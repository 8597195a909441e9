"""The same predictions from native weights and from LAVIS' and transformers' copies of them, each known by content."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from eval.run import main as predict
from pipeline.config import parse_recipe
from pipeline.convert import main as convert
from pipeline.models.build import build_bridge
from pipeline.weights.native import save_weights
from tests.support.random_bridges import randomise
from tests.support.tiny_towers import save_tiny_eva, tiny_recipe

Folders = dict[str, Path]
FORMATS = ("lavis", "huggingface")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """`KIND` native, `KIND.lavis`, `KIND.huggingface` and `KIND.yaml`: stage 1, an OPT, and `tuned`, fine-tuned."""
    root = tmp_path_factory.mktemp("formats")
    (root / "towers").mkdir()
    save_tiny_eva(root / "towers" / "vision")
    folders = {}
    for kind in ("stage1", "opt", "tuned"):
        stage, language = (1, None) if kind == "stage1" else (2, "opt")
        content: dict[str, Any] = tiny_recipe(root / "towers", root / "m.json", root / "run", stage, language)
        content["vision"] |= {"trained": True, "image_size_px": 48} if kind == "tuned" else {}
        recipe = parse_recipe(content)
        folders[kind], folders[f"{kind}.yaml"] = root / kind, root / f"{kind}.yaml"
        folders[kind].mkdir()
        folders[f"{kind}.yaml"].write_text(json.dumps(recipe.model_dump(mode="json")))
        save_weights(randomise(build_bridge(recipe), seed=3).float(), recipe, 7, folders[kind])
        for name in FORMATS:
            target = root / (f"{kind}.pth" if name == "lavis" else f"{kind}_folder")
            assert convert([str(folders[kind]), str(target), "--from", "native", "--to", name]) == 0
            folders[f"{kind}.{name}"] = target
    return folders


def run(weights: Path, task: str, data: Path, output: Path, *more: object) -> int:
    flags = ("--weights", weights, "--task", task, "--data", data, "--output", output, "--batch-size", 4, *more)
    return predict([str(flag) for flag in flags])


@pytest.mark.parametrize("name", FORMATS)
def test_answers_and_scores_do_not_depend_on_the_format(
    name: str, exported: Folders, sets: Folders, tmp_path: Path
) -> None:
    assert run(exported["opt"], "vqa", sets["vqav2"], tmp_path / "own") == 0
    recipe = ("--recipe", exported["opt.yaml"])
    assert run(exported[f"opt.{name}"], "vqa", sets["vqav2"], tmp_path / "other", *recipe) == 0
    own, other = ((tmp_path / each / "predictions.json").read_bytes() for each in ("own", "other"))
    assert own == other and len({each["answer"] for each in json.loads(own)}) > 1
    assert run(exported["stage1"], "retrieval", sets["coco"], tmp_path / "own_r") == 0
    recipe = ("--recipe", exported["stage1.yaml"])
    assert run(exported[f"stage1.{name}"], "retrieval", sets["coco"], tmp_path / "other_r", *recipe) == 0
    own_scores, other_scores = (np.load(tmp_path / each / "scores.npz") for each in ("own_r", "other_r"))
    for each in ("itc", "itm"):
        assert np.array_equal(own_scores[each], other_scores[each], equal_nan=True)


@pytest.mark.parametrize("name", FORMATS)
def test_fine_tuned_weights_of_others_see_with_their_own_encoder(
    name: str, exported: Folders, sets: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(exported["tuned"], "captioning", sets["coco"], tmp_path / "own") == 0
    weights, recipe = exported[f"tuned.{name}"], ("--recipe", exported["tuned.yaml"])
    capsys.readouterr()
    assert run(weights, "captioning", sets["coco"], tmp_path / "other", *recipe) == 0
    assert "are not used" not in capsys.readouterr().err
    own, other = ((tmp_path / each / "predictions.json").read_bytes() for each in ("own", "other"))
    assert own == other and len({each["caption"] for each in json.loads(own)}) > 1
    frozen = ("--set", "vision.trained=false")
    assert run(weights, "captioning", sets["coco"], tmp_path / "frozen", *recipe, *frozen) == 0
    warned = [
        line for line in capsys.readouterr().err.splitlines() if "tensors of its image encoder are not used" in line
    ]
    assert len(warned) == 1 and "vision.trained: true" in warned[0]


@pytest.mark.parametrize("name", FORMATS)
def test_another_file_or_recipe_at_the_old_path_never_meets_old_answers(
    name: str, exported: Folders, sets: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / ("w.pth" if name == "lavis" else "w")
    (shutil.copyfile if name == "lavis" else shutil.copytree)(exported[f"opt.{name}"], weights)
    recipe = ("--recipe", exported["opt.yaml"])
    assert run(weights, "vqa", sets["vqav2"], tmp_path / "out", *recipe) == 0
    assert run(weights, "vqa", sets["vqav2"], tmp_path / "out", *recipe) == 0
    assert "already complete" in capsys.readouterr().out
    edit = ("--set", "language.end_text=photo")
    assert run(weights, "vqa", sets["vqav2"], tmp_path / "out", *recipe, *edit) == 1
    assert "weights_sha256" in capsys.readouterr().err
    file = weights if name == "lavis" else weights / "config.json"
    file.write_bytes(file.read_bytes() + b"\n")
    assert run(weights, "vqa", sets["vqav2"], tmp_path / "out", *recipe) == 1
    assert "weights_sha256" in capsys.readouterr().err


def rewrite_json(name: str, **changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
        (folder / name).write_text(json.dumps(content | changes))

    return edit


def change_weights(change: Callable[[Tensor], Tensor]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors = {
            name: change(tensor) if "layers.0.fc1.weight" in name else tensor for name, tensor in tensors.items()
        }
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return edit


def rotate_ids(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    words = sorted(content["model"]["vocab"], key=content["model"]["vocab"].__getitem__)[-4:]
    ids = [content["model"]["vocab"][word] for word in words]
    content["model"]["vocab"] |= dict(zip(words, [*ids[1:], ids[0]], strict=True))
    (folder / "tokenizer.json").write_text(json.dumps(content))


CHANGES: dict[str, Callable[[Path], None]] = {
    "weights": change_weights(lambda tensor: tensor + 0.5),
    "rows in another order": change_weights(lambda tensor: tensor.flip(0).contiguous()),
    "activation": rewrite_json("config.json", activation_function="gelu"),
    "decoding": rewrite_json("generation_config.json", no_repeat_ngram_size=1),
    "tokenizer": rotate_ids,
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_towers_at_the_old_path_never_go_on_with_old_answers(
    exported: Folders, sets: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    folder = exported["opt"].parent / "towers" / "opt"
    shutil.copytree(folder, tmp_path / "kept")
    out, arguments = tmp_path / "out", (exported["opt"], "vqa", sets["vqav2"])
    assert run(*arguments, out) == 0
    try:
        CHANGES[change](folder)
        assert run(*arguments, out) == 1
        (out / "COMPLETE").unlink()
        assert run(*arguments, out) == 1
    finally:
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "kept", folder)
    errors = capsys.readouterr().err.splitlines()
    assert sum("it holds predictions with towers." in line for line in errors) == 2
    assert run(*arguments, out) == 0


def test_a_recipe_that_is_missing_or_in_the_way_is_named(
    exported: Folders, sets: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(exported["opt.lavis"], "vqa", sets["vqav2"], tmp_path / "out") == 1
    assert "(lavis) do not name their towers; give a recipe" in capsys.readouterr().err
    assert run(exported["opt"], "vqa", sets["vqav2"], tmp_path / "out", "--recipe", exported["opt.yaml"]) == 1
    assert "hold their own recipe; remove --recipe" in capsys.readouterr().err
