"""Shards of small samples to stream, and a server that has them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.data import streaming
from tests.support.streamed_recipes import PER_SHARD, SHARDS
from tests.support.tar_server import TarServer, serving
from tests.support.tiny_shards import write_tiny_shards


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(streaming, "BACK_OFF_S", 0.01)
    write_tiny_shards(tmp_path / "shards", SHARDS * PER_SHARD, samples_per_shard=PER_SHARD, captions_per_sample=3)
    return tmp_path / "shards"


@pytest.fixture
def server(shards: Path) -> Iterator[TarServer]:
    with serving(shards) as server:
        yield server
