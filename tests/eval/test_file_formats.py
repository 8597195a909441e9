"""eval/FILES.md names the fields that the files of this room have: those of the models, and those that are written."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel

from eval.reporting.selection import Selection
from eval.score import main as score
from eval.submit import main as submit
from eval.tasks.task_file import TaskFile
from eval.watching.notes import Note
from eval.watching.wanted import Wanted, WatchList
from tests.eval.test_run import SHORT, Folders, run

PAGE = (Path(__file__).parents[2] / "eval" / "FILES.md").read_text()
PROTOCOL = re.compile(r"(vqa|okvqa|gqa|ret)/.*|bleu_\d|rouge_l|cider")  # what a sample's scores are called by


def told(heading: str) -> set[str]:
    """The code spans in the first column of the tables below a heading."""
    section = re.split(r"^#+ ", PAGE.split(f"# {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    cells = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| ")]
    return {span for cell in cells for span in re.findall(r"`([^`]+)`", cell)}


def told_of_sample(task: str) -> set[str]:
    """The fields of one line of per_sample.jsonl, beside its scores."""
    section = PAGE.split("# per_sample.jsonl\n", 1)[1].split("\n#", 1)[0]
    [row] = [line for line in section.splitlines() if line.startswith("| ") and task in line.split(" | ")[0]]
    return set(re.findall(r"`([^`]+)`", row))


@pytest.mark.parametrize(
    ("heading", "model"),
    [
        ("task.json", TaskFile),
        ("submitted.json", Note),
        ("selection.json", Selection),
        ("The watch list", WatchList),
        ("An evaluation of the list", Wanted),
    ],
)
def test_the_page_names_the_fields_of_a_model(heading: str, model: type[BaseModel]) -> None:
    assert told(heading) == set(model.model_fields)


def test_the_page_names_the_fields_that_predictions_have(checkpoints: Folders, sets: Folders, tmp_path: Path) -> None:
    answers, ranks = tmp_path / "answers", tmp_path / "ranks"
    assert run(checkpoints["opt"], "captioning", sets["coco"], answers, *SHORT, "--limit", 2) == 0
    assert run(checkpoints["stage1"], "retrieval", sets["coco"], ranks, "--limit", 2) == 0
    settings = [json.loads((folder / "task.json").read_text()).keys() for folder in (answers, ranks)]
    ranked = {"answers", "answers_sha256", "answer_candidates"}  # of a closed list of answers
    assert told("task.json") - ranked == {name for each in settings for name in each}
    lines = [
        json.loads((folder / "predictions.jsonl").read_text().splitlines()[0]).keys() for folder in (answers, ranks)
    ]
    assert told("predictions.jsonl") == {name for each in lines for name in each}
    with np.load(ranks / "scores.npz") as arrays:
        assert told("scores.npz") == set(arrays.files)


def scored(task: str, predictions: Path, *more: object) -> tuple[dict[str, Any], set[str]]:
    """metrics.json compared with itself, and the fields of a sample that are no scores."""
    folder = predictions.parent
    files = ("--predictions", predictions, "--against", predictions, *more, "--per-sample", folder / "s.jsonl")
    assert score([task, *map(str, files), "--output", str(folder / "m.json")]) == 0
    samples = [json.loads(line) for line in (folder / "s.jsonl").read_text().splitlines()]
    fields = {name for sample in samples for name in sample if not PROTOCOL.fullmatch(name)}
    return json.loads((folder / "m.json").read_text()), fields


def test_the_page_names_the_fields_that_scores_have(sets: Folders, tmp_path: Path) -> None:
    captions = tmp_path / "p.json"
    found = []
    nocaps = sets["nocaps"] / "nocaps_val_4500_captions.json"
    captions.write_text(json.dumps([{"image_id": image, "caption": "a"} for image in range(6)]))
    metrics, fields = scored("nocaps", captions, "--annotations", nocaps)
    found.append(metrics)
    assert fields == told_of_sample("nocaps")
    for task, name in (("vqa", "v2_mscoco_val2014_annotations.json"), ("okvqa", "mscoco_val2014_annotations.json")):
        annotations = sets["vqav2" if task == "vqa" else task] / name
        entries = json.loads(annotations.read_text())["annotations"]
        captions.write_text(json.dumps([{"question_id": each["question_id"], "answer": "a"} for each in entries]))
        metrics, fields = scored(task, captions, "--annotations", annotations)
        found.append(metrics)
        assert fields == told_of_sample("vqa, okvqa")
    questions = sets["gqa"] / "testdev_balanced_questions.json"
    captions.write_text(
        json.dumps([{"question_id": each, "answer": "a"} for each in json.loads(questions.read_text())])
    )
    assert scored("gqa", captions, "--annotations", questions)[1] == told_of_sample("gqa")
    np.savez(tmp_path / "s.npz", itc=np.eye(3), text_image=np.arange(3))
    metrics, fields = scored("retrieval", tmp_path / "s.npz")
    found.append(metrics)
    assert fields == told_of_sample("retrieval")
    assert told("metrics.json") == {name for each in found for name in each}
    assert told("A row") == {name for each in found for row in each["metrics"] for name in row}


def test_the_page_names_the_fields_of_a_submissions_provenance(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('[{"image_id": 1, "caption": "a"}]')
    (tmp_path / "i.json").write_text('{"images": [{"id": 1, "file_name": "a"}]}')
    files = ("--predictions", tmp_path / "p.json", "--images", tmp_path / "i.json", "--output", tmp_path / "f.json")
    assert submit(["nocaps", *map(str, files), "--any-size"]) == 0
    written = json.loads((tmp_path / "f.json.provenance.json").read_text())
    assert told("F.provenance.json") == {*written, "questions"}
