"""The guard against train/test overlap: near pictures by their hashes, and sources known to share pictures."""

import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from eval.report import main as report
from pipeline.pictures.near_hashes import near_pairs
from pipeline.pictures.perceptual_hash import hash_of_file
from tests.eval.reporting.test_verdicts import evaluation, page_of
from tests.eval.test_report import Page


def test_near_pairs_equal_a_comparison_of_all_with_all() -> None:
    rng = np.random.default_rng(0)
    own = rng.integers(0, 1 << 63, 300).astype(np.uint64)
    flips = [sum(1 << int(bit) for bit in rng.choice(64, size=place % 6, replace=False)) for place in range(300)]
    training = np.concatenate([own ^ np.array(flips, np.uint64), rng.integers(0, 1 << 63, 2000).astype(np.uint64)])
    for bits in range(5):
        expected = np.argwhere(np.bitwise_count(own[:, None] ^ training[None]) <= bits)
        assert sorted(near_pairs(own, training, bits)) == [tuple(pair) for pair in expected.tolist()]


def save_photo(path: Path, seed: int, size: int, quality: int = 90) -> Path:
    """A smooth picture: coloured waves."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:1:256j, 0:1:256j]
    waves = sum(np.sin(2 * np.pi * (rng.normal(0, 3) * x + rng.normal(0, 3) * y) + rng.random()) for _ in range(6))
    pixels = np.stack([127 + 20 * waves + shift for shift in (0, 20, -20)], axis=-1)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).resize((size, size))
    image.save(path, quality=quality)
    return path


def test_a_resized_recompressed_copy_has_a_near_hash_and_others_have_not(tmp_path: Path) -> None:
    hashes = [hash_of_file(save_photo(tmp_path / f"{seed}.jpg", seed, 256)) for seed in range(20)]
    copies = [hash_of_file(save_photo(tmp_path / f"c{seed}.jpg", seed, 120, 60)) for seed in range(20)]
    own, others = np.array(hashes, np.uint64), np.array(copies, np.uint64)
    assert list(near_pairs(own, others)) == [(seed, seed) for seed in range(20)]
    Image.new("RGB", (50, 50), (3, 4, 5)).save(tmp_path / "flat.png")
    assert hash_of_file(tmp_path / "flat.png") is None


def test_the_guard_names_evaluation_pictures_that_were_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [[seed, str(save_photo(tmp_path / f"{seed}.jpg", seed, 200))] for seed in range(5)]
    copies = [hash_of_file(save_photo(tmp_path / f"c{seed}.jpg", seed, 150, 70)) for seed in (1, 3, 7)]
    ledger = pyarrow.table(
        {
            "phash": pyarrow.array([*copies, None], pyarrow.uint64()),
            "status": ["kept", "dropped", "kept", "kept"],
            "url": [f"https://host/{name}.jpg" for name in ("one", "three", "seven", "flat")],
        }
    )
    (tmp_path / "ledgers" / "laion").mkdir(parents=True)
    pyarrow.parquet.write_table(ledger, tmp_path / "ledgers" / "laion" / "00000.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"other": [1]}), tmp_path / "ledgers" / "other.parquet")
    text = page_of(evaluation(tmp_path / "a", images=images), "--training-hashes", tmp_path / "ledgers")
    assert "1 of 5 pictures look like one of 2 training pictures: image 1: https://host/one.jpg" in text
    assert "three" not in text
    folder = evaluation(tmp_path / "b", images=images[4:])
    assert "none of 1 pictures" in page_of(folder, "--training-hashes", tmp_path / "ledgers")
    flags = ["--output", str(tmp_path / "r.html"), "--training-hashes", str(tmp_path / "ledgers" / "other.parquet")]
    assert report([str(folder), *flags]) == 1
    assert "no parquet with a column 'phash'" in capsys.readouterr().err


def test_the_guard_says_which_pictures_it_could_not_compare(tmp_path: Path) -> None:
    images = [[seed, str(save_photo(tmp_path / f"{seed}.jpg", seed, 200))] for seed in range(2)]
    Image.new("RGB", (50, 50), (3, 4, 5)).save(tmp_path / "flat.png")
    folder = evaluation(tmp_path / "a", images=[*images, [8, str(tmp_path / "flat.png")], [9, str(tmp_path / "gone")]])
    hashes, status = pyarrow.array([17], pyarrow.uint64()), ["kept"]
    pyarrow.parquet.write_table(pyarrow.table({"phash": hashes, "status": status}), tmp_path / "h.parquet")
    text = page_of(folder, "--training-hashes", tmp_path / "h.parquet")
    said = (
        "none of 2 pictures looks like one of 1 training pictures; not compared: 1 too flat for a hash, 1 not readable"
    )
    assert said in text and str(tmp_path / "gone") in text
    pyarrow.parquet.write_table(pyarrow.table({"phash": hashes, "status": ["dropped"]}), tmp_path / "h.parquet")
    assert "not checked: no training picture has a hash" in page_of(folder, "--training-hashes", tmp_path / "h.parquet")


def test_hashes_alone_are_enough_and_those_of_no_number_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [[seed, str(save_photo(tmp_path / f"{seed}.jpg", seed, 200))] for seed in range(5)]
    copies = [hash_of_file(Path(path)) for _, path in images[1:3]]
    assert copies[0] is not None
    copies[0] ^= 0b1000_0010_0000_0011  # as far apart as data preparation counts for a copy
    pyarrow.parquet.write_table(
        pyarrow.table({"phash": pyarrow.array(copies, pyarrow.uint64())}), tmp_path / "h.parquet"
    )
    folder = evaluation(tmp_path / "a", images=images)
    text = page_of(folder, "--training-hashes", tmp_path / "h.parquet")
    assert "2 of 5 pictures look like one of 2 training pictures: image 1: h.parquet" in text
    pyarrow.parquet.write_table(pyarrow.table({"phash": pyarrow.nulls(3)}), tmp_path / "n.parquet")
    text = page_of(folder, "--training-hashes", tmp_path / "h.parquet", tmp_path / "n.parquet")
    assert "2 of 5 pictures look like one of 2 training pictures" in text
    for wrong in (["ab"], [[1]]):
        pyarrow.parquet.write_table(pyarrow.table({"phash": wrong}), tmp_path / "h.parquet")
        flags = ["--output", str(tmp_path / "r.html"), "--training-hashes", str(tmp_path / "h.parquet")]
        assert report([str(folder), *flags]) == 1
        error = capsys.readouterr().err
        assert f"{tmp_path / 'h.parquet'}: column phash holds" in error and error.count("\n") == 1


def test_evaluations_of_one_set_hide_nothing_of_each_other(tmp_path: Path) -> None:
    """Weights that saw Visual Genome beside others, all pictures beside few, in whatever order they are named."""
    from tests.support.tiny_shards import tiny_manifest

    images = [[seed, str(save_photo(tmp_path / f"{seed}.jpg", seed, 200))] for seed in range(3)]
    copy = hash_of_file(Path(images[2][1]))
    pyarrow.parquet.write_table(
        pyarrow.table({"phash": pyarrow.array([copy], pyarrow.uint64())}), tmp_path / "h.parquet"
    )
    folders = []
    for source, shown in (("visual_genome", images), ("laion400m", images[:1])):
        manifest = tiny_manifest(tmp_path / source, 6)
        for shard in {shard["source"] for shard in json.loads(manifest.read_text())["shards"]}:
            manifest.write_text(manifest.read_text().replace(f'"{shard}"', f'"{source}"'))
        folders.append(evaluation(tmp_path / f"of_{source}", images=shown))
        task = json.loads((folders[-1] / "task.json").read_text())
        task["recipe"]["data"]["manifest"], task["recipe"]["init_weights"] = str(manifest), None
        (folders[-1] / "task.json").write_text(json.dumps(task))
    for order in (folders, folders[::-1]):
        assert report([*map(str, order), "--output", str(tmp_path / "r.html"), "--training-hashes", str(tmp_path)]) == 0
        text = " ".join(Page((tmp_path / "r.html").read_text()).text.split())
        assert (
            "visual_genome: half of" in text and "1 of 3 pictures look like" in text and "not fully known" not in text
        )


def test_sources_that_contain_the_evaluation_set_are_named(tmp_path: Path) -> None:
    from tests.support.tiny_shards import tiny_manifest

    manifest = tiny_manifest(tmp_path / "data", 6)
    content = json.loads(manifest.read_text())
    sources = {shard["source"] for shard in content["shards"]}
    manifest.write_text(manifest.read_text().replace(f'"{sources.pop()}"', '"visual_genome"'))
    folder = evaluation(tmp_path / "a")
    task = json.loads((folder / "task.json").read_text())
    task["recipe"]["data"]["manifest"] = str(manifest)
    (folder / "task.json").write_text(json.dumps(task))
    said = "visual_genome: half of Visual Genome's pictures are COCO's, val2014 among them"
    assert said in page_of(folder)
    part = {"is_published_set": False, "is_of_published_set": True, "limit": 500}
    (folder / "task.json").write_text(json.dumps(task | part))
    assert said in page_of(folder), "a part of the set is about the same pictures"
    (folder / "task.json").write_text(json.dumps(task | {"is_published_set": False}))
    assert said not in page_of(folder), "of one's own pictures nothing is known"

    from pipeline.config import load_recipe
    from pipeline.weights.native import save_tensors

    stage1 = load_recipe(Path("pipeline/recipes/stage1_vitg.yaml"), [f"data.manifest={manifest}"])
    save_tensors({}, stage1, 5, tmp_path)  # what the weights began with saw those pictures
    task["recipe"]["data"]["manifest"] = None
    manifest_now = manifest.read_text()
    manifest.write_text("[1]")
    task["recipe"]["init_weights"] = str(tmp_path)
    (folder / "task.json").write_text(json.dumps(task))
    assert "a: the training data is not fully known" in page_of(folder)
    manifest.write_text(manifest_now)
    for place, seen in ((tmp_path, True), (tmp_path / "gone", False)):
        task["recipe"]["init_weights"] = str(place)
        (folder / "task.json").write_text(json.dumps(task))
        assert (said in page_of(folder)) == seen
