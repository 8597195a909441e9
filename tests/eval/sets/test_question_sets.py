"""OK-VQA and GQA from question file to score, and sets known by what their files hold."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from eval.metrics.lemmas import lemmatise
from eval.run import main as predict
from eval.score import main as score
from eval.sets.captioned import load_captioning, load_retrieval
from eval.sets.question_sets import PUBLISHED_QUESTIONS, load_gqa, load_okvqa, load_vqa

Folders = dict[str, Path]


def rows(path: Path) -> dict[tuple[str, str], float]:
    return {(row["protocol"], row["subset"]): row["value"] for row in json.loads(path.read_text())["metrics"]}


def scored(task: str, entries: list[dict[str, Any]], folder: Path, *files: object) -> dict[tuple[str, str], float]:
    (folder / "p.json").write_text(json.dumps(entries))
    flags = ("--predictions", folder / "p.json", *files, "--output", folder / "m.json")
    assert score([task, *map(str, flags)]) == 0
    return rows(folder / "m.json")


@pytest.mark.parametrize(("task", "count"), [("okvqa", 10), ("gqa", 10)])
def test_answers_of_a_checkpoint_are_scored_by_the_sets_own_rules(
    task: str, count: int, checkpoints: Folders, sets: Folders, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    flags = ("--weights", checkpoints["t5"], "--task", task, "--data", sets[task], "--output", out)
    assert predict([str(flag) for flag in flags]) == 0
    answers = json.loads((out / "predictions.json").read_text())
    assert len(answers) == count and set(answers[0]) == {"question_id", "answer"}
    told = json.loads((out / "task.json").read_text())
    assert "Short answer" in told["prompt"] and not told["is_published_set"]
    annotations = "mscoco_val2014_annotations.json" if task == "okvqa" else "testdev_balanced_questions.json"
    found = scored(task, answers, tmp_path, "--annotations", sets[task] / annotations)
    protocols = {protocol for protocol, _ in found}
    lemmas = {f"okvqa/{rule}{more}" for rule in ("official-2021", "legacy-2017") for more in ("", "+lemmas")}
    assert protocols == (lemmas if task == "okvqa" else {"gqa/exact", "gqa/normalised", "gqa/lavis"})


def test_okvqa_counts_an_inflected_answer_only_by_its_lemma(sets: Folders, tmp_path: Path) -> None:
    annotations = json.loads((sets["okvqa"] / "mscoco_val2014_annotations.json").read_text())
    for entry in annotations["annotations"]:
        entry["answers"] = [{"answer": "surf wave", "raw_answer": "surfing waves"}] * 9 + [{"answer": "swim"}]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(annotations))
    entries = [{"question_id": each["question_id"], "answer": "Surfing waves"} for each in annotations["annotations"]]
    found = scored("okvqa", entries, tmp_path, "--annotations", path)
    for rule in ("official-2021", "legacy-2017"):
        assert found[f"okvqa/{rule}", "overall"] == 0
        assert found[f"okvqa/{rule}+lemmas", "overall"] == 100


@pytest.mark.parametrize(
    ("answer", "lemmas"),
    [
        ("dogs", "dog"),
        ("two Children", "two child"),
        ("skiing", "ski"),
        ("ran", "run"),
        ("left", "left"),
        ("red buses", "red bus"),
        ("tennis", "tennis"),
        ("frisbees", "frisbee"),
        ("glass", "glass"),
        ("wii", "wii"),
        ("", ""),
    ],
)
def test_lemmas_of_nouns_and_verbs(answer: str, lemmas: str) -> None:
    assert lemmatise(answer) == lemmas


def test_gqa_is_exact_or_normalised_and_broken_down_by_type(sets: Folders, tmp_path: Path) -> None:
    path = sets["gqa"] / "testdev_balanced_questions.json"
    said = {"query": lambda answer: f"The {answer}", "verify": lambda answer: answer}
    entries = [
        {"questionId": number, "prediction": said[entry["types"]["structural"]](entry["answer"])}
        for number, entry in json.loads(path.read_text()).items()
    ]
    found = scored("gqa", entries, tmp_path, "--annotations", path)
    assert found["gqa/exact", "overall"] == 50 and found["gqa/lavis", "overall"] == 100
    assert found["gqa/exact", "structural=query"] == 0 and found["gqa/exact", "semantic=global"] == 100


def test_lavis_never_counts_what_normalising_the_right_answer_would_change(sets: Folders, tmp_path: Path) -> None:
    content = json.loads((sets["gqa"] / "testdev_balanced_questions.json").read_text())
    first, *_ = content
    content[first]["answer"] = "t-shirt"
    path = tmp_path / "testdev_balanced_questions.json"
    path.write_text(json.dumps(content))
    entries = [{"questionId": number, "prediction": entry["answer"]} for number, entry in content.items()]
    found = scored("gqa", entries, tmp_path, "--annotations", path)
    all_right = 100.0 * (len(content) - 1) / len(content)
    assert found["gqa/exact", "overall"] == found["gqa/normalised", "overall"] == 100
    assert found["gqa/lavis", "overall"] == pytest.approx(all_right)


def test_an_answer_missing_from_gqa_is_named(sets: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = sets["gqa"] / "testdev_balanced_questions.json"
    (tmp_path / "p.json").write_text(json.dumps([{"question_id": "20000", "answer": "x"}]))
    flags = ("--predictions", tmp_path / "p.json", "--annotations", path, "--output", tmp_path / "m.json")
    assert score(["gqa", *map(str, flags)]) == 1
    error = capsys.readouterr().err
    assert "9 missing ('21000', " in error and error.count("\n") == 1 and not (tmp_path / "m.json").exists()


def test_a_question_twice_in_gqa_is_named(sets: Folders, tmp_path: Path) -> None:
    text = (sets["gqa"] / "testdev_balanced_questions.json").read_text()
    shutil.copytree(sets["gqa"], tmp_path / "gqa")
    (tmp_path / "gqa" / "testdev_balanced_questions.json").write_text(text.replace('"21001"', '"21000"'))
    with pytest.raises(ValueError, match="'21000' occurs twice"):
        load_gqa(tmp_path / "gqa", "test-dev")


@pytest.mark.parametrize("name", ["val_balanced_questions.json", "test_all_questions.json"])
def test_another_split_of_gqa_is_known_by_its_name(name: str, sets: Folders, tmp_path: Path) -> None:
    shutil.copytree(sets["gqa"], tmp_path / "gqa")
    (tmp_path / "gqa" / "testdev_balanced_questions.json").rename(tmp_path / "gqa" / name)
    with pytest.raises(ValueError, match=f"{name}: its name says split"):
        load_gqa(tmp_path / "gqa", "test-dev")


def test_gqas_accuracy_is_about_balanced_questions_alone(
    sets: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "testdev_balanced_questions.json"
    content = json.loads((sets["gqa"] / path.name).read_text())
    content["20001"]["isBalanced"] = False
    path.write_text(json.dumps(content))
    (tmp_path / "p.json").write_text(json.dumps([{"question_id": each, "answer": "a"} for each in content]))
    flags = ("--predictions", tmp_path / "p.json", "--annotations", path, "--output", tmp_path / "m.json")
    assert score(["gqa", *map(str, flags)]) == 1
    error = capsys.readouterr().err
    assert "question_id '20001' is not one of the balanced questions" in error and error.count("\n") == 1


def test_lavis_files_are_the_same_set_as_karpathys(sets: Folders) -> None:
    for load in (load_captioning, load_retrieval):
        ours, theirs = load(sets["coco"], "test"), load(sets["lavis"], "test")
        assert list(ours.image_paths) == list(theirs.image_paths)
    assert load_retrieval(sets["coco"], "test").texts == load_retrieval(sets["lavis"], "test").texts


def test_a_file_of_another_split_is_not_taken_for_the_one_asked_for(sets: Folders, tmp_path: Path) -> None:
    shutil.copytree(sets["lavis"], tmp_path / "lavis")
    file = tmp_path / "lavis" / "coco_karpathy_test.json"
    other = file.rename(file.with_name("coco_karpathy_val.json"))
    with pytest.raises(ValueError, match="holds split 'val', not 'test'"):
        load_captioning(tmp_path / "lavis", "test")
    assert load_captioning(tmp_path / "lavis", "val").annotations == other


def test_lavis_captions_are_references_too(sets: Folders, tmp_path: Path) -> None:
    entries = [
        {"image_id": image, "caption": f"a {image}"} for image in load_captioning(sets["coco"], "test").image_paths
    ]
    ours = scored("captions", entries, tmp_path, "--annotations", sets["coco"] / "dataset_coco.json", "--split", "test")
    theirs = scored("captions", entries, tmp_path, "--annotations", sets["lavis"] / "coco_karpathy_test.json")
    assert ours == theirs


def test_a_file_of_another_name_is_known_by_its_content(sets: Folders, tmp_path: Path) -> None:
    for task, load, name in (
        ("okvqa", load_okvqa, "OpenEnded_mscoco_val2014_questions.json"),
        ("gqa", load_gqa, "testdev_balanced_questions.json"),
        ("coco", load_captioning, "dataset_coco.json"),
    ):
        folder = tmp_path / task
        shutil.copytree(sets[task], folder)
        (folder / name).rename(folder / "mine.json")
        split = {"gqa": "test-dev", "coco": "test"}.get(task, "val")
        assert load(folder, split).annotations == folder / "mine.json"
        shutil.copy(folder / "mine.json", folder / "copy.json")
        with pytest.raises(ValueError, match="several files fit"):
            load(folder, split)


def test_only_the_whole_published_set_bears_its_name_as_published(
    sets: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_vqa(sets["vqav2"], "val").data_set.name == "VQAv2 val"
    assert not load_vqa(sets["vqav2"], "val").data_set.is_published
    monkeypatch.setitem(PUBLISHED_QUESTIONS["VQAv2"], "val", 10)
    assert load_vqa(sets["vqav2"], "val").data_set.is_published


def test_files_of_another_year_are_refused(sets: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "okvqa"
    shutil.copytree(sets["okvqa"], folder)
    questions = folder / "OpenEnded_mscoco_val2014_questions.json"
    questions.write_text(questions.read_text().replace('"val2014"', '"val2015"'))
    with pytest.raises(ValueError, match="data_subtype 'val2015', but split 'val' of OK-VQA is 'val2014'"):
        load_okvqa(folder, "val")
    (tmp_path / "p.json").write_text("[]")
    annotations = folder / "mscoco_val2014_annotations.json"
    flags = ("--predictions", tmp_path / "p.json", "--annotations", annotations, "--questions", questions)
    assert score(["okvqa", *map(str, flags), "--output", str(tmp_path / "m.json")]) == 1
    assert "data_subtype 'val2014', but" in capsys.readouterr().err
    content = json.loads(annotations.read_text()) | {"info": {"year": 2015}}
    annotations.write_text(json.dumps(content))
    content = json.loads(questions.read_text().replace('"val2015"', '"val2014"')) | {"info": {"year": 2017}}
    questions.write_text(json.dumps(content))
    assert score(["okvqa", *map(str, flags), "--output", str(tmp_path / "m.json")]) == 1
    assert "year 2015, but" in capsys.readouterr().err


def test_a_question_of_5000_words_and_one_without_a_picture_are_one_line(
    sets: Folders, checkpoints: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(sets["vqav2"], tmp_path / "vqav2")
    file = tmp_path / "vqav2" / "v2_OpenEnded_mscoco_val2014_questions.json"
    content = json.loads(file.read_text())
    flags = ("--weights", checkpoints["opt"], "--task", "vqa", "--data", tmp_path / "vqav2", "--output", tmp_path / "o")
    missing = tmp_path / "vqav2" / "val2014" / "COCO_val2014_000000000003.jpg"
    missing.unlink()
    assert predict([*map(str, flags)]) == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "image 3: " in line and str(missing) in line and line.endswith("; add the picture")
    content["questions"][3]["question"] = "what " * 5000
    file.write_text(json.dumps(content))
    assert predict([*map(str, flags)]) == 1
    error = capsys.readouterr().err
    assert f"{file}: question_id 21 has a question of 25,000 characters, at most 1,000 are read; shorten it" in error
