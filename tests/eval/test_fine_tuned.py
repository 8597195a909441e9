"""Evaluation of fine-tuned weights: their own encoder and prompt, and questions that the Q-Former reads."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from eval.run import main
from pipeline.config import parse_recipe
from pipeline.data.captions import clean_question
from pipeline.data.transforms import load_evaluation_pixels
from pipeline.models.build import build_bridge
from pipeline.models.inference import LanguageModel
from pipeline.models.language import Decoding
from pipeline.weights.native import load_model, save_weights
from tests.support.random_bridges import randomise
from tests.support.tiny_towers import tiny_recipe

PROMPT = "question {} short answer"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tuned")


def weights(folder: Path, name: str, question: str, prompt: str, sample: str) -> Path:
    """Weights of random numbers, an image encoder among them."""
    content: dict[str, Any] = tiny_recipe(folder / "towers", folder / "m.json", folder / name, 2, "t5")
    content["vision"] |= {"trained": True}
    content["qformer"] |= {"question": question}
    content["language"] |= {"prompt": prompt}
    content["data"] |= {"sample": sample}
    recipe, place = parse_recipe(content), folder / name
    if not place.exists():
        place.mkdir()
        save_weights(randomise(build_bridge(recipe), seed=5).float(), recipe, 9, place)
    return place


def run(weights: Path, task: str, data: Path, output: Path) -> list[dict[str, Any]]:
    flags = ("--weights", weights, "--task", task, "--data", data, "--output", output, "--batch-size", 3)
    assert main([str(flag) for flag in flags]) == 0
    found: list[dict[str, Any]] = json.loads((output / "predictions.json").read_text())
    return found


@pytest.mark.parametrize("reads", ["none", "question", "prompt"])
def test_the_qformer_gets_each_question_with_its_picture(
    folder: Path, sets: dict[str, Path], tmp_path: Path, reads: str
) -> None:
    tuned, data = weights(folder, reads, reads, PROMPT, "question"), sets["vqav2"]
    found = run(tuned, "vqa", data, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "task.json").read_text())["prompt"] == PROMPT
    model = load_model(tuned, "cpu")
    assert isinstance(model, LanguageModel)
    asked = json.loads((data / "v2_OpenEnded_mscoco_val2014_questions.json").read_text())["questions"]
    decoding = Decoding(num_beams=5, max_new_tokens=10, min_new_tokens=1, length_penalty=-1.0)
    for each, answer in zip(asked, found, strict=True):
        picture = data / "val2014" / f"COCO_val2014_{each['image_id']:012}.jpg"
        pixels = torch.stack([load_evaluation_pixels(picture, model.image_size_px)])
        question = clean_question(each["question"])
        prompt = PROMPT.replace("{}", question)
        read = {"none": None, "question": [question], "prompt": [prompt]}[reads]
        [text] = model.generate(pixels, [prompt], decoding, questions=read)
        assert answer == {"question_id": each["question_id"], "answer": text.strip()}


def test_captions_begin_with_the_prompt_of_fine_tuning(folder: Path, sets: dict[str, Path], tmp_path: Path) -> None:
    run(weights(folder, "captioner", "none", "a picture of", "caption"), "captioning", sets["coco"], tmp_path / "out")
    task = json.loads((tmp_path / "out" / "task.json").read_text())
    assert task["prompt"] == "a picture of" and task["recipe"]["vision"]["trained"] is True


@pytest.mark.parametrize(("kind", "shortest"), [("t5", 8), ("opt", 4)])
def test_the_shortest_caption_leaves_out_the_prompt_that_the_paper_counted(
    kind: str, shortest: int, checkpoints: dict[str, Path], sets: dict[str, Path], tmp_path: Path
) -> None:
    flags = ("--weights", checkpoints[kind], "--task", "captioning", "--data", sets["coco"], "--limit", 1)
    assert main([*map(str, flags), "--output", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "task.json").read_text())["min_new_tokens"] == shortest
    assert main([*map(str, flags), "--output", str(tmp_path / "short"), "--max-new-tokens", str(shortest - 1)]) == 1
