"""What the commands of this room write never replaces what they read, by whatever name or link it is called."""

import json
from pathlib import Path

import pytest

from eval.report import main as report
from eval.score import main as score
from eval.submit import main as submit
from pipeline.command_line import check_outputs


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, entered: annotations a.json (and a link to them, l.json), questions q.json, predictions p.json."""
    monkeypatch.chdir(tmp_path)
    asked = {"question_id": 1, "image_id": 1, "question": "what?"}
    contents = {
        "a.json": {"annotations": [{"question_id": 1, "image_id": 1, "answers": [{"answer": "red"}] * 10}]},
        "q.json": {"data_subtype": "test2015", "info": {"version": "2.0"}, "questions": [asked]},
        "p.json": [{"question_id": 1, "answer": "red"}],
        "f.json.provenance.json": [{"question_id": 1, "answer": "red"}],
        "task.json": {"task": "vqa"},
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "l.json").symlink_to("a.json")
    (tmp_path / "sub").mkdir()
    return tmp_path


def held(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


SCORE = ["vqa", "--predictions", "p.json", "--annotations", "a.json"]
SUBMIT = ["vqa", "--predictions", "p.json", "--questions", "q.json"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--output a.json", "--output a.json: is an input (--annotations) too"),
        ("--output sub/../l.json", "--output sub/../l.json: is an input (--annotations) too"),
        ("--output p.json", "--output p.json: is an input (--predictions) too"),
        ("--output m.json --per-sample ./a.json", "--per-sample a.json: is an input (--annotations) too"),
        ("--output m.json --per-sample sub/../m.json", "--per-sample sub/../m.json: is an output (--output) too"),
        ("--output m.json --against q.json --per-sample q.json", "--per-sample q.json: is an input (--against) too"),
    ],
)
def test_scores_replace_no_input(flags: str, message: str, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = held(files)
    assert score([*SCORE, *flags.split()]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and held(files) == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--output sub/../p.json", "is an input (--predictions) too"),
        ("--output sub/../q.json", "is an input (--questions) too"),
        ("--output task.json", "is an input (task.json beside --predictions) too"),
    ],
)
def test_submissions_replace_no_input(
    flags: str, message: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = held(files)
    assert submit([*SUBMIT, *flags.split()]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and held(files) == before


def test_neither_does_a_submissions_provenance(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = held(files)
    flags = ["--predictions", "f.json.provenance.json", "--questions", "q.json", "--output", "f.json"]
    assert submit(["vqa", *flags]) == 1
    assert "provenance of --output f.json.provenance.json: is an input" in capsys.readouterr().err
    assert held(files) == before


def test_a_report_replaces_nothing_but_a_page(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = files / "sub"
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    before = held(run)
    assert report([str(run), "--output", str(run / "metrics.jsonl")]) == 1
    error = capsys.readouterr().err
    assert "exists and is not an HTML page" in error and error.count("\n") == 1 and held(run) == before
    for _ in range(2):  # a page of before is replaced
        assert report([str(run), "--output", str(run / "report.html")]) == 0


def test_other_files_are_free(tmp_path: Path) -> None:
    inputs = [("--a", tmp_path / "a"), ("--none", None)]
    check_outputs([("--x", tmp_path / "x"), ("--none", None), ("--y", tmp_path / "y")], inputs)
