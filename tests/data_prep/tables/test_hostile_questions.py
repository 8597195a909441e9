"""Spoilt question files: each gives rows that a shard can hold, or one line, and never another error."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

from data_prep.raw.raw_shards import Storing, _record
from data_prep.raw.stored_image import ImageLimits, StoredImage
from data_prep.shards.sample_json import encode_record, record_fault
from data_prep.tables.caption_filter import CaptionRules
from data_prep.tables.evaluation_pictures import EvaluationPictures, read_coco_ids, read_evaluation_sets
from data_prep.tables.row import Row
from data_prep.tables.sources import choose_source, read_rows
from tests.support.hostile_files import any_bytes
from tests.support.tiny_questions import write_json, write_visual_genome, write_vqa

TIMES = 400
VQA, GENOME = choose_source("vqav2"), choose_source("visual_genome_qa")
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1.5, 1 << 63, 10**400, float("nan"), float("inf"), "", " ", "../../x", "\ud800", "\x00",
    "x" * 5000, [], [[]], {}, {"answer": None}, [None], "COCO_val2014_000000000001.jpg", "²", "1.jpg", 1e300,
)  # fmt: skip


def spoil(rng: random.Random, content: Any) -> Any:
    """The content with one value at any depth replaced, lost or given twice."""
    places: list[tuple[Any, Any]] = []
    waiting = [content]
    while waiting:
        node = waiting.pop()
        for name in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, name))
            if isinstance(node[name], dict | list):
                waiting.append(node[name])
    node, name = rng.choice(places)
    way = rng.randrange(6)
    if way == 0:
        del node[name]
    elif way == 1 and isinstance(node, list):
        node.append(node[name])
    else:
        node[name] = rng.choice(VALUES)
    return content


def test_spoilt_files_give_sound_rows_or_one_line(tmp_path: Path) -> None:
    pristine, world = tmp_path / "pristine", tmp_path / "world"
    pristine.mkdir()
    asked = [(1, 10, "What?", ["cat", "the dog"]), (1, 11, "Who?", ["a"]), (42, 20, "Why?", ["so."])]
    write_vqa(pristine, "val2014", asked)
    lavis = {
        "question": "What?",
        "answer": ["a cat"],
        "image": "val2014/COCO_val2014_000000000042.jpg",
        "dataset": "vqa",
    }
    write_json(pristine / "vqa_val.json", [lavis | {"question_id": each} for each in (1, 2)])
    write_visual_genome(pristine, [(1, 1, "What?", "Cat."), (2, 2, "Who?", "A dog.")])
    write_json(pristine / "vg_qa.json", [lavis | {"question_id": 1, "answer": "cat", "image": "image/1.jpg"}])
    write_json(pristine / "image_data.json", [{"image_id": 1, "coco_id": 42}, {"image_id": 2, "coco_id": None}])
    write_json(
        pristine / "dataset_coco.json", {"images": [{"cocoid": 1, "split": "test"}, {"cocoid": 2, "split": "val"}]}
    )
    shutil.copytree(pristine, world)
    names = sorted(path.name for path in pristine.iterdir())
    rng, rows, refused = random.Random(20261129), 0, 0
    for _ in range(TIMES):
        spoilt = world / rng.choice(names)
        if rng.random() < 0.2:
            spoilt.write_bytes(any_bytes(rng, spoilt.read_bytes()))
        else:
            spoilt.write_text(json.dumps(spoil(rng, json.loads(spoilt.read_text()))))
        try:
            rows += _read_all(world, spoilt.name)
        except ValueError as error:
            refused += 1
            assert "\n" not in str(error) and str(world) in str(error) and str(error).startswith("--")
        shutil.copyfile(pristine / spoilt.name, spoilt)
    assert rows > TIMES / 4 and refused > TIMES / 4


def _read_all(world: Path, spoilt: str) -> int:
    """Read the files that go with the spoilt one; the number of rows, which are all sound."""
    if spoilt == "vqa_val.json":
        return sum(_sound(row) for row in read_rows(VQA, world / spoilt))
    if spoilt == "vg_qa.json":
        return sum(_sound(row) for row in read_rows(GENOME, world / spoilt))
    if spoilt in ("question_answers.json", "image_data.json", "dataset_coco.json"):
        evaluation = EvaluationPictures(
            read_evaluation_sets([world / "dataset_coco.json"]),
            read_coco_ids(world / "image_data.json"),
            world / "image_data.json",
        )
        assert evaluation.digest() and evaluation.sizes()
        return sum(_sound(row) for row in evaluation.marked(read_rows(GENOME, world / "question_answers.json")))
    questions = world / "v2_OpenEnded_mscoco_val2014_questions.json"
    annotations = world / "v2_mscoco_val2014_annotations.json"
    return sum(_sound(row) for row in read_rows(VQA, questions, annotations=[annotations]))


def _sound(row: Row) -> bool:
    storing = Storing(VQA, ImageLimits(1, 256, 1 << 20), CaptionRules(), "0" * 64)
    record = _record("key", row, StoredImage(b"", 3, 2, None), storing)
    assert all(each.text.encode() and each.text == each.text.strip() for each in row.questions)
    assert "/" not in row.url and record_fault(json.loads(encode_record(record))) is None
    return True
