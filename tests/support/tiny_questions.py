"""Question files in the official formats of VQAv2 and Visual Genome and in LAVIS's, with their pictures."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.web_folder import jpeg_bytes

Asked = tuple[int, int, str, Sequence[str]]
"""(picture, question id, question, answers)."""


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def write_vqa(folder: Path, subset: str, asked: Sequence[Asked]) -> tuple[Path, Path]:
    """The official question and annotation files of a subset, such as train2014."""
    questions = [{"image_id": image, "question": text, "question_id": number} for image, number, text, _ in asked]
    annotations = [
        {
            "question_type": "what",
            "multiple_choice_answer": answers[0] if answers else "",
            "image_id": image,
            "question_id": number,
            "answers": [
                {"answer": answer, "answer_confidence": "yes", "answer_id": place}
                for place, answer in enumerate(answers, start=1)
            ],
        }
        for image, number, _, answers in asked
    ]
    about = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": subset}
    return (
        write_json(
            folder / f"v2_OpenEnded_mscoco_{subset}_questions.json",
            about | {"task_type": "Open-Ended", "questions": questions},
        ),
        write_json(folder / f"v2_mscoco_{subset}_annotations.json", about | {"annotations": annotations}),
    )


def write_coco_picture(root: Path, subset: str, image: int) -> None:
    (root / subset).mkdir(parents=True, exist_ok=True)
    (root / subset / f"COCO_{subset}_{image:012d}.jpg").write_bytes(jpeg_bytes(image))


def write_visual_genome(folder: Path, asked: Sequence[tuple[int, int, str, str]], name: str = "id") -> Path:
    """question_answers.json; `name` is that of the picture's number, `id` or `image_id`."""
    pictures: dict[int, list[dict[str, Any]]] = {}
    for image, number, question, answer in asked:
        each = {"qa_id": number, "image_id": image, "question": question, "answer": answer, "a_objects": []}
        pictures.setdefault(image, []).append(each)
    content = [{name: image, "qas": questions} for image, questions in pictures.items()]
    return write_json(folder / "question_answers.json", content)


def write_visual_genome_picture(root: Path, image: int, folder: str = "VG_100K") -> None:
    (root / folder).mkdir(parents=True, exist_ok=True)
    (root / folder / f"{image}.jpg").write_bytes(jpeg_bytes(1000 + image))
