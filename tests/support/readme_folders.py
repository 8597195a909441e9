"""Folders in which the commands of the READMEs run as they are written: tiny files at the names that the pages use."""

import csv
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tests.support.foreign_tars import of_img2dataset, write_tar
from tests.support.tiny_captioning_models import save_tiny_blip, save_tiny_clip
from tests.support.tiny_evaluation_sets import save_gqa, save_karpathy, save_nocaps, save_okvqa, save_vqa
from tests.support.tiny_questions import (
    write_coco_picture,
    write_json,
    write_visual_genome,
    write_visual_genome_picture,
    write_vqa,
)
from tests.support.tiny_towers import IMAGE_SIZE_PX, save_tiny_bert, save_tiny_eva, save_tiny_opt, save_tiny_t5
from tests.support.web_folder import jpeg_bytes

ROOT = Path(__file__).parents[2]
RECIPES = Path("pipeline/recipes")
STEP = "checkpoints/step_00000004"
COLUMNS = {"file": "image", "caption": "text"}


def make_models(folder: Path) -> None:
    """Tiny towers, and every shipped recipe with them in the place of its own; CapFilt's models by their hub ids."""
    towers = folder / "towers"
    vision, bert = save_tiny_eva(towers / "eva"), save_tiny_bert(towers / "bert")
    languages = {"opt": save_tiny_opt(towers / "opt"), "flant5": save_tiny_t5(towers / "t5")}
    (folder / RECIPES).mkdir(parents=True)
    for path in sorted((ROOT / RECIPES).glob("[sf]*.yaml")):
        content = yaml.safe_load(path.read_text())
        content["vision"] |= {"name": vision, "precision": "fp32", "image_size_px": IMAGE_SIZE_PX}
        small = {"num_query_tokens": 4, "projection_width": 16}
        content["qformer"] = content.get("qformer", {}) | {"bert": bert, "precision": "fp32"} | small
        if "language" in content:
            name = next(name for kind, name in languages.items() if kind in path.stem)
            content["language"] |= {"name": name, "precision": "fp32"}
        (folder / RECIPES / path.name).write_text(yaml.safe_dump(content))
    save_tiny_blip(folder / "Salesforce" / "blip-image-captioning-large")
    save_tiny_clip(folder / "openai" / "clip-vit-large-patch14")


def make_run(folder: Path, recipe: str, name: Path) -> None:
    """A run folder with one checkpoint of large random weights and a few lines of metrics."""
    from pipeline.config import load_recipe
    from pipeline.models.build import build_bridge
    from pipeline.weights.native import save_weights
    from tests.support.random_bridges import randomise

    settings = load_recipe(folder / RECIPES / f"{recipe}.yaml")
    (folder / name / STEP).mkdir(parents=True)
    save_weights(randomise(build_bridge(settings), seed=3).float(), settings, 4, folder / name / STEP)
    (folder / name / STEP / "COMPLETE").touch()
    lines = [{"step": step, "samples": 8 * step, "loss": 3.0 / step} for step in (1, 2, 3, 4)]
    (folder / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def make_pictures(folder: Path) -> None:
    """Pictures beside the page's commands, and FOLDER with its lists."""
    for number, name in enumerate(("holiday.jpg", "cat.jpg", "dog.jpg", "horse.jpg", "more_pictures/a.jpg")):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(jpeg_bytes(number))
    (folder / "FOLDER").mkdir()
    names = [f"{number}.jpg" for number in range(4)]
    for number, name in enumerate(names):
        (folder / "FOLDER" / name).write_bytes(jpeg_bytes(50 + number, 300, 280))
    rows = [{"file": name, "caption": f"a red picture, number {name[0]}"} for name in names]
    for path, header in (("pictures.csv", ("file", "caption")), ("FOLDER/metadata.csv", ("file_name", "text"))):
        with (folder / path).open("w", newline="") as file:
            csv.writer(file).writerows([header, *(row.values() for row in rows)])
    answers = [{"image": "holiday.jpg", "question": "what is it?"}, {"image": "cat.jpg"}]
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in answers))


def make_raw_data(folder: Path) -> None:
    """Tables, annotations and tars of what data_prep reads."""
    make_pictures(folder)
    web = [{"URL": f"{number}.jpg", "TEXT": f"a picture of number {number}", "WIDTH": 300, "HEIGHT": 300}
           for number in range(4)]  # fmt: skip
    (folder / "TABLES").mkdir()
    write_jsonl(folder / "TABLES" / "part.jsonl", web)
    write_json(folder / "laion_filtered.json", [{"url": row["URL"], "caption": row["TEXT"]} for row in web])
    save_karpathy(folder / "karpathy", 2)
    entries = [{"filepath": "train2014", "filename": f"COCO_train2014_{number:012}.jpg", "cocoid": number,
                "imgid": number, "split": "train", "sentences": [{"raw": f"a red picture {number}"}]}
               for number in range(60)]  # fmt: skip
    for number in range(60):
        write_coco_picture(folder / "COCO_FOLDER", "train2014", number)
    write_json(folder / "dataset_coco.json", {"images": entries})
    write_vqa(folder, "train2014", [(1, 10, "What?", ["Cat"] * 10)])
    write_vqa(folder, "val2014", [(3, 30, "Why?", ["so"] * 10)])
    write_coco_picture(folder / "COCO_FOLDER", "val2014", 3)
    write_visual_genome(folder, [(1, 10, "How?", "Well."), (2, 20, "Who?", "A dog.")])
    for image in (1, 2):
        write_visual_genome_picture(folder / "VG_FOLDER", image)
    write_json(
        folder / "image_data.json", [{"image_id": image, "coco_id": 3 if image == 1 else None} for image in (1, 2)]
    )
    (folder / "VQA_IMAGES").mkdir()
    (folder / "VQA_IMAGES" / "1.jpg").write_bytes(jpeg_bytes(3))
    write_tar(folder / "FOLDER" / "00000.tar", of_img2dataset("000000000", 60, "a green picture"))
    captions = [{"image_id": number, "caption": f"a blue picture {number}"} for number in range(4)]
    images = [{"id": number, "file_name": f"{number}.jpg"} for number in range(4)]
    write_json(folder / "captions_train2017.json", {"images": images, "annotations": captions})
    said = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a yellow picture"}]
    write_json(folder / "blip_laion_cc_sbu_558k.json", [{"id": "1", "image": "0.jpg", "conversations": said}])
    write_parquet(folder / "PARQUET_FOLDER")


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_parquet(folder: Path) -> None:
    folder.mkdir()
    cells = [{"bytes": jpeg_bytes(number), "path": "image.jpg"} for number in range(3)]
    pq.write_table(pa.table({"image": cells, "text": ["a", "red", "picture"]}), folder / "train.parquet")


def make_evaluation_data(folder: Path) -> None:
    """Sets in their official formats, in the folders of the pages, and their annotation files beside them."""
    sets: Mapping[str, Path] = {
        "VQAV2_FOLDER": save_vqa(folder / "VQAV2_FOLDER", 3),
        "COCO_FOLDER": save_karpathy(folder / "COCO_FOLDER", 3),
        "GQA_FOLDER": save_gqa(folder / "GQA_FOLDER", 3),
        "okvqa": save_okvqa(folder / "okvqa", 3),
        "nocaps": save_nocaps(folder / "nocaps", 3),
    }
    for place in sets.values():
        for path in place.glob("*.json"):
            shutil.copy(path, folder / path.name)
    shutil.copy(folder / "v2_mscoco_val2014_annotations.json", folder / "A.json")
    shutil.copy(folder / "v2_OpenEnded_mscoco_val2014_questions.json", folder / "Q.json")
    write_json(folder / "answer_list.json", ["red", "green", "blue", "no"])
    write_jsonl(folder / "mine.jsonl", [{"image": "holiday.jpg", "question": "who?", "answers": ["a dog"]}])
    (folder / "val2017").mkdir()
    (folder / "val2017" / "1.jpg").write_bytes(jpeg_bytes(1))
    content = {
        "images": [{"id": 1, "file_name": "1.jpg"}],
        "annotations": [{"image_id": 1, "caption": "a red picture"}],
    }
    (folder / "annotations").mkdir()
    write_json(folder / "annotations" / "captions_val2017.json", content)
    (folder / "data" / "raw").mkdir(parents=True)
    pq.write_table(pa.table({"phash": pa.array([1, 2], pa.uint64())}), folder / "data" / "raw" / "own.parquet")
