"""The card beside converted weights: the hub's fields, data by source, scores of these weights alone, nothing live."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from pipeline.config import Recipe, parse_recipe
from pipeline.convert import main
from pipeline.files import sha256_of
from pipeline.model_card import HUGGINGFACE, NATIVE, Origin, model_card, read_scores
from pipeline.models.build import build_bridge
from pipeline.weights.native import FILE_NAME, save_weights
from pipeline.weights.tower_sources import towers_of
from tests.support.documents import ROOT, unknown_names
from tests.support.tiny_shards import tiny_manifest
from tests.support.tiny_towers import tiny_recipe

PAPER = {
    "stage": 2,
    "vision": {"name": "eva_giant_patch14_clip_224.laion400m"},
    "language": {"name": "facebook/opt-2.7b", "precision": "fp16"},
    "data": {"manifest": "m.json"},
    "batch": {"global_size": 4, "micro_size": 4},
    "run": {"output": "runs/x", "steps": 4, "zero": "ds_configs/zero1.json"},
    "init_weights": "runs/stage1",
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stage-1 weights on tiny towers, trained on a tiny manifest."""
    root = tmp_path_factory.mktemp("card")
    manifest = tiny_manifest(root / "data", 6)
    recipe = parse_recipe(tiny_recipe(root / "towers", manifest, root / "run", 1, None))
    (root / "weights").mkdir()
    save_weights(build_bridge(recipe), recipe, 4, root / "weights")
    return root / "weights"


def evaluation(folder: Path, weights_sha256: str, **more: Any) -> Path:
    folder.mkdir()
    task = {"weights_sha256": weights_sha256, "data_set": "Flickr30K test", "split": "test", "image_source": "own",
            "data": "/data/flickr30k", "is_of_published_set": True}  # fmt: skip
    (folder / "task.json").write_text(json.dumps(task | {"limit": "all"} | more))
    rows = [
        {"name": "tr_at_1", "protocol": "ret/k128/itm+itc", "subset": "overall", "value": 12.34, "low": 10, "high": 15},
        {"name": "tr_at_1", "protocol": "ret/chance", "subset": "overall", "value": 0.55, "low": 0.5, "high": 0.5},
    ]
    (folder / "metrics.json").write_text(json.dumps({"task": "retrieval", "n": 1000, "metrics": rows}))
    return folder / "metrics.json"


def convert(weights: Path, target: Path, *more: object) -> int:
    return main([str(each) for each in (weights, target, "--from", "native", "--to", "native", *more)])


def test_a_converted_folder_has_a_card_with_data_and_scores(weights: Path, tmp_path: Path) -> None:
    metrics = evaluation(tmp_path / "flickr", sha256_of(weights / FILE_NAME))
    mine = evaluation(tmp_path / "mine", sha256_of(weights / FILE_NAME), data_set="a|b <i>.jsonl", limit=5,
                      data="/d/a|b <i>.jsonl", is_of_published_set=False)  # fmt: skip
    drawn = evaluation(tmp_path / "drawn", sha256_of(weights / FILE_NAME), data="/w/drawn", is_of_published_set=False)
    assert convert(weights, tmp_path / "out", "--scores", metrics, mine, drawn) == 0
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.pipeline_tag == "zero-shot-image-classification" and card.data.license == "other"
    assert card.data.base_model is None and "blip-2" in card.data.tags  # the towers are local folders
    assert r"| tiny | 6 | 12 | 0 | 1 |" in card.text
    assert r"| Flickr30K test | tr\_at\_1 | 12\.3 | 10\.0 to 15\.0 | 1,000 | ret/k128/itm\+itc |" in card.text
    assert "| drawn (in the format of Flickr30K test, not that set) | tr_at_1 |" in card.text.replace("\\", "")
    assert r"| a\|b \<i\>\.jsonl, the first 5 |" in card.text and "ret/chance" not in card.text
    assert "of step 4" in card.text and "image_size_px:" in card.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights_sha256": "0" * 64}, "of other weights (task.json beside it has 000000000000, SRC is "),
        ({"image_source": "drawn"}, "is not a task.json of eval.run (image_source: "),
    ],
)
def test_scores_of_other_weights_are_refused(
    change: dict[str, Any], message: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"weights_sha256": sha256_of(weights / FILE_NAME)} | change
    metrics = evaluation(tmp_path / "flickr", **settings)
    assert convert(weights, tmp_path / "out", "--scores", metrics) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()
    (metrics.parent / "task.json").unlink()
    assert convert(weights, tmp_path / "out", "--scores", metrics) == 1
    assert "task.json" in capsys.readouterr().err


def test_a_file_of_lavis_has_no_card(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (weights, tmp_path / "a.pth", "--from", "native", "--to", "lavis", "--scores", tmp_path / "m.json")
    with pytest.raises(SystemExit) as ended:
        main([str(each) for each in arguments])
    assert ended.value.code == 2 and "--scores" in capsys.readouterr().err


def paper_recipe(**more: Any) -> Recipe:
    return parse_recipe(PAPER | more)


def test_the_papers_towers_are_named_with_their_licences() -> None:
    towers = {tower.part: (tower.repository, tower.licence) for tower in towers_of(paper_recipe())}
    assert towers == {
        "image encoder": ("timm/eva_giant_patch14_clip_224.laion400m", "mit"),
        "Q-Former's start": ("bert-base-uncased", "apache-2.0"),
        "language model": ("facebook/opt-2.7b", "OPT-175B licence: research only, not commercial"),
    }
    card: Any = ModelCard(model_card("x", "huggingface", paper_recipe(), Origin(0, "", []), []))
    assert card.data.base_model == [
        "timm/eva_giant_patch14_clip_224.laion400m", "google-bert/bert-base-uncased", "facebook/opt-2.7b",
    ]  # fmt: skip
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "image-text-to-text"
    assert "could not be read" in card.text and "research only" in card.text


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("hf-hub:timm/vit_large_patch14_clip_224.openai", "timm/vit_large_patch14_clip_224.openai"),
        ("eva_giant_patch14_clip_224", "timm/eva_giant_patch14_clip_224.laion400m"),
        ("hf-hub:me/eyes@v2", "me/eyes"),
        ("local-dir:/eyes", None),
        ("transformers:facebook/dinov2-small", "facebook/dinov2-small"),
        ("transformers:/eyes", None),
    ],
)
def test_an_image_encoder_has_its_name_on_the_hub(name: str, repository: str | None) -> None:
    [vision, *_] = towers_of(paper_recipe(vision={"name": name}))
    assert vision.repository == repository


def test_converted_weights_tell_no_training_and_hostile_text_is_escaped() -> None:
    recipe = paper_recipe(language={"name": "a/b", "precision": "fp16", "prompt": "```\n# <b>"})
    notes = ["left out: <script>alert(1)</script>", "[a](javascript:b)"]
    text = model_card("<img src=x>\n# a", "native", recipe, Origin(0, "lavis: /x/[y](z).pth", notes), [])
    assert "Not known: the weights were converted" in text and "could not be read" not in text
    body, _, code = text.partition("## Recipe")
    shown = body.split("---\n", 2)[2] + code.split("## Conversion")[1]
    assert "img src" in shown and "alert" in shown and not re.search(r"(?<!\\)[<\[\]]", shown)
    assert "````yaml" in code


ASKED = {"data": {"manifest": "m.json", "sample": "question"},
         "language": {"name": "google/flan-t5-xl", "precision": "bf16", "prompt": "{} ?"}}  # fmt: skip
CAPTIONED = {"data": {"manifest": "m.json", "sample": "caption"}}
STREAMED = {"data": {"urls": "https://host/a.tar"}}


@pytest.mark.parametrize(
    ("form", "changed", "origin", "told"),
    [
        ("native", {}, Origin(1200, "", []), ["what was trained, without frozen towers, of step 1,200."]),
        ("native", CAPTIONED, Origin(0, "", []), ["Fine-tuned on captions."]),
        ("huggingface", ASKED, Origin(0, "", []), ["Fine-tuned on questions.", "the whole model, towers included."]),
        ("native", STREAMED, Origin(4, "", []), ["Streamed from URLs, see the recipe."]),
        ("native", {}, Origin(0, "lavis: a.pth", []), ["Converted from lavis: a.pth.", "Not known: the weights were"]),
        ("native", {}, Origin(4, "", ["left out: the ITG head"]), ["## Conversion\n\n- left out: the ITG head"]),
        ("native", {"vision": {"name": "eva_giant_patch14_clip_224", "trained": True, "precision": "bf16"}},
         Origin(4, "", []), ["| image encoder | eva_giant_patch14_clip_224 | trained | mit |", "| frozen | OPT-175B"]),
    ],
)  # fmt: skip
def test_a_card_says_what_the_weights_are(form: str, changed: dict[str, Any], origin: Origin, told: list[str]) -> None:
    text = model_card("mine", form, paper_recipe(**changed), origin, []).replace("\\", "")
    for each in told:
        assert each in text
    assert "None were given." in text and "Check it on your own data before use." in text


def test_a_score_of_a_rounded_language_model_says_so(tmp_path: Path) -> None:
    metrics = evaluation(tmp_path / "vqa", "0" * 64, recipe={"language": {"precision": "int8"}})
    [[data, *_]] = read_scores([metrics], "0" * 64)
    assert data == "Flickr30K test, language model in int8"


@pytest.mark.parametrize(("image_source", "shown"), [("none", ", without picture"), ("shuffled", ", another picture")])
def test_a_score_without_its_picture_says_so(image_source: str, shown: str, tmp_path: Path) -> None:
    metrics = evaluation(tmp_path / "vqa", "0" * 64, image_source=image_source)
    [[data, *_]] = read_scores([metrics], "0" * 64)
    assert data == f"Flickr30K test{shown}"


@pytest.mark.parametrize("stage", [1, 2])
def test_the_use_that_a_card_names_exists(stage: int) -> None:
    """Its command and flags are this project's; its lines of Python name classes of transformers."""
    import transformers

    assert not list(unknown_names(ROOT / "README.md", f"```bash\n{NATIVE[stage]}\n```"))
    for line in HUGGINGFACE[stage].splitlines():
        if line.startswith("from transformers"):
            assert all(hasattr(transformers, name) for name in line.partition(" import ")[2].split(", "))
    compile(HUGGINGFACE[stage], "card", "exec")
