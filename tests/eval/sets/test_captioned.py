"""Official files to samples: layouts of pictures, splits, limits, texts as retrieval ranks them."""

import json
import shutil
from pathlib import Path

import pytest

from eval.sets.captioned import NOCAPS_IMAGES, load_captioning, load_nocaps, load_retrieval, retrieval_text
from eval.sets.question_sets import load_vqa

Folders = dict[str, Path]


def test_only_the_split_is_taken_in_the_files_order(sets: Folders) -> None:
    data = load_captioning(sets["coco"], "test")
    assert [sample.id for sample in data.samples] == list(range(1002, 1011))
    assert all(path.is_file() for path in data.image_paths.values())
    assert [sample.id for sample in load_captioning(sets["coco"], "train").samples] == [1000, 1001]
    assert len(load_captioning(sets["coco"], "test", limit=3).samples) == 3


def test_flickr_has_its_own_ids_and_a_limit_cuts_images_with_their_texts(sets: Folders) -> None:
    data = load_retrieval(sets["flickr30k"], "test", limit=4)
    assert list(data.image_paths) == [2, 3, 4, 5]
    assert data.text_image == (0, 0, 1, 1, 2, 2, 3, 3)
    assert data.texts[:2] == ("a picture of blue 2", "the blue photo 2")


def test_questions_find_cocos_picture_names(sets: Folders) -> None:
    data = load_vqa(sets["vqav2"], "val", limit=3)
    assert [(sample.id, sample.image_id) for sample in data.samples] == [(10, 1), (11, 1), (20, 2)]
    assert data.image_paths[2].name == "COCO_val2014_000000000002.jpg"
    with pytest.raises(ValueError, match="'test2014': VQAv2 has train, val, test-dev, test"):
        load_vqa(sets["vqav2"], "test2014")


def test_nocaps_has_no_split_called_train(sets: Folders) -> None:
    assert [sample.id for sample in load_nocaps(sets["nocaps"], "val").samples] == list(range(6))
    with pytest.raises(ValueError, match="--split 'train': NoCaps has val, test"):
        load_nocaps(sets["nocaps"], "train")


def test_another_split_of_nocaps_is_known_by_its_name_or_size(sets: Folders, tmp_path: Path) -> None:
    folder = tmp_path / "nocaps"
    shutil.copytree(sets["nocaps"], folder)
    file = folder / "nocaps_val_4500_captions.json"
    test = file.rename(folder / "nocaps_test_image_info.json")
    with pytest.raises(ValueError, match=r"of NoCaps test \(6 images\), not val"):
        load_nocaps(folder, "val")
    assert load_nocaps(folder, "test").annotations == test
    content = json.loads(test.read_text())
    content["images"] = content["images"][:1] * NOCAPS_IMAGES["test"]
    test.unlink()
    (folder / "mine.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"of NoCaps test \(10,600 images\), not val"):
        load_nocaps(folder, "val")


def test_two_sets_in_one_folder_are_not_chosen_between(sets: Folders, tmp_path: Path) -> None:
    for name in ("coco", "flickr30k"):
        shutil.copy(sets[name] / f"dataset_{name}.json", tmp_path)
    with pytest.raises(ValueError, match="it holds two sets"):
        load_captioning(tmp_path, "test")


def test_flickrs_pictures_are_found_in_their_own_folder(sets: Folders, tmp_path: Path) -> None:
    folder = tmp_path / "flickr30k"
    shutil.copytree(sets["flickr30k"], folder)
    (folder / "images").rename(folder / "flickr30k-images")
    assert {path.parent.name for path in load_captioning(folder, "test").image_paths.values()} == {"flickr30k-images"}


@pytest.mark.parametrize("place", ["images/val2014/a.jpg", "val2014/a.jpg", "images/a.jpg", "a.jpg"])
def test_pictures_are_found_with_or_without_their_folders(place: str, tmp_path: Path) -> None:
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).touch()
    entry = {"cocoid": 5, "filepath": "val2014", "filename": "a.jpg", "split": "test", "sentences": [{"raw": "x"}]}
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": [entry]}))
    assert load_captioning(tmp_path, "test").image_paths == {5: tmp_path / place}


def test_retrieval_texts_are_cleaned_as_published() -> None:
    assert retrieval_text('  A "Red" dog (left): runs!  ') == "a red dog left runs"
    assert len(retrieval_text("word " * 80).split()) == 50
