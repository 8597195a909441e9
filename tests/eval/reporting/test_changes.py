"""A fine-tuned model beside the one it started from: what it answers now that it did not before, and the reverse."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.report import main
from eval.score import main as score
from eval.sets.captioned import load_nocaps, load_retrieval
from eval.sets.question_sets import load_vqa
from pipeline.config import load_recipe
from tests.eval.test_report import NASTY, Folders, Page, evaluation, scored


def answered(folder: Path, data: Path, right: range, **more: Any) -> Path:
    """VQAv2 answers of which those in `right` are right."""
    questions = load_vqa(data, "val")
    evaluation(folder, "vqa", data, questions.annotations, questions.image_paths, split="val", **more)
    official = data / "v2_mscoco_val2014_annotations.json"
    people = {
        each["question_id"]: each["answers"][0]["answer"] for each in json.loads(official.read_text())["annotations"]
    }
    predictions = [
        {"question_id": sample.id, "answer": people[sample.id] if place in right else f"{folder.name} {place}"}
        for place, sample in enumerate(questions.samples)
    ]
    return scored(folder, "vqa", predictions, "--annotations", official, "--questions", questions.annotations)


def page_of(now: Path, before: Path) -> str:
    output = now.parent / "report.html"
    assert main([str(now), "--before", str(before), "--output", str(output), "--samples", "3"]) == 0
    return output.read_text()


def section(page: str, title: str) -> tuple[str, int]:
    """The text and the number of pictures below a heading of the page, up to the next."""
    [found] = re.findall(rf"<h3>{title}.*?(?=<h[23]>|</main>)", page, re.DOTALL)
    return " ".join(Page(found).text.split()), Page(found).tags.count("img")


def test_answers_that_only_one_of_the_two_has_right_are_shown_with_pictures(sets: Folders, tmp_path: Path) -> None:
    before = answered(tmp_path / "zeroshot", sets["vqav2"], range(0, 4), weights_sha256="00" * 32)
    now = answered(tmp_path / "tuned", sets["vqav2"], range(2, 9))
    page = page_of(now, before)
    text = " ".join(Page(page).text.split())
    assert "What has changed: Visual question answering: VQAv2 val tuned after zeroshot" in text
    assert "Of 10 questions, right in both: 2, now alone: 5, before alone: 2, in neither: 1." in text
    gained, pictures = section(page, "Right now, not before, 3 of 5")
    assert pictures == 3 and len(re.findall(r"before zeroshot [4-8]\b", gained)) == 3
    lost, pictures = section(page, "Right before, not now, 2 of 2")
    assert pictures == 2 and {*re.findall(r"tuned (\d)", lost)} == {"0", "1"} and "before no" in lost


def test_beside_a_fine_tuned_model_no_other_is_compared(sets: Folders, tmp_path: Path) -> None:
    before = answered(tmp_path / "zeroshot", sets["vqav2"], range(0, 4), weights_sha256="00" * 32)
    other = answered(tmp_path / "other", sets["vqav2"], range(0, 2), weights_sha256="11" * 32)
    recipe = load_recipe(Path("pipeline/recipes/finetune_vqa_opt2.7b.yaml"), []).model_dump(mode="json")
    tuned = answered(tmp_path / "tuned", sets["vqav2"], range(2, 9), recipe=recipe)
    output = tmp_path / "report.html"
    assert main([str(other), str(tuned), "--before", str(before), "--output", str(output)]) == 0
    assert re.findall(r"(\w+) after zeroshot", " ".join(Page(output.read_text()).text.split())) == ["tuned"]


def test_captions_whose_cider_has_changed_most(sets: Folders, tmp_path: Path) -> None:
    data = load_nocaps(sets["nocaps"], "val")
    references = {each["image_id"]: each["caption"]
                  for each in json.loads(data.annotations.read_text())["annotations"]}  # fmt: skip
    folders = []
    for name, right in (("zeroshot", (0, 1)), ("tuned", (1, 2, 3))):
        folder = evaluation(tmp_path / name, "nocaps", sets["nocaps"], data.annotations, data.image_paths)
        said = [
            {"image_id": sample.id, "caption": references[sample.id] if place in right else f"{name} {NASTY}"}
            for place, sample in enumerate(data.samples)
        ]
        folders.append(scored(folder, "nocaps", said, "--annotations", data.annotations))
    page = page_of(folders[1], folders[0])
    assert "Of 6 captions, CIDEr has risen for 2 and fallen for 1." in Page(page).text
    risen, pictures = section(page, "CIDEr has risen most")
    assert pictures == 2 and risen.count(f"before, CIDEr 0 zeroshot {NASTY}") == 2
    fallen, pictures = section(page, "CIDEr has fallen most")
    assert pictures == 1 and f"tuned {NASTY}" in fallen


def ranked(folder: Path, data: Path, right: range, k: int = 4) -> Path:
    """A gallery in which the images of `right` find their texts first, and no other image."""
    gallery = load_retrieval(data, "test")
    evaluation(folder, "retrieval", data, gallery.annotations, gallery.image_paths, k_test=k)
    own = np.array(gallery.text_image)[None] == np.arange(len(gallery.image_paths))[:, None]
    itc = np.where(own, 1.0, 0.5) * np.where(np.isin(np.arange(len(own)), right), 1.0, -1.0)[:, None]
    np.savez(folder / "scores.npz", itc=itc, itm=itc, text_image=np.array(gallery.text_image), k_test=k)
    files = ("--predictions", folder / "scores.npz", "--output", folder / "metrics.json")
    assert score(["retrieval", *map(str, files), "--per-sample", str(folder / "per_sample.jsonl")]) == 0
    return folder


def test_queries_whose_right_result_comes_first_in_one_of_the_two_alone(sets: Folders, tmp_path: Path) -> None:
    before, now = (
        ranked(tmp_path / name, sets["flickr30k"], right) for name, right in (("a", range(2)), ("b", range(1, 6)))
    )
    page = page_of(now, before)
    assert "Of 9 images, first in both: 1, now alone: 4, before alone: 1, in neither: 3." in Page(page).text
    gained, _ = section(page, "First now, not before: images, 3 of 4")
    assert len(re.findall(r"at rank 1, before at rank ([2-9]|\d\d)\b", gained)) == 3
    lost, pictures = section(page, "First before, not now: images, 1 of 1")
    assert pictures == 1 and ", before at rank 1" in lost


@pytest.mark.parametrize("fault", ["split", "samples", "number", "k"])
def test_what_cannot_stand_side_by_side_is_one_line(
    fault: str, sets: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if fault == "k":
        now, before = (ranked(tmp_path / name, sets["flickr30k"], range(3), k) for name, k in (("b", 4), ("a", 3)))
    else:
        now, before = (answered(tmp_path / name, sets["vqav2"], range(3)) for name in ("b", "a"))
    samples = before / "per_sample.jsonl"
    said = f"--before {before}: "
    if fault == "split":
        (before / "task.json").write_text((before / "task.json").read_text().replace('"val"', '"train"'))
        said += "no DIR is an evaluation of the same samples"
    elif fault == "samples":
        samples.unlink()
        said += f"{before} has no scores of samples; run eval.score with --per-sample"
    elif fault == "number":
        samples.write_text("".join(samples.read_text().splitlines(keepends=True)[1:]))
        said += f"per_sample.jsonl has other samples than that of {now}"
    else:
        said += f"ranked by ret/k3/itm+itc, but {now} by ret/k4/itm+itc"
    assert main([str(now), "--before", str(before), "--output", str(tmp_path / "r.html")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {said}") and error.count("\n") == 1 and not (tmp_path / "r.html").exists()
