"""A run goes on where its folders have been moved: places are known by what they hold, and not by their names."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import convert, embed
from pipeline.config import load_recipe
from pipeline.training import checkpoint
from pipeline.weights import native
from tests.support.gloo_ranks import run_on_ranks
from tests.support.tiny_runs import lines_of, train_here, write_recipe
from tests.support.tiny_shards import tiny_manifest
from tests.support.tiny_towers import save_tiny_opt, save_tiny_vision

SPEED = ("_per_s", "_share", "memory_mib")
STEPS = 4


def numbers_of(run: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what differs from one time to the next."""
    return [{name: each for name, each in line.items() if not name.endswith(SPEED)} for line in lines_of(run)]


def train(arguments: list[str], folder: Path | None = None) -> tuple[int, str]:
    """pipeline.train in a rank of its own, from this folder, with the recipes' variables of this process."""
    own = {name: value for name, value in os.environ.items() if name.startswith("BLIP2_")}
    [(code, _, errors)] = run_on_ranks(1, train_in, arguments, str(folder or Path.cwd()), own)
    return code, errors


def train_in(arguments: list[str], folder: str, variables: dict[str, str]) -> tuple[int, str, str]:
    os.chdir(folder)
    os.environ.update(variables)
    return train_here(arguments)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, towers: Path) -> Path:
    """Towers, data, a finished stage 1, a whole stage 2 `whole`, and `cut`, which has lost its last checkpoint.

    The recipes name everything by relative paths.
    """
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(towers, home / "towers")
    tiny_manifest(home / "data", 24)
    places: dict[str, Any] = {"run": {"output": "stage1", "steps": 2}, "qformer": {"bert": "towers/bert"}}
    vision = {"name": "local-dir:towers/vision"}
    code, errors = train(relative(home, "stage1", 1, None, vision=vision, **places), home)
    assert code == 0, errors
    for name in ("whole", "cut"):
        run = {"output": f"runs/{name}", "steps": STEPS}
        more = {"init_weights": "stage1", "vision": vision, "qformer": places["qformer"]}
        arguments = relative(home, name, 2, "opt", run=run, **more)
        code, errors = train([*arguments, "--set", "language.name=towers/opt"], home)
        assert code == 0, errors
    shutil.rmtree(checkpoint.folder_of(home / "runs" / "cut", STEPS))
    return home


def relative(home: Path, name: str, stage: int, language: str | None, **sections: Any) -> list[str]:
    sections["batch"] = {"global_size": 4, "micro_size": 4}
    arguments = write_recipe(home, home / "towers", Path("data/train.json"), name, stage, language, **sections)
    return ["--recipe", str(Path(arguments[1]).relative_to(home))]


@pytest.fixture
def moved(home: Path, tmp_path: Path) -> Iterator[Path]:
    """All of it elsewhere, each thing under another name, and nothing where it was."""
    for old, new in (("towers/vision", "v"), ("towers/bert", "b"), ("towers/opt", "l"), ("data", "d")):
        shutil.copytree(home / old, tmp_path / new)
    shutil.copytree(home / "runs" / "cut", tmp_path / "run")
    home.rename(home.with_name("gone"))
    yield tmp_path
    home.with_name("gone").rename(home)


def places(moved: Path) -> list[str]:
    return [f"vision.name=local-dir:{moved / 'v'}", f"qformer.bert={moved / 'b'}", f"language.name={moved / 'l'}"]


def resume(moved: Path, *more: str) -> list[str]:
    where = [f"run.output={moved / 'run'}", f"data.manifest={moved / 'd' / 'train.json'}"]
    return ["--recipe", str(moved / "run" / "recipe.yaml"), "--set", *where, *places(moved), *more]


def test_a_moved_run_resumes_from_another_folder_with_the_same_losses(moved: Path, home: Path) -> None:
    elsewhere = moved / "elsewhere"
    elsewhere.mkdir()
    code, errors = train(resume(moved), elsewhere)
    assert code == 0 and "resuming from" in errors, errors
    whole = home.with_name("gone") / "runs" / "whole"
    assert numbers_of(moved / "run") == numbers_of(whole) and len(numbers_of(whole)) == STEPS
    ends = [load_file(checkpoint.folder_of(run, STEPS) / native.FILE_NAME) for run in (moved / "run", whole)]
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())
    state = json.loads((checkpoint.folder_of(moved / "run", STEPS) / "state.json").read_text())
    assert state["settings"]["language"]["name"] == str(moved / "l")
    assert train(resume(moved), elsewhere)[0] == 0  # and is complete


def test_what_is_not_the_same_there_is_refused_and_nothing_is_written(moved: Path) -> None:
    before = (moved / "run" / "recipe.yaml").read_bytes()
    weights = moved / "v" / "model.safetensors"
    tensors = load_file(weights)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, weights)
    code, errors = train(resume(moved))
    assert code == 1 and "towers.vision was" in errors
    save_file(tensors, weights)
    tokenizer = moved / "l" / "tokenizer.json"
    text = tokenizer.read_text()
    tokenizer.write_text(text.replace('"red"', '"rouge"'))
    code, errors = train(resume(moved))
    assert code == 1 and "language.name was" in errors and "run.resume_despite=[language.name]" in errors
    tokenizer.write_text(text)
    other = moved / "other.safetensors"
    first = checkpoint.complete_checkpoints(moved / "run")[0] / native.FILE_NAME
    shutil.copy(first, other)
    code, errors = train(resume(moved, f"init_weights={other}"))
    assert code == 1 and "init_weights was" in errors
    assert (moved / "run" / "recipe.yaml").read_bytes() == before
    assert len(checkpoint.complete_checkpoints(moved / "run")) == 1


def test_a_stage_2_starts_from_a_stage_1_whose_towers_have_moved_and_from_no_other(moved: Path, home: Path) -> None:
    start = [f"init_weights={home.with_name('gone') / 'stage1'}", f"run.output={moved / 'new'}", "run.steps=1"]
    code, errors = train(resume(moved, *start))
    assert code == 0 and "starting from" in errors, errors
    weights = moved / "v" / "model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, weights)
    code, errors = train(resume(moved, *start[:1], f"run.output={moved / 'newer'}"))
    assert code == 1 and "were trained with vision.name" in errors


def test_trained_weights_are_used_where_their_towers_are_now(
    moved: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import pipeline

    with pytest.raises(ValueError, match=r"vision\.name"):
        pipeline.load(moved / "run")  # they are not where they were
    model = pipeline.load(moved / "run", edits=places(moved))
    assert model.recipe.language is not None and model.recipe.language.name == str(moved / "l")
    native_of = ["--from", "native", "--to", "native", "--set", *places(moved)]
    assert convert.main([str(moved / "run"), str(tmp_path / "converted"), *native_of]) == 0
    assert pipeline.load(tmp_path / "converted").recipe == model.recipe
    stage1 = ["--weights", str(home.with_name("gone") / "stage1"), "--output", str(tmp_path / "e.npz")]
    assert embed.main([*stage1, "--text", "a red picture", "--set", *places(moved)[:2]]) == 0
    capsys.readouterr()
    assert embed.main([*stage1, "--text", "a", "--set", "qformer.precision=bf16"]) == 1
    assert "of which only places and the language model's precision" in capsys.readouterr().err
    shutil.rmtree(moved / "l")
    save_tiny_opt(moved / "l", seed=5)
    with pytest.raises(ValueError, match="leads to another than"):
        pipeline.load(moved / "run", edits=places(moved))


def test_a_run_whose_places_a_variable_gave_moves_with_the_variable(
    folder: Path, towers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recipe, metadata and card keep the reference and the value of the training; other towers are refused there."""
    import pipeline

    first, second = tmp_path / "a, {b}: $c é", tmp_path / "second"
    shutil.copytree(towers, first)
    monkeypatch.setenv("BLIP2_TOWERS", str(first))
    at = {"vision": "local-dir:${oc.env:BLIP2_TOWERS}/vision", "bert": "${oc.env:BLIP2_TOWERS}/bert"}
    sections: dict[str, Any] = {"run": {"steps": 1}, "vision": {"name": at["vision"]}, "qformer": {"bert": at["bert"]}}
    sections["batch"] = {"global_size": 4, "micro_size": 4}
    arguments = write_recipe(tmp_path, first, folder / "data" / "train.json", "run", 1, None, **sections)
    code, errors = train(arguments)
    assert code == 0, errors
    monkeypatch.delenv("BLIP2_TOWERS")
    written = (tmp_path / "run" / "recipe.yaml").read_text()
    assert "local-dir:${oc.env:BLIP2_TOWERS,'" in written
    assert load_recipe(tmp_path / "run" / "recipe.yaml") == pipeline.load(tmp_path / "run").recipe
    assert train(["--recipe", str(tmp_path / "run" / "recipe.yaml")])[0] == 0  # complete, without the variable
    monkeypatch.setenv("BLIP2_TOWERS", str(second))
    with pytest.raises(ValueError, match=r"vision\.name"):
        pipeline.load(tmp_path / "run")  # nothing is there
    first.rename(second)
    assert pipeline.load(tmp_path / "run").recipe.qformer.bert == str(second / "bert")
    again = ["--recipe", str(tmp_path / "run" / "recipe.yaml"), "--set", "run.steps=2"]
    assert train([*again, "run.resume_despite=[run.steps]"])[0] == 0
    third = second.rename(tmp_path / "third")
    monkeypatch.setenv("BLIP2_TOWERS", str(third))
    assert pipeline.load(tmp_path / "run").recipe.vision.name == f"local-dir:{third / 'vision'}"
    for name, quote in (("tokenizer.json", '"'), ("vocab.txt", "\n")):
        text = (third / "bert" / name).read_text()
        (third / "bert" / name).write_text(text.replace(f"{quote}red{quote}", f"{quote}rouge{quote}"))
    with pytest.raises(ValueError, match=r"qformer\.bert: .* leads to another than"):
        pipeline.load(tmp_path / "run")
    shutil.rmtree(third / "vision")
    save_tiny_vision(third / "vision", seed=7)
    with pytest.raises(ValueError, match=r"vision\.name: .* leads to another than"):
        pipeline.load(tmp_path / "run")
