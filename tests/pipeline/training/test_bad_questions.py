"""Bad input to a fine-tuning on questions: one line that names file, field, value and what to do."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.index import index_shards
from pipeline.config import parse_recipe
from pipeline.data.manifest import COUNTS
from pipeline.models.build import build_bridge
from pipeline.training.run_folder import initial_state
from pipeline.weights import native
from tests.pipeline.training.test_bad_input import Case
from tests.support.tiny_shards import tiny_manifest, write_tiny_shards


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("questions")
    write_tiny_shards(folder / "shards", 4, questions_per_sample=2)
    index_shards([folder / "shards"], folder / "train.json")
    return folder / "train.json"


@pytest.fixture
def case(towers: Path, manifest: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> Iterator[Case]:
    yield Case(towers, manifest, tmp_path, capsys, monkeypatch)


def asking(case: Case, **vision: Any) -> dict[str, Any]:
    content = case.recipe(2, "opt")
    changes = {"qformer": {"question": "question"}, "language": {"prompt": "question {} answer"}}
    changes |= {"data": {"sample": "question"}, "vision": vision}
    return content | {name: content[name] | fields for name, fields in changes.items()}


def weights(case: Case, content: dict[str, Any], name: str) -> Path:
    """Fresh weights of a recipe, in a folder."""
    recipe, folder = parse_recipe(content), case.folder / name
    folder.mkdir()
    native.save_weights(build_bridge(recipe), recipe, 7, folder)
    return folder


def test_weights_of_another_stage_image_size_or_kind_of_encoder(case: Case) -> None:
    stage2 = weights(case, case.recipe(2, "opt"), "stage2")
    captions = tiny_manifest(case.folder / "captions", 4)
    line = case.fault(case.recipe(1), f"init_weights={stage2}", f"data.manifest={captions}")
    assert f"init_weights {stage2}: are of stage 2, and stage is 1; give stage-1 weights" in line
    larger = weights(case, asking(case, trained=True, image_size_px=64), "64 px")
    line = case.fault(asking(case, trained=True), f"init_weights={larger}")
    assert f"init_weights {larger}: hold an image encoder that was trained at 64 px" in line
    assert "vision.image_size_px is 32; set 64" in line
    line = case.fault(asking(case, image_size_px=64), f"init_weights={larger}")
    assert f"init_weights {larger}: hold an image encoder that was trained, and the recipe freezes it" in line


@pytest.mark.parametrize("was_trained", [False, True])
def test_a_run_that_goes_on_with_its_encoder_frozen_or_trained_other_than_before(case: Case, was_trained: bool) -> None:
    before, now = asking(case, trained=was_trained), asking(case, trained=not was_trained)
    recipe = parse_recipe(before)
    saved = case.folder / "run" / "checkpoints" / "step_00000002"
    saved.mkdir(parents=True)
    digest = json.loads(json.dumps(asdict(initial_state(recipe, "digest"))))
    digests = dict.fromkeys(("trainable.safetensors", "optimizer.safetensors"), "00" * 32)
    (saved / "state.json").write_text(json.dumps(digest | {"step": 2, "digests": digests}))
    (saved / "COMPLETE").touch()
    line = case.fault(now)
    assert f"vision.trained was {was_trained} when it was saved and is {not was_trained} now" in line
    assert str(saved) in line and list(saved.iterdir())


def test_a_manifest_without_questions_and_one_without_captions(case: Case) -> None:
    captions = tiny_manifest(case.folder / "captions", 4)
    line = case.fault(asking(case), f"data.manifest={captions}")
    assert f"data.manifest {captions}: its shards hold no questions, and data.sample is 'question'" in line
    for sample in ("image", "caption"):
        line = case.fault(case.recipe(2, "opt"), f"data.sample={sample}")
        assert f"data.manifest {case.manifest}: its shards hold no captions, and data.sample is '{sample}'" in line


def test_all_answers_without_questions(case: Case) -> None:
    line = case.fault(case.recipe(2, "opt"), "data.answers=all")
    assert "answers 'all': sample is 'image', which has no answers; set sample=question" in line
    assert "data.answers" in case.fault(asking(case), "data.answers=some")


def test_questions_longer_than_the_qformer_has_positions(case: Case) -> None:
    line = case.fault(asking(case), "data.max_text_tokens=41")
    assert "data.max_text_tokens 41" in line and "has 40 positions; lower it" in line


def test_shards_whose_questions_have_no_answers(case: Case) -> None:
    """As a tool of others may have left them: not one question can be trained on."""
    [tar] = write_tiny_shards(case.folder / "shards", 3, questions_per_sample=1)
    index_shards([case.folder / "shards"], case.folder / "train.json")
    [table] = (case.folder / "train.index").glob("*.npy")
    np.save(table, np.load(table)[:, :COUNTS])  # of an earlier version, which has no digests of what is there
    content, answers = tar.read_bytes(), b'"answers":'
    assert content.count(answers) == 3
    tar.write_bytes(content.replace(answers, b'"replies":'))
    line = case.fault(asking(case), f"data.manifest={case.folder / 'train.json'}")
    assert str(tar) in line and "has no question 0 with answers" in line and "data_prep.verify" in line
