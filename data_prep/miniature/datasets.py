"""Builds the data sets of the drawn world: writes their tables and annotations, and plans their pictures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.miniature.annotations import (
    caption_ground_truth,
    captions_of,
    karpathy_entry,
    nocaps_file,
    vqa_files,
    write_json,
)
from data_prep.miniature.pictures import Picture
from data_prep.miniature.scenes import Scene, scene_to_json
from data_prep.miniature.web import plan_web, write_web_tables

CAPTIONS_PER_IMAGE = 5
NOCAPS_CAPTIONS = 10
QUESTIONS_PER_IMAGE = {"val2014": 3, "train2014": 12}
COCO_SPLITS = ("test", "val", "train")  # in the order of their pictures' numbers
RESTVAL_SHARE = 0.1
"""The share of COCO training images marked restval, as those that Karpathy's split took from COCO's validation set."""

Scenes = dict[str, list[Scene]]
Built = tuple[list[Picture], list[tuple[str, str, Scene]]]
"""The pictures to write, and (image, split, scene) of each; image is a URL or a path below the world."""


def build_web(folder: Path, scenes: Scenes, seed: int, base_url: str) -> Built:
    rows, pictures, routes = plan_web(folder / "web", scenes["web"], base_url, seed)
    write_web_tables(folder / "web", rows, routes)
    return pictures, [(row.url, "web", row.scene) for row in rows]


def build_coco(folder: Path, scenes: Scenes, seed: int) -> Built:
    rng = np.random.default_rng((seed, 0xC0C0))
    root = folder / "coco" / "images"
    plan = _Plan(folder, seed, 0xC0C1)
    entries: list[dict[str, Any]] = []
    for split in COCO_SPLITS:
        drawn = scenes[f"coco_{split}"]
        restval = _restval(drawn) if split == "train" else 0
        for i, scene in enumerate(drawn):
            imgid = len(entries)
            cocoid = _coco_number(imgid)
            part = "train2014" if split == "train" and i >= restval else "val2014"
            name = f"COCO_{part}_{cocoid:012d}.jpg"
            label = "restval" if split == "train" and i < restval else split
            captions = captions_of(scene, CAPTIONS_PER_IMAGE, rng)
            entries.append(karpathy_entry(imgid, name, label, captions, filepath=part, cocoid=cocoid))
            plan.add(root / part / name, f"coco_{label}", scene)
    write_json(folder / "coco" / "dataset_coco.json", {"images": entries, "dataset": "coco"})
    for split in ("val", "test"):
        path = folder / "coco" / "annotations" / f"coco_karpathy_{split}_gt.json"
        write_json(path, caption_ground_truth(entries, split))
    return plan.built


def build_flickr(folder: Path, scenes: Scenes, seed: int) -> Built:
    rng = np.random.default_rng((seed, 0xF1C0))
    plan = _Plan(folder, seed, 0xF1C1)
    entries: list[dict[str, Any]] = []
    for split in ("test", "val"):
        for scene in scenes[f"flickr_{split}"]:
            imgid = len(entries)
            name = f"{1_000_092_795 + 37 * imgid}.jpg"
            entries.append(karpathy_entry(imgid, name, split, captions_of(scene, CAPTIONS_PER_IMAGE, rng)))
            plan.add(folder / "flickr30k" / "images" / name, f"flickr_{split}", scene)
    write_json(folder / "flickr30k" / "dataset_flickr30k.json", {"images": entries, "dataset": "flickr30k"})
    return plan.built


def _restval(training: list[Scene]) -> int:
    """So many training pictures of COCO come first, and are marked restval."""
    return round(len(training) * RESTVAL_SHARE)


def _coco_number(place: int) -> int:
    return 1001 + 7 * place


def build_vqa(folder: Path, scenes: Scenes, seed: int) -> Built:
    """Questions about pictures of their own (val2014), and for fine-tuning about COCO's training pictures
    (train2014)."""
    by_id = {500_001 + 11 * i: scene for i, scene in enumerate(scenes["vqa"])}
    plan = _Plan(folder, seed, 0x70A1)
    for image_id, scene in by_id.items():
        plan.add(folder / "vqav2" / "val2014" / f"COCO_val2014_{image_id:012d}.jpg", "vqa", scene)
    rng = np.random.default_rng((seed, 0x70A0))
    _write_questions(folder, "val2014", by_id, rng)
    before, training = sum(len(scenes[f"coco_{split}"]) for split in COCO_SPLITS[:-1]), scenes["coco_train"]
    numbered = {_coco_number(before + place): scene for place, scene in enumerate(training)}
    asked = dict(list(numbered.items())[_restval(training) :])
    _write_questions(folder, "train2014", asked, np.random.default_rng((seed, 0x70A2)))
    return plan.built


def _write_questions(folder: Path, subset: str, by_id: dict[int, Scene], rng: np.random.Generator) -> None:
    questions, annotations = vqa_files(by_id, subset, QUESTIONS_PER_IMAGE[subset], rng)
    write_json(folder / "vqav2" / f"v2_OpenEnded_mscoco_{subset}_questions.json", questions)
    write_json(folder / "vqav2" / f"v2_mscoco_{subset}_annotations.json", annotations)


def build_nocaps(folder: Path, scenes: Scenes, seed: int) -> Built:
    images: list[tuple[int, str, str, Scene]] = []
    plan = _Plan(folder, seed, 0x0CA9)
    for domain in ("in-domain", "near-domain", "out-domain"):
        for scene in scenes[f"nocaps_{domain}"]:
            name = f"{(len(images) + 1) * 0x9E3779B1 % 2**32:08x}{len(images):08x}.jpg"
            images.append((len(images), name, domain, scene))
            plan.add(folder / "nocaps" / "images" / name, f"nocaps_{domain}", scene)
    rng = np.random.default_rng((seed, 0x0CA8))
    write_json(folder / "nocaps" / "nocaps_val_4500_captions.json", nocaps_file(images, NOCAPS_CAPTIONS, rng))
    return plan.built


class _Plan:
    """Collects the pictures of one data set, each with its own seed, and what they show."""

    def __init__(self, folder: Path, seed: int, stream: int) -> None:
        self.folder, self.seed, self.stream = folder, seed, stream
        self.built: Built = ([], [])

    def add(self, path: Path, split: str, scene: Scene) -> None:
        pictures, truth = self.built
        pictures.append(Picture(path, scene, "dataset", (self.seed, self.stream, len(pictures))))
        truth.append((str(path.relative_to(self.folder)), split, scene))


def write_truth(path: Path, truth: list[tuple[str, str, Scene]]) -> None:
    images, splits, scenes = zip(*truth, strict=True)
    columns = {"image": images, "split": splits, "scene": [json.dumps(scene_to_json(scene)) for scene in scenes]}
    pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), path)
