"""Files of another published set than the one asked for are one line with file and id; one's own sets pass."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.run import main as predict
from eval.score import main as score
from eval.sets.captioned import load_captioning, load_nocaps, load_retrieval
from eval.sets.question_sets import load_okvqa, load_vqa

Folders = dict[str, Path]
V2 = {"description": "This is v2.0 of the VQA dataset.", "version": "2.0", "year": 2017}
V1 = {"description": "This is v1.0 of the VQA dataset.", "version": "1.0", "year": 2015}
OK = {"description": "This is v1.0 of the OK-VQA dataset.", "version": "1.0", "year": 2019}
QUESTIONS, ANSWERS = "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"
Change = Callable[[dict[str, Any]], object]


def changed(source: Path, target: Path, change: Change = lambda content: None) -> Path:
    """A copy of a JSON file, changed in place by `change`."""
    content = json.loads(source.read_text())
    change(content)
    target.write_text(json.dumps(content))
    return target


def test_vqav2s_folder_is_not_taken_for_okvqas(
    checkpoints: Folders, sets: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--weights", checkpoints["t5"], "--task", "okvqa", "--data", sets["vqav2"], "--output", tmp_path / "out")
    assert predict([str(flag) for flag in flags]) == 1
    error = capsys.readouterr().err
    assert f"{sets['vqav2'] / QUESTIONS}: of VQAv2 (by its name), not of OK-VQA" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("load", "kept", "told", "message"),
    [
        (load_okvqa, "okvqa", {"info": V1}, "of VQA v1 .*, not of OK-VQA"),  # its file has the same name
        (load_okvqa, "okvqa", {"info": V2}, "of VQAv2 .*, not of OK-VQA"),
        (load_vqa, "vqav2", {"info": OK}, "of OK-VQA .*, not of VQAv2"),
        (load_vqa, "vqav2", {"info": V2 | {"version": "1.9"}}, "version '1.9'.*, not of VQAv2"),
        (load_vqa, "vqav2", {"data_type": "abstract_v002"}, "data_type 'abstract_v002', but VQAv2 has 'mscoco'"),
        (load_vqa, "vqav2", {"task_type": "Multiple-Choice"}, "task_type 'Multiple-Choice'"),
        (load_okvqa, "okvqa", {"info": OK, "data_type": "mscoco", "task_type": "Open-Ended"}, None),
        (load_vqa, "vqav2", {"info": V2, "data_type": "mscoco", "task_type": "Open-Ended"}, None),
        (load_vqa, "vqav2", {"info": {"description": "photographs of mine", "version": 1}}, None),
    ],
)
def test_questions_tell_their_set(
    load: Callable[..., Any], kept: str, told: dict[str, Any], message: str | None, sets: Folders, tmp_path: Path
) -> None:
    folder = tmp_path / kept
    shutil.copytree(sets[kept], folder)
    [path] = folder.glob("*questions.json")
    changed(path, path, lambda content: content.update(told))
    if message is None:
        assert len(load(folder, "val").samples) == 10
        return
    with pytest.raises(ValueError, match=f"^{path}: .*{message}"):
        load(folder, "val")


def score_vqa(task: str, annotations: Path, questions: Path | None, output: Path) -> int:
    entries = json.loads(annotations.read_text())["annotations"]
    predictions = output.with_name("p.json")
    predictions.write_text(json.dumps([{"question_id": each["question_id"], "answer": "x"} for each in entries]))
    files = ["--predictions", predictions, "--annotations", annotations, "--output", output]
    return score([task, *map(str, files + (["--questions", questions] if questions else []))])


def test_answers_of_another_set_are_not_scored(
    sets: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "renamed").mkdir()
    renamed = tmp_path / "renamed" / "a.json"
    vqa, okvqa = sets["vqav2"] / ANSWERS, sets["okvqa"] / "mscoco_val2014_annotations.json"
    cases: list[tuple[str, Path, Change | None, str]] = [
        ("okvqa", vqa, None, "of VQAv2 (by its name), not of OK-VQA"),
        ("okvqa", vqa, lambda c: c.update(info=V2), "version '2.0'), not of OK-VQA"),
        ("okvqa", vqa, lambda c: c["annotations"][0].update(multiple_choice_answer="a"), "have multiple_choice_answer"),
        ("vqa", okvqa, None, "its answers have raw_answer), not of VQAv2"),
        ("vqa", vqa, lambda c: c.update(info=V1), "of VQA v1"),
    ]
    for task, source, change, message in cases:
        annotations = changed(source, renamed, change) if change else source
        assert score_vqa(task, annotations, None, tmp_path / "m.json") == 1
        error = capsys.readouterr().err
        assert str(annotations) in error and message in error and error.count("\n") == 1
        assert not (tmp_path / "m.json").exists()
    assert score_vqa("okvqa", changed(vqa, renamed), None, tmp_path / "m.json") == 0  # tells nothing: one's own


def test_a_question_about_another_picture_is_named(
    sets: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions, annotations = sets["vqav2"] / QUESTIONS, sets["vqav2"] / ANSWERS
    assert score_vqa("vqa", annotations, questions, tmp_path / "m.json") == 0
    (tmp_path / "m.json").unlink()
    other = changed(questions, tmp_path / "q.json", lambda content: content["questions"][3].update(image_id=77))
    assert score_vqa("vqa", annotations, other, tmp_path / "m.json") == 1
    error = capsys.readouterr().err
    assert f"{annotations}: question_id 21 has image_id 2, but 77 in {other}" in error and error.count("\n") == 1
    assert not (tmp_path / "m.json").exists()


def test_nocaps_under_cocos_name_is_named(sets: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = sets["nocaps"] / "nocaps_val_4500_captions.json"
    folder = tmp_path / "coco"
    shutil.copytree(sets["nocaps"] / "images", folder / "images")
    for name in ("dataset_coco.json", "captions_val2014.json"):
        file = changed(source, folder / name)
        (tmp_path / "p.json").write_text(json.dumps([{"image_id": n, "caption": "a"} for n in range(6)]))
        files = ("--predictions", tmp_path / "p.json", "--annotations", file, "--output", tmp_path / "m.json")
        assert score(["captions", *map(str, files)]) == 1
        assert f"{file}: holds NoCaps' pictures" in capsys.readouterr().err
        assert score(["nocaps", *map(str, files)]) == 0
    for load in (load_captioning, load_retrieval):
        with pytest.raises(ValueError, match=r"dataset_coco.json: holds NoCaps' pictures.* --task nocaps"):
            load(folder, "test")
    (folder / "dataset_coco.json").unlink()
    lavis = [
        {"image": "val/0013ea2087020901.jpg", "caption": ["a"]},
        {"image": "val/0013ea2087020902.jpg", "caption": []},
    ]
    (folder / "coco_karpathy_test.json").write_text(json.dumps(lavis))
    with pytest.raises(ValueError, match=r"coco_karpathy_test.json: holds NoCaps' pictures"):
        load_captioning(folder, "test")


def test_coco_under_nocaps_name_is_named(sets: Folders, tmp_path: Path) -> None:
    source = sets["nocaps"] / "nocaps_val_4500_captions.json"
    changed(source, tmp_path / source.name, lambda content: content["images"][0].update(file_name="COCO_val2014_1.jpg"))
    with pytest.raises(ValueError, match=rf"{source.name}: holds COCO's pictures \(COCO_val2014_1.jpg\)"):
        load_nocaps(tmp_path, "val")
