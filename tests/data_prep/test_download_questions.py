"""The download of questions: one sample is one picture with its questions, and every question is accounted for."""

import json

import pytest

from data_prep import capfilt, duplicates, export_lavis, gallery, index, verify
from data_prep.shards.receipts import finished_shards, read_receipt
from pipeline.data.manifest import cleaned_of, load_manifest, question_sets, read_manifest
from tests.data_prep.test_download import ledger, run, samples
from tests.support.tiny_questions import (
    write_coco_picture,
    write_json,
    write_visual_genome,
    write_visual_genome_picture,
    write_vqa,
)

TRAIN = [(1, 10, "What?", ["Cat"] * 10), (2, 20, "Where?", ["here"] * 10), (1, 11, "Who?", ["the cat", "a dog"])]
VAL = [(3, 30, "Why?", ["so"]), (4, 40, "", ["yes"]), (5, 50, "A?", ["b"]), (5, 51, "C?", ["d"])]


@pytest.fixture
def vqav2(tmp_path):
    """Flags for VQAv2's train and val; the picture of image 5 is missing, image 4 has no question that can be used."""
    train, val = write_vqa(tmp_path, "train2014", TRAIN), write_vqa(tmp_path, "val2014", VAL)
    for subset, image in (("train2014", 1), ("train2014", 2), ("val2014", 3), ("val2014", 4)):
        write_coco_picture(tmp_path / "coco", subset, image)
    flags = ("--input", train[0], val[0], "--annotations", train[1], val[1], "--images", tmp_path / "coco")
    return (*flags, "--output", tmp_path / "raw", "--samples-per-shard", 3)


@pytest.fixture
def visual_genome(tmp_path):
    """Flags for Visual Genome: pictures 1 to 4, whose COCO numbers are 3, -1, null and 77."""
    asked = [(image, 10 * image + place, "How?", "Well.") for image in (1, 2, 3, 4) for place in range(2)]
    path = write_visual_genome(tmp_path, asked)
    for image in (1, 2, 3, 4):
        write_visual_genome_picture(tmp_path / "vg", image, "VG_100K" if image % 2 else "VG_100K_2")
    coco_ids = {1: 3, 2: -1, 3: None, 4: 77}
    content = [{"image_id": image, "coco_id": coco, "flickr_id": None} for image, coco in coco_ids.items()]
    image_data = write_json(tmp_path / "image_data.json", content)
    flags = ("--input", path, "--images", tmp_path / "vg", "--output", tmp_path / "vg_raw")
    return flags, image_data


def indexed(tmp_path, *folders):
    path = tmp_path / "train.json"
    assert index.main([*(str(tmp_path / folder) for folder in folders), "--output", str(path)]) == 0
    assert verify.main([str(path), "--decode"]) == 0
    return path


def test_a_picture_is_stored_once_with_its_questions_and_each_question_is_counted(vqav2, tmp_path, capsys):
    assert run("vqav2", *vqav2) == 0
    assert "4 questions kept, dropped {'empty_question': 1, 'missing_file': 2}" in capsys.readouterr().out
    assert [(entry["row"], entry["reason"]) for entry in ledger(tmp_path / "raw")] == [
        (0, None), (1, None), (2, None), (3, "empty_question"), (4, "missing_file"),
    ]  # fmt: skip
    first, second, third = (sample.record for sample in samples(tmp_path / "raw"))
    assert first["questions"] == [
        {"id": 10, "question": "What?", "answers": {"cat": 10}},
        {"id": 11, "question": "Who?", "answers": {"cat": 1, "dog": 1}},
    ]
    assert (first["captions"], first["scores"], first["sources"]) == ([], [], [])
    assert [each["question_set"] for each in (first, second, third)] == ["vqav2_train2014"] * 2 + ["vqav2_val2014"]
    receipts = [read_receipt(tar) for tar in finished_shards(tmp_path / "raw")]
    assert [receipt.questions for receipt in receipts] == [4, 0]
    assert receipts[0].question_sets == {"vqav2_train2014": 3, "vqav2_val2014": 1}
    assert receipts[1].dropped_questions == {"empty_question": 1, "missing_file": 2}
    summary = json.loads((tmp_path / "raw" / "vqav2-000.summary.json").read_text())
    assert (summary["questions"], summary["dropped_questions_by_reason"]) == (4, receipts[1].dropped_questions)


def test_the_manifest_says_which_questions_it_holds(vqav2, tmp_path):
    assert run("vqav2", *vqav2) == 0
    path = indexed(tmp_path, "raw")
    manifest, content = load_manifest(path), read_manifest(path)
    assert (manifest.samples, manifest.captions, manifest.questions) == (3, 0, 4)
    assert manifest.counts(manifest.shards[0]).tolist() == [[0, 2], [0, 1], [0, 1]]
    assert question_sets(manifest.shards) == {"vqav2_train2014": 3, "vqav2_val2014": 1}
    assert content.dropped == {"vqav2": {"empty_question": 1, "missing_file": 1}}
    assert content.empty_shards[0].provenance["dropped_questions"] == {"empty_question": 1, "missing_file": 2}


def test_other_answers_make_the_shard_again_and_the_same_ones_do_not(vqav2, tmp_path):
    assert run("vqav2", *vqav2) == 0
    times = [tar.stat().st_mtime_ns for tar in finished_shards(tmp_path / "raw")]
    assert run("vqav2", *vqav2) == 0
    assert [tar.stat().st_mtime_ns for tar in finished_shards(tmp_path / "raw")] == times
    write_vqa(tmp_path, "train2014", [*TRAIN[:2], (1, 11, "Who?", ["the dog"])])
    assert run("vqav2", *vqav2) == 0
    assert samples(tmp_path / "raw")[0].record["questions"][1]["answers"] == {"dog": 1}


def test_visual_genome_pictures_of_an_evaluation_set_are_dropped_and_counted(visual_genome, tmp_path):
    flags, image_data = visual_genome
    questions, _ = write_vqa(tmp_path, "val2014", VAL)
    karpathy = {
        "images": [{"cocoid": 77, "split": "test"}, {"cocoid": 5, "split": "val"}, {"cocoid": 9, "split": "train"}]
    }
    held_out = write_json(tmp_path / "dataset_coco.json", karpathy)
    assert run("visual_genome_qa", *flags, "--image-data", image_data, "--not-in", questions, held_out) == 0
    assert [entry["reason"] for entry in ledger(tmp_path / "vg_raw")] == [
        "coco_evaluation",
        None,
        None,
        "coco_evaluation",
    ]
    receipt = read_receipt(finished_shards(tmp_path / "vg_raw")[0])
    assert (receipt.dropped, receipt.dropped_questions) == ({"coco_evaluation": 2}, {"coco_evaluation": 4})
    sizes = {"karpathy_test": 1, "karpathy_val": 1, "vqav2_val2014": 3}
    assert receipt.cleaned_of == sizes and receipt.question_sets == {"visual_genome": 4}
    manifest = load_manifest(indexed(tmp_path, "vg_raw"))
    assert manifest.shards[0].provenance["cleaned_of"] == sizes
    assert cleaned_of(manifest.shards) == {"visual_genome_qa": tuple(sizes)}


def test_captions_and_questions_of_coco_are_cleaned_by_their_own_numbers(vqav2, tmp_path):
    ids = write_json(tmp_path / "my_test.json", [1])
    assert run("vqav2", *vqav2, "--not-in", ids) == 0
    assert ledger(tmp_path / "raw")[0]["reason"] == "coco_evaluation"
    image = {"filepath": "train2014", "split": "train", "sentences": [{"raw": "a cat"}]}
    images = [image | {"filename": f"COCO_train2014_{each:012d}.jpg", "cocoid": each} for each in (1, 2)]
    path = write_json(tmp_path / "dataset_coco.json", {"images": images})
    flags = ("--input", path, "--images", tmp_path / "coco", "--output", tmp_path / "captions", "--not-in", ids)
    assert run("coco", *flags) == 0
    assert [entry["reason"] for entry in ledger(tmp_path / "captions")] == ["coco_evaluation", None]
    assert read_receipt(finished_shards(tmp_path / "captions")[0]).cleaned_of == {"my_test": 1}


def test_regions_of_visual_genome_are_cleaned_too(visual_genome, tmp_path):
    (_, _, *flags), image_data = visual_genome
    regions = [{"id": each, "regions": [{"phrase": f"phrase {each}"}]} for each in (1, 2)]
    path = write_json(tmp_path / "region_descriptions.json", regions)
    more = ("--image-data", image_data, "--not-in", write_json(tmp_path / "mine.json", [3]))
    assert run("visual_genome", "--input", path, *flags, *more) == 0
    assert [entry["reason"] for entry in ledger(tmp_path / "vg_raw")] == ["coco_evaluation", None]


def test_flags_and_files_of_leakage_that_do_not_fit_are_one_line(visual_genome, tmp_path, capsys):
    flags, image_data = visual_genome
    ids = write_json(tmp_path / "ids.json", [3])
    flickr = write_json(tmp_path / "dataset_flickr30k.json", {"images": [{"split": "test", "imgid": 1}]})
    short = write_json(tmp_path / "short.json", [{"image_id": 1, "coco_id": 3}])
    empty = write_json(tmp_path / "empty.json", [])
    words = write_json(tmp_path / "words.json", ["three"])
    for more, message in [
        (("--not-in", ids), "--not-in: Visual Genome needs --image-data image_data.json"),
        (("--image-data", image_data), "is for Visual Genome with --not-in; add --not-in, or leave it out"),
        (("--image-data", image_data, "--not-in", ids, ids), "ids has no picture, or comes twice"),
        (("--image-data", image_data, "--not-in", empty), "empty has no picture, or comes twice"),
        (
            ("--image-data", image_data, "--not-in", flickr),
            "an entry has no number of a COCO picture (it has no 'cocoid')",
        ),
        (("--image-data", image_data, "--not-in", words), "('three', expected a whole number)"),
        (("--image-data", image_data, "--not-in", tmp_path / "no.json"), "no.json: cannot be read as JSON"),
        (
            ("--image-data", short, "--not-in", ids),
            f"--image-data {short}: does not list picture 2; give the whole file",
        ),
        (("--image-data", ids, "--not-in", ids), "picture 0 has no image_id and coco_id"),
        (("--min-words", 2), "has no captions to filter; leave out --min-words"),
    ]:
        assert run("visual_genome_qa", *flags, *more) == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and message in lines[0], lines
    assert not list((tmp_path / "vg_raw").glob("*.tar"))


def test_another_evaluation_set_needs_another_folder(visual_genome, tmp_path, capsys):
    flags, image_data = visual_genome
    one, two = write_json(tmp_path / "one.json", [3]), write_json(tmp_path / "two.json", [77])
    assert run("visual_genome_qa", *flags, "--image-data", image_data, "--not-in", one) == 0
    assert run("visual_genome_qa", *flags, "--image-data", image_data, "--not-in", two) == 1
    assert "holds a download with cleaned_of ['one', " in capsys.readouterr().err


def test_the_other_commands_work_with_questions_or_refuse_them_in_one_line(vqav2, tmp_path, capsys):
    assert run("vqav2", *vqav2) == 0
    write_coco_picture(tmp_path / "evaluation", "val2014", 3)
    raw, drops, output = str(tmp_path / "raw"), str(tmp_path / "drops"), str(tmp_path / "captioned")
    near = ["--evaluation", str(tmp_path / "evaluation")]
    assert duplicates.main([raw, "--output", drops, *near]) == 0
    models = ["--captioner", str(tmp_path), "--ranker", str(tmp_path)]
    for folder in ("config.json", "weights.bin"):
        (tmp_path / folder).write_text("{}")
    assert capfilt.main(["--input", raw, "--output", output, "--drops", drops, *models]) == 0
    receipt = read_receipt(finished_shards(tmp_path / "captioned")[0])
    assert (receipt.questions, receipt.question_sets) == (3, {"vqav2_train2014": 3})
    assert (receipt.dropped, receipt.dropped_questions) == ({"evaluation_picture": 1}, {"evaluation_picture": 1})
    assert [each.record["questions"] for each in samples(tmp_path / "captioned")] == [
        each.record["questions"] for each in samples(tmp_path / "raw")[:2]
    ]
    path = indexed(tmp_path, "captioned")
    assert gallery.main([str(path), "--output", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "<b>3</b><span>questions</span>" in page and "Who?" in page and "captions per picture" not in page
    assert '<span class="answer">cat <b>10</b></span>' in page
    capsys.readouterr()
    assert export_lavis.main([str(path), "--output", str(tmp_path / "lavis")]) == 1
    assert "has 3 questions, and only captions can be exported" in capsys.readouterr().err
    assert not (tmp_path / "lavis").exists()
