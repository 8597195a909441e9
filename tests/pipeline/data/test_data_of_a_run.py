"""Whole runs of two ranks on weighted sources and on streamed shards: what they say, keep and refuse when rerun."""

import contextlib
import io
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml

from data_prep.index import index_shards
from pipeline.data.streaming import expand_urls
from tests.support.gloo_ranks import run_on_ranks
from tests.support.tiny_shards import write_tiny_shards
from tests.support.tiny_towers import tiny_recipe

STEPS = 3
Write = Callable[..., list[str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tiny_shards(tmp_path / "web", 24, samples_per_shard=6, source="web")
    write_tiny_shards(tmp_path / "human", 6, 1, samples_per_shard=6, captions_per_sample=3, source="human")
    index_shards([tmp_path / "web", tmp_path / "human"], tmp_path / "train.json")
    return tmp_path


@pytest.fixture
def write(folder: Path, towers: Path) -> Write:
    def write(**data: Any) -> list[str]:
        content: dict[str, Any] = tiny_recipe(towers, folder / "train.json", folder / "run", 1)
        content["run"] |= {"steps": STEPS, "checkpoint_every_steps": 100}
        content["data"] |= data
        (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
        return ["--recipe", str(folder / "recipe.yaml")]

    return write


def train_and_log(arguments: list[str]) -> tuple[int, str, str]:
    """`pipeline.train` in this rank: exit code, standard output, and the log with standard errors."""
    from pipeline import train

    logging.getLogger().handlers.clear()  # what was imported in this rank's process may have set some
    with (
        mock.patch.object(sys, "argv", ["pipeline.train", *arguments]),
        contextlib.redirect_stdout(io.StringIO()) as output,
        contextlib.redirect_stderr(io.StringIO()) as errors,
    ):
        code = train.main()
    return code, output.getvalue(), errors.getvalue()


def state_of(folder: Path) -> tuple[Path, dict[str, Any]]:
    path = folder / "run" / "checkpoints" / f"step_{STEPS:08d}" / "state.json"
    return path, json.loads(path.read_text())


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_run_on_streamed_shards_ends_and_knows_its_urls_again(folder: Path, write: Write, num_workers: int) -> None:
    urls = f"pipe:cat {folder}/web/web-000-00000{{0..3}}.tar"
    arguments = write(manifest=None, urls=urls, num_workers=num_workers)
    (code, output, log), (other_code, _, other_log) = run_on_ranks(2, train_and_log, arguments)
    assert code == other_code == 0, log
    assert log.count("streaming from data.urls") == 1 and "streaming from data.urls" not in other_log
    assert "samples" in output and state_of(folder)[1]["manifest"] == expand_urls([urls]).digest()
    (code, output, log), _ = run_on_ranks(2, train_and_log, arguments)
    assert code == 0 and "already complete" in output
    (code, _, log), _ = run_on_ranks(2, train_and_log, write(manifest=None, urls=urls.replace("0..3", "0..2")))
    assert code == 1 and "data.urls was" in log.splitlines()[-1]


def test_a_run_on_weighted_sources_says_what_its_epoch_is_and_refuses_other_weights(folder: Path, write: Write) -> None:
    (code, _, log), _ = run_on_ranks(2, train_and_log, write(source_weights={"web": 0.5, "human": 2.0}))
    assert code == 0, log
    [line] = [line for line in log.splitlines() if "an epoch" in line]
    assert "30 samples in 5 shards; an epoch has 24 in 6 steps and leaves out 0; 3 steps are 0.50 epochs" in line
    (code, _, log), _ = run_on_ranks(2, train_and_log, write(source_weights={"web": 0.5}))
    assert code == 1 and "data.source_weights.human was 2.0" in log.splitlines()[-1]
    (code, _, log), _ = run_on_ranks(2, train_and_log, write(source_weights={"wbe": 0.5}))
    assert code == 1 and log.splitlines()[-1].endswith(
        "data.source_weights.wbe: the manifest has no such source; there are human, web"
    )


def test_a_run_from_before_there_were_weights_is_known_again(folder: Path, write: Write) -> None:
    arguments = write()
    (code, _, log), _ = run_on_ranks(2, train_and_log, arguments)
    assert code == 0, log
    path, state = state_of(folder)
    del state["settings"]["data"]["source_weights"], state["settings"]["data"]["urls"]
    path.write_text(json.dumps(state))
    (code, output, log), _ = run_on_ranks(2, train_and_log, arguments)
    assert code == 0 and "already complete" in output, log
