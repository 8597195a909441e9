"""`pipeline.load`: the same text and scores as evaluation, from any kind of picture; draws that can be repeated."""

import json
import shutil
import site
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import TopPLogitsWarper

import pipeline
from eval.run import main as run
from pipeline.models.inference import LanguageModel
from pipeline.models.language import Decoding
from pipeline.models.sampling import Nucleus
from tests.support.tiny_evaluation_sets import save_karpathy, save_picture, save_vqa

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sets")
    return {"coco": save_karpathy(root / "coco", 5), "vqav2": save_vqa(root / "vqav2", 4)}


def predicted(weights: Path, task: str, data: Path, output: Path) -> list[dict[str, Any]]:
    flags = ("--weights", weights, "--task", task, "--data", data, "--output", output)
    assert run([str(flag) for flag in flags]) == 0
    found: list[dict[str, Any]] = json.loads((output / "predictions.json").read_text())
    return found


@pytest.mark.parametrize("name", ["t5", "opt"])
def test_captions_are_those_of_evaluation(
    name: str, weights: dict[str, Path], sets: dict[str, Path], tmp_path: Path
) -> None:
    expected = predicted(weights[name], "captioning", sets["coco"], tmp_path / "out")
    pictures = _pictures(sets["coco"], [each["image_id"] for each in expected])
    assert pipeline.load(weights[name]).caption(pictures) == [each["caption"] for each in expected]


@pytest.mark.parametrize("name", ["t5", "opt", "tuned"])
def test_answers_are_those_of_evaluation(
    name: str, weights: dict[str, Path], sets: dict[str, Path], tmp_path: Path
) -> None:
    data = sets["vqav2"]
    expected = {e["question_id"]: e["answer"] for e in predicted(weights[name], "vqa", data, tmp_path / "out")}
    asked = json.loads((data / "v2_OpenEnded_mscoco_val2014_questions.json").read_text())["questions"]
    pictures = _pictures(data, [each["image_id"] for each in asked])
    model = pipeline.load(str(weights[name]))
    answers = model.answer(pictures, [each["question"] for each in asked])
    assert answers == [expected[each["question_id"]] for each in asked]
    assert len({*answers}) > 1


@pytest.mark.parametrize(("name", "shortest"), [("t5", 8), ("opt", 4)])
def test_lengths_are_the_papers_where_none_are_given(
    name: str, shortest: int, weights: dict[str, Path], pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[Decoding] = []
    monkeypatch.setattr(LanguageModel, "generate", lambda *given: used.append(given[3]) or [""])
    model = pipeline.load(weights[name])
    model.caption(pictures[0])
    model.caption(pictures[0], max_new_tokens=2)
    model.caption(pictures[0], "a picture of")
    model.answer(pictures[0], "who ?", num_beams=2)
    expected = [(5, 30, shortest, 1.0), (5, 2, 2, 1.0), (5, 30, 1, 1.0), (2, 10, 1, -1.0)]
    assert [
        (each.num_beams, each.max_new_tokens, each.min_new_tokens, each.length_penalty) for each in used
    ] == expected


def _pictures(folder: Path, numbers: list[int]) -> list[Path]:
    found = {int(path.stem.rpartition("_")[2]): path for path in folder.rglob("*.jpg")}
    return [found[number % 1000] for number in numbers]


def test_scores_are_those_of_evaluation_and_of_the_features(
    weights: dict[str, Path], sets: dict[str, Path], tmp_path: Path
) -> None:
    data = sets["coco"]
    flags = ("--weights", weights["stage1"], "--task", "retrieval", "--data", data, "--output", tmp_path / "out")
    assert run([str(flag) for flag in flags]) == 0
    expected = np.load(tmp_path / "out" / "scores.npz")
    images = json.loads((data / "dataset_coco.json").read_text())["images"]
    of_id = {each["cocoid"]: each for each in images}
    pictures = _pictures(data, expected["image_ids"].tolist())
    texts = [each["raw"].replace(".", "") for number in expected["image_ids"] for each in of_id[number]["sentences"]]
    model = pipeline.load(weights["stage1"])
    found = model.match(pictures, texts)
    np.testing.assert_allclose(found.itc, expected["itc"], atol=1e-5)
    np.testing.assert_allclose(found.rerank, expected["itc"] + expected["itm"], atol=1e-4)
    assert found.itm.min() >= 0 and found.itm.max() <= 1 and found.itm.std() > 0
    features, of_text = model.embed(pictures), model.embed(text=texts)
    np.testing.assert_allclose((features @ of_text.T).max(axis=1), found.itc, atol=1e-5)
    mean = model.embed(pictures[0], pooled="mean")
    np.testing.assert_allclose(np.linalg.norm(mean), 1, atol=1e-5)
    assert np.dot(mean, features[0].mean(axis=0)) > 0 and mean.shape == features.shape[2:]
    one = model.match(pictures[1], texts[2])
    np.testing.assert_allclose(one.rerank, found.rerank[1, 2], atol=1e-4)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        save_picture(path, number)
    return paths


def test_a_model_loads_and_writes_where_gradients_are_off(weights: dict[str, Path], pictures: list[Path]) -> None:
    """As in a notebook's cell under inference_mode."""
    wanted = pipeline.load(weights["opt"]).caption(pictures[0])
    with torch.inference_mode():
        assert pipeline.load(weights["opt"]).caption(pictures[0]) == wanted


def test_all_kinds_of_a_picture_give_one_text(weights: dict[str, Path], pictures: list[Path]) -> None:
    model, path = pipeline.load(weights["t5"]), pictures[1]
    kinds = [path, str(path), path.read_bytes(), Image.open(path), Image.open(path).convert("RGBA")]
    assert [model.caption(each) for each in kinds] == model.caption(kinds)
    assert len({*model.caption(kinds)}) == 1


def test_weights_and_pictures_may_begin_at_the_home_folder(
    weights: dict[str, Path], pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(weights["t5"].parent))
    model = pipeline.load(f"~/{weights['t5'].name}")
    monkeypatch.setenv("HOME", str(pictures[0].parent))
    assert model.caption(f"~/{pictures[0].name}") == model.caption(pictures[0])


def test_one_picture_has_many_questions_and_one_question_many_pictures(
    weights: dict[str, Path], pictures: list[Path]
) -> None:
    model, asked = pipeline.load(weights["tuned"]), ["colour ?", "number ?"]
    assert model.answer(pictures[0], asked) == [model.answer(pictures[0], each) for each in asked]
    assert model.answer(pictures, asked[0]) == [model.answer(each, asked[0]) for each in pictures]


def test_several_pictures_of_one_prompt_stand_at_their_marks(weights: dict[str, Path], pictures: list[Path]) -> None:
    model = pipeline.load(weights["opt"])
    first, second, *_ = pictures
    assert model.caption(first, "<image> a photo of") == model.caption(first, "a photo of")
    prompt = "<image> red <image> a photo of"
    one, other = model.caption([[first, second], [second, first]], prompt, min_new_tokens=4)
    assert one == model.caption([[first, second]], prompt, min_new_tokens=4)[0] != other
    answers = model.answer([[first, second]], "which?", "<image> <image> question: {}", top_p=0.9, seed=1)
    assert answers == model.answer([[first, second]], "which?", "<image> <image> question: {}", top_p=0.9, seed=1)
    with pytest.raises(ValueError, match="has 1 marks <image> for 2 pictures"):
        model.caption([[first, second]], "<image> a photo of")
    with pytest.raises(ValueError, match="marks of pictures stand in the prompt"):
        model.answer(first, "what is <image>?")
    with pytest.raises(ValueError, match="trained to read a question beside one picture"):
        pipeline.load(weights["tuned"]).answer([[first, second]], "which?", "<image> <image> question: {}")


def test_what_is_no_picture_and_no_question_is_one_line(weights: dict[str, Path], pictures: list[Path]) -> None:
    model = pipeline.load(weights["opt"])
    for picture in (np.zeros((4, 4, 3)), None, 3):
        with pytest.raises(ValueError, match=r"picture: is of type .*; give a PIL image, a path or bytes"):
            model.caption(picture)
    for question in (None, "", " "):
        with pytest.raises(ValueError, match="is no text with a word; ask something"):
            model.answer(pictures[0], question)


def test_a_draw_depends_on_seed_picture_and_prompt_alone(weights: dict[str, Path], pictures: list[Path]) -> None:
    model, how = pipeline.load(weights["opt"]), {"top_p": 0.95, "temperature": 2.0, "seed": 5}
    together = model.caption(pictures, **how)
    assert together == model.caption(pictures, **how) == [model.caption(each, **how) for each in pictures]
    assert together != model.caption(pictures, **how | {"seed": 6})
    assert model.caption(pictures, top_p=1e-9) == model.caption(pictures, num_beams=1)


def test_a_nucleus_is_drawn_from_as_transformers_has_it() -> None:
    rows, scores = 4000, torch.tensor([0.0, 2.0, -1.0, 1.5, 0.5])
    kept = TopPLogitsWarper(0.8)(None, scores[None] / 1.3).softmax(-1)[0].numpy()
    one_hot = Nucleus(0.8, 1.3, range(rows))(torch.zeros(rows, 1), scores.expand(rows, -1))
    assert (one_hot.softmax(-1).amax(-1) == 1).all()
    np.testing.assert_allclose(one_hot.softmax(-1).mean(0).numpy(), kept, atol=4 * 0.5 / rows**0.5)
    assert (kept == 0).any()


def test_what_does_not_fit_is_one_line(weights: dict[str, Path], pictures: list[Path], tmp_path: Path) -> None:
    first, second = pipeline.load(weights["stage1"]), pipeline.load(weights["t5"])
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    cases = [
        (lambda: first.caption(pictures), "caption: needs weights of stage 2"),
        (lambda: first.answer(pictures, "who ?"), "answer: needs weights of stage 2"),
        (lambda: second.embed(pictures), "embed: needs weights of stage 1"),
        (lambda: second.match(pictures, "red"), "match: needs weights of stage 1"),
        (lambda: second.caption([]), "picture: is an empty list"),
        (lambda: second.answer(pictures, ["one ?", "two ?"]), "question: has 2 entries for 3"),
        (lambda: second.answer(pictures, "who ?", prompt="who ?"), "needs one {}"),
        (lambda: second.caption(pictures, seed=3), "give --top-p (top_p) as well"),
        (lambda: second.caption(pictures, min_new_tokens=5, max_new_tokens=3), "(min_new_tokens) 5: is above 3"),
        (lambda: second.caption(pictures, top_p=0), "--top-p (top_p) 0: "),
        (lambda: second.caption(pictures, top_p=0.5, temperature=0.0), "--temperature 0.0: "),
        (lambda: second.caption(broken), "broken.jpg: is not readable as a picture"),
        (lambda: second.caption(b"no picture"), "a picture: is not readable as a picture"),
        (lambda: second.caption([[pictures[0], b"no"]], "<image> <image>"), "picture 2 of 2: is not readable"),
        (lambda: first.embed(pictures[0], text="red"), "give one of the two"),
        (lambda: pipeline.load(tmp_path / "gone"), "has no trainable.safetensors"),
        (lambda: pipeline.load(weights["t5"], recipe=tmp_path / "gone.yaml"), "no such file"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=r".") as error:
            call()
        assert message in str(error.value) and "\n" not in str(error.value)


def test_an_installed_project_is_importable_from_anywhere_and_light(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    shutil.copy(ROOT / "pyproject.toml", project)
    for name in ("pipeline", "data_prep", "eval", "tests", "LICENSE"):
        (project / name).symlink_to(ROOT / name)
    pip = ("pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "--no-index", "--prefix", tmp_path / "at")
    command = [sys.executable, "-m", *map(str, pip), "--editable", str(project)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    [packages] = (tmp_path / "at").rglob("site-packages")
    ask = f"""
import importlib.util, site, sys
site.addsitedir({str(packages)!r})
import pipeline, data_prep, eval
from pipeline.config import load_recipe
from importlib.metadata import version
print(version("blip2-pretraining"), callable(pipeline.load), importlib.util.find_spec("tests"),
      *{{"torch", "transformers", "timm", "numpy"}} & {{*sys.modules}})
"""
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    answer = subprocess.run(
        [sys.executable, "-c", ask], check=True, capture_output=True, text=True, cwd=fresh, timeout=60
    )
    assert answer.stdout.split()[1:] == ["True", "None"]
    assert str(packages) not in site.getsitepackages(), "the environment of the tests stays as it is"
