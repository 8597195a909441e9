"""Streaming: real HTTP and real pipes give the batches that the same shards give by seeking; faults are one line."""

import io
import logging
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_prep.index import index_shards
from pipeline.config import QFormer, Recipe, parse_recipe
from pipeline.data import batch, streaming
from pipeline.data.batch import Batch
from pipeline.data.captions import clean_caption
from pipeline.data.loader import build_loader, open_source
from pipeline.data.stream import UnreadableShardError
from pipeline.models.build import build_tokenizer
from tests.support.tar_server import TarServer, serving
from tests.support.tiny_shards import tiny_jpeg, tiny_sample, write_tiny_shards

SHARDS, PER_SHARD = 8, 6
NAMES = f"tiny-000-{{000000..{SHARDS - 1:06d}}}.tar"


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(streaming, "BACK_OFF_S", 0.01)
    write_tiny_shards(tmp_path / "shards", SHARDS * PER_SHARD, samples_per_shard=PER_SHARD, captions_per_sample=3)
    return tmp_path / "shards"


@pytest.fixture
def server(shards: Path) -> Iterator[TarServer]:
    with serving(shards) as server:
        yield server


def recipe_of(urls: str | list[str] | None = None, num_workers: int = 0, steps: int = 12, **data: Any) -> Recipe:
    content = {
        "stage": 1,
        "vision": {"name": "x", "image_size_px": 8},
        "data": {"num_workers": num_workers, **({"urls": urls} if urls else {}), **data},
        "batch": {"global_size": 8, "micro_size": 2},
        "run": {"output": "none", "steps": steps},
    }
    return parse_recipe(content)


def keys_of(samples: Any) -> list[tuple[str, int]]:
    return [(sample.key, sample.corrupt) for sample in samples]


def keys(recipe: Recipe, rank: int = 0, world_size: int = 1, first_step: int = 0) -> list[str]:
    """The keys of this rank's samples, in order."""
    loader: Any = build_loader(recipe, open_source(recipe, world_size), keys_of, rank, world_size, first_step)  # type: ignore[arg-type]
    return [key for micro in loader for key, _ in micro]


ALL_KEYS = {tiny_sample(number, 0, 3, "web", "tiny").key for number in range(SHARDS * PER_SHARD)}
SOURCES: dict[str, Callable[[TarServer], str]] = {
    "http": lambda server: f"{server.url}/{NAMES}",
    "pipe": lambda server: f"pipe:cat {server.folder}/{NAMES}",
    "curl": lambda server: f"pipe:curl -sf {server.url}/{NAMES}",
}


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", SOURCES)
def test_each_pass_of_all_readers_holds_each_sample_once(server: TarServer, kind: str, num_workers: int) -> None:
    recipe = recipe_of(SOURCES[kind](server), num_workers, steps=12)  # 12 x 8 samples: two passes of 48
    ranks = [keys(recipe, rank, 2) for rank in range(2)]
    assert [len(rank) for rank in ranks] == [48, 48]  # whatever a rank reads, it has as many steps
    assert set(Counter(key for rank in ranks for key in rank).values()) == {2}
    assert {key for rank in ranks for key in rank} == ALL_KEYS and not set(ranks[0]) & set(ranks[1])
    assert ranks[0][:24] != ranks[0][24:] and (num_workers or sorted(ranks[0][:24]) == sorted(ranks[0][24:]))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_those_of_seeking_but_for_order_and_draws(
    server: TarServer, shards: Path, towers: Path, num_workers: int
) -> None:
    """The same images by id, each of its own colour and with one of its own captions' tokens, as seeking gives them."""
    index_shards([shards], shards.parent / "train.json")
    tokenizer = build_tokenizer(QFormer(bert=str(towers / "bert")))
    collate = batch.collate_for_qformer(tokenizer, 32)

    def samples_of(recipe: Recipe) -> dict[int, list[tuple[torch.Tensor, list[int]]]]:
        """Image id -> the mean colour and the tokens of each time it came."""
        found: dict[int, list[tuple[torch.Tensor, list[int]]]] = {}
        for made in build_loader(recipe, open_source(recipe, 1), collate, 0, 1, 0):
            assert isinstance(made, Batch) and made.pixels_B3SS.dtype == torch.uint8 and made.corrupt == 0
            for row, identity in enumerate(made.image_ids_B.tolist()):
                tokens = made.target.ids[row][made.target.is_token[row]].tolist()
                found.setdefault(identity, []).append((made.pixels_B3SS[row].float().mean(dim=(1, 2)), tokens))
        return found

    streamed = samples_of(recipe_of(f"{server.url}/{NAMES}", num_workers, 18))
    sought = samples_of(recipe_of(None, num_workers, 18, manifest=str(shards.parent / "train.json")))
    assert streamed.keys() == sought.keys() and len(streamed) == SHARDS * PER_SHARD
    allowed = {tuple(tokenizer(clean_caption(c)).input_ids) for n in range(48) for c in captions_of(n)}
    for identity in streamed:
        assert len(streamed[identity]) == len(sought[identity]) == 3
        for colour, tokens in streamed[identity]:
            assert tuple(tokens) in allowed and (colour - sought[identity][0][0]).abs().max() < 12
    draws = {(identity, *tokens) for identity, times in streamed.items() for _, tokens in times}
    assert len(draws) > 1.5 * len(streamed)  # not the same caption every time


def captions_of(number: int) -> list[str]:
    captions: list[str] = tiny_sample(number, 0, 3, "web", "tiny").record["captions"]
    return captions


def test_a_resume_begins_another_pass_and_the_same_start_gives_the_same_samples(server: TarServer) -> None:
    recipe = recipe_of(f"{server.url}/{NAMES}")
    first = keys(recipe)
    assert keys(recipe) == first
    resumed = keys(recipe, first_step=4)
    assert len(resumed) == 8 * 8 and set(resumed[:48]) == ALL_KEYS
    assert resumed not in (first[4 * 8 :], first[: 8 * 8])  # neither going on nor from the begin again


def test_pictures_with_plain_texts_are_read_too(tmp_path: Path) -> None:
    jpeg = tiny_jpeg(np.random.default_rng(0), "red", "dark", 32, 32)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number in range(4):
            add(tar, f"{number:05d}.jpg", jpeg)
            add(tar, f"{number:05d}.txt", f"A Picture: {number}".encode())
            if number % 2:
                add(tar, f"{number:05d}.json", b'{"url": "as img2dataset writes it"}')
    recipe = recipe_of(f"pipe:cat {tmp_path}/a.tar", steps=1)

    def texts_of(samples: Any) -> list[str]:
        return [sample.caption for sample in samples]

    loader: Any = build_loader(recipe, open_source(recipe, 1), texts_of, 0, 1, 0)  # type: ignore[arg-type]
    found = Counter(caption for micro in loader for caption in micro)
    assert found == Counter({f"a picture {number}": 2 for number in range(4)})


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


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
        ("pipe:cat SHARDS/tiny-000-000000.tar; exit 7 # {0..3}", "the command ended with status 7", 0),
        ("pipe:head -c 9000 SHARDS/tiny-000-00000{0..3}.tar", "unexpected end of data|before the tar's end", 0),
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
    with pytest.raises(KeyError), streaming._opened(command) as tar:
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


def test_what_streaming_cannot_promise_is_said_once(server: TarServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    keys(recipe_of(f"{server.url}/{NAMES}"))
    [line] = [record.getMessage() for record in caplog.records if "streaming" in record.getMessage()]
    for promise in ("order", "resume", "run.steps", "ranks"):
        assert promise in line


def test_too_few_shards_for_the_readers_is_one_line_with_the_numbers() -> None:
    recipe = recipe_of("http://x/{0..5}.tar", num_workers=4)
    with pytest.raises(ValueError, match=r"data\.urls: 6 shards are too few for 2 ranks x 4 workers = 8 readers"):
        open_source(recipe, 2)
    open_source(recipe, 1)


@pytest.mark.parametrize(
    ("urls", "named"),
    [
        ("shards/{0..3}.tar", r"data\.urls shards/\{0\.\.3\}\.tar: must begin with https:// or http:// or pipe:"),
        ("file:///etc/{0..3}.tar", "must begin with"),
        (["http://x/1.tar", "http://x/{0..2}.tar"], r"data\.urls http://x/1\.tar: is named twice"),
        ("http://x/{0..2.tar}}", r"data\.urls http://x/\{0\.\.2\.tar\}\}: "),
    ],
)
def test_urls_that_cannot_be_are_named(urls: str | list[str], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        open_source(recipe_of(urls), 1)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({}, "data: needs exactly one of manifest and urls"),
        ({"manifest": "x", "urls": "http://x/1.tar"}, "data: needs exactly one of manifest and urls"),
        ({"urls": []}, "data: needs exactly one of manifest and urls"),
        ({"urls": "http://x/1.tar", "source_weights": {"a": 2.0}}, "data: source_weights: cannot be used with urls"),
    ],
)
def test_a_recipe_names_one_place_of_samples(data: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        recipe_of(**data)


def test_the_digest_is_that_of_the_expanded_urls() -> None:
    digests = [streaming.expand_urls(urls).digest() for urls in (["http://x/{0..1}"], ["http://x/0", "http://x/1"])]
    assert digests[0] == digests[1] != streaming.expand_urls(["http://x/{0..2}"]).digest()


def test_a_pass_is_shuffled_across_shards(server: TarServer) -> None:
    urls = streaming.expand_urls([f"{server.url}/{NAMES}"]).urls
    shards = [raw["__url__"] for raw in islice(streaming._one_pass(urls, "seed"), 24)]
    assert sum(one != other for one, other in pairwise(shards)) > 12
