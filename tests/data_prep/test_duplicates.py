"""Copies, placeholders and an evaluation's pictures are found over all shards, and left out and counted by CapFilt."""

import csv
import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_prep import capfilt, download, duplicates, gallery, verify
from data_prep.copies.picture_hashes import evaluation_hashes, known_phashes, shard_hashes
from data_prep.index import index_shards
from data_prep.shards import tar_files
from data_prep.shards.drop_lists import DropLine, drop_list_path, read_drop_list, write_drop_list
from data_prep.shards.receipts import finished_shards, read_receipt
from pipeline.data.manifest import load_manifest
from tests.support.tiny_captioning_models import save_tiny_blip, save_tiny_clip


def picture(seed: int, side_px: int = 96) -> Image.Image:
    """Large soft spots of its own."""
    spots = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(spots).resize((side_px, side_px), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, quality: int = 92) -> bytes:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality)
    return content.getvalue()


def download_pictures(folder: Path, name: str, pictures: dict[str, bytes], per_shard: int, *more: str) -> Path:
    """Raw shards of local pictures, as `data_prep.download` makes them."""
    images, table = folder / f"{name}-images", folder / f"{name}.csv"
    images.mkdir(parents=True)
    for file, content in pictures.items():
        (images / file).write_bytes(content)
    with table.open("w", newline="") as file_:
        csv.writer(file_).writerows([("url", "caption"), *((file, f"a picture of {file}") for file in pictures)])
    arguments = ["table", "--input", str(table), "--images", str(images), "--output", str(folder / name)]
    assert download.main([*arguments, "--samples-per-shard", str(per_shard), *more]) == 0
    return folder / name


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """human/ and web/ with known copies, tests/ with an evaluation's pictures."""
    folder = tmp_path_factory.mktemp("raw")
    human = {"h0.jpg": jpeg(picture(0)), "h1.jpg": jpeg(picture(1))}
    web = {
        "a.jpg": jpeg(picture(10)),
        "copy_of_h0.jpg": jpeg(picture(0)),
        "near_h1.jpg": jpeg(picture(1, 200), quality=70),
        "b.jpg": jpeg(picture(11)),
        **{f"gone{number}.jpg": jpeg(picture(12)) for number in range(5)},
        "near_test.jpg": jpeg(picture(20, 150), quality=75),
        "near_b.jpg": jpeg(picture(11, 120), quality=80),
        "white1.jpg": jpeg(Image.new("RGB", (64, 64), "white")),
        "white2.jpg": jpeg(Image.new("RGB", (80, 64), "white")),
    }
    download_pictures(folder, "human", human, 2, "--captions", "human")
    download_pictures(folder, "web", web, 4)
    (folder / "tests" / "val").mkdir(parents=True)
    for number in (20, 21):
        (folder / "tests" / "val" / f"{number}.png").write_bytes(jpeg(picture(number, 300)))
    return folder


def run(raw: Path, output: Path, *more: str) -> int:
    return duplicates.main([str(raw / "human"), str(raw / "web"), "--output", str(output), *more])


def dropped(output: Path) -> dict[str, tuple[str, str]]:
    """The last word of a picture's URL -> (reason, like)."""
    names = {}
    for tar in [*finished_shards(output.parent / "human"), *finished_shards(output.parent / "web")]:
        names |= {sample.key: sample.record["url"] for sample in tar_files.read_samples(tar)}
    lines = [row for path in sorted(output.glob("*.drops.parquet")) for row in pq.read_table(path).to_pylist()]
    assert len({line["key"] for line in lines}) == len(lines)
    return {names[line["key"]]: (line["reason"], line["like"]) for line in lines}


WEB = {
    "copy_of_h0.jpg": ("duplicate_picture", "human/table-000-000000:0"),
    "near_h1.jpg": ("near_duplicate_picture", "human/table-000-000000:1"),
    "near_b.jpg": ("near_duplicate_picture", "web/table-000-000000:3"),
} | {f"gone{number}.jpg": ("placeholder_picture", "web/table-000-000001:0") for number in range(5)}


def test_each_picture_is_dropped_for_what_it_is(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leak = {"near_test.jpg": ("evaluation_picture", f"{raw / 'tests'}/val/20.png")}
    assert run(raw, raw / "drops", "--placeholder-urls", "5", "--evaluation", str(raw / "tests")) == 0
    assert dropped(raw / "drops") == WEB | leak
    summary = json.loads((raw / "drops" / "summary.json").read_text())
    assert (summary["pictures"], summary["kept"]) == (15, 15 - 9)
    assert capsys.readouterr().out.splitlines()[-1] == str(raw / "drops")


def test_an_evaluations_linked_folders_are_followed_and_loops_end(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk, pictures = tmp_path / "disk", tmp_path / "evaluation"
    disk.mkdir()
    pictures.mkdir()
    (disk / "20.jpg").write_bytes(jpeg(picture(20, 300)))
    (disk / "back").symlink_to(pictures)
    for name in ("val2014", "val2014-again"):
        (pictures / name).symlink_to(disk)
    assert run(raw, raw / "linked", "--evaluation", str(pictures)) == 0
    assert dropped(raw / "linked")["near_test.jpg"] == ("evaluation_picture", f"{pictures}/val2014/20.jpg")
    assert json.loads((raw / "linked" / "summary.json").read_text())["evaluation_pictures"] == 1
    (pictures / "test2015").symlink_to(tmp_path / "not mounted")
    capsys.readouterr()
    assert run(raw, raw / "linked", "--evaluation", str(pictures)) == 1
    assert "test2015: the target of this symlink is missing" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["pipe", "device", "sparse"])
def test_what_is_no_picture_file_in_an_evaluation_is_named_and_not_waited_for(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(1 << 40)
    with pytest.raises(ValueError, match=r"^--evaluation .*a\.jpg: is .*; repair or remove it$"):
        list(evaluation_hashes(tmp_path))


@pytest.mark.parametrize("sha256", ["-fffffffffffffff1", "zz", "", "F" * 64])
def test_a_ledger_with_a_sha256_that_is_none_is_named(sha256: str, raw: Path, tmp_path: Path) -> None:
    for path in (raw / "human").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tar,) = finished_shards(tmp_path)
    ledger = tmp_path / f"{tar.stem}.ledger.parquet"
    table = pq.read_table(ledger)
    place = table.column_names.index("sha256")
    pq.write_table(table.set_column(place, "sha256", [[sha256] * len(table)]), ledger)
    message = rf"ledger\.parquet: '{sha256}' is not the sha256 of a picture"
    with pytest.raises(ValueError, match=message):
        shard_hashes(tar)
    with pytest.raises(ValueError, match=message):
        known_phashes([tar], np.zeros(1, np.uint64))


def test_each_rule_can_be_left_out(raw: Path) -> None:
    assert run(raw, raw / "few", "--without", "near", "placeholders") == 0
    copies = {f"gone{number}.jpg" for number in range(1, 5)} | {"copy_of_h0.jpg"}
    assert dropped(raw / "few").keys() == copies
    assert run(raw, raw / "near", "--without", "exact", "placeholders") == 0
    assert dropped(raw / "near").keys() == copies | {"near_h1.jpg", "near_b.jpg"}
    assert run(raw, raw / "none", "--without", "exact", "near", "placeholders") == 0
    assert dropped(raw / "none") == {}


def test_an_evaluation_may_come_as_downloaded_shards(raw: Path) -> None:
    pictures = {"t.jpg": jpeg(picture(20, 300)), "u.jpg": jpeg(picture(21, 300))}
    tests = download_pictures(raw, "split", pictures, 2)
    assert run(raw, raw / "leaks", "--evaluation", str(tests), "--without", "exact", "near", "placeholders") == 0
    assert dropped(raw / "leaks") == {"near_test.jpg": ("evaluation_picture", f"{tests}/t.jpg")}


def test_the_lists_do_not_depend_on_how_the_shards_came_to_be(raw: Path, tmp_path: Path) -> None:
    assert run(raw, tmp_path / "again", "--placeholder-urls", "5", "--evaluation", str(raw / "tests")) == 0
    assert run(raw, raw / "drops2", "--placeholder-urls", "5", "--evaluation", str(raw / "tests")) == 0
    first, second = (
        {path.name: path.read_bytes() for path in each.iterdir()} for each in (tmp_path / "again", raw / "drops2")
    )
    assert first == second


def test_capfilt_leaves_them_out_and_counts_each(raw: Path, tmp_path: Path) -> None:
    drops = raw / "drops3"
    assert run(raw, drops, "--placeholder-urls", "5", "--evaluation", str(raw / "tests")) == 0
    save_tiny_blip(tmp_path / "blip")
    save_tiny_clip(tmp_path / "clip")
    models = ["--captioner", str(tmp_path / "blip"), "--ranker", str(tmp_path / "clip"), "--device", "cpu"]
    for name in ("human", "web"):
        places = ["--input", str(raw / name), "--output", str(tmp_path / name), "--max-length", "10"]
        assert capfilt.main([*places, *models, "--drops", str(drops)]) == 0
    lost = dict[str, int]()
    for tar in finished_shards(tmp_path / "web"):
        receipt, before = read_receipt(tar), read_receipt(raw / "web" / tar.name)
        assert receipt.samples + sum(receipt.dropped.values()) == before.samples
        for reason, number in receipt.dropped.items():
            lost[reason] = lost.get(reason, 0) + number
    assert lost == {
        "duplicate_picture": 1, "near_duplicate_picture": 2, "placeholder_picture": 5, "evaluation_picture": 1,
    }  # fmt: skip
    kept = {sample.record["url"] for tar in finished_shards(tmp_path / "web") for sample in tar_files.read_samples(tar)}
    assert kept == {"a.jpg", "b.jpg", "white1.jpg", "white2.jpg"}
    index_shards([tmp_path / "web"], tmp_path / "train.json")
    assert list(verify.find_faults(load_manifest(tmp_path / "train.json"), decode=True)) == []
    assert gallery.main([str(tmp_path / "train.json"), "--output", str(tmp_path / "g.html")]) == 0
    assert "placeholder_picture" in (tmp_path / "g.html").read_text().replace(" ", "_")

    places = ["--input", str(raw / "web"), "--output", str(tmp_path / "web")]
    stood = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "web").iterdir()}
    assert capfilt.main([*places, "--max-length", "10", *models, "--drops", str(drops)]) == 0
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "web").iterdir()} == stood
    assert capfilt.main([*places, "--reselect", "--drops", str(drops), "--top-k", "1"]) == 0


def test_reselecting_applies_new_drops_and_refuses_to_take_some_back(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tiny_blip(tmp_path / "blip")
    save_tiny_clip(tmp_path / "clip")
    models = ["--captioner", str(tmp_path / "blip"), "--ranker", str(tmp_path / "clip"), "--device", "cpu"]
    places = ["--input", str(raw / "web"), "--output", str(tmp_path / "web")]
    assert capfilt.main([*places, *models, "--max-length", "10"]) == 0
    assert run(raw, raw / "drops4") == 0
    assert capfilt.main([*places, "--reselect", "--drops", str(raw / "drops4")]) == 0
    lost = [read_receipt(tar).dropped for tar in finished_shards(tmp_path / "web")]
    assert sum(each.get("duplicate_picture", 0) for each in lost) == 5
    capsys.readouterr()
    assert capfilt.main([*places, "--reselect"]) == 1
    assert "--drops left out; caption the shard again" in capsys.readouterr().err
    for tar in finished_shards(raw / "web"):
        sha256 = read_receipt(tar).tar_sha256
        write_drop_list(tmp_path / "foreign", tar, sha256, [DropLine("table_nokey", "mine", "x")])
    assert capfilt.main([*places, "--reselect", "--drops", str(tmp_path / "foreign")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "names table_nokey, which is not a sample of this shard" in lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/nothing"], "no finished shard"),
        (["{}/web", "{}/web/../web"], "is named twice"),
        (["{}/web", "--evaluation", "{}/nowhere"], "--evaluation"),
    ],
)
def test_a_mistake_is_one_line(
    raw: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert duplicates.main([*(each.replace("{}", str(raw)) for each in arguments), "--output", str(raw / "x")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]


def test_a_missing_list_and_one_of_another_tar_are_refused(raw: Path, tmp_path: Path) -> None:
    first, second, *_ = finished_shards(raw / "web")
    write_drop_list(tmp_path, first, "a" * 64, [DropLine("key", "reason", "like")])
    assert read_drop_list(tmp_path, first, "a" * 64) == {"key": "reason"}
    with pytest.raises(ValueError, match=f"is not a readable drop list of {second}.*run data_prep.duplicates"):
        read_drop_list(tmp_path, second, "a" * 64)
    drop_list_path(tmp_path, first, "a" * 64).rename(drop_list_path(tmp_path, first, "b" * 64))
    with pytest.raises(ValueError, match="made for another tar"):
        read_drop_list(tmp_path, first, "b" * 64)


def test_copies_with_human_captions_are_a_warning_before_they_are_lost(tmp_path, raw, capsys):
    """The same photograph under five names, each with a caption of its own."""
    pictures = {f"{number}.jpg": jpeg(picture(30)) for number in range(5)} | {"6.jpg": jpeg(picture(31))}
    folder = download_pictures(tmp_path, "own", pictures, 3, "--captions", "human")
    capsys.readouterr()
    assert duplicates.main([str(folder), "--output", str(tmp_path / "drops")]) == 0
    warning = capsys.readouterr().err
    assert warning.startswith("warning: pictures with human captions or questions are listed as copies: {'table': 4}")
    assert warning.count("\n") == 1 and "--without exact near placeholders" in warning
    flags = ["--without", "exact", "near", "placeholders", "--output", str(tmp_path / "none")]
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "6.jpg").write_bytes(pictures["6.jpg"])
    assert duplicates.main([str(folder), *flags, "--evaluation", str(tmp_path / "test")]) == 0
    told = capsys.readouterr()
    assert "dropped {'evaluation_picture': 1}" in told.out and not told.err
    assert run(raw, tmp_path / "web") == 0
    assert not capsys.readouterr().err, "the first picture stays, and the copies have captions of the web"
