"""Submissions: right ones in the server's form with where they are from, wrong ones refused in one line."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from eval.submit import main


@pytest.fixture
def vqa(tmp_path: Path) -> dict[str, Path]:
    """Questions of test2015 and an answer to each, in another order."""
    questions = [{"question_id": number, "image_id": number // 3, "question": "what?"} for number in range(1, 8)]
    content = {"data_subtype": "test2015", "info": {"version": "2.0"}, "questions": questions}
    files = {
        "questions": tmp_path / "q.json",
        "predictions": tmp_path / "p.json",
        "output": tmp_path / "out" / "f.json",
    }
    files["questions"].write_text(json.dumps(content))
    answers = [{"question_id": number, "answer": f"The  Café, {number}. "} for number in range(7, 0, -1)]
    files["predictions"].write_text(json.dumps(answers))
    return files


def submit(task: str, files: dict[str, Path], *more: str) -> int:
    return main([task, *(str(part) for name, path in files.items() for part in (f"--{name}", path)), *more])


def submit_few(task: str, files: dict[str, Path]) -> int:
    return submit(task, files, "--any-size")


def change(path: Path, edit: Any) -> None:
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))


def test_raw_answers_of_every_question_with_their_provenance(vqa: dict[str, Path], tmp_path: Path) -> None:
    task = {"task": "vqa", "weights_sha256": "ab", "prompt": "Q: {}", "images": [[1, "a.jpg"]]}
    (tmp_path / "task.json").write_text(json.dumps(task))
    assert submit_few("vqa", vqa) == 0
    content = vqa["output"].read_bytes()
    entries = json.loads(content)
    assert entries == [{"question_id": number, "answer": f"The  Café, {number}. "} for number in range(1, 8)]
    told = json.loads(vqa["output"].with_name("f.json.provenance.json").read_text())
    assert told["submission"] == {
        "file": "f.json",
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    assert told["entries"] == 7 and told["run"]["prompt"] == "Q: {}" and "images" not in told["run"]
    before = content
    assert submit_few("vqa", vqa) == 0 and vqa["output"].read_bytes() == before


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda found: found[1:], "1 missing (7)"),
        (lambda found: [*found, {"question_id": 99, "answer": "x"}], "1 extra (99)"),
        (lambda found: [*found, found[0]], "question_id 7 occurs twice"),
        (lambda found: [*found[:-1], {"question_id": 1, "answer": 4}], "answer 4 of question_id 1 is a int"),
        (lambda found: [*found[:-1], {"question_id": "1", "answer": "x"}], "question_id '1' is a string"),
        (lambda found: [*found[:-1], {"question_id": True, "answer": "x"}], "question_id True is a bool"),
        (lambda found: [*found[:-1], {"question_id": 1, "answer": "x" * 501}], "answer of 501 characters"),
        (lambda found: [*found[:-1], {"question_id": 1}], "an entry without 'answer'"),
    ],
    ids=lambda value: None if callable(value) else str(value)[:20],
)
def test_a_faulty_submission_is_one_line_and_nothing_is_written(
    edit: Any, message: str, vqa: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    change(vqa["predictions"], edit)
    assert submit_few("vqa", vqa) == 1
    error = capsys.readouterr().err
    assert message in error and "p.json" in error and error.count("\n") == 1
    assert not vqa["output"].exists() and not vqa["output"].parent.exists()


def test_questions_of_test_dev_alone_are_refused(vqa: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    change(vqa["questions"], lambda found: found | {"data_subtype": "test-dev2015"})
    assert submit_few("vqa", vqa) == 1
    assert "data_subtype 'test-dev2015': the server takes answers to all of test2015" in capsys.readouterr().err


def test_nocaps_captions_of_every_image(tmp_path: Path) -> None:
    (tmp_path / "i.json").write_text(json.dumps({"images": [{"id": 4, "file_name": "a"}, {"id": 2, "file_name": "b"}]}))
    captions = [{"image_id": 2, "caption": "B\u2028 dog"}, {"image_id": 4, "caption": ""}]
    (tmp_path / "p.json").write_text(json.dumps(captions))
    files = {"predictions": tmp_path / "p.json", "images": tmp_path / "i.json", "output": tmp_path / "f.json"}
    assert submit_few("nocaps", files) == 0
    assert json.loads(files["output"].read_text()) == captions[::-1]
    assert json.loads((tmp_path / "f.json.provenance.json").read_text())["empty"] == 1


def test_what_would_spoil_a_submission_is_refused(
    vqa: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(message: str) -> None:
        assert submit_few("vqa", vqa) == 1 and not vqa["output"].exists()
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and message in error

    whole = vqa["questions"].read_text()
    change(vqa["questions"], lambda content: content | {"questions": [*content["questions"], content["questions"][2]]})
    refused("question_id 3 occurs twice")
    change(vqa["questions"], lambda content: {"questions": content["questions"][:7]})
    refused("data_subtype None")
    vqa["questions"].write_text(whole)
    for settings, message in (
        ({"image_source": "none"}, "predicted with --images none"),
        ({"task": "vqa", "split": "val"}, "split 'val', but a submission needs 'test'"),
        ({"task": "vqa", "split": "test", "limit": 3}, "limit 3, but a submission needs 'all'"),
        ({"task": "okvqa"}, "task 'okvqa', but a submission needs 'vqa'"),
    ):
        (tmp_path / "task.json").write_text(json.dumps(settings))
        refused(message)
    (tmp_path / "task.json").unlink()
    before = vqa["predictions"].read_bytes()
    assert submit_few("vqa", vqa | {"output": vqa["predictions"]}) == 1
    assert vqa["predictions"].read_bytes() == before and "is an input" in capsys.readouterr().err


@pytest.mark.parametrize(("task", "published"), [("vqa", 447_793), ("nocaps", 4_500), ("nocaps", 10_600)])
def test_a_reference_of_another_size_than_published_is_refused(
    task: str, published: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for count in (published - 1, published):
        ids = range(1, count + 1)
        if task == "vqa":
            questions = [{"question_id": each, "image_id": each} for each in ids]
            content: Any = {"data_subtype": "test2015", "info": {"version": "2.0"}, "questions": questions}
            found: Any = [{"question_id": each, "answer": "a"} for each in ids]
        else:
            content = {"images": [{"id": each, "file_name": "a"} for each in ids]}
            found = [{"image_id": each, "caption": "a"} for each in ids]
        (tmp_path / "r.json").write_text(json.dumps(content))
        (tmp_path / "p.json").write_text(json.dumps(found))
        files = {"predictions": tmp_path / "p.json", "output": tmp_path / "o.json"}
        files |= {"questions" if task == "vqa" else "images": tmp_path / "r.json"}
        assert submit(task, files) == (0 if count == published else 1)
        error = capsys.readouterr().err
        assert count == published or (f"r.json: {count:,} " in error and f"{published:,}" in error)


def test_files_of_another_set_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.json").write_text('[{"question_id": 1, "answer": "a"}]')
    info = {"description": "This is v1.0 of the VQA dataset.", "version": "1.0"}
    content = {"info": info, "data_subtype": "test2015", "questions": [{"question_id": 1, "image_id": 1}]}
    (tmp_path / "q.json").write_text(json.dumps(content))
    (tmp_path / "i.json").write_text(json.dumps({"images": [{"id": 1, "file_name": "COCO_val2014_1.jpg"}]}))
    for task, flag, name, said in (
        ("vqa", "--questions", "q.json", "of VQA v1"),
        ("nocaps", "--images", "i.json", "holds COCO's pictures"),
    ):
        if task == "nocaps":
            (tmp_path / "p.json").write_text('[{"image_id": 1, "caption": "a"}]')
        files = ["--predictions", str(tmp_path / "p.json"), flag, str(tmp_path / name)]
        assert main([task, *files, "--output", str(tmp_path / "o.json")]) == 1
        error = capsys.readouterr().err
        assert f"{tmp_path / name}: {said}" in error and error.count("\n") == 1 and not (tmp_path / "o.json").exists()
