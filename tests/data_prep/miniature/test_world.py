"""A drawn world: true where it says so, official formats, no scene on both sides, drawn once and whole."""

import io
import json
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from data_prep.miniature import pictures, world
from data_prep.miniature.alt_texts import SHARES, alt_text
from data_prep.miniature.language import is_true
from data_prep.miniature.scenes import HELD_OUT, draw_scene, scene_from_json
from data_prep.miniature.splits import TRAINING, SceneDraw, check_disjoint, scene_identity
from data_prep.miniature.web import TROUBLE
from data_prep.miniature.world import WorldSettings, make_world

SETTINGS = WorldSettings(seed=3, web_images=300, coco_images=30, eval_images=25, base_url="http://127.0.0.1:9")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "w"
    assert make_world(folder, SETTINGS)
    return folder


@pytest.fixture(scope="module")
def truth(drawn):
    rows = pq.read_table(drawn / "truth.parquet").to_pylist()
    return {row["image"]: (row["split"], scene_from_json(json.loads(row["scene"]))) for row in rows}


def load(path):
    return json.loads(path.read_text())


def test_no_scene_is_shared_between_training_and_evaluation(truth):
    training = {
        scene_identity(scene) for split, scene in truth.values() if split in ("web", "coco_train", "coco_restval")
    }
    others = [
        scene_identity(scene) for split, scene in truth.values() if not split.startswith(("web", "coco_tr", "coco_r"))
    ]
    assert len(others) == 25 + 10 + 25 + 5 + 25 + 3 * 8
    assert not training & set(others)


def test_training_avoids_the_scenes_that_evaluation_took():
    drawing = SceneDraw(0)
    evaluation = {scene_identity(scene) for scene in drawing.draw("coco_test", 250)}
    careless = {scene_identity(scene) for scene in SceneDraw(0).draw("web", 5000)}
    assert careless & evaluation, "the world is small enough for scenes to meet"
    assert not {scene_identity(scene) for scene in drawing.draw("web", 5000)} & evaluation


def test_a_shared_scene_is_found_whatever_the_order_of_its_things():
    scene = draw_scene(np.random.default_rng(0), held_out="some")
    turned = type(scene)(scene.things[::-1], scene.background)
    with pytest.raises(ValueError, match="coco_test: shares 1 scenes"):
        check_disjoint({TRAINING[0]: [scene], "coco_test": [turned]})


def test_data_set_captions_are_true_and_files_stand_where_karpathy_puts_them(drawn, truth):
    content = load(drawn / "coco" / "dataset_coco.json")
    for image in content["images"]:
        name = f"coco/images/{image['filepath']}/{image['filename']}"
        assert (drawn / name).is_file()
        assert image["filepath"] == ("train2014" if image["split"] == "train" else "val2014")
        assert image["filename"] == f"COCO_{image['filepath']}_{image['cocoid']:012d}.jpg"
        assert len(image["sentences"]) == 5
        assert all(is_true(sentence["raw"], truth[name][1]) for sentence in image["sentences"])
    assert Counter(image["split"] for image in content["images"]) == {"train": 27, "restval": 3, "val": 10, "test": 25}
    for image in load(drawn / "flickr30k" / "dataset_flickr30k.json")["images"]:
        scene = truth[f"flickr30k/images/{image['filename']}"][1]
        assert all(is_true(sentence["raw"], scene) for sentence in image["sentences"])


def test_coco_ground_truth_repeats_the_test_split(drawn):
    content = load(drawn / "coco" / "annotations" / "coco_karpathy_test_gt.json")
    images = [image for image in load(drawn / "coco" / "dataset_coco.json")["images"] if image["split"] == "test"]
    assert [image["id"] for image in content["images"]] == [image["cocoid"] for image in images]
    captions = [annotation["caption"] for annotation in content["annotations"]]
    assert captions == [sentence["raw"] for image in images for sentence in image["sentences"]]


def test_vqa_files_agree_and_give_ten_answers(drawn):
    questions = load(drawn / "vqav2" / "v2_OpenEnded_mscoco_val2014_questions.json")["questions"]
    annotations = load(drawn / "vqav2" / "v2_mscoco_val2014_annotations.json")["annotations"]
    assert [each["question_id"] for each in questions] == [each["question_id"] for each in annotations]
    assert len({(each["image_id"], each["question"]) for each in questions}) == len(questions) >= 25 * 2
    for annotation in annotations:
        answers = [each["answer"] for each in annotation["answers"]]
        assert len(answers) == 10
        assert Counter(answers).most_common(1)[0][0] == annotation["multiple_choice_answer"]
        assert (drawn / "vqav2" / "val2014" / f"COCO_val2014_{annotation['image_id']:012d}.jpg").is_file()


def test_only_nocaps_out_of_the_domain_is_all_new_words(drawn, truth):
    content = load(drawn / "nocaps" / "nocaps_val_4500_captions.json")
    assert Counter(image["domain"] for image in content["images"]) == {
        "in-domain": 8, "near-domain": 8, "out-domain": 8,
    }  # fmt: skip
    for image in content["images"]:
        scene = truth[f"nocaps/images/{image['file_name']}"][1]
        new = [bool({thing.shape, thing.colour} & HELD_OUT) for thing in scene.things]
        assert {"in-domain": not any(new), "near-domain": any(new) and not all(new), "out-domain": all(new)}[
            image["domain"]
        ]
    training = [scene for split, scene in truth.values() if split in ("web", "coco_train")]
    assert not any({thing.shape, thing.colour} & HELD_OUT for scene in training for thing in scene.things)


def test_alt_texts_have_the_shares_they_claim():
    rng = np.random.default_rng(1)
    scenes = [draw_scene(rng, held_out="never") for _ in range(1500)]
    texts = [alt_text(scene, rng) for scene in scenes]
    kinds = Counter(kind for _, kind in texts)
    assert all(abs(kinds[kind] / 1500 - share) < 0.04 for kind, share in SHARES.items())
    assert all(is_true(text, scene) == (kind == "true") for (text, kind), scene in zip(texts, scenes, strict=True))


def test_every_web_row_has_a_route_and_every_route_its_picture(drawn, truth):
    rows = pq.read_table(drawn / "web" / "laion.parquet").to_pylist()
    lines = (drawn / "web" / "cc3m.tsv").read_text().splitlines()
    urls = [row["URL"] for row in rows] + [line.split("\t")[1] for line in lines]
    assert (len(rows), len(lines)) == (150, 150)
    routes = load(drawn / "web" / "routes.json")
    assert all(url.removeprefix("http://127.0.0.1:9") in routes for url in urls)
    assert all((drawn / "web" / route["file"]).is_file() for route in routes.values() if "file" in route)
    assert sorted(truth) == sorted([*urls, *(image for image in truth if not image.startswith("http"))])
    trouble = sum(route["behaviour"] != "ok" for route in routes.values()) / len(urls)
    assert abs(trouble - sum(TROUBLE.values())) < 0.06


@pytest.mark.parametrize("share", ["ROTATED_SHARE", "GREY_SHARE", "CMYK_SHARE"])
def test_odd_web_pictures_show_the_scene_as_the_plain_one(monkeypatch, share):
    scene = draw_scene(np.random.default_rng(5), held_out="never")
    for name in ("ROTATED_SHARE", "GREY_SHARE", "CMYK_SHARE"):
        monkeypatch.setattr(pictures, name, 0.0)
    plain = decoded(pictures.web_jpeg(scene, np.random.default_rng(7)), "L")
    monkeypatch.setattr(pictures, share, 1.0)
    jpeg = pictures.web_jpeg(scene, np.random.default_rng(7))
    with Image.open(io.BytesIO(jpeg)) as image:
        odd = {"ROTATED_SHARE": image.getexif().get(0x0112) in (3, 6, 8), "GREY_SHARE": image.mode == "L"}
        assert odd.get(share, image.mode == "CMYK")
    assert np.abs(decoded(jpeg, "L") - plain).mean() < 4


def decoded(jpeg, mode):
    with Image.open(io.BytesIO(jpeg)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB").convert(mode), np.float32)


def test_a_second_run_draws_nothing_and_other_settings_draw_anew(tmp_path, monkeypatch):
    small = WorldSettings(seed=1, web_images=4, coco_images=2, eval_images=3, base_url="http://127.0.0.1:9")
    assert make_world(tmp_path / "w", small)
    files = {path: path.read_bytes() for path in (tmp_path / "w").rglob("*") if path.is_file()}
    assert not make_world(tmp_path / "w", small)
    assert make_world(tmp_path / "w", WorldSettings(2, 4, 2, 3, "http://127.0.0.1:9"))
    assert make_world(tmp_path / "w", small)
    assert files == {path: path.read_bytes() for path in (tmp_path / "w").rglob("*") if path.is_file()}


def test_what_a_killed_run_left_is_drawn_again(tmp_path, monkeypatch):
    small = WorldSettings(seed=1, web_images=4, coco_images=2, eval_images=3, base_url="http://127.0.0.1:9")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pictures, "write_pictures", killed)
        with pytest.raises(KeyboardInterrupt):
            make_world(tmp_path / "w", small)
    assert not (tmp_path / "w" / "world.json").exists()
    assert make_world(tmp_path / "w", small)
    assert not make_world(tmp_path / "w", small)


def test_a_folder_of_something_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert world.main(["--output", str(tmp_path)]) == 1
    assert (
        capsys.readouterr().err
        == f"error: --output {tmp_path}: holds something that is not a miniature world; name another folder\n"
    )
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
