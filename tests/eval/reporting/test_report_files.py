"""Odd files in the report's folders: one line that names the file, never a traceback, and nothing written."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eval.report import main
from tests.eval.test_report import Folders, evaluation, scored

ODD: tuple[Any, ...] = (None, [], {}, "x", -1, [1], [{}], {"a": 1}, float("nan"), True)


@pytest.fixture
def folder(sets: Folders, tmp_path: Path) -> Path:
    """An evaluation on captions, scored, with samples."""
    from eval.sets.captioned import load_nocaps

    data = load_nocaps(sets["nocaps"], "val", 2)
    made = evaluation(tmp_path / "nocaps", "nocaps", sets["nocaps"], data.annotations, data.image_paths, split="val")
    captions = [{"image_id": number, "caption": "a red picture"} for number in range(6)]
    task = json.loads((made / "task.json").read_text())
    task["images"] = [[number, task["images"][number % 2][1]] for number in range(6)]
    task["recipe"] = {"vision": {"name": "v"}, "language": {"name": "l"}, "data": {"manifest": None}}
    (made / "task.json").write_text(json.dumps(task))
    return scored(made, "nocaps", captions, "--annotations", data.annotations)


def mutations(content: Any) -> Iterator[Any]:
    """The content with each field (of lists the first two entries), at any depth, gone or of an odd value."""
    yield from ODD
    places: list[Any] = list(content) if isinstance(content, dict) else list(range(len(content)))[:2]
    for place in places:
        gone = copy.deepcopy(content)
        del gone[place]
        yield gone
        for changed in mutations(content[place]) if isinstance(content[place], dict | list) else ODD:
            other = copy.deepcopy(content)
            other[place] = changed
            yield other


@pytest.mark.parametrize("name", ["task.json", "metrics.json", "per_sample.jsonl"])
def test_no_odd_file_ends_in_a_traceback(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, refused = folder / name, 0
    lines = path.read_text().splitlines(keepends=True) if name.endswith("l") else [path.read_text()]
    for changed in mutations(json.loads(lines[0])):
        path.write_text(json.dumps(changed) + "\n" + "".join(lines[1:]))
        code = main([str(folder), "--output", str(folder / "r.html"), "--samples", "1"])
        error = capsys.readouterr().err
        if code:
            refused += 1
            assert code == 1 and error.count("\n") == 1 and str(folder) in error, (changed, error)
            assert not (folder / "r.html").exists()
        (folder / "r.html").unlink(missing_ok=True)
    assert refused > 60


def refusal(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main([str(folder), "--output", str(folder / "r.html")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_what_is_missing_is_named_by_field(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = json.loads((folder / "task.json").read_text())
    for field in ("image_source", "annotations"):
        (folder / "task.json").write_text(json.dumps({name: value for name, value in task.items() if name != field}))
        assert f"{folder / 'task.json'}: {field}: Field required" in refusal(folder, capsys)
    (folder / "task.json").write_text(json.dumps(task))
    (folder / "metrics.json").write_text('{"task": "nocaps", "n": 6, "metrics": [{}]}')
    assert "metrics.json: metrics.0.name: Field required" in refusal(folder, capsys)


def test_scores_of_other_predictions_than_lie_beside_them_are_never_shown(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictions = folder / "predictions.json"
    assert main([str(folder), "--output", str(folder / "r.html")]) == 0
    predictions.write_text(predictions.read_text().replace("red", "blue"))
    assert "metrics.json: these are not the scores of predictions.json beside it" in refusal(folder, capsys)


def test_scores_and_samples_of_another_task_or_gallery_are_named(
    folder: Path, sets: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples, metrics = folder / "per_sample.jsonl", json.loads((folder / "metrics.json").read_text())
    kept = samples.read_text()
    samples.write_text('{"question_id": 1, "image_id": 0, "question": "q", "answer": "a", "answers": ["a"]}\n')
    assert "per_sample.jsonl: line 1: caption: Field required; write the file with eval.score nocaps" in refusal(
        folder, capsys
    )
    samples.write_text(kept.replace('"image_id": 5', '"image_id": 77'))
    assert "image_id 77 is not a picture of task.json" in refusal(folder, capsys)
    samples.write_text(kept)
    (folder / "metrics.json").write_text(json.dumps(metrics | {"task": "vqa"}))
    assert "task 'vqa', but task.json beside it has 'nocaps'" in refusal(folder, capsys)

    from eval.sets.captioned import load_retrieval

    data = load_retrieval(sets["flickr30k"], "test")
    other = evaluation(tmp_path / "r", "retrieval", sets["flickr30k"], data.annotations, data.image_paths, k_test=4)
    (other / "per_sample.jsonl").write_text('{"text": 99, "ret/itc": {"rank": 0, "first": [1]}}\n')
    assert "text 99 is not among the 9 images and 18 texts" in refusal(other, capsys)
    (other / "per_sample.jsonl").write_text('{"text": 1, "ret/itc": {"rank": 0}}\n')
    assert "line 1: ret/itc: first: Field required" in refusal(other, capsys)


def test_half_a_character_is_named_with_its_entry(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = folder / "per_sample.jsonl"
    samples.write_text(samples.read_text().replace("a red picture", r"a \ud83d\ude00 picture", 2))
    assert main([str(folder), "--output", str(folder / "r.html")]) == 0  # two halves are one
    (folder / "r.html").unlink()
    samples.write_text(samples.read_text().replace(r"\ud83d\ude00", r"\ud83d", 1))
    error = refusal(folder, capsys)
    assert "per_sample.jsonl: line 1 is not a JSON object (image_id 0 holds a lone surrogate" in error

    from eval.score import main as score

    predictions = folder / "predictions.json"
    predictions.write_text(predictions.read_text().replace("a red picture", r"half \udc00", 1))
    annotations = json.loads((folder / "task.json").read_text())["annotations"]
    files = ["--predictions", str(predictions), "--annotations", annotations, "--output", str(folder / "m.json")]
    assert score(["nocaps", *files]) == 1
    assert f"{predictions}: not readable as JSON (image_id 0 holds a lone surrogate" in capsys.readouterr().err


def test_a_folder_whose_name_is_no_unicode_is_shown(folder: Path) -> None:
    odd = folder.rename(folder.with_name("caf\udce9"))
    assert main([str(odd), "--output", str(odd.parent / "r.html")]) == 0
    assert "caf?" in (odd.parent / "r.html").read_text()


def test_a_page_without_training_hashes_says_that_overlap_was_not_checked(folder: Path) -> None:
    assert main([str(folder), "--output", str(folder / "r.html")]) == 0
    assert "Train/test overlap not checked: give --training-hashes" in (folder / "r.html").read_text()


def test_a_line_of_a_trainings_metrics_without_a_step_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for line in ('{"loss": 1}', "[1]", '{"step": "1", "loss": 1}'):
        (tmp_path / "metrics.jsonl").write_text(line + "\n")
        error = refusal(tmp_path, capsys)
        assert "metrics.jsonl" in error and "step" in error
