"""Questions and captions of one's own: from a file to predictions, scores and the report; its paths are hostile."""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from eval.report import main as report
from eval.score import main as score
from eval.sets.own_lines import own_lines
from eval.sets.own_sets import load_own_captioning, load_own_questions, load_own_retrieval
from eval.tasks.run_options import load_data
from pipeline.files import LONGEST_LINE
from tests.eval.test_run import SHORT, Folders, run
from tests.support.tiny_evaluation_sets import save_picture

QUESTION = {"image": "photos/1.jpg", "question": "What is it?"}


def save_lines(folder: Path, lines: Sequence[dict[str, Any]], name: str = "mine.jsonl") -> Path:
    """The file, beside pictures photos/0.jpg to photos/2.jpg."""
    for number in range(3):
        save_picture(folder / "photos" / f"{number}.jpg", number)
    (folder / name).write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    return folder / name


def scores(path: Path) -> dict[tuple[str, str], float]:
    return {(row["name"], row["protocol"]): row["value"] for row in json.loads(path.read_text())["metrics"]}


def score_file(task: str, predictions: Path, annotations: Path, folder: Path) -> int:
    files = ("--predictions", predictions, "--annotations", annotations, "--output", folder / "metrics.json")
    return score([task, *map(str, files), "--per-sample", str(folder / "per_sample.jsonl")])


def test_own_questions_from_a_file_to_the_report(checkpoints: Folders, tmp_path: Path) -> None:
    file = save_lines(tmp_path / "own", [QUESTION, QUESTION | {"question": "Is it dark?"}])
    out = tmp_path / "out"
    assert run(checkpoints["t5"], "vqa", file, out, "--batch-size", 2) == 0
    entries = json.loads((out / "predictions.json").read_text())
    assert [each["question_id"] for each in entries] == [1, 2]
    told = json.loads((out / "task.json").read_text())
    assert told["data_set"] == "mine.jsonl" and told["split"] == "own" and not told["is_of_published_set"]
    assert [image[0] for image in told["images"]] == ["photos/1.jpg"]
    assert score_file("vqa", out / "predictions.json", file, out) == 1  # no answers: predictions alone
    said = [each["answer"] for each in entries]
    answered = [QUESTION | {"answers": [f"The {said[0]}"]}, QUESTION | {"answers": ["no", "x", "never so"]}]
    file = save_lines(tmp_path / "own", answered)
    assert score_file("vqa", out / "predictions.json", file, out) == 0
    found = scores(out / "metrics.json")
    assert found == {("accuracy", "own/exact"): 0, ("accuracy", "own/normalised"): 50}
    assert report([str(out), "--output", str(tmp_path / "r.html")]) == 0
    page = (tmp_path / "r.html").read_text()
    assert "Visual question answering: mine.jsonl" in page and "equal to an answer, both sides normalised" in page
    assert "Paper</th>" not in page and "Right answers, 1 of 1" in page


def test_ten_answers_to_each_question_are_scored_by_the_published_rules(tmp_path: Path) -> None:
    file = save_lines(tmp_path, [QUESTION | {"id": "a", "answers": ["cat"] * 3 + ["dog"] * 7}])
    (tmp_path / "p.json").write_text(json.dumps([{"question_id": "a", "answer": "a cat"}]))
    assert score_file("vqa", tmp_path / "p.json", file, tmp_path) == 0
    assert scores(tmp_path / "metrics.json") == {
        ("accuracy", "vqa/official-2021"): 90,
        ("accuracy", "vqa/legacy-2017"): 90,
    }


def test_own_captions_are_predicted_and_scored(checkpoints: Folders, tmp_path: Path) -> None:
    captioned = [{"image": f"photos/{n}.jpg", "captions": [f"picture {n}", "a photo"]} for n in range(3)]
    file = save_lines(tmp_path, captioned)
    assert run(checkpoints["t5"], "captioning", file, tmp_path / "out", *SHORT) == 0
    assert score_file("captions", tmp_path / "out" / "predictions.json", file, tmp_path / "out") == 0
    assert ("cider", "captions/pycocoevalcap-1.2") in scores(tmp_path / "out" / "metrics.json")


def test_own_retrieval_and_its_samples_on_the_page(checkpoints: Folders, tmp_path: Path) -> None:
    captioned = [{"id": f"p{n}", "image": f"photos/{n}.jpg", "captions": [f"Photo {n}!", "it"]} for n in range(3)]
    file, out = save_lines(tmp_path, captioned), tmp_path / "out"
    assert run(checkpoints["stage1"], "retrieval", file, out) == 0
    files = ("--predictions", out / "scores.npz", "--output", out / "metrics.json")
    assert score(["retrieval", *map(str, files), "--per-sample", str(out / "per_sample.jsonl")]) == 0
    assert report([str(out), "--output", str(tmp_path / "r.html")]) == 0
    page = (tmp_path / "r.html").read_text()
    assert "Retrieval: mine.jsonl" in page and "Texts for an image" in page and "photo 2" in page


def test_cocos_caption_file_with_the_folder_of_its_pictures(tmp_path: Path) -> None:
    save_lines(tmp_path, [])
    content = {
        "images": [{"id": 7, "file_name": "0.jpg"}, {"id": 3, "file_name": "2.jpg"}],
        "annotations": [{"id": 1, "image_id": 3, "caption": "Two."}, {"id": 2, "image_id": 7, "caption": "none"}],
    }
    file = tmp_path / "captions_val2014.json"
    file.write_text(json.dumps(content))
    data = load_own_retrieval(file, tmp_path / "photos")
    assert data.image_paths == {7: tmp_path / "photos/0.jpg", 3: tmp_path / "photos/2.jpg"}
    assert data.texts == ("none", "two") and data.text_image == (0, 1)
    assert load_own_captioning(file, tmp_path / "photos", limit=1).image_paths.keys() == {7}
    with pytest.raises(ValueError, match=r"image 7: picture '0.jpg' is not in .*--image-folder"):
        load_own_captioning(file, None)


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/hostname", "photos/out.jpg", "linked/secret.jpg", "a\0b"])
def test_a_file_shows_no_picture_outside_its_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    file = save_lines(folder, [{"image": name}])
    save_picture(tmp_path / "elsewhere" / "secret.jpg", 1)
    save_picture(tmp_path / "secret.jpg", 1)
    (folder / "photos/out.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"mine.jsonl: line 1: picture .* is outside"):
        load_own_captioning(file, None)
    if name.startswith(("photos", "linked")):  # the user says that this folder is right
        assert load_own_captioning(file, folder).image_paths[1].is_file()
    else:
        with pytest.raises(ValueError, match="is outside"):
            load_own_captioning(file, folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"image": "a"}\n["a"]\n', r"line 2 is not one JSON object \(found list\)"),
        ('{"image": "a"}\n{"image": "a", "image": "b"}\n', "line 2 is .*'image' occurs twice"),
        ('{"image": "\\ud800"}\n', "line 1 is not .*lone surrogate"),
        ("[" * 100_000, "line 1 is not one JSON object"),
        ('{"image": "a"}\n\n{"image": "b", "id": 1}\n', "an id on line 3, none on line 1"),
        ('{"image": "a", "id": 1}\n{"image": "b", "id": 1}\n', r"id 1 occurs twice \(line 1, line 2\)"),
        ('{"image": 3}\n', "image 3 of line 1 is a int, expected str"),
        ('{"image": "a", "answers": []}\n', "line 1: answers is not a list of texts"),
        ('{"image": "a", "captions": ["x", " "]}\n', "line 1: captions is not a list of texts"),
        ("\n", "has no line"),
    ],
)
def test_a_bad_line_is_named(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(content)
    with pytest.raises(ValueError, match=f"^{file}: {message}"):
        own_lines(file)


def test_a_json_list_says_what_to_write(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(json.dumps([{"image": "photos/0.jpg", "question": "who?"}]))
    with pytest.raises(ValueError, match=r"list.json: is a JSON list; write its objects one a line, into .*\.jsonl"):
        load_own_questions(tmp_path / "list.json", None)


def test_a_line_of_any_bytes_or_any_length_is_named(tmp_path: Path) -> None:
    file, good = tmp_path / "mine.jsonl", b'{"image": "a"}\n'
    file.write_bytes(good * 2 + b'{"image": "\xff"}\n' + good)
    with pytest.raises(ValueError, match=r"mine.jsonl: line 3 is not one JSON object \('utf-8' codec"):
        own_lines(file)
    file.write_bytes(good + b'{"image": "' + b"a" * LONGEST_LINE + b'"}\n' + good)
    with pytest.raises(ValueError, match=r"line 2 is not one JSON object \(is longer than 1048576 bytes\)"):
        own_lines(file)


def test_a_name_that_is_too_long_has_its_line(tmp_path: Path) -> None:
    for name in ("a" * 300, "a/" * 2500):
        file = save_lines(tmp_path, [QUESTION, {"image": name}])
        with pytest.raises(ValueError, match=r"mine.jsonl: line 2: picture '.{,80} cannot be .*name too long") as error:
            load_own_captioning(file, None)
        assert len(str(error.value)) < 300 + len(str(file))


def test_a_pipe_and_a_device_are_no_data(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "device.jsonl").symlink_to("/dev/zero")
    for name in ("pipe.jsonl", "device.jsonl"):
        with pytest.raises(ValueError, match=rf"{name}: is not a regular file"):
            own_lines(tmp_path / name)
        options = argparse.Namespace(data=tmp_path / name, task="vqa", image_folder=None)
        with pytest.raises(ValueError, match=rf"--data .*{name}: is not a regular file"):
            load_data(options, "own")


def test_what_a_task_needs_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], checkpoints: Folders) -> None:
    file = save_lines(tmp_path, [{"image": "photos/0.jpg"}, {"image": "photos/0.jpg"}])
    with pytest.raises(ValueError, match="line 1 has no question"):
        load_own_questions(file, None)
    bare = save_lines(tmp_path, [{"image": "photos/0.jpg"}], "bare.jsonl")
    assert load_own_captioning(bare, None).samples
    with pytest.raises(ValueError, match="line 1 has no captions, so nothing can be scored"):
        load_own_retrieval(bare, None)
    twice = save_lines(tmp_path, [{"image": "photos/0.jpg", "captions": ["a"]}] * 2, "twice.jsonl")
    for load in (load_own_retrieval, load_own_captioning):
        with pytest.raises(ValueError, match="line 2 has the picture of line 1"):
            load(twice, None)
    long = save_lines(tmp_path, [QUESTION | {"question": "x" * 1001}], "long.jsonl")
    with pytest.raises(ValueError, match="question_id 1 has a question of 1,001 characters"):
        load_own_questions(long, None)
    assert run(checkpoints["t5"], "gqa", file, tmp_path / "out") == 1
    assert "is a file, but --task gqa reads the folder of a published set" in capsys.readouterr().err
    assert run(checkpoints["t5"], "vqa", tmp_path, tmp_path / "out", "--image-folder", tmp_path) == 1
    assert "--image-folder" in capsys.readouterr().err and not (tmp_path / "out").exists()
