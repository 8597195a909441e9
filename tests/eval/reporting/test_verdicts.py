"""What a number says beside the paper's: matches, within noise, differs, or not comparable and why."""

import json
from pathlib import Path
from typing import Any

import pytest

from eval.report import main as report
from eval.reporting.verdicts import verdict
from tests.eval.test_report import Page

Folders = dict[str, Path]
VITG_T5 = "pipeline/recipes/stage2_vitg_flant5xl.yaml"


def row(value: float, low: float, high: float) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high}


@pytest.mark.parametrize(
    ("found", "reasons", "said"),
    [
        (row(63.08, 62.9, 63.3), [], "matches"),
        (row(63.3, 63.05, 63.6), [], "within noise"),
        (row(64.0, 63.8, 64.2), [], "differs"),
        (row(63.1, 62.9, 63.3), ["another set"], "not comparable"),
        ({"value": 63.3, "low": None, "high": None}, [], "differs"),
    ],
)
def test_a_verdict_follows_the_printed_digit_then_the_interval(
    found: dict[str, Any], reasons: list[str], said: str
) -> None:
    assert verdict(found, 63.1, reasons) == said


def test_two_printed_decimals_must_both_agree() -> None:
    assert verdict(row(81.58, 81.5, 81.7), 81.55, [], 2) == "within noise"
    assert verdict(row(81.551, 81.5, 81.7), 81.55, [], 2) == "matches"


def evaluation(folder: Path, **changes: Any) -> Path:
    """An evaluation of the paper's ViT-g and FlanT5-XL on all of VQAv2 val, as the paper predicted, scored 63.1."""
    from pipeline.config import load_recipe

    folder.mkdir()
    recipe = load_recipe(Path(VITG_T5)).model_dump(mode="json")
    task = {
        "task": "vqa", "data_set": "VQAv2 val", "is_published_set": True, "image_source": "own", "images": [],
        "split": "val", "limit": "all", "data": "vqav2", "annotations": "q.json", "annotations_sha256": "cd" * 32,
        "weights_sha256": "ab" * 32, "vision": recipe["vision"]["name"], "language": recipe["language"]["name"],
        "image_size_px": 224, "prompt": "Question: {} Short answer:", "num_beams": 5, "max_new_tokens": 10,
        "min_new_tokens": 1, "length_penalty": -1.0, "recipe": recipe,
    }  # fmt: skip
    (folder / "task.json").write_text(json.dumps(task | changes))
    rows = [{"name": "accuracy", "protocol": "vqa/legacy-2017", "subset": "overall"} | row(63.12, 62.9, 63.3)]
    (folder / "metrics.json").write_text(json.dumps({"task": "vqa", "n": 214354, "metrics": rows}))
    return folder


def page_of(folder: Path, *more: object) -> str:
    output = folder.parent / f"{folder.name}.html"
    assert report([str(folder), "--output", str(output), *map(str, more)]) == 0
    return " ".join(Page(output.read_text()).text.split())


def test_the_papers_own_setting_matches_and_nothing_deviates(tmp_path: Path) -> None:
    text = page_of(evaluation(tmp_path / "a"))
    assert "63.1 matches" in text and "The recipe is the shipped one" in text and "not comparable" not in text
    assert "their contents were not compared" in text and "fine-tuned in the same way" not in text


@pytest.mark.parametrize(
    ("size_px", "prompt", "printed"),
    [
        (224, "Question: {} Short answer:", {"test-dev": 63.0}),
        (490, "Question: {} Answer:", {"test-dev": 81.55, "test-std": 81.66}),  # fine-tuned: Table 4
    ],
)
def test_hidden_answers_stand_beside_the_papers_server_numbers(
    size_px: int, prompt: str, printed: dict[str, float], tmp_path: Path
) -> None:
    origin = "native" if size_px == 224 else "lavis"  # what is pre-trained here is not compared with fine-tuned weights
    changes = {"image_size_px": size_px, "prompt": prompt, "weights_format": origin}
    folder = evaluation(tmp_path / "a", data_set="VQAv2 test", split="test", **changes)
    rows = [{"name": "accuracy", "protocol": "vqa/official-2021", "subset": subset} | row(value, value, value)
            for subset, value in printed.items()]  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps({"task": "vqa", "n": 447793, "metrics": rows}))
    text = page_of(folder)
    assert all(f"{value} matches" in text for value in printed.values()) and "not comparable" not in text
    (folder / "metrics.json").unlink()
    text = page_of(folder)
    shown = ", ".join(f"{value} {subset}" for subset, value in printed.items())
    assert "eval.submit writes the file for it" in text and "ViT-g + FlanT5-XL, " in text and f": {shown}." in text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"is_published_set": False}, "the data is not the whole of VQAv2 val"),
        ({"num_beams": 1}, "num_beams 1, the paper has 5"),
        ({"prompt": "Q: {}"}, "prompt 'Q: {}', the paper has 'Question: {} Short answer:'"),
        ({"image_size_px": 364}, "image_size_px 364, the paper has 224"),
        ({"vision": "vit_tiny"}, "these weights have other towers: vit_tiny + flan-t5-xl"),
        (
            {"vision": "eva_giant_patch14_clip_224.merged2b"},
            "these weights have other towers: eva_giant_patch14_clip_224.merged2b",
        ),
        ({"image_source": "none"}, "the model did not see the right pictures"),
    ],
)
def test_what_makes_it_another_number_is_said(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    text = page_of(evaluation(tmp_path / "a", **changes))
    assert reason in text and " matches" not in text


def test_deviations_of_the_recipe_are_listed_by_field(tmp_path: Path) -> None:
    from pipeline.config import load_recipe

    edits = ["optimizer.peak_learning_rate=2e-4", "run.steps=40000", "run.output=elsewhere", "batch.micro_size=10"]
    recipe = load_recipe(Path(VITG_T5), edits).model_dump(mode="json")
    text = page_of(evaluation(tmp_path / "a", recipe=recipe))
    assert "optimizer.peak_learning_rate 0.0002, shipped 0.0001" in text and "run.steps 40000, shipped 80000" in text
    assert "elsewhere" not in text and "micro_size" not in text and "63.1 matches" in text


@pytest.mark.parametrize("name", ["eva_giant_patch14_clip_224", "hf-hub:timm/eva_giant_patch14_clip_224.laion400m"])
def test_a_tower_by_another_of_its_names_hides_no_deviation(name: str, tmp_path: Path) -> None:
    from pipeline.config import load_recipe

    edits = ["optimizer.peak_learning_rate=5e-3", f"vision.name={name}"]
    recipe = load_recipe(Path(VITG_T5), edits).model_dump(mode="json")
    text = page_of(evaluation(tmp_path / "a", recipe=recipe, vision=name))
    assert "optimizer.peak_learning_rate 0.005, shipped 0.0001" in text and "vision.name" not in text


def test_stage_2_without_stage_1_is_a_deviation(tmp_path: Path) -> None:
    from pipeline.config import load_recipe

    recipe = load_recipe(Path(VITG_T5), ["init_weights=null"]).model_dump(mode="json")
    text = page_of(evaluation(tmp_path / "a", recipe=recipe))
    assert "init_weights None, shipped 'runs/stage1_vitg'" in text and "The recipe is the shipped one" not in text
    recipe = load_recipe(Path(VITG_T5), ["init_weights=mine"]).model_dump(mode="json")
    assert "The recipe is the shipped one" in page_of(evaluation(tmp_path / "b", recipe=recipe))


@pytest.mark.parametrize("origin", [{"weights_format": "lavis"}, {"converted_from": "lavis: blip2_pretrained.pth"}])
def test_how_weights_of_others_were_trained_is_not_claimed(origin: dict[str, str], tmp_path: Path) -> None:
    text = page_of(evaluation(tmp_path / "a", **origin))
    assert "The recipe is the shipped one" not in text and "It is not known how these weights were trained" in text
    assert "a: the training data is not fully known" in text


def test_pre_trained_weights_are_not_compared_with_fine_tuned_ones(tmp_path: Path) -> None:
    changes = {"task": "captioning", "data_set": "COCO Karpathy test", "split": "test", "image_size_px": 364,
               "prompt": "a photo of", "max_new_tokens": 30, "min_new_tokens": 8, "length_penalty": 1.0}  # fmt: skip
    for name, origin, said in (("a", "native", "these weights are pre-trained"), ("b", "lavis", "144.5 differs")):
        folder = evaluation(tmp_path / name, weights_format=origin, **changes)
        rows = [{"name": "cider", "protocol": "captions/pycocoevalcap-1.2", "subset": "overall"} | row(100, 99, 101)]
        (folder / "metrics.json").write_text(json.dumps({"task": "captions", "n": 5000, "metrics": rows}))
        assert said in page_of(folder)


def test_hidden_numbers_are_shown_at_once_with_the_papers_digits(tmp_path: Path) -> None:
    changes = {"image_size_px": 490, "prompt": "Question: {} Answer:", "weights_format": "lavis"}
    folder = evaluation(tmp_path / "a", data_set="VQAv2 test", split="test", **changes)
    rows = [{"name": "accuracy", "protocol": "vqa/official-2021", "subset": "test-dev"} | row(81.553, 81.4, 81.7)]
    (folder / "metrics.json").write_text(json.dumps({"task": "vqa", "n": 447793, "metrics": rows}))
    assert "81.55 matches" in page_of(folder)
    page = (tmp_path / "a.html").read_text()
    assert "<b>81.55</b>" in page and "81.40 &ndash; 81.70" in page and "<details>" not in page
