"""Streaming when a server fails, a shard is missing or damaged, or a reader leaves: counted, or one line."""

import io
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.data import streamed_tar
from pipeline.data.loader import build_loader, open_source
from pipeline.data.stream import UnreadableShardError
from tests.support.streamed_recipes import ALL_KEYS, NAMES, add, keys, keys_of, recipe_of
from tests.support.tar_server import TarServer
from tests.support.tiny_shards import tiny_jpeg


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_server_that_fails_for_a_while_changes_nothing(
    server: TarServer, num_workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = recipe_of(f"{server.url}/{NAMES}", num_workers)
    undisturbed = keys(recipe)
    server.troubles |= {
        "tiny-000-000003.tar": [503, "cut", "cut"],
        "tiny-000-000005.tar": [500],
        "tiny-000-000000.tar": ["cut"],
    }
    assert keys(recipe) == undisturbed
    assert not any(server.troubles.values())
    if num_workers == 0:  # what a worker logs goes to its own standard error
        assert "503" in caplog.text and "again in" in caplog.text


@pytest.mark.parametrize(
    ("urls", "named", "num_workers"),
    [
        ("http://127.0.0.1:9/{0..3}.tar", "refused", 0),
        ("SERVER/none-{0..3}.tar", "404", 2),
        ("pipe:cat no_such_{0..3}.tar", "the command ended with status 1", 2),
        ("pipe:echo this is not a tar {0..3}", "ReadError", 0),
    ],
)
def test_a_shard_that_cannot_be_had_is_one_line(server: TarServer, urls: str, named: str, num_workers: int) -> None:
    from pipeline.command_line import one_line

    recipe = recipe_of(urls.replace("SERVER", server.url).replace("SHARDS", str(server.folder)), num_workers)
    with pytest.raises(UnreadableShardError, match=named) as fault:
        keys(recipe)
    line = one_line(fault.value)
    assert line.startswith("data.urls ") and "failed 4 times" in line and "\n" not in line


@pytest.mark.parametrize("command", ["cat SHARD; exit 7 #", "head -c 9000 SHARD"])
def test_a_command_that_fails_at_its_end_gives_what_came_before(server: TarServer, command: str) -> None:
    command = command.replace("SHARD", f"{server.folder}/tiny-000-00000{{0..3}}.tar")
    recipe = recipe_of(f"pipe:{command}", steps=4)
    loader: Any = build_loader(recipe, open_source(recipe, 1), keys_of, 0, 1, 0)  # type: ignore[arg-type]
    samples = [each for micro in loader for each in micro]
    assert {key for key, _ in samples} <= ALL_KEYS and sum(corrupt for _, corrupt in samples) >= 1


def test_one_shard_that_cannot_be_had_does_not_end_a_run(server: TarServer, caplog: pytest.LogCaptureFixture) -> None:
    (server.folder / "tiny-000-000002.tar").unlink()
    recipe = recipe_of(f"{server.url}/{NAMES}", steps=24)
    loader: Any = build_loader(recipe, open_source(recipe, 1), keys_of, 0, 1, 0)  # type: ignore[arg-type]
    samples = [each for micro in loader for each in micro]
    assert len({key for key, _ in samples}) == len(ALL_KEYS) - 6 and sum(corrupt for _, corrupt in samples) >= 1
    assert "tiny-000-000002.tar failed 4 times" in caplog.text


def test_damaged_samples_are_passed_over_and_counted(server: TarServer) -> None:
    content = bytearray((server.folder / "tiny-000-000002.tar").read_bytes())
    with tarfile.open(server.folder / "tiny-000-000002.tar") as tar:
        members = tar.getmembers()
    damaged = [members[2], members[7]]  # a picture, and another sample's JSON
    for member in damaged:
        content[member.offset_data : member.offset_data + 6] = b"damage"
    (server.folder / "tiny-000-000002.tar").write_bytes(bytes(content))
    recipe = recipe_of(f"{server.url}/{NAMES}", steps=24)
    loader: Any = build_loader(recipe, open_source(recipe, 1), keys_of, 0, 1, 0)  # type: ignore[arg-type]
    samples = [each for micro in loader for each in micro]
    lost = {member.name.partition(".")[0] for member in damaged}
    one_pass = 2 * (len(ALL_KEYS) - 2)  # so many samples hold what is counted in two passes, but for those at the end
    assert {key for key, _ in samples} == ALL_KEYS - lost
    assert 3 <= sum(corrupt for _, corrupt in samples[:one_pass]) <= 4


def test_captions_without_words_are_passed_over_and_counted(tmp_path: Path) -> None:
    """As img2dataset writes them where its table had none."""
    rng = np.random.default_rng(0)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number, text in enumerate((b"", b"a red picture", b"   ", b"...", b"a caf\xe9")):
            add(tar, f"{number}.jpg", tiny_jpeg(rng, "red", "dark", 40, 40))
            add(tar, f"{number}.txt", text)
    recipe = recipe_of(f"pipe:cat {tmp_path}/a.tar", steps=2)
    loader: Any = build_loader(recipe, open_source(recipe, 1), keys_of, 0, 1, 0)  # type: ignore[arg-type]
    samples = [each for micro in loader for each in micro]
    assert {key[-1] for key, _ in samples} == {"1"} and sum(corrupt for _, corrupt in samples) >= 4 * (len(samples) - 1)


def test_a_caption_in_img2datasets_json_is_enough(tmp_path: Path) -> None:
    """Its keys count within a tar, so two tars have the same ones. Without a caption a sample is counted."""
    rng = np.random.default_rng(0)
    captions = ['"a red picture"', '"a blue picture"', "null", '""', "[1]", '"\\ud800"']
    for name in "ab":
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for number, caption in enumerate(captions):
                told = f'{{"caption": {caption}, "key": "{number:09}", "status": "success", "sha256": "{"0" * 64}"}}'
                add(tar, f"{number:09}.jpg", tiny_jpeg(rng, "red", "dark", 40, 40))
                add(tar, f"{number:09}.json", told.encode())
    recipe = recipe_of(f"pipe:cat {tmp_path}/{{a,b}}.tar", steps=4)
    loader: Any = build_loader(recipe, open_source(recipe, 1), keys_of, 0, 1, 0)  # type: ignore[arg-type]
    samples = [each for micro in loader for each in micro]
    assert {key.partition(str(tmp_path))[2] for key, _ in samples} == {
        f"/{name}.tar/{number:09}" for name in "ab" for number in range(2)
    }
    assert sum(corrupt for _, corrupt in samples) >= 2 * (len(samples) - 4)


def test_pictures_of_other_formats_are_given_too(tmp_path: Path) -> None:
    jpeg = tiny_jpeg(np.random.default_rng(0), "red", "dark", 40, 40)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for ending, kind in (("jpg", ""), ("jpeg", ""), ("PNG", "PNG"), ("webp", "WEBP"), ("gif", "GIF")):
            packed = io.BytesIO()
            Image.open(io.BytesIO(jpeg), formats=["JPEG"]).save(packed, kind or "JPEG")
            add(tar, f"{ending}.{ending}", packed.getvalue())
            add(tar, f"{ending}.txt", b"a red picture")
    recipe = recipe_of(f"pipe:cat {tmp_path}/a.tar", steps=3)
    loader: Any = build_loader(recipe, open_source(recipe, 1), keys_of, 0, 1, 0)  # type: ignore[arg-type]
    samples = [each for micro in loader for each in micro]
    assert {key.rpartition("/")[2] for key, _ in samples} == {"jpg", "jpeg", "PNG", "webp"}


def test_a_part_of_a_key_is_its_picture_where_it_has_no_other(tmp_path: Path) -> None:
    """`b.c.jpg` is a picture of `b`, as webdataset has it. Several, or a text far from its picture, are counted."""
    rng = np.random.default_rng(0)
    picture = tiny_jpeg(rng, "red", "dark", 40, 40)
    named = ["a.jpg", "a.face.jpg", "a.txt", "b.c.jpg", "b.c.txt", "d.1.jpg", "d.1.txt", "d.2.jpg", "d.2.txt"]
    others = ["h.0.jpg", "h.5.txt", "i.jpg", "i.text.txt", "j.face.jpg", "j.txt", "k.jpg", "k.1.jpg", "k.1.txt"]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in [*named, "e.jpg", "e.png", "e.txt", "f.jpg", "g.jpg", "g.txt", "f.txt", *others]:
            add(tar, name, b"a red picture" if name.endswith("txt") else picture)
    recipe = recipe_of(f"pipe:cat {tmp_path}/a.tar", steps=3)
    loader: Any = build_loader(recipe, open_source(recipe, 1), keys_of, 0, 1, 0)  # type: ignore[arg-type]
    samples = [each for micro in loader for each in micro]
    assert {key[-1] for key, _ in samples} == {"a", "b", "g", "i", "j"}
    assert sum(corrupt for _, corrupt in samples[:10]) >= 6


def test_files_that_stand_apart_name_the_way_out(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("a.jpg", "b.jpg", "a.txt", "b.txt", "c.jpg"):
            add(tar, name, tiny_jpeg(np.random.default_rng(0), "red", "dark", 40, 40) if "jpg" in name else b"1")
    with pytest.raises(UnreadableShardError, match=r"[abc]: has no .* beside its other files; make a"):
        keys(recipe_of(f"pipe:cat {tmp_path}/a.tar; true {{0..1}}", 0))


def test_a_shard_whose_rest_is_damaged_gives_what_is_before_it_and_counts_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number in range(6):
            add(tar, f"{number}.jpg", tiny_jpeg(rng, "red", "dark", 200, 200))
            add(tar, f"{number}.txt", b"text")
    with tarfile.open(tmp_path / "a.tar") as tar:
        offset = tar.getmembers()[6].offset
    content = bytearray((tmp_path / "a.tar").read_bytes())
    content[offset : offset + 512] = b"x" * 512
    (tmp_path / "a.tar").write_bytes(bytes(content))
    recipe = recipe_of(f"pipe:cat {tmp_path}/a.tar", steps=2)
    loader: Any = build_loader(recipe, open_source(recipe, 1), keys_of, 0, 1, 0)  # type: ignore[arg-type]
    samples = [each for micro in loader for each in micro]
    assert {key[-1] for key, _ in samples} == {"0", "1", "2"} and sum(corrupt for _, corrupt in samples) >= 4


@pytest.mark.parametrize("num_workers", [0, 2])
def test_shards_without_a_readable_sample_end_in_one_line(tmp_path: Path, num_workers: int) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "1.jpg", b"no picture")
        add(tar, "1.txt", b"text")
    recipe = recipe_of(f"pipe:cat {tmp_path}/a.tar; true {{0..1}}", num_workers)
    with pytest.raises(UnreadableShardError, match="no readable sample"):
        keys(recipe)


def test_a_reader_that_leaves_early_leaves_no_command_behind(tmp_path: Path) -> None:
    """A command that would go on for long is ended, with what it started, when nobody reads it any more."""
    ids = tmp_path / "ids"
    command = f"pipe:sleep 600 & echo $$ $! > {ids}; head -c 2000 /dev/zero; wait"
    with pytest.raises(KeyError), streamed_tar.opened(command) as tar:
        tar.read(512)
        raise KeyError
    for number in ids.read_text().split():
        deadline = time.monotonic() + 60
        while is_running(int(number)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not is_running(int(number))


def is_running(number: int) -> bool:
    stat = Path(f"/proc/{number}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"
