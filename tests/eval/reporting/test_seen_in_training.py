"""The report says what fine-tuned weights have seen, and calls scores on questions of the training meaningless."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import load_recipe
from pipeline.weights.native import save_tensors
from tests.eval.reporting.test_verdicts import evaluation, page_of
from tests.support.tiny_shards import tiny_manifest

VQA = Path("pipeline/recipes/finetune_vqa_flant5xl.yaml")
BOTH = {"vqav2_train2014": 443757, "vqav2_val2014": 214354}
TRAIN = {"vqav2_train2014": 443757}
MEANINGLESS = "Meaningless : these questions were in training (vqav2_val2014)."
CAPTIONED = {"task": "captioning", "data_set": "COCO Karpathy test", "split": "test"}
TEST_PICTURES = "VQAv2 val asks about pictures of Karpathy's test split"


def manifest(folder: Path, source: str, sets: dict[str, int], *cleaned: str) -> Path:
    """A manifest of a shard with these questions for each of `cleaned`, whose pictures were dropped from it."""
    path = tiny_manifest(folder, 6)
    content = json.loads(path.read_text())
    [shard] = content["shards"]
    content["shards"] = [
        shard
        | {"path": f"{place}-{shard['path']}", "sha256": f"{place:064x}", "source": source}
        | {"provenance": {"question_sets": sets, "cleaned_of": {name: 5000} if name else {}}}
        for place, name in enumerate(cleaned or ("",))
    ]
    path.write_text(json.dumps(content))
    return path


def tuned(folder: Path, data: Path, edits: tuple[str, ...] = (), **changes: Any) -> Path:
    """An evaluation of weights that were fine-tuned on this manifest, and whose earlier stages are not there."""
    recipe = load_recipe(VQA, [f"data.manifest={data}", *edits])
    made = evaluation(folder, recipe=recipe.model_dump(mode="json"), **changes)
    if "task" in changes:
        (made / "metrics.json").unlink()  # they are of another task
    return made


def test_scores_on_questions_of_the_training_are_meaningless(tmp_path: Path) -> None:
    data = manifest(tmp_path / "d", "vqav2", BOTH)
    text = page_of(tuned(tmp_path / "a", data)).replace("Meaningless:", "Meaningless :")
    assert MEANINGLESS in text and "63.1 meaningless" in text and "63.1 not comparable" not in text
    assert "Seen in training: pictures of vqav2" in text
    assert "questions of vqav2_train2014 (443,757), vqav2_val2014 (214,354)" in text
    assert "the rest is not known" in text
    own = page_of(tuned(tmp_path / "b", data, is_of_published_set=False, is_published_set=False))
    assert MEANINGLESS in own.replace("Meaningless:", "Meaningless :"), "a set in that format, as a miniature's"


@pytest.mark.parametrize(
    ("sets", "edits"),
    [
        (TRAIN, ()),
        (BOTH, ("data.sample=caption", "qformer.question=none", "init_text_weights=null", "language.prompt=''")),
        (BOTH, ("data.source_weights={vqav2: 0.0}",)),
    ],
    ids=["train alone", "no questions asked", "left out"],
)
def test_questions_that_were_not_trained_on_make_nothing_meaningless(
    sets: dict[str, int], edits: tuple[str, ...], tmp_path: Path
) -> None:
    text = page_of(tuned(tmp_path / "a", manifest(tmp_path / "d", "vqav2", sets), edits))
    assert "eaningless" not in text and "63.1 not comparable" in text
    assert "the paper's number is zero-shot" in text


def test_questions_of_an_earlier_stage_count(tmp_path: Path) -> None:
    data = manifest(tmp_path / "d", "vqav2", BOTH)
    save_tensors({}, load_recipe(VQA, [f"data.manifest={data}"]), 5, tmp_path)
    other = manifest(tmp_path / "other", "visual_genome_qa", {"visual_genome": 9})
    assert "63.1 meaningless" in page_of(tuned(tmp_path / "a", other, (f"init_weights={tmp_path}",)))


def test_after_questions_about_val2014_karpathys_test_pictures_are_seen(tmp_path: Path) -> None:
    text = page_of(tuned(tmp_path / "a", manifest(tmp_path / "d", "vqav2", BOTH), **CAPTIONED))
    assert "Seen in training: pictures of vqav2" in text and TEST_PICTURES in text
    text = page_of(tuned(tmp_path / "b", manifest(tmp_path / "e", "vqav2", TRAIN), **CAPTIONED))
    assert TEST_PICTURES not in text, "the questions of train2014 are about other pictures"


@pytest.mark.parametrize(
    ("cleaned", "is_shared"),
    [((), True), (("karpathy_test",), False), (("karpathy_val",), True), (("vqav2_val2014",), False),
     (("karpathy_test", "karpathy_val"), True)],
)  # fmt: skip
def test_a_source_whose_evaluation_pictures_were_dropped_shares_none(
    cleaned: tuple[str, ...], is_shared: bool, tmp_path: Path
) -> None:
    data = manifest(tmp_path / "d", "visual_genome_qa", {"visual_genome": 9}, *cleaned)
    text = page_of(tuned(tmp_path / "a", data, **CAPTIONED))
    assert ("visual_genome_qa: half of Visual Genome's pictures are COCO's" in text) == is_shared
    text = page_of(tuned(tmp_path / "b", data, task="gqa", data_set="GQA test-dev", split="test-dev"))
    assert "these are questions about them; not zero-shot" in text, "whatever was dropped"


def test_pictures_that_an_earlier_stage_has_seen_are_not_dropped_by_a_later_one(tmp_path: Path) -> None:
    asked, said = {"visual_genome": 9}, "visual_genome_qa: half of Visual Genome's pictures are COCO's"
    data = manifest(tmp_path / "d", "visual_genome_qa", asked, "karpathy_test")
    for name, cleaned, is_shared in (("e", (), True), ("f", ("karpathy_test",), False)):
        first = tmp_path / f"first_{name}"
        first.mkdir()
        earlier = manifest(tmp_path / name, "visual_genome_qa", asked, *cleaned)
        save_tensors({}, load_recipe(VQA, [f"data.manifest={earlier}"]), 5, first)
        text = page_of(tuned(tmp_path / f"of_{name}", data, (f"init_weights={first}",), **CAPTIONED))
        assert (said in text) == is_shared


def test_pre_trained_weights_are_shown_as_before(tmp_path: Path) -> None:
    text = page_of(evaluation(tmp_path / "a"))
    assert "Seen in training" not in text and "63.1 matches" in text
