"""Evaluation sets of a few pictures in the official formats."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red": (200, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 200), "yellow": (220, 210, 40)}


def save_picture(path: Path, number: int) -> str:
    """A picture of one colour with noise; returns the colour's name."""
    name = list(COLOURS)[number % len(COLOURS)]
    rng = np.random.default_rng(number)
    pixels = np.clip(np.array(COLOURS[name]) + rng.normal(0, 20, (40, 48, 3)), 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return name


def save_karpathy(folder: Path, images: int, kind: str = "coco") -> Path:
    """dataset_coco.json or dataset_flickr30k.json: two train images, then `images` test images of two captions each."""
    entries = []
    for number in range(images + 2):
        name = f"{number:04}.jpg"
        place = {"filepath": "val2014", "cocoid": 1000 + number} if kind == "coco" else {}
        colour = save_picture(folder / "images" / place.get("filepath", "") / name, number)  # type: ignore[operator]
        sentences = [{"raw": f"A picture of {colour} {number}."}, {"raw": f"the {colour} photo {number}"}]
        split = "train" if number < 2 else "test"
        entries.append(place | {"imgid": number, "filename": name, "split": split, "sentences": sentences})
    (folder / f"dataset_{kind}.json").write_text(json.dumps({"images": entries}))
    return folder


def save_nocaps(folder: Path, images: int) -> Path:
    """nocaps_val_4500_captions.json with a domain and two captions an image."""
    domains = ["in-domain", "near-domain", "out-domain"]
    entries, annotations = [], []
    for number in range(images):
        name = f"{number:04}.jpg"
        colour = save_picture(folder / "images" / name, number)
        entries.append({"id": number, "file_name": name, "domain": domains[number % 3]})
        annotations += [{"image_id": number, "caption": f"{article} {colour} picture"} for article in ("a", "the")]
    content = {"images": entries, "annotations": annotations}
    (folder / "nocaps_val_4500_captions.json").write_text(json.dumps(content))
    return folder


def save_lavis(folder: Path, images: int) -> Path:
    """coco_karpathy_test.json as LAVIS writes it, of the pictures that `save_karpathy` makes."""
    save_karpathy(folder, images)
    karpathy = folder / "dataset_coco.json"
    content = []
    for entry in json.loads(karpathy.read_text())["images"][2:]:
        place = f"val2014/COCO_val2014_{entry['cocoid']:012}.jpg"
        (folder / "images/val2014" / entry["filename"]).rename(folder / "images" / place)
        content.append({"image": place, "caption": [each["raw"] for each in entry["sentences"]]})
    karpathy.unlink()
    (folder / "coco_karpathy_test.json").write_text(json.dumps(content))
    return folder


def save_okvqa(folder: Path, images: int) -> Path:
    """OK-VQA's question and annotation files: those of VQAv2 with its own names, raw answers and codes."""
    save_vqa(folder, images)
    for name, entries in (("questions", "questions"), ("annotations", "annotations")):
        old = "v2_OpenEnded_mscoco_val2014_questions" if name == "questions" else "v2_mscoco_val2014_annotations"
        content = json.loads((folder / f"{old}.json").read_text())
        for entry in content[entries]:
            for answer in entry.get("answers", []):
                answer |= {"raw_answer": answer["answer"], "answer_confidence": "yes"}
            if "question_type" in entry:
                entry |= {"question_type": "ten", "answer_type": "other", "confidence": 5}
        (folder / f"{old}.json").unlink()
        content["data_subtype"] = "val2014"
        (folder / f"{old.removeprefix('v2_')}.json").write_text(json.dumps(content))
    return folder


def save_gqa(folder: Path, images: int) -> Path:
    """testdev_balanced_questions.json: questions by id, with answers and types."""
    questions = {}
    for number in range(images):
        colour = save_picture(folder / "images" / f"n{number}.jpg", number)
        types = {"structural": "query", "semantic": "attr", "detailed": "color"}
        entry = {"imageId": f"n{number}", "question": "What color is it?", "answer": colour, "types": types}
        questions[f"20{number:03}"] = entry | {"isBalanced": True, "fullAnswer": f"It is {colour}."}
        types = {"structural": "verify", "semantic": "global", "detailed": "x"}
        entry = {"imageId": f"n{number}", "question": "Is it dark?", "answer": "no", "types": types}
        questions[f"21{number:03}"] = entry | {"isBalanced": True, "fullAnswer": "No."}
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "testdev_balanced_questions.json").write_text(json.dumps(questions))
    return folder


def save_vqa(folder: Path, images: int) -> Path:
    """VQAv2's question and annotation files: two questions an image."""
    questions, annotations = [], []
    for number in range(1, images + 1):
        colour = save_picture(folder / "val2014" / f"COCO_val2014_{number:012}.jpg", number)
        for place, (question, answer) in enumerate(
            (('What\'s the "COLOUR" of it; right?', colour), ("is it dark?", "no"))
        ):
            identity = {"question_id": 10 * number + place, "image_id": number}
            questions.append(identity | {"question": question})
            answers = [{"answer": answer, "answer_id": each} for each in range(1, 11)]
            kinds = {"question_type": question[:4], "answer_type": "other" if place == 0 else "yes/no"}
            annotations.append(identity | kinds | {"answers": answers})
    name = "v2_OpenEnded_mscoco_val2014_questions.json"
    (folder / name).write_text(json.dumps({"questions": questions}))
    (folder / "v2_mscoco_val2014_annotations.json").write_text(json.dumps({"annotations": annotations}))
    return folder
