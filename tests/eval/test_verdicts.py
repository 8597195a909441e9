"""What a number says beside the paper's: matches, within noise, differs, or not comparable and why; and the guard."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from eval.metrics.near_pictures import near_pairs, perceptual_hash
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
    assert "63.1 matches" in text and "without deviations" in text and "not comparable" not in text
    assert "whose contents are not compared" in text and "fine-tuned so" not in text


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
    folder = evaluation(tmp_path / "a", data_set="VQAv2 test", split="test", image_size_px=size_px, prompt=prompt)
    rows = [{"name": "accuracy", "protocol": "vqa/official-2021", "subset": subset} | row(value, value, value)
            for subset, value in printed.items()]  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps({"task": "vqa", "n": 447793, "metrics": rows}))
    text = page_of(folder)
    assert all(f"{value} matches" in text for value in printed.values()) and "not comparable" not in text
    (folder / "metrics.json").unlink()
    text = page_of(folder)
    shown = ", ".join(f"{value} {subset}" for subset, value in printed.items())
    assert "eval.submit writes its file" in text and "ViT-g + FlanT5-XL, " in text and f": {shown}." in text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"is_published_set": False}, "this is not VQAv2 val, or not all of it"),
        ({"num_beams": 1}, "num_beams 1, the paper has 5"),
        ({"prompt": "Q: {}"}, "prompt 'Q: {}', the paper has 'Question: {} Short answer:'"),
        ({"image_size_px": 364}, "image_size_px 364, the paper has 224"),
        ({"vision": "vit_tiny"}, "these weights stand on vit_tiny + flan-t5-xl"),
        ({"image_source": "none"}, "the pictures were not shown"),
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


def test_how_weights_of_others_were_trained_is_not_claimed(tmp_path: Path) -> None:
    text = page_of(evaluation(tmp_path / "a", weights_format="lavis"))
    assert "without deviations" not in text and "how these weights were trained is not known" in text


def test_near_pairs_equal_a_comparison_of_all_with_all() -> None:
    rng = np.random.default_rng(0)
    own = rng.integers(0, 1 << 63, 300).astype(np.uint64)
    flips = [sum(1 << int(bit) for bit in rng.choice(64, size=place % 6, replace=False)) for place in range(300)]
    training = np.concatenate([own ^ np.array(flips, np.uint64), rng.integers(0, 1 << 63, 2000).astype(np.uint64)])
    for bits in range(4):
        expected = np.argwhere(np.bitwise_count(own[:, None] ^ training[None]) <= bits)
        assert sorted(near_pairs(own, training, bits)) == [tuple(pair) for pair in expected.tolist()]


def save_photo(path: Path, seed: int, size: int, quality: int = 90) -> Path:
    """A smooth picture: coloured waves."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:1:256j, 0:1:256j]
    waves = sum(np.sin(2 * np.pi * (rng.normal(0, 3) * x + rng.normal(0, 3) * y) + rng.random()) for _ in range(6))
    pixels = np.stack([127 + 20 * waves + shift for shift in (0, 20, -20)], axis=-1)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).resize((size, size))
    image.save(path, quality=quality)
    return path


def test_a_resized_recompressed_copy_has_a_near_hash_and_others_have_not(tmp_path: Path) -> None:
    hashes = [perceptual_hash(save_photo(tmp_path / f"{seed}.jpg", seed, 256)) for seed in range(20)]
    copies = [perceptual_hash(save_photo(tmp_path / f"c{seed}.jpg", seed, 120, 60)) for seed in range(20)]
    own, others = np.array(hashes, np.uint64), np.array(copies, np.uint64)
    assert list(near_pairs(own, others)) == [(seed, seed) for seed in range(20)]
    Image.new("RGB", (50, 50), (3, 4, 5)).save(tmp_path / "flat.png")
    assert perceptual_hash(tmp_path / "flat.png") is None


def test_the_guard_names_evaluation_pictures_that_were_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [[seed, str(save_photo(tmp_path / f"{seed}.jpg", seed, 200))] for seed in range(5)]
    copies = [perceptual_hash(save_photo(tmp_path / f"c{seed}.jpg", seed, 150, 70)) for seed in (1, 3, 7)]
    ledger = pyarrow.table(
        {
            "phash": pyarrow.array([*copies, None], pyarrow.uint64()),
            "status": ["kept", "dropped", "kept", "kept"],
            "url": [f"https://host/{name}.jpg" for name in ("one", "three", "seven", "flat")],
        }
    )
    (tmp_path / "ledgers" / "laion").mkdir(parents=True)
    pyarrow.parquet.write_table(ledger, tmp_path / "ledgers" / "laion" / "00000.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"other": [1]}), tmp_path / "ledgers" / "other.parquet")
    text = page_of(evaluation(tmp_path / "a", images=images), "--training-hashes", tmp_path / "ledgers")
    assert "1 of 5 pictures are near one of 2 training pictures: image 1: https://host/one.jpg" in text
    assert "three" not in text
    folder = evaluation(tmp_path / "b", images=images[4:])
    assert "none of 1 pictures" in page_of(folder, "--training-hashes", tmp_path / "ledgers")
    flags = ["--output", str(tmp_path / "r.html"), "--training-hashes", str(tmp_path / "ledgers" / "other.parquet")]
    assert report([str(folder), *flags]) == 1
    assert "no parquet with a column 'phash'" in capsys.readouterr().err


def test_sources_that_contain_the_evaluation_set_are_named(tmp_path: Path) -> None:
    from tests.support.tiny_shards import tiny_manifest

    manifest = tiny_manifest(tmp_path / "data", 6)
    content = json.loads(manifest.read_text())
    sources = {shard["source"] for shard in content["shards"]}
    manifest.write_text(manifest.read_text().replace(f'"{sources.pop()}"', '"visual_genome"'))
    folder = evaluation(tmp_path / "a")
    task = json.loads((folder / "task.json").read_text())
    task["recipe"]["data"]["manifest"] = str(manifest)
    (folder / "task.json").write_text(json.dumps(task))
    said = "visual_genome: half of Visual Genome's pictures are COCO's, val2014 among them"
    assert said in page_of(folder)
    (folder / "task.json").write_text(json.dumps(task | {"is_published_set": False}))
    assert said not in page_of(folder), "of one's own pictures nothing is known"

    from pipeline.config import load_recipe
    from pipeline.weights.native import save_tensors

    stage1 = load_recipe(Path("pipeline/recipes/stage1_vitg.yaml"), [f"data.manifest={manifest}"])
    save_tensors({}, stage1, 5, tmp_path)  # what the weights began with saw those pictures
    task["recipe"]["data"]["manifest"] = None
    for place, seen in ((tmp_path, True), (tmp_path / "gone", False)):
        task["recipe"]["init_weights"] = str(place)
        (folder / "task.json").write_text(json.dumps(task))
        assert (said in page_of(folder)) == seen
