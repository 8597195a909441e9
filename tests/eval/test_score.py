"""The scoring command on files: right numbers, and one clear line for every fault."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.score import main


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def rows(path: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    content = json.loads(path.read_text())
    return {(row["name"], row["protocol"], row["subset"]): row for row in content["metrics"]}


@pytest.fixture
def vqa(tmp_path: Path) -> dict[str, Path]:
    answers = [["red"] * 10, ["yes"] * 2 + ["no"] * 8, ["2"] * 10]
    kinds = ["other", "yes/no", "number"]
    annotations = [
        {
            "question_id": 10 + place,
            "image_id": place // 2,
            "question_type": "what",
            "answer_type": kinds[place],
            "answers": [{"answer": answer, "answer_id": number} for number, answer in enumerate(given)],
        }
        for place, given in enumerate(answers)
    ]
    questions = [{"question_id": 10 + place, "image_id": place // 2, "question": f"q{place}"} for place in range(3)]
    return {
        "annotations": write(tmp_path / "annotations.json", {"annotations": annotations}),
        "questions": write(tmp_path / "questions.json", {"questions": questions}),
        "predictions": write(
            tmp_path / "predictions.json",
            [
                {"question_id": 11, "answer": "yes"},
                {"question_id": 10, "answer": "red"},
                {"question_id": 12, "answer": "3"},
            ],
        ),
        "output": tmp_path / "out" / "metrics.json",
    }


def flags(files: dict[str, Path]) -> list[object]:
    return [part for name, path in files.items() for part in (f"--{name}", path)]


def test_vqa_scores_overall_and_by_type(vqa: dict[str, Path], tmp_path: Path) -> None:
    assert run("vqa", *flags(vqa), "--per-sample", tmp_path / "samples.jsonl") == 0
    table = rows(vqa["output"])
    for protocol in ("vqa/official-2021", "vqa/legacy-2017"):
        assert table["accuracy", protocol, "overall"]["value"] == 53.33
        assert table["accuracy", protocol, "answer_type=yes/no"]["value"] == 60
        assert table["accuracy", protocol, "question_type=what"]["value"] == 53.33
    overall = table["accuracy", "vqa/official-2021", "overall"]
    assert overall["low"] is None and overall["high"] is None  # two images say nothing of their spread
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [sample["vqa/official-2021"] for sample in samples] == [100, 60, 0]
    assert samples[1]["question"] == "q1" and samples[1]["image_id"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found[:-1], "1 missing (12)"),
        (lambda found: [*found, {"question_id": 99, "answer": "x"}], "1 extra (99)"),
        (lambda found: [*found, found[0]], "question_id 11 occurs twice"),
        (lambda found: [*found[:-1], {"question_id": 12, "answer": 3}], "answer 3 of question_id 12 is a int"),
        (lambda found: [*found[:-1], {"question_id": 12}], "an entry without 'answer'"),
        (lambda found: {"answers": found}, "expected a list"),
    ],
)
def test_faulty_predictions_are_refused_in_one_line(
    vqa: dict[str, Path], change: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(vqa["predictions"], change(json.loads(vqa["predictions"].read_text())))
    assert run("vqa", *flags(vqa)) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error and "predictions.json" in error
    assert not vqa["output"].exists()


def test_questions_of_another_year_are_refused(vqa: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    write(vqa["questions"], {"questions": [{"question_id": 7, "image_id": 1, "question": "q"}]})
    assert run("vqa", *flags(vqa)) == 1
    assert "3 extra (10, 11, 12)" in capsys.readouterr().err


def coco_file(path: Path, domains: list[str] | None = None) -> Path:
    images = [{"id": image} | ({"domain": domains[image]} if domains else {}) for image in range(4)]
    texts = ["a red dog", "two cats sit on the mat", "a bus in the street", "a man rides a horse"]
    captions = [
        {"image_id": image, "id": 2 * image + number, "caption": text}
        for image, base in enumerate(texts)
        for number, text in enumerate((base, f"There is {base}."))
    ]
    return write(path, {"images": images, "annotations": captions})


def caption_predictions(path: Path) -> Path:
    texts = ["A red dog", "two dogs sit on the mat", "a bus in a street", "nothing"]
    return write(path, [{"image_id": image, "caption": text} for image, text in enumerate(texts)])


def test_captions_equal_pycocoevalcap_and_print_as_papers_do(tmp_path: Path) -> None:
    from pycocoevalcap.cider.cider import Cider

    from eval.metrics.ptb_tokens import tokenize

    annotations, predictions = coco_file(tmp_path / "a.json"), caption_predictions(tmp_path / "p.json")
    output = tmp_path / "metrics.json"
    assert run("captions", "--predictions", predictions, "--annotations", annotations, "--output", output) == 0
    references = {image: ["", ""] for image in range(4)}
    for number, annotation in enumerate(json.loads(annotations.read_text())["annotations"]):
        references[annotation["image_id"]][number % 2] = tokenize([annotation["caption"]])[0]
    results = {each["image_id"]: tokenize([each["caption"]]) for each in json.loads(predictions.read_text())}
    cider, _ = Cider().compute_score(references, results)
    row = rows(output)["cider", "captions/pycocoevalcap-1.2", "overall"]
    assert row["value"] == pytest.approx(100 * cider, abs=1e-3)
    assert json.loads(output.read_text())["n"] == 4


def test_nocaps_domains_share_one_idf(tmp_path: Path) -> None:
    annotations = coco_file(tmp_path / "a.json", ["in-domain", "near-domain", "near-domain", "out-domain"])
    predictions, output = caption_predictions(tmp_path / "p.json"), tmp_path / "metrics.json"
    samples = tmp_path / "s.jsonl"
    files = ("--predictions", predictions, "--annotations", annotations, "--output", output, "--per-sample", samples)
    assert run("nocaps", *files) == 0
    of_image = [json.loads(line)["cider"] for line in samples.read_text().splitlines()]
    table = rows(output)
    for domain, expected in {
        "in-domain": of_image[0],
        "near-domain": np.mean(of_image[1:3]),
        "out-domain": of_image[3],
        "overall": np.mean(of_image),
    }.items():
        assert table["cider", "nocaps/idf-all", domain]["value"] == pytest.approx(expected, abs=1e-3)


def test_karpathy_files_need_a_split_and_give_its_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [
        {"imgid": image, "split": "test" if image < 2 else "train", "sentences": [{"raw": f"caption {image}"}]}
        for image in range(4)
    ]
    annotations = write(tmp_path / "dataset_flickr30k.json", {"images": images})
    predictions = write(tmp_path / "p.json", [{"image_id": i, "caption": f"caption {i}"} for i in range(2)])
    files = ("--predictions", predictions, "--annotations", annotations, "--output", tmp_path / "m.json")
    assert run("captions", *files) == 1
    assert "--split" in capsys.readouterr().err
    assert run("captions", *files, "--split", "test") == 0
    one = {"images": [{"id": 0}, {"id": 1}], "annotations": [{"image_id": i, "caption": "a"} for i in range(2)]}
    write(annotations, one)
    assert run("captions", *files, "--split", "val") == 1
    assert "has no splits" in capsys.readouterr().err


def test_scoring_and_reporting_import_no_torch() -> None:
    names = (
        "eval.score, eval.report, eval.scoring.vqa, eval.scoring.captions, eval.scoring.retrieval, eval.sets.captioned"
    )
    code = f"import sys, {names}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_wrong_usage_is_one_line_and_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run("vqa", "--predictions", "p.json")
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_against_gives_the_difference_in_pairs_and_what_it_was(vqa: dict[str, Path], tmp_path: Path) -> None:
    other = write(tmp_path / "other.json", [{"question_id": number, "answer": "no"} for number in (10, 11, 12)])
    assert run("vqa", *flags(vqa), "--against", other) == 0
    against = json.loads(vqa["output"].read_text())["against"]
    assert against["predictions"] == str(other) and len(against["sha256"]) == 64
    found = {(row["protocol"], row["subset"]): row for row in against["metrics"]}
    overall = found["vqa/official-2021", "overall"]
    assert overall["value"] == pytest.approx(53.33 - 100 / 3, abs=0.01)  # 100, 60, 0 against 0, 100, 0
    assert found["vqa/official-2021", "answer_type=yes/no"]["value"] == -40
    assert overall["low"] is None and overall["high"] is None  # two images say nothing of their spread


def test_predictions_of_other_questions_or_galleries_are_not_compared(
    vqa: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write(tmp_path / "other.json", [{"question_id": 10, "answer": "no"}])
    assert run("vqa", *flags(vqa), "--against", other) == 1
    error = capsys.readouterr().err
    assert "other.json" in error and "2 missing (11, 12)" in error and not vqa["output"].exists()
    arrays = {"itc": np.eye(4), "text_image": np.arange(4)}
    np.savez(tmp_path / "a.npz", **arrays)
    np.savez(tmp_path / "b.npz", **(arrays | {"text_image": np.arange(4)[::-1]}))
    np.savez(tmp_path / "c.npz", **arrays, itm=np.eye(4))
    for name, fault in (("b", "its text_image differs from that of"), ("c", "its rerank (itm, k_test) differs")):
        files = ("--predictions", tmp_path / "a.npz", "--against", tmp_path / f"{name}.npz")
        assert run("retrieval", *files, "--output", tmp_path / "m.json") == 1
        assert fault in capsys.readouterr().err
    files = ("--predictions", tmp_path / "a.npz", "--against", tmp_path / "a.npz", "--output", tmp_path / "m.json")
    assert run("retrieval", *files) == 0
    assert {row["value"] for row in json.loads((tmp_path / "m.json").read_text())["against"]["metrics"]} == {0}


def test_a_place_that_is_no_ordinary_file_is_refused_before_anything_is_written(
    vqa: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = tmp_path / "samples.jsonl"
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "folder", tmp_path / "pipe"):
        assert run("vqa", *flags(vqa | {"output": place, "per-sample": samples})) == 1
        assert f"{place}: is not a regular file" in capsys.readouterr().err and not samples.exists()
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("answers", [{"answer": 3, "answer_id": 1}], "answer 3 of question_id 11 is a int"),
        ("answers", [{"answer_id": 1}], "an entry of question_id 11 without 'answer'"),
        ("answers", [], "question_id 11 has 0 answers, not 10"),
        ("answers", [{"answer": "a", "answer_id": 1}] * 4, "question_id 11 has 4 answers, not 10"),
        ("question_type", 7, "question_type 7 of question_id 11 is a int"),
        ("answer_type", None, "answer_type None of question_id 11 is a NoneType"),
    ],
)
def test_a_fault_of_an_annotation_names_its_question(
    name: str, value: Any, message: str, vqa: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(vqa["annotations"].read_text())
    content["annotations"][1][name] = value
    write(vqa["annotations"], content)
    assert run("vqa", *flags(vqa)) == 1
    error = capsys.readouterr().err
    assert f"annotations.json: {message}" in error and error.count("\n") == 1


def test_a_caption_or_answer_of_a_wrong_type_names_its_image_or_question(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [{"imgid": image, "split": "test", "sentences": [{"raw": 5 if image else "a"}]} for image in range(2)]
    asked = {f"07{n}": {"imageId": "n1", "question": "what?", "answer": 3 if n else "red"} for n in range(2)}
    write(tmp_path / "p.json", [])
    for task, content, message, more in (
        ("captions", {"images": images}, "raw 5 of image 1 is a int", ("--split", "test")),
        ("gqa", asked, "answer 3 of question_id '071' is a int", ()),
    ):
        path = write(tmp_path / "a.json", content)
        files = ("--predictions", tmp_path / "p.json", "--annotations", path, "--output", tmp_path / "m.json")
        assert run(task, *files, *more) == 1
        error = capsys.readouterr().err
        assert f"{path}: {message}" in error and error.count("\n") == 1
