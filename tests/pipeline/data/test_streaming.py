"""Streaming: real HTTP and real pipes give the batches that the same shards give by seeking; mistakes are one line."""

import logging
import tarfile
from collections import Counter
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_prep.index import index_shards
from pipeline.config import QFormer, Recipe
from pipeline.data import batch, streaming
from pipeline.data.batch import Batch
from pipeline.data.captions import clean_caption
from pipeline.data.loader import build_loader, open_source
from pipeline.models.build import build_tokenizer
from tests.support.streamed_recipes import ALL_KEYS, NAMES, PER_SHARD, SHARDS, add, keys, recipe_of
from tests.support.tar_server import TarServer
from tests.support.tiny_shards import tiny_jpeg, tiny_sample

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
