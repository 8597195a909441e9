"""Makes annotations of drawn scenes in the official formats: Karpathy COCO and Flickr30K, VQAv2, NoCaps."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.miniature.language import Question, ask, describe
from data_prep.miniature.scenes import Scene

INFO = {"description": "a drawn miniature world", "version": "1"}


def captions_of(scene: Scene, number: int, rng: np.random.Generator) -> list[str]:
    """`number` true captions, as distinct as the scene allows."""
    captions: list[str] = []
    for _ in range(number):
        caption = describe(scene, rng)
        for _ in range(8):
            if caption not in captions:
                break
            caption = describe(scene, rng)
        captions.append(caption)
    return captions


def karpathy_entry(imgid: int, filename: str, split: str, captions: list[str], **more: str | int) -> dict[str, Any]:
    """One image of a Karpathy JSON; `more` holds what COCO adds (filepath, cocoid)."""
    sentids = [imgid * len(captions) + k for k in range(len(captions))]
    sentences = [
        {"raw": caption, "tokens": caption.replace(",", "").replace(".", "").split(), "imgid": imgid, "sentid": sentid}
        for caption, sentid in zip(captions, sentids, strict=True)
    ]
    return {
        **more, "filename": filename, "imgid": imgid, "split": split, "sentids": sentids, "sentences": sentences,
    }  # fmt: skip


def caption_ground_truth(entries: list[dict[str, Any]], split: str) -> dict[str, Any]:
    """COCO caption annotations of one split of a Karpathy COCO JSON, as `coco_karpathy_test_gt.json` holds them."""
    chosen = [entry for entry in entries if entry["split"] == split]
    return {
        "info": INFO,
        "licenses": [],
        "images": [{"id": entry["cocoid"], "file_name": entry["filename"]} for entry in chosen],
        "annotations": [
            {"image_id": entry["cocoid"], "id": sentence["sentid"], "caption": sentence["raw"]}
            for entry in chosen
            for sentence in entry["sentences"]
        ],
    }


def vqa_files(
    scenes: dict[int, Scene], subset: str, questions_per_image: int, rng: np.random.Generator
) -> tuple[dict[str, Any], dict[str, Any]]:
    """VQAv2's question and annotation file of a subset (val2014). The questions about one image all differ."""
    questions: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, scene in scenes.items():
        for k, question in enumerate(_distinct_questions(scene, questions_per_image, rng)):
            question_id = image_id * 1000 + k
            questions.append({"image_id": image_id, "question": question.text, "question_id": question_id})
            annotations.append(
                {
                    "image_id": image_id,
                    "question_id": question_id,
                    "question_type": question.question_type,
                    "answer_type": question.answer_type,
                    "multiple_choice_answer": question.answer,
                    "answers": [
                        {"answer": answer, "answer_confidence": "yes", "answer_id": n + 1}
                        for n, answer in enumerate(question.answers)
                    ],
                }
            )
    header = {"info": INFO, "license": {}, "data_type": "mscoco", "data_subtype": subset}
    return {**header, "task_type": "Open-Ended", "questions": questions}, {**header, "annotations": annotations}


def nocaps_file(
    images: list[tuple[int, str, str, Scene]], captions_per_image: int, rng: np.random.Generator
) -> dict[str, Any]:
    """NoCaps' validation file for (image id, file name, domain, scene), with `domain` beside each image."""
    annotations: list[dict[str, Any]] = []
    for image_id, _, _, scene in images:
        for caption in captions_of(scene, captions_per_image, rng):
            annotations.append({"image_id": image_id, "id": len(annotations), "caption": caption})
    entries = [
        {"id": image_id, "open_images_id": Path(name).stem, "file_name": name, "domain": domain}
        for image_id, name, domain, _ in images
    ]
    return {"info": INFO, "licenses": [], "images": entries, "annotations": annotations}


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


def _distinct_questions(scene: Scene, number: int, rng: np.random.Generator) -> list[Question]:
    questions: dict[str, Question] = {}
    for _ in range(number * 8):
        question = ask(scene, rng)
        questions.setdefault(question.text, question)
        if len(questions) == number:
            break
    return list(questions.values())
