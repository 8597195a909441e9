"""`eval.run --answers`: each question takes the likeliest answer of a list; it is scored and submitted as ever."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from eval.report import main as report
from eval.run import main as run
from eval.score import main as score
from eval.sets.answer_list import read_answers
from eval.submit import main as submit
from pipeline.data.transforms import load_evaluation_pixels
from pipeline.models.inference import LanguageModel
from pipeline.prompts import QUESTION_PROMPTS
from pipeline.weights.native import load_model
from tests.reference.ranking import best_answer
from tests.support.tiny_evaluation_sets import save_vqa

Folders = dict[str, Path]
ANSWERS = ["red", "dark blue", "yes", "no", "7", "a dark green picture", "the light colour of the photo", "yellow", "2"]


def flags(weights: Path, data: Path, output: Path, *more: object) -> list[str]:
    return [str(each) for each in ("--weights", weights, "--task", "vqa", "--data", data, "--output", output, *more)]


def plainly(folder: Path, data: Path, candidates: int) -> list[dict[str, Any]]:
    """Each question alone, each answer read with its prompt from the beginning."""
    model = load_model(folder, "cpu")
    assert isinstance(model, LanguageModel) and model.recipe.language is not None
    model.language.model.double()
    tokenizer, kind, found = model.language.tokenizer, model.language_kind, []
    for asked in json.loads((data / "v2_OpenEnded_mscoco_val2014_questions.json").read_text())["questions"]:
        picture = data / "val2014" / f"COCO_val2014_{asked['image_id']:012}.jpg"
        pixels = load_evaluation_pixels(picture, model.image_size_px)[None]
        with torch.no_grad():
            [soft_QH] = model.bridge(model.vision(pixels))
        prompt = QUESTION_PROMPTS[kind].replace("{}", asked["question"])
        context = tokenizer(prompt).input_ids
        ids = [tokenizer(answer).input_ids for answer in ANSWERS]
        if kind == "causal":
            ids = [tokenizer(f"{prompt} {answer}\n").input_ids[len(context) :] for answer in ANSWERS]
        best = best_answer(kind, model.language.model, soft_QH.double(), context, ids, candidates)
        found.append({"question_id": asked["question_id"], "answer": ANSWERS[best]})
    return found


@pytest.mark.parametrize(("kind", "candidates"), [("t5", 128), ("opt", 4)])
def test_each_question_takes_the_answer_that_a_plain_computation_finds(
    kind: str, candidates: int, checkpoints: Folders, sets: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = sets["vqav2"], tmp_path / "3"
    (tmp_path / "list.txt").write_text("\n".join([*ANSWERS[:3], "", " red ", *ANSWERS[3:]]) + "\n\n")
    (tmp_path / "list.json").write_text(json.dumps(ANSWERS))
    chosen = ("--answers", tmp_path / "list.txt", "--answer-candidates", candidates)
    for size in (1, 3):
        assert run(flags(checkpoints[kind], data, tmp_path / f"{size}", *chosen, "--batch-size", size)) == 0
        assert "list.txt: 9 answers, without 2 empty and 1 repeated\n" in capsys.readouterr().err
    found = json.loads((out / "predictions.json").read_text())
    assert found == plainly(checkpoints[kind], data, candidates)
    assert found == json.loads((tmp_path / "1" / "predictions.json").read_text())
    task = json.loads((out / "task.json").read_text())
    assert task["answer_candidates"] == candidates and len(task["answers_sha256"]) == 64 and "num_beams" not in task
    for other in (("--answers", tmp_path / "list.json"), ()):  # another list, or none
        assert run(flags(checkpoints[kind], data, out, *other, "--batch-size", 3)) == 1
        assert f"--output {out}: it holds predictions with" in capsys.readouterr().err


def test_ranked_answers_are_scored_and_reported_as_such_and_no_picture_is_shown_to_the_blind(
    checkpoints: Folders, sets: Folders, tmp_path: Path
) -> None:
    data, chosen = sets["vqav2"], ("--answers", tmp_path / "list.json")
    (tmp_path / "list.json").write_text(json.dumps(ANSWERS))
    files = ("--annotations", data / "v2_mscoco_val2014_annotations.json")
    files += ("--questions", data / "v2_OpenEnded_mscoco_val2014_questions.json")
    for name, images in (("own", "own"), ("blind", "none")):
        out = tmp_path / name
        assert run(flags(checkpoints["t5"], data, out, *chosen, "--images", images)) == 0
        scored = ("--predictions", out / "predictions.json", *files, "--output", out / "metrics.json")
        assert score(["vqa", *map(str, scored)]) == 0
    assert report([str(tmp_path / "own"), str(tmp_path / "blind"), "--output", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "ranked from list.json, 128 candidates" in page
    assert "answers are ranked from list.json; the paper generates them" in page


def test_ranked_answers_to_the_test_questions_are_submitted(checkpoints: Folders, tmp_path: Path) -> None:
    data = save_vqa(tmp_path / "vqa", 2)
    shutil.move(data / "val2014", data / "test2015")
    for picture in (data / "test2015").iterdir():
        picture.rename(picture.with_name(picture.name.replace("val2014", "test2015")))
    asked = json.loads((data / "v2_OpenEnded_mscoco_val2014_questions.json").read_text())
    questions = data / "v2_OpenEnded_mscoco_test2015_questions.json"
    questions.write_text(json.dumps(asked | {"data_subtype": "test2015"}))
    (tmp_path / "list.txt").write_text("\n".join(ANSWERS))
    chosen = ("--answers", tmp_path / "list.txt", "--split", "test")
    assert run(flags(checkpoints["opt"], data, tmp_path / "out", *chosen)) == 0
    files = ("--predictions", tmp_path / "out" / "predictions.json", "--questions", questions)
    assert submit(["vqa", *map(str, files), "--output", str(tmp_path / "upload.json"), "--any-size"]) == 0
    assert {each["answer"] for each in json.loads((tmp_path / "upload.json").read_text())} <= set(ANSWERS)
    told = json.loads((tmp_path / "upload.json.provenance.json").read_text())
    assert told["run"]["answers"] == str(tmp_path / "list.txt")


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("none.txt", None, "not readable"),
        ("none.json", None, "not readable as JSON"),
        ("one.txt", "red\n\nred\n red\n", "1 distinct answers leave no choice"),
        ("empty.txt", "", "0 distinct answers leave no choice"),
        ("latin.txt", b"caf\xe9\nred\n", "not readable"),
        ("object.json", '{"red": 1}', "holds dict, not a list of texts"),
        ("number.json", '["red", 7]', "entry 1, 7, is not a text"),
        ("torn.json", '["red", "bl', "not readable as JSON"),
        ("half.json", '["red", "\\ud800"]', "holds a lone surrogate"),
        ("long.txt", "red\n" + "dark " * 99, "has 100 tokens, at most 64 are ranked"),
    ],
)
def test_a_list_that_cannot_be_ranked_is_one_line(
    name: str,
    content: str | bytes | None,
    fault: str,
    checkpoints: Folders,
    sets: Folders,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert run(flags(checkpoints["t5"], sets["vqav2"], tmp_path / "out", "--answers", path)) == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert fault in line and (str(path) in line or name == "long.txt")
    assert not (tmp_path / "out" / "predictions.json").exists()


def test_answers_are_cleaned_of_white_space_alone(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text(json.dumps(["Yes", "yes", " yes\n", "a  red\tone", "", "don't know."]))
    found = read_answers(path)
    assert found.answers == ("Yes", "yes", "a red one", "don't know.")
    assert (found.num_empty, found.num_repeats) == (1, 1)


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        (("--answers", "a.txt", "--num-beams", "3"), "argument --num-beams: has no effect with --answers"),
        (("--answers", "a.txt", "--length-penalty", "0"), "argument --length-penalty: has no effect with --answers"),
        (("--answer-candidates", "3"), "argument --answer-candidates: 3 are of a closed list; give --answers"),
        (("--answers", "a.txt", "--task", "captioning"), "argument --answers: --task captioning asks no question"),
        (("--answers", "a.txt", "--task", "retrieval"), "argument --answers: --task retrieval asks no question"),
    ],
)
def test_flags_that_contradict_each_other(more: tuple[str], fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run([*flags(Path("w"), Path("d"), Path("o")), *more])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and fault in error and error.count("\n") == 1
