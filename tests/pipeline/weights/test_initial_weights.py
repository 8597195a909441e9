"""`init_weights`: a bridge continues with the towers it was trained with, or when told otherwise."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import Recipe, parse_recipe
from pipeline.models.build import build_bridge
from pipeline.weights.initial import initialise
from pipeline.weights.native import read_weights, save_weights
from tests.support.random_bridges import randomise
from tests.support.tiny_towers import save_tiny_opt, save_tiny_vision, tiny_recipe


def recipe(folder: Path, stage: int, **more: Any) -> Recipe:
    language = "opt" if stage == 2 else None
    return parse_recipe(
        tiny_recipe(folder / "towers", folder / "manifest.json", folder / "run", stage, language) | more
    )


def trained(folder: Path, stage: int) -> Path:
    """Weights of random numbers in a folder of their own."""
    settings = recipe(folder, stage)
    place = folder / f"stage{stage}"
    place.mkdir()
    save_weights(randomise(build_bridge(settings), seed=3).float(), settings, 7, place)
    return place


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("init")
    (folder / "towers").mkdir()
    trained(folder, 1)
    trained(folder, 2)
    save_tiny_vision(folder / "other_eyes", seed=1)
    save_tiny_opt(folder / "other_words", seed=1)
    return folder


def test_stage_2_takes_all_that_stage_1_shares_with_it(folder: Path) -> None:
    settings = recipe(folder, 2, init_weights=str(folder / "stage1"))
    bridge = build_bridge(settings)
    fresh = bridge.language_projection.weight.clone()  # type: ignore[union-attr]
    initialise(bridge, settings)
    source = randomise(build_bridge(recipe(folder, 1)), seed=3).float().state_dict()
    for name, tensor in bridge.state_dict().items():
        assert name.startswith("language_projection.") or torch.equal(tensor, source[name]), name
    assert torch.equal(bridge.language_projection.weight, fresh)  # type: ignore[union-attr]


@pytest.mark.parametrize(("stage", "field"), [(1, "vision.name"), (2, "vision.name"), (2, "language.name")])
def test_weights_of_other_towers_are_refused_unless_told(folder: Path, stage: int, field: str) -> None:
    section = field.partition(".")[0]
    places = {"vision": f"local-dir:{folder / 'other_eyes'}", "language": str(folder / "other_words")}
    settings = recipe(folder, 2, init_weights=str(folder / f"stage{stage}"))
    changed = getattr(settings, section).model_copy(update={"name": places[section]})
    settings = settings.model_copy(update={section: changed})
    with pytest.raises(ValueError, match=field) as refused:
        initialise(build_bridge(settings), settings)
    assert places[section] in str(refused.value) and "init_from_other_towers" in str(refused.value)
    initialise(build_bridge(settings), settings.model_copy(update={"init_from_other_towers": True}))


def asking(folder: Path, **more: Any) -> Recipe:
    """A stage-2 recipe whose Q-Former reads questions."""
    plain = tiny_recipe(folder / "towers", folder / "manifest.json", folder / "run", 2, "opt")
    changes = {"qformer": {"question": "question"}, "data": {"sample": "question"}}
    changes["language"] = {"prompt": "question {} answer"}
    return parse_recipe(plain | {name: plain[name] | fields for name, fields in changes.items()} | more)  # type: ignore[operator]


def test_a_qformer_that_reads_questions_takes_its_text_path_from_stage_1(folder: Path) -> None:
    settings = asking(folder, init_weights=str(folder / "stage2"), init_text_weights=str(folder / "stage1"))
    bridge = build_bridge(settings)
    initialise(bridge, settings)
    of_stage = {stage: read_weights(folder / f"stage{stage}")[1] for stage in (1, 2)}
    names = {name for name, _ in bridge.named_parameters()}
    assert names > set(of_stage[2]) and "qformer.layers.3.text_ffn.output.weight" not in names
    for name, tensor in bridge.named_parameters():
        assert torch.equal(tensor, of_stage[2 if name in of_stage[2] else 1][name]), name
    straight = settings.model_copy(update={"init_weights": folder / "stage1", "init_text_weights": None})
    bridge = build_bridge(straight)
    initialise(bridge, straight)
    for name, tensor in bridge.named_parameters():
        assert name.startswith("language_projection.") or torch.equal(tensor, of_stage[1][name]), name


def test_a_text_path_never_comes_from_bert_without_a_word(folder: Path) -> None:
    settings = asking(folder, init_weights=str(folder / "stage2"))
    with pytest.raises(ValueError, match=r"have no text path.*set init_text_weights to the stage-1 run"):
        initialise(build_bridge(settings), settings)
    wrong = settings.model_copy(update={"init_text_weights": folder / "stage2"})
    with pytest.raises(ValueError, match=r"init_text_weights .*stage2: are of stage 2; give a stage-1 run"):
        initialise(build_bridge(wrong), wrong)
    (folder / "asking").mkdir()
    save_weights(build_bridge(settings), settings, 1, folder / "asking")
    twice = settings.model_copy(update={"init_weights": folder / "asking", "init_text_weights": folder / "stage1"})
    with pytest.raises(ValueError, match="have a text path; remove init_text_weights"):
        initialise(build_bridge(twice), twice)
    plain = recipe(folder, 2, init_weights=str(folder / "asking"))
    with pytest.raises(ValueError, match=r"reads questions, and qformer\.question is 'none'; start from a stage-2 run"):
        initialise(build_bridge(plain), plain)
    with pytest.raises(ValueError, match="completes init_weights for a Q-Former that reads questions"):
        recipe(folder, 2, init_weights=str(folder / "stage2"), init_text_weights=str(folder / "stage1"))


def test_a_text_path_of_another_tokenizer_is_refused(folder: Path) -> None:
    """Its tokens would have other meanings, in the same shapes."""
    settings = asking(folder, init_weights=str(folder / "stage2"), init_text_weights=str(folder / "other"))
    (folder / "other").mkdir()
    of_stage_1 = recipe(folder, 1)
    elsewhere = of_stage_1.qformer.model_copy(update={"bert": "another-bert"})
    save_weights(build_bridge(of_stage_1), of_stage_1.model_copy(update={"qformer": elsewhere}), 1, folder / "other")
    with pytest.raises(ValueError, match=r"init_text_weights .*other: were trained with qformer\.bert another-bert"):
        initialise(build_bridge(settings), settings)


def test_another_configuration_of_the_language_model_is_another_tower(folder: Path) -> None:
    """Public FlanT5 bridges were trained with exact GELU: one trained so does not continue with the other."""
    settings = recipe(folder, 2, init_weights=str(folder / "stage2"))
    assert settings.language is not None
    changed = settings.language.model_copy(update={"config": {"activation_function": "gelu"}})
    settings = settings.model_copy(update={"language": changed})
    with pytest.raises(ValueError, match=r"language\.config"):
        initialise(build_bridge(settings), settings)
