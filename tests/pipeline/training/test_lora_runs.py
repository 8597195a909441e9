"""Runs with LoRA: under every ZeRO stage, resumed to the bit, evaluated, exported, refused where it has no place."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import Blip2ForConditionalGeneration

import pipeline
from pipeline.config import Recipe, load_recipe, parse_recipe
from pipeline.models.build import build_bridge
from pipeline.weights.initial import initialise
from pipeline.weights.native import load_model, save_weights, trained_tensors, weights_file
from tests.pipeline.weights.test_convert import convert
from tests.support.gloo_ranks import run_on_ranks
from tests.support.random_bridges import randomise
from tests.support.tiny_runs import ROOT, Write, lines_of, train_and_watch, train_here
from tests.support.tiny_towers import save_tiny_eva, tiny_recipe

LORA = ("language.lora.rank=4", "language.lora.alpha=8.0")
STILL = (*LORA, "language.lora.dropout=0.0", "qformer.dropout=0.0")
Run = Callable[..., Path]
Arguments = Callable[..., list[str]]


@pytest.fixture(scope="module")
def arguments(write: Write) -> Arguments:
    """Of a run of 4 steps of 8 samples."""

    def arguments(name: str, *edits: str, language: str = "opt", ranks: int = 1, zero: str = "zero1") -> list[str]:
        policy = str(ROOT / "ds_configs" / f"{zero}.json")
        batch = {"global_size": 8, "micro_size": 8 // ranks}
        return [*write(name, 2, language, batch=batch, run={"steps": 4, "zero": policy}), "--set", *edits]

    return arguments


@pytest.fixture(scope="module")
def run(folder: Path, arguments: Arguments) -> Run:
    """A finished run; its folder. Frozen towers stay as they are, which `train_and_watch` compares."""

    def run(name: str, *edits: str, ranks: int = 1, **others: str) -> Path:
        for code, errors, *_ in run_on_ranks(ranks, train_and_watch, arguments(name, *edits, ranks=ranks, **others)):
            assert code == 0, errors
        return folder / name

    return run


def recipe_of(arguments: list[str]) -> Recipe:
    return load_recipe(Path(arguments[1]), arguments[3:])


def weights_of(folder: Path) -> dict[str, Tensor]:
    return load_file(weights_file(folder))


def lora_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name.startswith("lora.")}


@pytest.fixture(scope="module")
def tuned(run: Run) -> Path:
    return run("tuned", *LORA)


def test_bridge_and_matrices_are_trained_and_a_resumed_run_has_the_same_bits(tuned: Path, folder: Path) -> None:
    whole = weights_of(tuned)
    attention = [f"lora.model.decoder.layers.{layer}.self_attn" for layer in (0, 1)]
    wanted = {f"{a}.{part}_proj.{matrix}.weight" for a in attention for part in "qv" for matrix in "AB"}
    assert lora_of(whole).keys() == wanted
    first = weights_of(tuned / "checkpoints" / "step_00000002")
    assert all(not whole[name].equal(first[name]) for name in wanted)
    assert all(whole[name].abs().max() > 0 for name in wanted)
    resumed = folder / "resumed"
    shutil.copytree(tuned, resumed)
    shutil.rmtree(resumed / "checkpoints" / "step_00000004")
    recipe = ["--recipe", str(folder / "tuned.yaml"), "--set", *LORA, f"run.output={resumed}"]
    [(code, _, errors)] = run_on_ranks(1, train_here, recipe)
    assert code == 0 and "resuming from" in errors, errors
    for name in ("trainable", "optimizer"):
        found, expected = (
            load_file(f / "checkpoints" / "step_00000004" / f"{name}.safetensors") for f in (resumed, tuned)
        )
        assert found.keys() == expected.keys() and all(found[each].equal(expected[each]) for each in expected)


@pytest.mark.parametrize(("language", "zero"), [("opt", "zero2"), ("t5", "zero3")])
def test_two_ranks_under_other_policies_train_the_same(run: Run, language: str, zero: str) -> None:
    one = run(f"{language}_1", *STILL, language=language)
    again = ["language.activation_checkpointing=true"] if zero == "zero3" else []
    two = run(f"{language}_2", *STILL, *again, ranks=2, language=language, zero=zero)
    losses = [[line["loss"] for line in lines_of(each)] for each in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    trained = weights_of(one)
    for name, tensor in weights_of(two).items():
        torch.testing.assert_close(tensor, trained[name], rtol=0, atol=3e-4, msg=name)


def test_an_fp16_language_model_trains_the_same_matrices(run: Run) -> None:
    """Its losses are scaled; the matrices get their gradients unscaled."""
    runs = [run(f"in_{kind}", *STILL, f"language.precision={kind}") for kind in ("fp32", "fp16")]
    norms = [[line["gradient_norm"] for line in lines_of(each)] for each in runs]
    assert norms[1] == pytest.approx(norms[0], rel=0.02)
    exact, rounded = (torch.cat([each.flatten() for each in lora_of(weights_of(each)).values()]) for each in runs)
    assert torch.nn.functional.cosine_similarity(exact, rounded, dim=0) > 0.999


@pytest.fixture(scope="module")
def eva(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights over an encoder that transformers' BLIP-2 has a place for."""
    root = tmp_path_factory.mktemp("eva")
    save_tiny_eva(root / "vision")
    content: dict[str, Any] = tiny_recipe(root, root / "none.json", root / "run", 2, "opt")
    content["language"]["lora"] = {"rank": 4, "alpha": 8.0, "targets": ["q_proj", "fc1"]}
    recipe = parse_recipe(content)
    save_weights(randomise(build_bridge(recipe), seed=3).float(), recipe, 7, root)
    return root


def test_evaluation_has_the_matrices_and_an_export_has_them_merged(eva: Path, tmp_path: Path) -> None:
    model: Any = load_model(eva, "cpu")
    trained = lora_of(weights_of(eva))
    own = {f"lora.{name}": tensor for name, tensor in model.bridge.lora.state_dict().items()}
    assert own.keys() == trained.keys() and all(own[name].equal(trained[name]) for name in trained)
    ids = torch.tensor([[1, 5, 6, 7]])
    ours = model.language.model(input_ids=ids).logits
    assert convert(eva, tmp_path / "exported", "native", "huggingface") == 0
    notes = json.loads((tmp_path / "exported" / "conversion.json").read_text())["notes"]
    assert "LoRA is merged into the language model" in notes and not any("lora" in note for note in notes)
    theirs: Any = Blip2ForConditionalGeneration.from_pretrained(tmp_path / "exported")
    merged = theirs.language_model(input_ids=ids).logits[..., : ours.shape[-1]]
    torch.testing.assert_close(merged, ours, rtol=1e-4, atol=1e-4)
    for name, matrix in model.bridge.lora.named_parameters():
        matrix.data.mul_("A" in name)
    assert not torch.allclose(model.language.model(input_ids=ids).logits, ours, atol=1e-2)


def test_a_trained_model_writes_with_it(tuned: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 40), "red").save(tmp_path / "a.png")
    model: Any = pipeline.load(str(tuned))
    assert isinstance(model.caption(str(tmp_path / "a.png")), str)


def test_lavis_has_no_place_for_it(tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert(tuned, tmp_path / "w.pth", "native", "lavis") == 1
    assert "error: language.lora.rank 4: a file of LAVIS has no place for a language model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        (["rank=0"], "hold LoRA's matrices with language.lora.rank 4, and the recipe has 0; set language.lora.rank=4"),
        (["rank=8", "alpha=8"], "hold LoRA's matrices with language.lora.rank 4, and the recipe has 8; set"),
        (["rank=4"], "hold LoRA's matrices with language.lora.alpha 8.0, and the recipe has 16.0; set"),
        (
            ["rank=4", "alpha=8", "targets=[k_proj]"],
            "with language.lora.targets null, and the recipe has [k_proj]; set",
        ),
    ],
)
def test_weights_with_other_matrices_are_refused(
    tuned: Path, arguments: Arguments, edits: list[str], said: str
) -> None:
    recipe = recipe_of(arguments("other", f"init_weights={tuned}", *(f"language.lora.{edit}" for edit in edits)))
    with pytest.raises(ValueError, match=r"^init_weights ") as error:
        initialise(build_bridge(recipe), recipe)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_fine_tuning_starts_from_weights_without_it_as_those_are(arguments: Arguments, weights: Any) -> None:
    recipe = recipe_of(arguments("fresh", f"init_weights={weights['opt']}", *LORA))
    bridge = build_bridge(recipe)
    initialise(bridge, recipe)
    tensors = trained_tensors(bridge)
    assert all(not tensor.any() for name, tensor in lora_of(tensors).items() if ".B." in name)
    assert all(tensors[name].equal(tensor) for name, tensor in weights_of(weights["opt"]).items())


def test_a_resume_with_another_rank_and_a_sharded_model_are_one_line(folder: Path, tuned: Path) -> None:
    with pytest.raises(ValueError, match=r"run\.layout 'sharded': does not go with language\.lora\.rank 4; set"):
        load_recipe(folder / "tuned.yaml", [*LORA, "run.layout=sharded"])
    recipe = ["--recipe", str(folder / "tuned.yaml"), "--set", "language.lora.rank=8", LORA[1]]
    [(code, _, errors)] = run_on_ranks(1, train_here, recipe)
    assert code == 1 and "language.lora.rank was 4 when it was saved and is 8 now" in errors
